//! The package on a Debian machine under systemd: installed, upgraded, removed, purged.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "package/built.rs"]
mod built;
#[path = "package/site.rs"]
mod site;

use std::time::Duration;

use gate25_tests::{Hosting, Machine, Outcome, PolicyText, Sender};

use site::{SETTINGS, Site, bring};

const PAUSE: Duration = Duration::from_millis(2);

#[test]
fn installed_package_observes_says_so_and_enforces_once_told() {
    let site = Site::booted();
    let machine = &site.machine;
    let said = machine.shell(&bring(machine, 1)).unwrap();
    assert_eq!(
        said.code,
        Some(0),
        "{said:?}\n{}",
        machine.journal().unwrap()
    );
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
    check_confined(machine);
    site.check_reached(Outcome::Connected);
    site.write_policy(&PolicyText::default());
    machine.succeed("gate25 reload --wait").unwrap();
    site.check_reached(Outcome::Connected);
    site.enforce();
    site.check_reached(Outcome::Refused);
    let doctor = machine.shell("gate25 doctor").unwrap();
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    assert!(doctor.out.contains("nothing is wrong"), "{doctor:?}");
}

#[test]
fn package_installed_on_settings_that_enforce_says_that_it_does() {
    let site = Site::booted();
    let machine = &site.machine;
    let settings = "schema: 1\nenforcement: policy\n";
    machine.write(SETTINGS, settings).unwrap();
    let install = format!("{} -o Dpkg::Options::=--force-confold", bring(machine, 1));
    let said = machine.shell(&install).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("ENFORCES"), "{said:?}");
    assert!(!said.out.contains("refuses nothing"), "{said:?}");
    site.check_reached(Outcome::Refused);
}

/// The agent runs as its user with three capabilities, in a sandbox, and its files are its own.
#[track_caller]
fn check_confined(machine: &Machine) {
    let process = machine.property("gate25", "MainPID").unwrap();
    let status = machine.succeed(&format!("cat /proc/{process}/status"));
    let status = status.unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    let bits = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
    // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    let three = 1 << 12 | 1 << 38 | 1 << 39;
    assert_eq!(bits("CapBnd:"), three, "{status}");
    assert_eq!(bits("CapPrm:") & !three, 0, "{status}");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let user = machine.succeed("id -u gate25").unwrap();
    assert_ne!(user.trim(), "0");
    assert_eq!(field("Uid:").split_whitespace().next(), Some(user.trim()));
    let modes = machine.succeed(
        "stat -c '%n %a %U:%G' /etc/gate25/* /var/lib/gate25 /var/lib/gate25-guard /run/gate25 \
         /run/gate25/control.sock /sys/fs/bpf/gate25",
    );
    let expected = "\
/etc/gate25/gate25.yaml 644 root:root
/etc/gate25/policy.d 750 root:gate25
/etc/gate25/web.yaml 640 root:gate25
/var/lib/gate25 700 gate25:gate25
/var/lib/gate25-guard 755 root:root
/run/gate25 711 gate25:gate25
/run/gate25/control.sock 660 gate25:gate25
/sys/fs/bpf/gate25 700 gate25:gate25
";
    assert_eq!(modes.unwrap(), expected);
}

