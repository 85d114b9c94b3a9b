//! The host, nftables, the policy's files, the agent's state.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::unistd::geteuid;
use serde_json::json;

use crate::chain::in_full;
use crate::control::client::Client;
use crate::doctor::facts::{Agent, Host, Look, NftFacts, Policy};
use crate::guard::Guard;
use crate::kernel::bpf::features;
use crate::kernel::bpf::leftover::Leftover;
use crate::kernel::cgroups::{Attribution, CgroupError, Hierarchy, Layout, self_test};
use crate::kernel::guard;
use crate::kernel::nft::Nft;
use crate::kernel::nftables::{self, Nftables};
use crate::kernel::services::{self, FOLDERS};
use crate::kernel::surroundings::{self, Capability};
use crate::netfilter::expression::{equal, field, reset};
use crate::netfilter::{Commands, Family, Table};
use crate::policy::Pattern;
use crate::settings::{Backend, Settings};

/// When this was built.
const BUILT: Timestamp = match i64::from_str_radix(env!("GATE25_BUILT"), 10) {
    Ok(seconds) => Timestamp::constant(seconds, 0),
    Err(_) => panic!("the build script writes a number"),
};
/// Units that change the ruleset.
const MANAGERS: [&str; 5] = [
    "firewalld.service",
    "netfilter-persistent.service",
    "nftables.service",
    "pve-firewall.service",
    "ufw.service",
];
const GUARD_UNIT: &str = "gate25-guard.service";
/// Levels below the policy directory that are looked at: more than are read.
const LEVELS: usize = 32;

pub(super) fn host(settings: &Settings, filesystem: &Path, agent: &Agent) -> Host {
    let wants_ebpf = match settings.backend {
        Backend::Auto | Backend::Ebpf => true,
        Backend::Nftables => false,
    };
    let roots = &settings.cgroups.roots;
    let hierarchy = Hierarchy::find();
    let mounted = match &hierarchy {
        Ok(found) => Ok(Some((
            found.mount().to_owned(),
            found.layout() == Layout::Hybrid,
        ))),
        Err(CgroupError::NotMounted) => Ok(None),
        Err(error) => Err(in_full(error)),
    };
    let folder = Leftover::at(filesystem).folder().to_owned();
    let enabled = services::enabled(FOLDERS.map(Path::new));
    Host {
        now: Timestamp::now(),
        built: BUILT,
        release: text(surroundings::release()),
        features: match wants_ebpf {
            true => features::probe(),
            false => Err("the settings want no eBPF".to_owned()),
        },
        wants_ebpf,
        btf: surroundings::has_btf(),
        bpf_filesystem: (
            filesystem.to_owned(),
            text(surroundings::is_bpf_filesystem(filesystem)),
        ),
        pins_mode: (folder.clone(), text(surroundings::mode(&folder))),
        capabilities: match agent {
            Agent::Stopped | Agent::Hidden(_) => None,
            Agent::Running(_) | Agent::Silent(_) => Some(text(
                Client::new(&settings.control.socket)
                    .process()
                    .and_then(|process| surroundings::capabilities(Some(process))),
            )),
        },
        needed: needed(wants_ebpf),
        absent_roots: absent(settings, hierarchy.as_ref().ok()),
        misattributed: match &hierarchy {
            Ok(hierarchy) => match self_test(hierarchy) {
                Ok(Attribution::Wrong { .. }) => Ok(true),
                Ok(Attribution::Right | Attribution::Inconclusive) => Ok(false),
                Err(error) => Err(in_full(&error)),
            },
            // Said with the mount.
            Err(_) => Ok(false),
        },
        cgroups: mounted,
        network_controllers: text(surroundings::network_controllers()),
        wants_containers: !roots.is_empty(),
        guard_at_boot: matches!(&enabled, Ok(units) if units.contains(GUARD_UNIT)),
        managers: text(enabled).map(|units| {
            let managers = MANAGERS.into_iter().filter(|unit| units.contains(*unit));
            managers.map(str::to_owned).collect()
        }),
    }
}

/// What a running agent needs for what the settings ask for. `CAP_PERFMON` it gives up once the
/// programs are loaded, and what it misses of the others' is a warning of its own.
fn needed(wants_ebpf: bool) -> BTreeSet<Capability> {
    let mut needed = BTreeSet::from([Capability::NetAdmin]);
    if wants_ebpf {
        needed.insert(Capability::Bpf);
    }
    needed
}

