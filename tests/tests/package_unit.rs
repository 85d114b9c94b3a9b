//! The agent's unit under a real systemd: when it starts, what it outlives, what it reports.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "package/built.rs"]
mod built;
#[path = "package/site.rs"]
mod site;

use std::time::Duration;

use gate25_tests::{Hosting, Machine, Outcome, PolicyText, Sender, poll};

use site::{PROMPT, SETTINGS, Site, bring};

const PAUSE: Duration = Duration::from_millis(2);
/// The unit's `WatchdogSec=`, and the time to start again.
const WATCHDOG: Duration = Duration::from_secs(45);

/// Whoever starts guests: each notes what stood when it was started.
const STARTERS: [&str; 4] = [
    "libvirtd.service",
    "pve-guests.service",
    "docker.service",
    "lxc.service",
];

#[test]
fn boot_has_the_host_closed_before_anybody_starts_a_guest() {
    let mut site = Site::new();
    let install = bring(&site.machine, 1);
    // As an image is built: nothing runs.
    let said = site.machine.in_root(&install).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    site.write_policy(&PolicyText::default());
    let settings = format!("sed -i 's/^enforcement: observe$/enforcement: policy/' {SETTINGS}");
    assert_eq!(site.machine.in_root(&settings).unwrap().code, Some(0));
    for starter in STARTERS {
        let unit = format!("/etc/systemd/system/{starter}");
        site.machine.write(&unit, starts_a_guest(starter)).unwrap();
        let wanted = format!("ln -s {unit} /etc/systemd/system/multi-user.target.wants/");
        assert_eq!(site.machine.in_root(&wanted).unwrap().code, Some(0));
    }
    let enable = site.machine.in_root("systemctl enable nftables.service");
    assert_eq!(enable.unwrap().code, Some(0));
    site.machine.boot().unwrap();
    site.wait_enforcing();
    for starter in STARTERS {
        let noted = site
            .machine
            .succeed(&format!("cat /run/{starter}"))
            .unwrap();
        let expected = [
            "enforcing\tyes",
            "table inet gate25_guard",
            "table bridge gate25_guard",
        ];
        for line in expected {
            assert!(noted.lines().any(|it| it == line), "{starter}: {noted}");
        }
    }
    site.check_reached(Outcome::Refused);
    check_order(&site.machine);
    // The ruleset was flushed by nftables.service before, not after.
    let cycles = site
        .machine
        .succeed("journalctl --no-pager | grep -ci 'ordering cycle' || true");
    assert_eq!(cycles.unwrap().trim(), "0");
}

/// A unit by the name of one that starts guests.
fn starts_a_guest(name: &str) -> String {
    format!(
        "[Unit]\nDescription=Starts a guest\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/bin/sh -c 'gate25 status >/run/{name}; nft list tables >>/run/{name}'\n"
    )
}

/// One after the other, by systemd's clock.
#[track_caller]
fn check_order(machine: &Machine) {
    let at = |unit: &str, moment: &str| -> u64 {
        let told = machine.property(unit, moment).unwrap();
        let number = told.parse().unwrap();
        assert_ne!(number, 0, "{unit} {moment}");
        number
    };
    let active = "ActiveEnterTimestampMonotonic";
    let started = "InactiveExitTimestampMonotonic";
    let guard = at("gate25-guard", active);
    assert!(at("nftables", active) <= at("gate25-guard", started));
    assert!(guard <= at("gate25", started));
    assert!(at("machine.slice", active) <= at("gate25", started));
    assert!(guard <= at("sysinit.target", active));
    let agent = at("gate25", active);
    assert!(agent <= at("network-pre.target", active));
    for starter in STARTERS {
        assert!(agent <= at(starter, started), "{starter}");
    }
}