#[test]
fn upgrade_and_removal_open_nothing_and_purge_ends_it() {
    let site = Site::enforcing();
    let machine = &site.machine;
    let settings = machine.succeed(&format!("cat {SETTINGS}")).unwrap();
    let sender = Sender::start(&site.guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    let first = machine.property("gate25", "MainPID").unwrap();
    let upgrade = bring(machine, 2);
    machine.succeed(&upgrade).unwrap();
    assert_ne!(machine.property("gate25", "MainPID").unwrap(), first);
    assert_eq!(
        machine.succeed(&format!("cat {SETTINGS}")).unwrap(),
        settings
    );
    site.wait_enforcing();
    sender.more(20).unwrap();
    // Installed again over itself, and a version back.
    machine.succeed(&format!("{upgrade} --reinstall")).unwrap();
    machine.succeed(&bring(machine, 1)).unwrap();
    site.wait_enforcing();
    sender.more(20).unwrap();

    let removal = machine.succeed("apt-get --yes remove gate25").unwrap();
    assert!(
        removal.contains("stays closed until the next boot"),
        "{removal}"
    );
    assert!(
        removal.contains("`apt purge gate25` opens everything"),
        "{removal}"
    );
    assert_eq!(machine.shell("command -v gate25").unwrap().out, "");
    sender.more(20).unwrap();
    // A new guest meets the guard.
    let late = site.world.hosting.guest(
        &site.world.lab,
        12,
        "tap102i0",
        gate25_tests::Link::BridgedVeth,
    );
    let late = Sender::start(&late.unwrap().ns, Hosting::EXCHANGER.v6_port(25), PAUSE).unwrap();
    late.more(2).unwrap();
    assert_eq!(late.finish().connected, 0);
    let tally = sender.finish();
    assert_eq!(tally.connected, 0, "{tally:?}");
    assert_eq!(site.leaked(), 0);

    let purge = machine.succeed("apt-get --yes purge gate25").unwrap();
    assert!(purge.contains("removed /sys/fs/bpf/gate25"), "{purge}");
    site.check_reached(Outcome::Connected);
    let left = machine.succeed(
        "ls /sys/fs/bpf /run/gate25 /var/lib | grep gate25; nft list tables; find /etc -name '*gate25*'; \
         systemctl list-units --all --plain --no-legend 'gate25*'",
    );
    // The operator's policy, and the folder that holds it.
    assert_eq!(left.unwrap(), "/etc/gate25\n");
    machine
        .succeed("cat /etc/gate25/policy.d/policy.yaml")
        .unwrap();
}

#[test]
fn package_unpacked_and_not_configured_opens_nothing_and_is_mended() {
    let site = Site::enforcing();
    let machine = &site.machine;
    let sender = Sender::start(&site.guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    let deb = bring(machine, 2);
    let deb = deb.split_whitespace().last().unwrap();
    machine.succeed(&format!("dpkg --unpack {deb}")).unwrap();
    assert_eq!(status(machine), "install ok unpacked");
    sender.more(20).unwrap();
    // A configuration that fails: the user cannot be made sure of.
    machine
        .succeed("mv /bin/systemd-sysusers /bin/systemd-sysusers.away")
        .unwrap();
    let failed = machine.shell("dpkg --configure -a").unwrap();
    assert_ne!(failed.code, Some(0), "{failed:?}");
    assert_eq!(status(machine), "install ok half-configured");
    site.wait_enforcing();
    sender.more(20).unwrap();
    machine
        .succeed("mv /bin/systemd-sysusers.away /bin/systemd-sysusers && dpkg --configure -a")
        .unwrap();
    assert_eq!(status(machine), "install ok installed");
    site.wait_enforcing();
    let tally = sender.finish();
    assert_eq!(tally.connected, 0, "{tally:?}");
    assert_eq!(site.leaked(), 0);
}

#[track_caller]
fn status(machine: &Machine) -> String {
    let told = machine.succeed("dpkg-query --show --showformat='${Status}' gate25");
    told.unwrap()
}

#[test]
fn settings_that_the_operator_changed_are_kept_whatever_is_installed() {
    let site = Site::enforcing();
    let machine = &site.machine;
    let changed = machine.succeed(&format!("echo '# ours' >>{SETTINGS}; cat {SETTINGS}"));
    let changed = changed.unwrap();
    for words in [
        bring(machine, 2),
        "apt-get --yes remove gate25".to_owned(),
        bring(machine, 1),
    ] {
        machine.succeed(&words).unwrap();
        assert_eq!(
            machine.succeed(&format!("cat {SETTINGS}")).unwrap(),
            changed,
            "{words}"
        );
    }
    site.wait_enforcing();
}
