//! The folder `gate25` on the BPF filesystem: `v<ABI>/<TABLE>`, `v<ABI>/links/<place>`,
//! `v<ABI>/programs/<digest>/<program>`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{LeftoverError, Removals, failed, objects};
use crate::kernel::bpf::pins::{LINKS, PROGRAMS, version};
use crate::kernel::bpf::place::{Place, canonical};
use crate::kernel::removal::Removal;

/// Bytes that the kernel keeps of a name.
const NAME_BYTES: usize = 15;

/// Everything that agents have pinned.
#[derive(Debug, Default)]
pub struct Survey {
    /// By version of the layout.
    pub versions: Vec<Version>,
    /// What is not gate25's.
    pub foreign: Vec<PathBuf>,
}

/// What agents of one version of the layout have pinned.
#[derive(Debug, Default)]
pub struct Version {
    /// The version.
    pub number: u32,
    /// Tables and how many entries each holds, where it is filled entry by entry.
    pub tables: Vec<(String, Option<u64>)>,
    /// Links, and whether each still attaches its program where its name says.
    pub links: Vec<(Place, bool)>,
    /// Programs by name.
    pub programs: Vec<String>,
}

/// Programs of gate25's, and where they are to be.
#[derive(Debug, Clone, Default)]
pub struct Pinned {
    /// By the kernel's numbers, each with its name.
    pub programs: BTreeMap<u32, String>,
    /// What the names of pinned links say, whether they still attach something there or not.
    pub places: BTreeSet<Place>,
}

/// A file that is gate25's by its place.
enum Own {
    Link(Place),
    Program(String),
    Table(String),
}

/// Files and folders, each kind in the order in which it is to be removed.
#[derive(Default)]
struct Found {
    files: Vec<(u32, PathBuf, Own)>,
    /// Deepest first.
    folders: Vec<PathBuf>,
    foreign: Vec<PathBuf>,
}

/// Describes what is in the folder.
pub(super) fn survey(folder: &Path) -> Result<Survey, LeftoverError> {
    let Found {
        files,
        folders: _,
        foreign,
    } = find(folder)?;
    let mut survey = Survey {
        versions: Vec::new(),
        foreign,
    };
    for (number, path, own) in files {
        let known = survey.versions.iter_mut().find(|it| it.number == number);
        let version = match known {
            Some(version) => version,
            None => {
                survey.versions.push(Version {
                    number,
                    ..Version::default()
                });
                match survey.versions.last_mut() {
                    Some(version) => version,
                    None => continue,
                }
            }
        };
        match own {
            Own::Link(place) => {
                let attached = is_attached(place, &path)?;
                version.links.push((place, attached));
            }
            Own::Program(name) => version.programs.push(name),
            Own::Table(name) => {
                let entries = objects::entries(&path).map_err(failed("read table", &path))?;
                version.tables.push((name, entries));
            }
        }
    }
    Ok(survey)
}

/// Where the links in the folder attach programs.
pub(super) fn links(folder: &Path) -> Result<Vec<Place>, LeftoverError> {
    let mut places = Vec::new();
    for (_, path, own) in find(folder)?.files {
        match own {
            Own::Link(place) if is_attached(place, &path)? => places.push(place),
            Own::Link(_) | Own::Program(_) | Own::Table(_) => {}
        }
    }
    Ok(places)
}

/// The programs in the folder, and those that links in it attach.
pub(super) fn pinned(folder: &Path) -> Result<Pinned, LeftoverError> {
    let mut pinned = Pinned::default();
    for (_, path, own) in find(folder)?.files {
        match own {
            Own::Program(name) => {
                let number = objects::program(&path).map_err(failed("look at", &path))?;
                pinned.programs.insert(number, name);
            }
            Own::Link(place) => {
                let link = objects::link(&path).map_err(failed("look at", &path))?;
                if let Some(number) = link {
                    pinned.programs.insert(number, place.program().to_owned());
                    pinned.places.insert(place);
                }
            }
            Own::Table(_) => {}
        }
    }
    Ok(pinned)
}

/// Whether the link attaches its program where its name says.
fn is_attached(named: Place, path: &Path) -> Result<bool, LeftoverError> {
    let found = objects::place(path).map_err(failed("look at link", path))?;
    Ok(found == Some(named))
}

