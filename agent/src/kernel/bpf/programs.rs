//! The programs: those of an earlier start where they are the same, else loaded afresh.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::MapInfo;
use gate25_common::names;
use sha2::{Digest as _, Sha256};

use super::link::Object;
use super::pins::{Pins, make_folder};
use super::{BpfError, LoadOptions, link, object, program_error};

/// Bytes of the digest that name a build's folder.
const DIGEST_BYTES: usize = 8;

/// A program in the kernel.
pub(super) struct Program {
    name: &'static str,
    fd: OwnedFd,
    id: u32,
}

impl Program {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The kernel's number of it.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

/// All programs of one build.
pub(super) struct Programs {
    digest: String,
    programs: Vec<Program>,
}

impl Programs {
    /// The programs that an earlier agent left, if they are what `options` would load and work on
    /// the tables that are pinned now.
    pub(super) fn reopen(options: &LoadOptions, pins: &Pins) -> Result<Option<Self>, BpfError> {
        let digest = digest(options);
        let folder = pins.programs(&digest);
        let tables = pinned_tables(pins)?;
        let mut programs = Vec::new();
        for name in names::PROGRAMS {
            match reopen(&folder.join(name), name, &tables) {
                Some(program) => programs.push(program),
                None => return Ok(None),
            }
        }
        Ok(Some(Self { digest, programs }))
    }

    /// The programs of an object that was loaded with `options`.
    pub(super) fn of(ebpf: &mut Ebpf, options: &LoadOptions) -> Result<Self, BpfError> {
        let mut programs = Vec::new();
        for name in names::PROGRAMS {
            let missing = BpfError::Missing {
                kind: "program",
                name,
            };
            let program = ebpf.program_mut(name).ok_or(missing)?;
            let fd = program.fd().map_err(|error| program_error(name, error))?;
            let fd = fd
                .as_fd()
                .try_clone_to_owned()
                .map_err(BpfError::Descriptor)?;
            let info = program.info().map_err(|error| program_error(name, error))?;
            let id = info.id();
            programs.push(Program { name, fd, id });
        }
        Ok(Self {
            digest: digest(options),
            programs,
        })
    }

    /// Names the build among others.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The program of this name.
    pub(super) fn get(&self, name: &'static str) -> Result<&Program, BpfError> {
        self.programs
            .iter()
            .find(|program| program.name == name)
            .ok_or(BpfError::Missing {
                kind: "program",
                name,
            })
    }

    /// Leaves them to the next start.
    pub(super) fn pin(&self, pins: &Pins) -> Result<(), BpfError> {
        let folder = pins.programs(&self.digest);
        make_folder(&folder)?;
        for program in &self.programs {
            let path = folder.join(program.name);
            super::pins::remove(&path)?;
            link::pin(program.fd(), &path).map_err(|source| BpfError::Pin {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

fn reopen(path: &Path, name: &'static str, tables: &BTreeSet<u32>) -> Option<Program> {
    let fd = link::open(path).ok()?;
    if link::kind(fd.as_fd()).ok()? != Some(Object::Program) {
        return None;
    }
    // aya would open the program by its number for this, which takes CAP_SYS_ADMIN.
    let (id, used) = link::program_and_maps(fd.as_fd()).ok()?;
    let used: BTreeSet<u32> = used.into_iter().collect();
    // The one table that is not pinned holds the constants.
    let own = used.difference(tables).count();
    (own <= 1 && used.len() > own).then(|| Program { name, fd, id })
}

/// The kernel's numbers of the tables that are pinned.
fn pinned_tables(pins: &Pins) -> Result<BTreeSet<u32>, BpfError> {
    let mut ids = BTreeSet::new();
    for name in names::MAPS {
        let path = pins.map(name);
        if path.exists() {
            let info = MapInfo::from_pin(path).map_err(|source| BpfError::Table {
                action: "look at",
                map: name,
                source,
            })?;
            ids.insert(info.id());
        }
    }
    Ok(ids)
}

/// All that went into the programs: the object and its constants.
fn digest(options: &LoadOptions) -> String {
    let LoadOptions {
        ports,
        host,
        guard,
        notice,
        returns,
        layout,
        debug_lines,
        pins: _,
    } = options;
    let mut hash = Sha256::new();
    hash.update(object(*debug_lines));
    hash.update(format!(
        "{ports:?} {host:?} {guard:?} {notice:?} {returns:?} {layout:?} {debug_lines:?}"
    ));
    let hash = hash.finalize();
    hash.iter()
        .take(DIGEST_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
