//! The kernel's tables without room: somebody else's entries are in them.

use std::time::Duration;

use gate25_tests::{
    Accounts, Agent, Feature, ForeignEntries, Hosting, May, Meter, PolicyText, Rounds, Sender,
    Settings, Tally, Trial, Tried, World, poll,
};

use super::scene::{LIMIT, Plug, besieged, check_tight, watchful};

const REFUSED: &str = "gate25_config_reload_failures_total";
const GENERATION: &str = "gate25_policy_generation";

/// Fills one table after the other and has the agent reload: it refuses and says which table, what
/// was in force stays, and once there is room the same files are taken.
#[track_caller]
pub(crate) fn full(tables: &[&str], times: u64) {
    let world = World::new().unwrap();
    let (mut meter, agent) = besieged(&world);
    let mut rounds = Rounds::of(times).unwrap();
    let mut tried = 0;
    for round in rounds.by_ref() {
        for table in tables {
            meter
                .phase(&format!("{table} full, round {round}"))
                .unwrap();
            let mut entries = ForeignEntries::fill(&world, table).unwrap();
            meter.check().unwrap();
            let [refused, generation] = [REFUSED, GENERATION].map(|name| value(&agent, name));
            tried += 1;
            // Another customer with another address each time, who is here: only such are counted.
            let name = format!("more-{tried}");
            let cgroup = world.containers.root.child(&name).unwrap();
            let more = more(tried, &world.below(&name));
            agent.write_policy("more.yaml", &more).unwrap();
            wait_more(&agent, REFUSED, refused);
            let wanted = format!("write into table {table}");
            poll("the table's name in the log", LIMIT, || {
                Ok(agent.log().contains(&wanted).then_some(()))
            })
            .unwrap_or_else(|error| panic!("{table}: {error:#}\n{}", agent.log()));
            assert_eq!(value(&agent, GENERATION), generation, "{table}");
            meter.check().unwrap();
            meter
                .phase(&format!("{table} with room, round {round}"))
                .unwrap();
            entries.make_room(entries.count()).unwrap();
            wait_more(&agent, GENERATION, generation);
            meter.check().unwrap();
            drop(cgroup);
        }
    }
    let what = format!("no room in a table of the kernel's ({})", tables.join(", "));
    meter
        .judge(&agent, Trial::Fault, &what, tried, Accounts::Customers)
        .unwrap();
}

/// Fills the table of interfaces, and makes one for which there is no room: nobody's, and closed.
#[track_caller]
pub(crate) fn full_of_interfaces(times: u64) {
    const NAME: &str = "tap250i0";
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(250, NAME).unwrap();
    let may = May::RelayOnly;
    meter
        .guest_by_frames(&world, &guest, Some("c-new"), may)
        .unwrap();
    let policy = PolicyText::default().customer("c-new", NAME);
    let agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    let plug = Plug {
        world: &world,
        guest: &guest,
        name: NAME,
    };
    let host = &world.hosting.hypervisor;
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("full, round {round}")).unwrap();
        // The old one's entry goes first: it would leave its place.
        host.ip(&plug.line_out()).unwrap();
        world.wait_workloads(&agent, "enforced", 0).unwrap();
        let mut entries = ForeignEntries::fill(&world, "INTERFACES").unwrap();
        host.ip(&plug.line_in(None)).unwrap();
        plug.up();
        plug.wait_forbidden(&meter, 100);
        poll("the table's name in the status", LIMIT, || {
            let status = agent.command(&["status", "-j"])?;
            Ok(status.out.contains("table INTERFACES").then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        assert_eq!(agent.get("/readyz").unwrap().0, 503);
        meter.wait_sent(500).unwrap();
        check_tight(&meter, &agent, "full");
        meter.phase(&format!("with room, round {round}")).unwrap();
        entries.make_room(entries.count()).unwrap();
        poll("readiness", LIMIT, || {
            Ok((agent.get("/readyz")?.0 == 200).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        meter.check().unwrap();
    }
    meter.wait_all_relayed().unwrap();
    let what = "no room in a table of the kernel's (INTERFACES), a new guest";
    meter
        .judge(&agent, Trial::Fault, what, rounds.begun(), Accounts::AtMost)
        .unwrap();
}

/// Overruns the table of redirected connections under guests that are led to the relay.
#[track_caller]
pub(crate) fn overrun_redirects(times: u64) {
    const PAUSE: Duration = Duration::from_millis(2);
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default()
        .redirecting("led")
        .customer_of("led", "c-led", "tap101i0");
    let agent = world.agent_with(Settings::default(), &policy).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let arrived = world.witness.settled().unwrap();
    let to = [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ];
    let senders = to.map(|to| Sender::start(&guest.ns, to, PAUSE).unwrap());
    for sender in &senders {
        sender.more(20).unwrap();
    }
    let mut rounds = Rounds::of(times).unwrap();
    for _ in rounds.by_ref() {
        ForeignEntries::fill(&world, "REDIRECTS").unwrap();
        for sender in &senders {
            // New connections take the place of the foreign entries; some may be refused before.
            let before = sender.tally().connected;
            let again = |tally: &Tally| tally.connected >= before + 15;
            sender
                .until("connections to the relay again", LIMIT, again)
                .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        }
    }
    let sent = senders.map(|sender| sender.finish().attempts());
    let tried = Tried {
        trial: Trial::Fault,
        what: "table of redirected connections overrun".to_owned(),
        times: rounds.begun(),
        sent: sent.iter().sum(),
        leaked: world.witness.settled().unwrap() - arrived,
    };
    tried.judge().unwrap();
}

/// A file with one more customer, who has addresses that nobody else has.
fn more(number: u64, cgroup: &str) -> String {
    format!(
        "schema: 1\nallowlists:\n  - {{name: more-{number}, to: [\"2001:db8:aaaa:{number:x}::/64\"]}}\n\
         customers:\n  - {{id: c-more-{number}, allow: [more-{number}], workloads: [{{cgroup: \"{cgroup}\"}}]}}\n"
    )
}

#[track_caller]
fn value(agent: &Agent, name: &str) -> f64 {
    agent.metrics().unwrap().sum(name, &[]).unwrap()
}

#[track_caller]
fn wait_more(agent: &Agent, name: &str, than: f64) {
    agent
        .wait_metric(name, &[], LIMIT, |now| now > than)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}