/// Removes what is gate25's in the folder, and the folder if nothing else is in it.
pub(super) fn remove(folder: &Path, removal: Removal, removals: &mut Removals) {
    let Found {
        mut files,
        folders,
        foreign,
    } = match find(folder) {
        Ok(found) => found,
        Err(error) => {
            removals.errors.push(error);
            return;
        }
    };
    // Programs first stop being called, then go, then their tables.
    files.sort_by_key(|(_, path, own)| {
        let rank = match own {
            Own::Link(_) => 0,
            Own::Program(_) => 1,
            Own::Table(_) => 2,
        };
        (rank, path.clone())
    });
    for (_, path, _) in files {
        take(path, |path| fs::remove_file(path), removal, removals);
    }
    for path in folders {
        let holds_foreign = foreign.iter().any(|other| other.starts_with(&path));
        if !holds_foreign {
            take(path, |path| fs::remove_dir(path), removal, removals);
        }
    }
    removals.foreign.extend(foreign);
}

fn take(
    path: PathBuf,
    remove: impl FnOnce(&Path) -> io::Result<()>,
    removal: Removal,
    removals: &mut Removals,
) {
    let taken = match removal {
        Removal::Real => remove(&path),
        Removal::DryRun => Ok(()),
    };
    match taken {
        Ok(()) => removals.pins.push(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => removals.errors.push(failed("remove", &path)(source)),
    }
}

fn find(folder: &Path) -> Result<Found, LeftoverError> {
    let mut found = Found::default();
    let (folders, files) = list(folder)?;
    found
        .foreign
        .extend(files.into_iter().map(|(_, path)| path));
    for (name, path) in folders {
        match version(&name) {
            Some(number) => find_version(number, path, &mut found)?,
            None => found.foreign.push(path),
        }
    }
    found.folders.push(folder.to_owned());
    Ok(found)
}

fn find_version(number: u32, folder: PathBuf, found: &mut Found) -> Result<(), LeftoverError> {
    let (folders, files) = list(&folder)?;
    sort_out(number, files, |name| table(name).map(Own::Table), found);
    for (name, path) in folders {
        match name.as_str() {
            LINKS => {
                let (folders, files) = list(&path)?;
                sort_out(number, files, |name| place(name).map(Own::Link), found);
                found
                    .foreign
                    .extend(folders.into_iter().map(|(_, path)| path));
                found.folders.push(path);
            }
            PROGRAMS => find_programs(number, path, found)?,
            _ => found.foreign.push(path),
        }
    }
    found.folders.push(folder);
    Ok(())
}

fn find_programs(number: u32, folder: PathBuf, found: &mut Found) -> Result<(), LeftoverError> {
    let (digests, files) = list(&folder)?;
    found
        .foreign
        .extend(files.into_iter().map(|(_, path)| path));
    for (digest, path) in digests {
        if digest.is_empty() || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            found.foreign.push(path);
            continue;
        }
        let (folders, files) = list(&path)?;
        sort_out(number, files, |name| program(name).map(Own::Program), found);
        found
            .foreign
            .extend(folders.into_iter().map(|(_, path)| path));
        found.folders.push(path);
    }
    found.folders.push(folder);
    Ok(())
}

fn sort_out(
    number: u32,
    files: Vec<(String, PathBuf)>,
    own: impl Fn(&str) -> Option<Own>,
    found: &mut Found,
) {
    for (name, path) in files {
        match own(&name) {
            Some(own) => found.files.push((number, path, own)),
            None => found.foreign.push(path),
        }
    }
}

/// Names and paths, in order.
type Entries = Vec<(String, PathBuf)>;

/// The folders and everything else in a folder, by name. Links are not followed.
fn list(folder: &Path) -> Result<(Entries, Entries), LeftoverError> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let entry = entry.map_err(failed("list", folder))?;
        let kind = entry.file_type().map_err(failed("look at", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            folders.push((name, entry.path()));
        } else if kind.is_file() {
            files.push((name, entry.path()));
        } else {
            // A name that no pin of ours has.
            files.push((String::new(), entry.path()));
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn place(name: &str) -> Option<Place> {
    // Not yet in the place of another one, when the agent was killed.
    let name = name.strip_prefix("new-").unwrap_or(name);
    // The first layout had the index alone.
    let by_index = || canonical(name).map(Place::Interface);
    name.parse().ok().or_else(by_index)
}

fn program(name: &str) -> Option<String> {
    named(name, |byte| byte.is_ascii_lowercase())
}

fn table(name: &str) -> Option<String> {
    named(name, |byte| byte.is_ascii_uppercase())
}

fn named(name: &str, letter: impl Fn(u8) -> bool) -> Option<String> {
    let fits = (1..=NAME_BYTES).contains(&name.len());
    let own = |byte: u8| letter(byte) || byte.is_ascii_digit() || byte == b'_';
    (fits && name.bytes().all(own)).then(|| name.to_owned())
}
