//! The units for systemd, as far as they can be judged without one. The tier `package` starts them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::{deploy, text};

/// A unit's lines by section and key; a key that comes again adds to what it said.
#[derive(Debug)]
struct Unit(BTreeMap<(String, String), Vec<String>>);

impl Unit {
    #[track_caller]
    fn read(file: &str) -> Self {
        let mut lines: BTreeMap<_, Vec<String>> = BTreeMap::new();
        let mut section = String::new();
        for line in text(file).lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').to_owned();
                continue;
            }
            let (key, value) = line.split_once('=').unwrap();
            let key = (section.clone(), key.to_owned());
            lines.entry(key).or_default().push(value.to_owned());
        }
        Self(lines)
    }

    /// All words of a key.
    fn words(&self, section: &str, key: &str) -> BTreeSet<&str> {
        let key = (section.to_owned(), key.to_owned());
        let values = self.0.get(&key).into_iter().flatten();
        values.flat_map(|value| value.split_whitespace()).collect()
    }

    /// The one value of a key.
    #[track_caller]
    fn value(&self, key: &str) -> &str {
        let key = ("Service".to_owned(), key.to_owned());
        match self.0.get(&key).map(Vec::as_slice) {
            Some([one]) => one,
            other => panic!("{key:?}: {other:?}"),
        }
    }
}

fn agent() -> Unit {
    Unit::read("gate25.service")
}

fn guard() -> Unit {
    Unit::read("gate25-guard.service")
}

#[test]
fn agent_starts_before_whoever_starts_guests_and_waits_for_no_network() {
    let unit = agent();
    let before = unit.words("Unit", "Before");
    for starter in [
        "libvirtd.service",
        "virtqemud.service",
        "pve-guests.service",
        "machines.target",
        "lxc.service",
        "docker.service",
        "kubelet.service",
        "network-pre.target",
    ] {
        assert!(before.contains(starter), "{starter}");
    }
    let after = unit.words("Unit", "After");
    for earlier in [
        "nftables.service",
        "gate25-guard.service",
        "machine.slice",
        "local-fs.target",
    ] {
        assert!(after.contains(earlier), "{earlier}");
    }
    for waited in after.iter().chain(&unit.words("Unit", "Requires")) {
        let is_network =
            waited.contains("network") || waited.contains("online") || waited.contains("time");
        assert!(!is_network, "{waited}");
    }
    assert!(before.is_disjoint(&after));
    assert!(unit.words("Unit", "Wants").contains("machine.slice"));
}

#[test]
fn agent_is_bound_to_no_other_unit() {
    let unit = agent();
    for key in [
        "Requires",
        "Requisite",
        "BindsTo",
        "PartOf",
        "PropagatesStopTo",
        "StopPropagatedFrom",
    ] {
        assert_eq!(unit.words("Unit", key), BTreeSet::new(), "{key}");
    }
    // Only the machine's end stops it.
    assert_eq!(
        unit.words("Unit", "Conflicts"),
        BTreeSet::from(["shutdown.target"])
    );
}

#[test]
fn guard_is_loaded_between_nftables_and_everything_that_boots() {
    let unit = guard();
    assert!(unit.words("Unit", "After").contains("nftables.service"));
    let before = unit.words("Unit", "Before");
    for later in [
        "sysinit.target",
        "gate25.service",
        "network-pre.target",
        "libvirtd.service",
    ] {
        assert!(before.contains(later), "{later}");
    }
    assert_eq!(
        unit.words("Unit", "PartOf"),
        BTreeSet::from(["nftables.service"])
    );
    let wanted = unit.words("Install", "WantedBy");
    assert_eq!(
        wanted,
        BTreeSet::from(["nftables.service", "sysinit.target"])
    );
}

#[test]
fn agent_has_the_capabilities_that_it_needs_and_no_more() {
    let unit = agent();
    let three = BTreeSet::from(["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
    assert_eq!(unit.words("Service", "AmbientCapabilities"), three);
    assert_eq!(unit.words("Service", "CapabilityBoundingSet"), three);
    assert_eq!(
        (unit.value("User"), unit.value("Group")),
        ("gate25", "gate25")
    );
    assert_eq!(unit.value("NoNewPrivileges"), "yes");
    // It would make the BPF filesystem read-only.
    assert_eq!(
        unit.words("Service", "ProtectKernelTunables"),
        BTreeSet::new()
    );
    assert!(unit.words("Service", "SystemCallFilter").contains("bpf"));
    assert!(
        unit.words("Service", "RestrictAddressFamilies")
            .contains("AF_NETLINK")
    );
}

#[test]
fn agent_is_started_again_whatever_ends_it() {
    let unit = agent();
    assert_eq!(unit.value("Type"), "notify");
    assert_eq!(unit.value("Restart"), "always");
    assert_eq!(unit.value("WatchdogSec"), "30s");
    assert_eq!(
        unit.words("Unit", "StartLimitIntervalSec"),
        BTreeSet::from(["0"])
    );
    assert_eq!(unit.value("ExecReload"), "/usr/bin/gate25 reload --wait");
}

/// A boot with settings that are not valid has the guard of the last ones that were.
#[test]
fn agent_has_its_folders_and_the_guard_kept_before_each_start() {
    let (agent, guard) = (agent(), guard());
    let key = ("Service".to_owned(), "ExecStartPre".to_owned());
    let before = &agent.0[&key];
    let file = "/var/lib/gate25-guard/guard.json";
    let keep = format!("-+/usr/bin/gate25 guard --keep {file}");
    assert_eq!(before[..], ["+/usr/bin/gate25 prepare".to_owned(), keep]);
    assert!(
        guard
            .value("ExecStart")
            .contains(&format!("--keep {file})"))
    );
    let mounts = agent.words("Unit", "RequiresMountsFor");
    assert!(mounts.contains("/var/lib/gate25-guard"), "{mounts:?}");
}

/// What root loads lies where the agent's user may not write.
#[test]
fn guard_that_is_kept_is_not_in_a_folder_of_the_agents_user() {
    let agents = agent().value("StateDirectory").to_owned();
    let kept = guard();
    for key in ["ExecStart", "ExecReload"] {
        let words = kept.words("Service", key);
        let file = words
            .iter()
            .find(|word| word.starts_with("/var/lib/"))
            .unwrap();
        assert!(!file.starts_with(&format!("/var/lib/{agents}/")), "{file}");
    }
    assert_eq!(agents, "gate25");
}

#[test]
fn agents_unit_is_exposed_no_more_than_three() {
    let mut analyze = Command::new("systemd-analyze");
    let output = analyze
        .args(["security", "--offline=true", "--no-pager", "--threshold=30"])
        .arg(deploy("gate25.service"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("Overall exposure level for gate25.service"),
        "{text}"
    );
}
