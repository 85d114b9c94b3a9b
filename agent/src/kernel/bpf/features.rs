//! What the running kernel can do, asked by trying.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::hooks;
use crate::chain::in_full;

/// Index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

/// Kinds of programs without which there is no eBPF backend, and what they are called.
const PROGRAMS: [(ProgramType, &str); 4] = [
    (ProgramType::SchedClassifier, "programs on interfaces"),
    (ProgramType::CgroupSkb, "programs on what cgroups send"),
    (
        ProgramType::CgroupSockAddr,
        "programs on connects of cgroups",
    ),
    (ProgramType::CgroupSock, "programs on sockets of cgroups"),
];
/// The same of tables.
const TABLES: [(MapType, &str); 5] = [
    (MapType::Hash, "hash tables"),
    (MapType::LruHash, "hash tables that make room"),
    (MapType::PerCpuArray, "counters of each CPU"),
    (MapType::LpmTrie, "tables of prefixes"),
    (MapType::RingBuf, "ring buffers (Linux 5.8)"),
];

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// What the eBPF backend needs and the kernel does not have.
    pub missing: Vec<&'static str>,
    /// Whether programs can be attached to interfaces by links (tcx, Linux 6.6).
    pub tcx: bool,
    /// Whether a refused connect can end in an error of our choice (Linux 5.18).
    pub connect_error: bool,
}

/// Tries each of them: a probe loads a program of two instructions, or makes a table, and lets it
/// go again.
///
/// # Errors
/// Why that could not be tried, in words: most likely privileges are missing.
pub fn probe() -> Result<Features, String> {
    let mut missing = Vec::new();
    for (kind, what) in PROGRAMS {
        if !is_program_supported(kind).map_err(|error| in_full(&error))? {
            missing.push(what);
        }
    }
    for (kind, what) in TABLES {
        if !is_map_supported(kind).map_err(|error| in_full(&error))? {
            missing.push(what);
        }
    }
    let kind = ProgramType::CgroupSockAddr;
    let connect_error = is_helper_supported(kind, BpfHelper::BPF_FUNC_set_retval);
    Ok(Features {
        missing,
        tcx: hooks::arriving(LOOPBACK)
            .map_err(|error| in_full(&error))?
            .is_some(),
        connect_error: connect_error.map_err(|error| in_full(&error))?,
    })
}
