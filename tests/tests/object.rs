//! The built objects against the names and types that the agent knows.
#![cfg(feature = "root")]
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use aya::programs::{CgroupSkbAttachType, CgroupSockAddrAttachType, CgroupSockAttachType};
use aya_obj::generated::bpf_map_type;
use aya_obj::{Object, ProgramSection};
use gate25::dataplane::Returns;
use gate25::guard::Mark;
use gate25::kernel::bpf::{DebugLines, LoadOptions, load, skb};
use gate25_common::abi::{
    CustomerId, CustomerPolicy, EVENTS_BYTES, InterfaceOwner, MAX_CUSTOMERS, MAX_GUARDED_PORTS,
    MAX_PREFIXES, PrefixKey, PrefixValue,
};
use gate25_common::address::Family;
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::decide::HostMode;
use gate25_common::names;
use gate25_common::redirect::{
    Budget, Flow, Hindrances, MAX_BUDGETS, MAX_REDIRECTS, Redirected, SocketPeer,
};
use gate25_common::returns::ReturnCounters;
use gate25_tests::{Lab, kernel_version};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// The kernel gives up at a million (`BPF_COMPLEXITY_LIMIT_INSNS`); this leaves room for older
/// kernels' less patient verifiers.
const MAX_PROCESSED: u32 = 100_000;

fn path(kind: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "../target/ebpf",
        kind,
        "bpfel-unknown-none/release/gate25-ebpf",
    ]
    .iter()
    .collect()
}

fn object(kind: &str) -> Object {
    let bytes = fs::read(path(kind)).expect("the object is built");
    Object::parse(&bytes).expect("an object")
}

/// Maps of an object without those that hold its constants.
fn tables(object: &Object) -> BTreeSet<&str> {
    let constants = |name: &&str| name.starts_with('.');
    object
        .maps
        .keys()
        .map(String::as_str)
        .filter(|name| !constants(name))
        .collect()
}

#[test]
fn programs_are_those_that_are_named() {
    for kind in ["plain", "log"] {
        let object = object(kind);
        let programs: BTreeSet<_> = object.programs.keys().map(String::as_str).collect();
        assert_eq!(programs, BTreeSet::from(names::PROGRAMS), "{kind}");
        for (name, program) in &object.programs {
            let section = &program.section;
            let right = match name.as_str() {
                names::PROGRAM_TC_EGRESS | names::PROGRAM_TC_INGRESS => {
                    matches!(section, ProgramSection::SchedClassifier)
                }
                names::PROGRAM_CGROUP_EGRESS => matches!(
                    section,
                    ProgramSection::CgroupSkb {
                        attach_type: Some(CgroupSkbAttachType::Egress)
                    }
                ),
                names::PROGRAM_CGROUP_CONNECT4 => matches!(
                    section,
                    ProgramSection::CgroupSockAddr {
                        attach_type: CgroupSockAddrAttachType::Connect4
                    }
                ),
                names::PROGRAM_CGROUP_CONNECT6 => matches!(
                    section,
                    ProgramSection::CgroupSockAddr {
                        attach_type: CgroupSockAddrAttachType::Connect6
                    }
                ),
                names::PROGRAM_CGROUP_PEER4 => matches!(
                    section,
                    ProgramSection::CgroupSockAddr {
                        attach_type: CgroupSockAddrAttachType::GetPeerName4
                    }
                ),
                names::PROGRAM_CGROUP_PEER6 => matches!(
                    section,
                    ProgramSection::CgroupSockAddr {
                        attach_type: CgroupSockAddrAttachType::GetPeerName6
                    }
                ),
                names::PROGRAM_CGROUP_SOCKET => matches!(
                    section,
                    ProgramSection::CgroupSock {
                        attach_type: CgroupSockAttachType::SockCreate
                    }
                ),
                _ => false,
            };
            assert!(right, "{kind}: {name} in {section:?}");
        }
    }
}

#[test]
fn maps_of_the_ordinary_object_are_those_that_are_named() {
    assert_eq!(tables(&object("plain")), BTreeSet::from(names::MAPS));
}

