//! What the kernel says is attached where, whatever an agent believes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use super::link::{Direction, describe, open_program, programs, programs_of_cgroup};
use super::place::CgroupHook;

/// Whether the kernel counts how often programs run.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const NAME_BYTES: usize = 16;

/// A program that is attached somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The kernel's number of it.
    pub number: u32,
    /// The name it was loaded with; empty for none, and where the kernel does not tell.
    pub name: String,
    /// The digest of its instructions, hexadecimal; empty where the kernel does not tell.
    pub tag: String,
    /// How often it ran while the kernel counted that.
    pub runs: u64,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            name,
            tag,
            runs: _,
        } = self;
        match name.as_str() {
            "" if tag.is_empty() => write!(f, "program {number}"),
            "" => write!(f, "program {number} (tag {tag})"),
            name => write!(f, "program {number} {name} (tag {tag})"),
        }
    }
}

/// Programs by number, each asked for once.
#[derive(Debug, Default)]
pub struct Catalogue {
    known: BTreeMap<u32, Program>,
}

impl Catalogue {
    /// The program of this number; `None` if it is gone. Without `CAP_SYS_ADMIN` the kernel tells no
    /// more than the number.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn program(&mut self, number: u32) -> io::Result<Option<Program>> {
        if let Some(program) = self.known.get(&number) {
            return Ok(Some(program.clone()));
        }
        match look_up(number) {
            Ok(program) => {
                self.known.insert(number, program.clone());
                Ok(Some(program))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Some(Program {
                number,
                name: String::new(),
                tag: String::new(),
                runs: 0,
            })),
            Err(error) => Err(error),
        }
    }

    /// The programs of these numbers that there are.
    ///
    /// # Errors
    /// As [`Self::program`].
    pub fn programs(&mut self, numbers: Vec<u32>) -> io::Result<Vec<Program>> {
        let found = numbers.into_iter().map(|number| self.program(number));
        found.filter_map(Result::transpose).collect()
    }
}

/// The tcx programs on what arrives by an interface, first to last; `None` on a kernel without tcx.
///
/// # Errors
/// What the kernel said: `ENODEV` where the interface is gone, `EPERM` without `CAP_NET_ADMIN`.
pub fn arriving(index: u32) -> io::Result<Option<Vec<u32>>> {
    on_interface(index, Direction::FromGuest)
}

/// The same for what leaves by the interface.
///
/// # Errors
/// As [`arriving`].
pub fn leaving(index: u32) -> io::Result<Option<Vec<u32>>> {
    on_interface(index, Direction::ToGuest)
}

fn on_interface(index: u32, direction: Direction) -> io::Result<Option<Vec<u32>>> {
    match programs(index, direction) {
        Ok(numbers) => Ok(Some(numbers)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The programs attached to a hook of the cgroup whose directory this is, not to those above it.
///
/// # Errors
/// What the kernel said.
pub fn on_cgroup(directory: BorrowedFd<'_>, hook: CgroupHook) -> io::Result<Vec<u32>> {
    programs_of_cgroup(directory, hook)
}

/// Whether the kernel counts how often programs run (`kernel.bpf_stats_enabled`).
///
/// # Errors
/// When the setting cannot be read.
pub fn counts_runs() -> io::Result<bool> {
    Ok(fs::read_to_string(Path::new(STATISTICS))?.trim() != "0")
}

/// The beginning of `struct bpf_prog_info` (include/uapi/linux/bpf.h, Linux 5.8).
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    number: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    user: u32,
    maps: u32,
    map_numbers: u64,
    name: [u8; NAME_BYTES],
    interface: u32,
    flags: u32,
    namespace: [u64; 2],
    symbols: [u32; 2],
    symbol_pointers: [u64; 2],
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_count: u32,
    lines: [u64; 2],
    jited_line_count: u32,
    line_size: u32,
    jited_line_size: u32,
    tag_count: u32,
    tags: u64,
    run_time: u64,
    run_count: u64,
}

fn look_up(number: u32) -> io::Result<Program> {
    let mut info = Info::default();
    describe(open_program(number)?.as_fd(), &mut info)?;
    let name = info.name.split(|byte| *byte == 0).next();
    Ok(Program {
        number: info.number,
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        tag: info.tag.iter().map(|byte| format!("{byte:02x}")).collect(),
        runs: info.run_count,
    })
}
