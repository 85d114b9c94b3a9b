//! The package on a Debian machine under systemd.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "package/built.rs"]
mod built;

use std::time::Duration;

use gate25_tests::{Guest, Hosting, Machine, Outcome, PolicyText, World, connect};

use built::Built;

const ATTEMPT: Duration = Duration::from_secs(3);
const POLICY: &str = "/etc/gate25/policy.d/policy.yaml";
const SETTINGS: &str = "/etc/gate25/gate25.yaml";

#[test]
fn installed_package_observes_says_so_and_enforces_once_told() {
    let Site { world, guest, machine } = Site::booted();
    let said = machine.shell(&Built::of(1).install()).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}\n{}", machine.journal().unwrap());
    for told in [
        "gate25 observes this host",
        "refuses nothing",
        "set `enforcement: policy` in /etc/gate25/gate25.yaml",
    ] {
        assert!(said.out.contains(told), "{said:?}");
    }
    for unit in ["gate25", "gate25-guard"] {
        let states = format!("systemctl is-active {unit} && systemctl is-enabled {unit}");
        assert_eq!(machine.succeed(&states).unwrap(), "active\nenabled\n");
    }
    check_confined(&machine);
    check_reaches_exchanger(&guest, Outcome::Connected);
    write_policy(&machine, &world, &PolicyText::default());
    machine.succeed("gate25 reload --wait").unwrap();
    check_reaches_exchanger(&guest, Outcome::Connected);
    enforce(&machine);
    check_reaches_exchanger(&guest, Outcome::Refused);
    let doctor = machine.shell("gate25 doctor").unwrap();
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
}

/// The agent runs as its user with three capabilities, in a sandbox.
#[track_caller]
fn check_confined(machine: &Machine) {
    let status = machine
        .succeed("cat /proc/$(systemctl show --value --property=MainPID gate25)/status")
        .unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    let three: u64 = 1 << 12 | 1 << 38 | 1 << 39;
    let held = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
    assert_eq!(held & !three, 0, "{status}");
    assert_ne!(held & 1 << 12, 0, "{status}");
    assert_eq!(u64::from_str_radix(&field("CapBnd:"), 16).unwrap(), three, "{status}");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let user = machine.succeed("id -u gate25").unwrap();
    assert_eq!(field("Uid:").split_whitespace().next(), Some(user.trim()));
    assert_ne!(user.trim(), "0");
}

/// A machine on the hypervisor's network, and a guest of its.
struct Site {
    machine: Machine,
    guest: Guest,
    world: World,
}

impl Site {
    #[track_caller]
    fn new() -> Self {
        let world = World::new().unwrap();
        let machine = Machine::new(&world.lab, &world.hosting.hypervisor).unwrap();
        let guest = world.guest(11, "tap101i0").unwrap();
        Self { machine, guest, world }
    }

    #[track_caller]
    fn booted() -> Self {
        let mut site = Self::new();
        site.machine.boot().unwrap();
        site
    }
}

#[track_caller]
fn write_policy(machine: &Machine, world: &World, policy: &PolicyText) {
    assert_eq!(world.refusal, Outcome::Refused);
    machine.write(POLICY, &policy.text()).unwrap();
}

/// Sets `enforcement: policy` as somebody would, and restarts the agent.
#[track_caller]
fn enforce(machine: &Machine) {
    let set = format!("sed -i 's/^enforcement: observe$/enforcement: policy/' {SETTINGS}");
    machine.succeed(&set).unwrap();
    machine.succeed("gate25 check && systemctl restart gate25").unwrap();
}

#[track_caller]
fn check_reaches_exchanger(guest: &Guest, outcome: Outcome) {
    for to in [Hosting::EXCHANGER.v4_port(25), Hosting::EXCHANGER.v6_port(25)] {
        let attempt = connect(&guest.ns, to, ATTEMPT).unwrap();
        assert_eq!(attempt.outcome, outcome, "{to}: {attempt:?}");
    }
}