#[test]
fn maps_of_the_object_with_debug_lines_are_those_and_the_log() {
    let mut expected = BTreeSet::from(names::MAPS);
    expected.insert("AYA_LOGS");
    assert_eq!(tables(&object("log")), expected);
}

#[test]
fn names_fit_the_kernel() {
    for name in names::MAPS.into_iter().chain(names::PROGRAMS) {
        assert!(name.len() <= 15, "{name}");
    }
}

#[test]
fn maps_have_the_types_and_sizes_of_the_tables() {
    use bpf_map_type::{
        BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_LRU_HASH,
        BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_RINGBUF,
        BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_SOCKMAP,
    };
    let id = size_of::<CustomerId>();
    // Type, key, value, entries, flags.
    let expected = BTreeMap::from([
        (
            names::MAP_INTERFACES,
            (
                BPF_MAP_TYPE_HASH,
                4,
                size_of::<InterfaceOwner>(),
                MAX_CUSTOMERS,
                NO_PREALLOC,
            ),
        ),
        (
            names::MAP_CGROUPS,
            (BPF_MAP_TYPE_HASH, 8, id, MAX_CUSTOMERS, NO_PREALLOC),
        ),
        (
            names::MAP_SOCKETS,
            (BPF_MAP_TYPE_SK_STORAGE, 4, 8, 0, NO_PREALLOC),
        ),
        (
            names::MAP_SOCKET_PEERS,
            (
                BPF_MAP_TYPE_SK_STORAGE,
                4,
                size_of::<SocketPeer>(),
                0,
                NO_PREALLOC,
            ),
        ),
        (
            names::MAP_REDIRECTS,
            (
                BPF_MAP_TYPE_LRU_HASH,
                size_of::<Flow>(),
                size_of::<Redirected>(),
                MAX_REDIRECTS,
                0,
            ),
        ),
        (
            names::MAP_BUDGETS,
            (
                BPF_MAP_TYPE_LRU_HASH,
                4,
                size_of::<Budget>(),
                MAX_BUDGETS,
                0,
            ),
        ),
        (
            names::MAP_HINDRANCES,
            (BPF_MAP_TYPE_PERCPU_ARRAY, 4, size_of::<Hindrances>(), 1, 0),
        ),
        (
            names::MAP_RESPONDERS,
            (BPF_MAP_TYPE_SOCKMAP, 4, 4, Family::ALL.len(), 0),
        ),
        (
            names::MAP_CUSTOMERS,
            (
                BPF_MAP_TYPE_HASH,
                id,
                size_of::<CustomerPolicy>(),
                MAX_CUSTOMERS,
                NO_PREALLOC,
            ),
        ),
        // The trie's key begins with its prefix length.
        (
            names::MAP_PREFIXES,
            (
                BPF_MAP_TYPE_LPM_TRIE,
                4 + size_of::<PrefixKey>(),
                size_of::<PrefixValue>(),
                MAX_PREFIXES,
                NO_PREALLOC,
            ),
        ),
        (
            names::MAP_HOST_COUNTERS,
            (
                BPF_MAP_TYPE_PERCPU_ARRAY,
                4,
                size_of::<HostCounters>(),
                1,
                0,
            ),
        ),
        (
            names::MAP_CUSTOMER_COUNTERS,
            (
                BPF_MAP_TYPE_PERCPU_HASH,
                id,
                size_of::<CustomerCounters>(),
                MAX_CUSTOMERS,
                NO_PREALLOC,
            ),
        ),
        (
            names::MAP_SKETCHES,
            (
                BPF_MAP_TYPE_HASH,
                id,
                size_of::<Sketch>(),
                MAX_CUSTOMERS,
                NO_PREALLOC,
            ),
        ),
        (
            names::MAP_RETURN_COUNTERS,
            (
                BPF_MAP_TYPE_PERCPU_ARRAY,
                4,
                size_of::<ReturnCounters>(),
                1,
                0,
            ),
        ),
        (
            names::MAP_RETURN_CUSTOMERS,
            (
                BPF_MAP_TYPE_PERCPU_HASH,
                id,
                size_of::<ReturnCounters>(),
                MAX_CUSTOMERS,
                NO_PREALLOC,
            ),
        ),
        (
            names::MAP_BYPASS,
            (BPF_MAP_TYPE_ARRAY, 4, size_of::<Bypass>(), 1, 0),
        ),
        (
            names::MAP_EVENTS,
            (BPF_MAP_TYPE_RINGBUF, 0, 0, EVENTS_BYTES, 0),
        ),
    ]);
    let named: BTreeSet<&str> = expected.keys().copied().collect();
    assert_eq!(named, BTreeSet::from(names::MAPS));
    let object = object("plain");
    for (name, (kind, key, value, entries, flags)) in expected {
        let map = &object.maps[name];
        let found = (
            map.map_type(),
            map.key_size() as usize,
            map.value_size() as usize,
        );
        assert_eq!(found, (kind as u32, key, value), "{name}: type, key, value");
        assert_eq!(
            (map.max_entries() as usize, map.map_flags()),
            (entries, flags),
            "{name}"
        );
    }
}

