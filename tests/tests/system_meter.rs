//! The leak meter itself: it finds what it is there to find, and nothing where nothing is.
#![cfg(feature = "root")]

use std::time::Duration;

use gate25_tests::{
    Accounts, May, Measured, Meter, Phase, PolicyText, Settings, World, connect, poll,
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn meter_of_an_enforced_policy_finds_no_leak_and_accounts_for_every_packet() {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let policy = Meter::policy(&world);
    let agent = world.agent_with(world.settings(), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    meter.check().unwrap();
    meter.wait_sent(5000).unwrap();
    let verdict = meter.end(&agent, Accounts::Customers).unwrap();
    assert_eq!(verdict.measured.leaked, 0, "{verdict:?}");
    verdict.check().unwrap();
}

#[test]
fn meter_of_an_observing_host_finds_every_packet_that_the_policy_forbids() {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let mut settings = world.settings();
    settings.more = "enforcement: observe\n".to_owned();
    let agent = world.agent_with(settings, &Meter::policy(&world)).unwrap();
    world.wait_workloads(&agent, "failed", 0).unwrap();
    meter.begin(&agent).unwrap();
    meter.fire().unwrap();
    meter.wait_sent(2000).unwrap();
    assert!(meter.check().is_err());
    let verdict = meter.end(&agent, Accounts::Customers).unwrap();
    let Measured { sent, leaked } = verdict.measured;
    // More than were sent: connections have further packets.
    assert!(leaked >= sent && sent >= 2000, "{verdict:?}");
    let told = |line: &String| line.contains("not every attempt ended as it must");
    assert!(verdict.wrong.iter().any(told), "{verdict:?}");
}

#[test]
fn meter_of_a_host_that_stops_attempts_alone_finds_what_passes_behind_them() {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let may = May::RelayOnly;
    meter
        .guest_by_frames(&world, &guest, Some("c-1"), may)
        .unwrap();
    let settings = Settings {
        more: "enforcement: observe\n".to_owned(),
        ..Settings::default()
    };
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = world.agent_with(settings, &policy).unwrap();
    world.wait_workloads(&agent, "failed", 0).unwrap();
    let rules = "table inet attempts { chain forward { type filter hook forward priority 0; \
                 tcp dport 25 tcp flags & (syn|ack) == syn drop; }; }";
    let host = &world.hosting.hypervisor;
    host.exec("nft", &[rules]).unwrap();
    meter.begin(&agent).unwrap();
    meter.fire().unwrap();
    meter.wait_sent(1000).unwrap();
    let verdict = meter.end(&agent, Accounts::Customers).unwrap();
    let Measured { sent, leaked } = verdict.measured;
    assert!(leaked > sent / 4 && leaked < sent * 3 / 4, "{verdict:?}");
}

#[test]
fn meter_of_a_policy_that_is_opened_meanwhile_finds_the_leak_in_its_phase() {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let policy = Meter::policy(&world);
    let agent = world.agent_with(world.settings(), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    meter.wait_sent(1000).unwrap();
    meter.phase("opened").unwrap();
    let opened = policy.exempt("m-tap");
    agent.apply_policy("policy.yaml", &opened.text()).unwrap();
    poll("a leak", LIMIT, || {
        Ok((meter.measured()?.leaked > 100).then_some(()))
    })
    .unwrap();
    let closed = Meter::policy(&world);
    agent.apply_policy("policy.yaml", &closed.text()).unwrap();
    meter.phase("closed again").unwrap();
    meter.wait_sent(1000).unwrap();
    let verdict = meter.end(&agent, Accounts::Customers).unwrap();
    let leaked: Vec<(&str, bool)> = verdict
        .phases
        .iter()
        .map(|Phase { name, measured, .. }| (name.as_str(), measured.leaked > 0))
        .collect();
    let expected = [("begin", false), ("opened", true), ("closed again", false)];
    assert_eq!(leaked, expected, "{verdict:?}");
    // What was let through is counted as such, so the books are in order; nobody else leaked.
    assert_eq!(verdict.wrong, Vec::<String>::new());
    let Measured { sent, leaked } = verdict.measured;
    assert!(leaked < sent / 4, "{verdict:?}");
    let text = format!("{:#}", verdict.check().unwrap_err());
    assert!(text.contains("opened: "), "{text}");
}

#[test]
fn meter_of_packets_that_it_did_not_send_says_whose_counts_do_not_add_up() {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let may = May::RelayOnly;
    meter.guest(&world, &guest, Some("c-1"), may).unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = world.agent(&policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    meter.check().unwrap();
    let to = gate25_tests::Hosting::EXCHANGER.v4_port(25);
    connect(&guest.ns, to, LIMIT).unwrap();
    let verdict = meter.end(&agent, Accounts::Customers).unwrap();
    let text = format!("{:#}", verdict.check().unwrap_err());
    assert!(text.contains("c-1: refused and arrived: sent "), "{text}");
    assert!(
        text.contains("the host: refused and arrived: sent "),
        "{text}"
    );
}

#[test]
fn meter_of_a_host_on_which_another_guest_is_open_finds_that_he_is_no_sender() {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let may = May::RelayOnly;
    meter
        .guest_by_frames(&world, &guest, Some("c-1"), may)
        .unwrap();
    let other = world.guest(102, "tap102i0").unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
        .exempt("c-2");
    let agent = world.agent(&policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    meter.check().unwrap();
    world.wait_open(&other).unwrap();
    let verdict = meter.end(&agent, Accounts::AtMost).unwrap();
    assert!(verdict.measured.leaked > 0, "{verdict:?}");
    let text = format!("{:#}", verdict.check().unwrap_err());
    let told = format!(
        "packets of {} arrived, who is no sender",
        other.addresses.v4
    );
    assert!(text.contains(&told), "{text}");
}

#[test]
fn meter_of_a_phase_in_which_nobody_sends_says_so() {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let may = May::RelayOnly;
    meter
        .guest_by_frames(&world, &guest, Some("c-1"), may)
        .unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = world.agent(&policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    meter.wait_sent(100).unwrap();
    guest.ns.ip("link set eth0 down").unwrap();
    meter.silent_phase("meant to be silent").unwrap();
    meter.phase("silent").unwrap();
    let verdict = meter.end(&agent, Accounts::AtMost).unwrap();
    let text = format!("{:#}", verdict.check().unwrap_err());
    assert!(text.contains("\n  silent: 0 of 0 arrived"), "{text}");
    assert!(!text.contains("meant to be"), "{text}");
}