#[test]
fn agent_that_crashes_or_hangs_is_started_again_and_opens_nothing() {
    let site = Site::enforcing();
    let sender = Sender::start(&site.guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    for (signal, limit) in [("KILL", PROMPT), ("ABRT", PROMPT), ("STOP", WATCHDOG)] {
        let before = site.machine.property("gate25", "MainPID").unwrap();
        let words = format!("kill -{signal} {before}");
        site.machine.succeed(&words).unwrap();
        poll("another agent", limit, || {
            let now = site.machine.property("gate25", "MainPID")?;
            Ok((now != before && now != "0").then_some(()))
        })
        .unwrap();
        site.wait_enforcing();
        sender.more(20).unwrap();
    }
    let hung = site.machine.journal().unwrap();
    assert!(hung.contains("Watchdog timeout"), "{hung}");
    let tally = sender.finish();
    assert_eq!(tally.connected, 0, "{tally:?}");
    assert_eq!(site.leaked(), 0);
}

#[test]
fn reload_of_a_policy_with_a_mistake_fails_and_the_journal_says_where() {
    let site = Site::enforcing();
    let machine = &site.machine;
    let agent = machine.property("gate25", "MainPID").unwrap();
    let text = format!("{}nonsense: 1\n", PolicyText::default().text());
    machine
        .write("/etc/gate25/policy.d/policy.yaml", text)
        .unwrap();
    let refused = machine.shell("systemctl reload gate25").unwrap();
    assert_ne!(refused.code, Some(0), "{refused:?}");
    let journal = machine.journal().unwrap();
    assert!(journal.contains("nonsense: 1"), "{journal}");
    assert!(
        journal.contains("refused: the policy set has 1 error"),
        "{journal}"
    );
    site.check_reached(Outcome::Refused);
    site.write_policy(&PolicyText::default());
    machine.succeed("systemctl reload gate25").unwrap();
    assert_eq!(machine.property("gate25", "MainPID").unwrap(), agent);
    site.wait_enforcing();
}

#[test]
fn nftables_stopped_and_started_stops_no_agent_and_the_guard_is_back() {
    let site = Site::enforcing();
    let machine = &site.machine;
    let sender = Sender::start(&site.guest.ns, Hosting::EXCHANGER.v6_port(25), PAUSE).unwrap();
    let agent = machine.property("gate25", "MainPID").unwrap();
    for action in ["start", "reload", "restart", "stop"] {
        machine
            .succeed(&format!("systemctl {action} nftables"))
            .unwrap();
        let guarded = "nft list table inet gate25_guard && nft list table bridge gate25_guard";
        machine.wait(guarded, PROMPT).unwrap();
        sender.more(5).unwrap();
    }
    assert_eq!(machine.property("gate25", "MainPID").unwrap(), agent);
    assert_eq!(machine.property("gate25", "NRestarts").unwrap(), "0");
    assert_eq!(sender.finish().connected, 0);
    assert_eq!(site.leaked(), 0);
}

#[test]
fn agent_beside_the_units_is_refused_and_the_units_goes_on() {
    let site = Site::enforcing();
    let machine = &site.machine;
    let agent = machine.property("gate25", "MainPID").unwrap();
    machine.succeed("systemctl start gate25").unwrap();
    assert_eq!(machine.property("gate25", "MainPID").unwrap(), agent);
    let second = machine.shell("timeout 20 gate25 run").unwrap();
    assert_eq!(second.code, Some(1), "{second:?}");
    assert_eq!(machine.property("gate25", "MainPID").unwrap(), agent);
    site.wait_enforcing();
}

#[test]
fn state_that_cannot_be_written_is_told_and_enforcement_goes_on() {
    let site = Site::enforcing();
    let machine = &site.machine;
    machine
        .succeed(
            "systemctl stop gate25 && mount -t tmpfs -o ro,mode=0700,uid=$(id -u gate25),gid=$(id -g gate25) \
             tmpfs /var/lib/gate25 && systemctl start gate25",
        )
        .unwrap();
    site.check_reached(Outcome::Refused);
    machine
        .wait("gate25 status | grep '^warning.*/var/lib/gate25'", PROMPT)
        .unwrap();
    assert_eq!(site.leaked(), 0);
}

#[test]
fn settings_that_are_not_valid_start_no_agent_and_leave_what_was_there() {
    let site = Site::enforcing();
    let machine = &site.machine;
    restart_on_nonsense(machine, "gate25");
    assert!(machine.journal().unwrap().contains("nonsense: 1"));
    site.check_reached(Outcome::Refused);
    // It is tried again for as long as it takes, and starts by itself once they are.
    machine
        .succeed(&format!("sed -i '/nonsense/d' {SETTINGS}"))
        .unwrap();
    site.wait_enforcing();
    assert_eq!(site.leaked(), 0);
}

#[test]
fn guard_after_a_boot_with_broken_settings_is_that_of_the_last_start() {
    // Installed to observe, then told to enforce: the guard's unit has started under the one, the agent
    // under the other.
    let site = Site::enforcing();
    let machine = &site.machine;
    machine
        .succeed("systemctl stop gate25 && gate25 teardown && nft flush ruleset")
        .unwrap();
    site.check_reached(Outcome::Connected);
    restart_on_nonsense(machine, "gate25-guard");
    site.check_reached(Outcome::TimedOut);
}

#[test]
fn host_whose_agent_does_not_start_tells_what_stands_and_is_opened_and_closed_by_root() {
    let site = Site::enforcing();
    let machine = &site.machine;
    restart_on_nonsense(machine, "gate25");
    let status = machine.shell("gate25 status").unwrap();
    assert_ne!(status.code, Some(0), "{status:?}");
    assert!(
        status.out.contains("enforcing\tgoes on without the agent"),
        "{status:?}"
    );
    assert!(status.err.contains("nonsense"), "{status:?}");
    site.check_reached(Outcome::Refused);
    machine
        .succeed("systemctl disable --now gate25 gate25-guard && gate25 teardown")
        .unwrap();
    site.check_reached(Outcome::Connected);
    machine
        .succeed(&format!(
            "sed -i '/nonsense/d' {SETTINGS} && systemctl enable --now gate25-guard gate25"
        ))
        .unwrap();
    site.wait_enforcing();
    site.check_reached(Outcome::Refused);
}

#[test]
fn group_of_people_that_the_settings_name_may_ask_the_agent_and_others_may_not() {
    let site = Site::enforcing();
    let machine = &site.machine;
    machine
        .succeed(&format!(
            "groupadd noc && useradd -G noc duty && useradd stranger && usermod -aG noc gate25 \
             && sed -i '/^control:/s/group: gate25/group: noc/' {SETTINGS} && systemctl restart gate25"
        ))
        .unwrap();
    site.wait_enforcing();
    machine
        .succeed("runuser -u duty -- gate25 list customers")
        .unwrap();
    let refused = machine.shell("runuser -u stranger -- gate25 list customers");
    let refused = refused.unwrap();
    assert_eq!(refused.code, Some(4), "{refused:?}");
}

#[test]
fn unit_is_exposed_no_more_than_it_must_be() {
    let site = Site::enforcing();
    let limit = "systemd-analyze security --no-pager --threshold=30 gate25.service";
    site.machine.succeed(limit).unwrap();
    let verified = site.machine.shell(
        "systemd-analyze verify /lib/systemd/system/gate25.service /lib/systemd/system/gate25-guard.service",
    );
    let verified = verified.unwrap();
    assert_eq!((verified.code, verified.err.as_str()), (Some(0), ""));
}

/// Spoils the settings and restarts a unit, which fails.
#[track_caller]
fn restart_on_nonsense(machine: &Machine, unit: &str) {
    machine
        .succeed(&format!("echo 'nonsense: 1' >>{SETTINGS}"))
        .unwrap();
    let failed = machine.shell(&format!("systemctl restart {unit}")).unwrap();
    assert_ne!(failed.code, Some(0), "{failed:?}");
}