#[test]
fn licence_lets_the_kernel_lend_its_helpers() {
    for kind in ["plain", "log"] {
        // One of those that license_is_gpl_compatible (include/linux/license.h) knows.
        assert_eq!(object(kind).license.to_bytes(), b"Dual MIT/GPL", "{kind}");
    }
}

#[test]
fn programs_load_within_the_verifier_bound_whatever_the_settings() {
    let lab = Lab::for_test().expect("a lab");
    let namespace = lab.netns("verifier").expect("a namespace");
    let max = max_processed();
    let mut beyond = Vec::new();
    let run = || {
        for debug_lines in [DebugLines::Off, DebugLines::On] {
            for host in [HostMode::Policy, HostMode::Observe] {
                for count in [1, 2, MAX_GUARDED_PORTS] {
                    let ports: Vec<u16> = (25..).take(count).collect();
                    let options = LoadOptions {
                        ports,
                        host,
                        guard: Some(Mark::DEFAULT),
                        notice: Vec::new(),
                        returns: Returns::Judged,
                        layout: skb::running_kernel().expect("the kernel describes its packets"),
                        debug_lines,
                        pins: None,
                    };
                    let ebpf = load(&options).expect("the program loads");
                    let mut line = format!("{debug_lines:?}, {host:?}, {count} ports:");
                    for (name, program) in ebpf.programs() {
                        let info = program.info().expect("its description");
                        let Some(processed) = info.verified_instruction_count() else {
                            continue; // Before 5.16 the kernel does not tell.
                        };
                        line += &format!(" {name} {processed}");
                        if processed >= max {
                            beyond.push(format!("{name}: {processed} for {options:?}"));
                        }
                    }
                    report(&line);
                }
            }
        }
    };
    namespace.run(run).expect("the namespace is entered");
    assert!(beyond.is_empty(), "more than {max}: {beyond:#?}");
}

/// Older verifiers take longer ways through the same program: the kernel's own limit is a million.
fn max_processed() -> u32 {
    match kernel_version().expect("the kernel's version") {
        (..6, _) | (6, ..6) => 4 * MAX_PROCESSED,
        _ => MAX_PROCESSED,
    }
}

/// Only the ordinary one: aya-log's table has a definition that libbpf 1.0 no longer reads.
#[test]
fn bpftool_loads_the_ordinary_object() {
    let lab = Lab::for_test().expect("a lab");
    // Its BPF file system is its own.
    let namespace = lab.netns("bpftool").expect("a namespace");
    let object = path("plain").canonicalize().expect("the object is built");
    let folder = "/sys/fs/bpf/loaded";
    let mut command = namespace.command("bpftool");
    command.args(["prog", "loadall"]).arg(object).arg(folder);
    let output = namespace
        .output(command, Duration::from_secs(60))
        .expect("bpftool runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for name in names::PROGRAMS {
        let pin = format!("{folder}/{name}");
        namespace
            .exec("bpftool", &["prog", "show", "pinned", &pin])
            .expect("it is loaded");
    }
}

#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
fn report(line: &str) {
    println!("{line}");
}