/// Roots that somebody wrote down for this host and that are not there. The default names what
/// different hosts may have.
fn absent(settings: &Settings, hierarchy: Option<&Hierarchy>) -> Vec<String> {
    let roots = &settings.cgroups.roots;
    let Some(hierarchy) = hierarchy else {
        return Vec::new();
    };
    if *roots == Settings::default().cgroups.roots {
        return Vec::new();
    }
    let written = roots.iter().map(Pattern::as_str);
    written
        .filter(|root| !root.contains(['*', '?']) && !hierarchy.mount().join(root).is_dir())
        .map(str::to_owned)
        .collect()
}

pub(super) fn nft(nft: &Nft, settings: &Settings, agent: &Agent) -> NftFacts {
    let guard = Guard::new(settings);
    let by_nftables = match (settings.backend, agent) {
        (Backend::Nftables, _) => true,
        (Backend::Auto, Agent::Running(status)) => status.backend.name == "nftables",
        (Backend::Auto | Backend::Ebpf, _) => false,
    };
    let version = version(nft);
    let is_there = matches!(version, Ok(Some(_)));
    let guard_unfit = || nft.check(&guard.as_ref()?.commands()).err();
    let unfit = if !is_there {
        None
    } else if let Some(error) = guard_unfit() {
        Some(format!("the guard is refused: {}", in_full(&error)))
    } else if by_nftables {
        let options = nftables::Options {
            ports: settings.guarded_ports.clone(),
            host: settings.host_mode(),
            guard: settings.guard,
            reject: nftables::Reject::Reset,
        };
        let opened = Nftables::open(nft.clone(), options);
        opened.err().map(|error| in_full(&error))
    } else {
        None
    };
    NftFacts {
        needed: guard.is_some() || by_nftables,
        unfit,
        bridge_reject: is_there.then(|| nft.check(&bridge_reject()).is_ok()),
        mark_users: match (&guard, is_there) {
            (Some(guard), true) => text(guard::users(nft, guard.mark())),
            _ => Ok(Vec::new()),
        },
        guard: guard.map(|guard| text(guard::placement(nft, &guard))),
        version,
    }
}

fn version(nft: &Nft) -> Look<Option<String>> {
    match nft.version() {
        Ok(version) => Ok(Some(version.unwrap_or_else(|| "unknown".to_owned()))),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(in_full(&error)),
    }
}

/// A ruleset that is only checked: an answer to a bridged frame, which needs an option of the
/// kernel's that is not everywhere.
fn bridge_reject() -> Commands {
    let mut commands = Commands::of(Table {
        family: Family::Bridge,
        name: "gate25_probe",
    });
    commands.make_table();
    let chain = json!({"name": "c", "type": "filter", "hook": "prerouting", "prio": 0});
    commands.command("add", "chain", chain);
    commands.rules("c", vec![vec![equal(field("tcp", "dport"), 25), reset()]]);
    commands
}

pub(super) fn policy(
    settings: &Settings,
    agent: &Agent,
    invalid: (PathBuf, Look<Option<String>>),
    mistakes: Look<Option<(String, usize)>>,
) -> Policy {
    let Settings {
        policy_dir,
        state_dir,
        control,
        ..
    } = settings;
    let state = match surroundings::unwritable(state_dir) {
        _ if !geteuid().is_root() => {
            Err("only root can tell whether the agent may write".to_owned())
        }
        // The agent makes it.
        Some(error)
            if error.kind() == io::ErrorKind::NotFound && matches!(agent, Agent::Stopped) =>
        {
            Ok(None)
        }
        why => Ok(why.map(|error| in_full(&error))),
    };
    Policy {
        settings: invalid,
        folder: policy_dir.clone(),
        mistakes,
        writable: text(writable(policy_dir)),
        state: (state_dir.clone(), state),
        socket: (
            control.socket.clone(),
            text(surroundings::mode(&control.socket)),
        ),
    }
}

/// What everybody may write of a folder, what is in it, and what it is in.
fn writable(folder: &Path) -> io::Result<Vec<PathBuf>> {
    const EVERYBODY: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let folder = match folder.canonicalize() {
        Ok(folder) => folder,
        // That it is missing is said of the policy.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut writable = Vec::new();
    for above in folder.ancestors().skip(1) {
        let mode = fs::metadata(above)?.mode();
        // Who may write there can put another folder in this one's place.
        if mode & EVERYBODY != 0 && mode & STICKY == 0 {
            writable.push(above.to_owned());
        }
    }
    let mut queue = vec![(folder, 0)];
    while let Some((path, level)) = queue.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() {
            continue;
        }
        if metadata.mode() & EVERYBODY != 0 {
            writable.push(path.clone());
        }
        if metadata.is_dir() && level < LEVELS {
            for entry in fs::read_dir(&path)? {
                queue.push((entry?.path(), level + 1));
            }
        }
    }
    writable.sort();
    Ok(writable)
}

fn text<T>(seen: Result<T, impl Error>) -> Look<T> {
    seen.map_err(|error| in_full(&error))
}
