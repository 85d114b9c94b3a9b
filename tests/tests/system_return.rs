//! `block_return`: what comes back to guests from guarded ports. Packets in a guest's name reach the
//! exchanger by another network, and its answers the guest by this one.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "return/detour.rs"]
mod detour;

use std::time::Duration;

use detour::{Connection, Detour, Machine};
use gate25_tests::{
    Agent, Feature, Held, Hosting, Link, Metrics, Network, Outcome, PolicyText, Settings, World,
    connect, greet, poll, send,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const RETURNED: &str = "gate25_return_packets_total";
const ON: &str = "block_return: true\n";
const OFF: &str = "block_return: false\n";

/// A guest whose packets leave by another network.
struct Scene {
    machine: Machine,
    detour: Detour,
    world: World,
}

impl Scene {
    fn new() -> Self {
        let world = World::new().unwrap();
        Self {
            machine: Machine::new(&world),
            detour: Detour::to(&world.hosting.exchanger),
            world,
        }
    }

    fn agent(&self, more: &str, policy: &PolicyText) -> Agent {
        self.world.agent_with(settings(more), policy).unwrap()
    }

    #[track_caller]
    fn check_greeted(&mut self, connection: &mut Connection) {
        self.machine.check_greeted(&mut self.detour, connection);
    }

    /// The exchanger answers, and answers once more, and nothing of it arrives.
    #[track_caller]
    fn check_unanswered(&mut self, agent: &Agent, connection: &Connection) {
        let dropped = |agent: &Agent| {
            let labels = [("verdict", "drop"), ("family", connection.family())];
            agent.metrics().unwrap().sum(RETURNED, &labels).unwrap()
        };
        let before = (dropped(agent), self.world.witness.packets().unwrap());
        self.detour.begin(connection);
        poll("two answers to be dropped", LIMIT, || {
            Ok((dropped(agent) >= before.0 + 2.0).then_some(()))
        })
        .unwrap();
        assert!(self.machine.has_heard_nothing(connection));
        assert!(self.world.witness.packets().unwrap() > before.1);
    }
}

fn settings(more: &str) -> Settings {
    Settings {
        more: more.to_owned(),
        ..Settings::default()
    }
}

fn closed() -> PolicyText {
    PolicyText::default().customer("c-101", "tap101i0")
}

/// Ends the agent and starts it with other settings.
fn restart(agent: &mut Agent, more: &str) {
    agent.stop().unwrap();
    agent.settings().more = more.to_owned();
    agent.restart().unwrap();
}

fn feature(metrics: &Metrics, name: &str) -> Option<f64> {
    metrics.sum("gate25_backend_feature", &[("feature", name)])
}

fn hook(metrics: &Metrics) -> Option<f64> {
    metrics.sum("gate25_enforcing", &[("hook", "return")])
}

#[test]
fn mail_sent_by_another_network_in_a_guests_name_hears_no_answer() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let mut scene = Scene::new();
    let mut agent = scene.agent(OFF, &closed());
    let mut spoken = Connection::both(40_001);
    for connection in &mut spoken {
        scene.check_greeted(connection);
    }
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum(RETURNED, &[]), Some(0.0));
    assert_eq!(hook(&metrics), Some(0.0));

    restart(&mut agent, ON);
    for connection in &Connection::both(40_002) {
        scene.check_unanswered(&agent, connection);
    }
    // So is what began before.
    for connection in &mut spoken {
        let labels = [("verdict", "drop"), ("family", connection.family())];
        let before = agent.metrics().unwrap().sum(RETURNED, &labels).unwrap();
        scene.detour.say(connection, b"HELO guest.example\r\n");
        agent
            .wait_metric(RETURNED, &labels, LIMIT, |now| now > before)
            .unwrap();
        assert!(scene.machine.has_heard_nothing(connection));
    }
    let metrics = agent.metrics().unwrap();
    assert_eq!(hook(&metrics), Some(1.0));
    assert_eq!(feature(&metrics, "return_packets"), Some(1.0));
    assert_eq!(metrics.sum(RETURNED, &[("verdict", "allow")]), Some(0.0));
    let (_, page) = agent.get("/metrics/customers").unwrap();
    let of_customer = [("customer", "c-101"), ("verdict", "drop")];
    let customers = Metrics::parse(&page).unwrap();
    let counted = customers.sum("gate25_customer_return_packets_total", &of_customer);
    assert!(counted >= Some(6.0), "{counted:?}");
    // None of it is the guest's own doing.
    let attempts = metrics.sum("gate25_connections_total", &[]);
    assert_eq!(attempts, Some(0.0));
    let status = agent.command(&["status"]).unwrap().out;
    assert!(status.contains("judged on 1 interfaces"), "{status}");
}

#[test]
fn guest_hears_from_where_it_may_send_until_it_may_no_longer() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let mut scene = Scene::new();
    let agent = scene.agent(ON, &closed().exempt("c-101"));
    for connection in &mut Connection::both(40_001) {
        scene.check_greeted(connection);
    }
    let metrics = agent.metrics().unwrap();
    assert!(metrics.sum(RETURNED, &[("verdict", "allow")]) >= Some(4.0));
    assert_eq!(metrics.sum(RETURNED, &[("verdict", "drop")]), Some(0.0));
    let text = closed().text();
    agent.apply_policy("policy.yaml", &text).unwrap();
    for connection in &Connection::both(40_002) {
        scene.check_unanswered(&agent, connection);
    }
}

#[test]
fn host_and_profile_that_observe_only_count_what_comes_back() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let watch = PolicyText::default()
        .profile("watch", "observe", "reject")
        .customer_of("watch", "c-101", "tap101i0");
    for (more, policy) in [
        ("block_return: true\nenforcement: observe\n", closed()),
        (ON, watch),
    ] {
        let mut scene = Scene::new();
        let agent = scene.agent(more, &policy);
        for connection in &mut Connection::both(40_001) {
            scene.check_greeted(connection);
        }
        let metrics = agent.metrics().unwrap();
        assert!(metrics.sum(RETURNED, &[("verdict", "observe")]) >= Some(4.0));
        assert_eq!(metrics.sum(RETURNED, &[("verdict", "drop")]), Some(0.0));
    }
}

#[test]
fn returns_stay_judged_without_the_agent_until_a_start_says_otherwise() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let mut scene = Scene::new();
    let mut agent = scene.agent(ON, &closed());
    let pin = format!("replies-{}", scene.world.index("tap101i0").unwrap());
    let is_pinned = |scene: &Scene| {
        let pins = scene.world.pinned_objects().unwrap();
        pins.keys().any(|path| path.ends_with(&pin))
    };
    assert!(is_pinned(&scene));
    agent.signal(Signal::SIGKILL).unwrap();
    let [unheard, _] = Connection::both(40_001);
    scene.detour.begin(&unheard);
    let arrived = || Ok((scene.world.witness.packets()? > 0).then_some(()));
    poll("the exchanger to be asked", LIMIT, arrived).unwrap();
    // Its answer, and all that it repeats meanwhile, is counted by the kernel.
    agent.restart().unwrap();
    let dropped = [("verdict", "drop")];
    agent
        .wait_metric(RETURNED, &dropped, LIMIT, |count| count >= 2.0)
        .unwrap();
    assert!(scene.machine.has_heard_nothing(&unheard));
    for connection in &Connection::both(40_002) {
        scene.check_unanswered(&agent, connection);
    }
    restart(&mut agent, OFF);
    assert!(!is_pinned(&scene));
    for connection in &mut Connection::both(40_003) {
        scene.check_greeted(connection);
    }
    let metrics = agent.metrics().unwrap();
    assert!(
        metrics.sum(RETURNED, &dropped) >= Some(6.0),
        "counters go on"
    );
}

#[test]
fn guests_are_served_and_refused_as_ever_where_returns_are_judged() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let links = [
        (101, "tap101i0", Link::BridgedVeth),
        (102, "tap102i0", Link::BridgedTap),
        (103, "tap103i0", Link::RoutedVeth),
        (104, "tap104i0", Link::RoutedVeth),
    ];
    let guests = links.map(|(number, name, link)| world.guest_by(number, name, link).unwrap());
    let [open, refused, other, routed] = &guests;
    let policy = PolicyText::default()
        .customer("c-101", "tap101i0")
        .exempt("c-101")
        .customer("c-102", "tap102i0")
        .customer("c-104", "tap104i0")
        .exempt("c-104");
    let agent = world.agent_with(settings(ON), &policy).unwrap();
    world.check_open(open).unwrap();
    world.check_open(routed).unwrap();
    // Refused at once: the reset that does it goes this way.
    world.check_closed(refused).unwrap();
    world.check_closed(other).unwrap();
    // Mail servers of guests, exempt or not, take what comes.
    greet(&refused.ns, 25).unwrap();
    greet(&open.ns, 25).unwrap();
    let server = refused.addresses.v4_port(25);
    for client in [&world.hosting.exchanger, &open.ns] {
        let held = Held::open(client, server, LIMIT).unwrap();
        assert_eq!(held.greeting(), "220 greeter");
    }
    // From guest to guest it is the receiver's policy, as on the way there.
    let attempt = connect(&refused.ns, open.addresses.v4_port(25), LIMIT).unwrap();
    assert_eq!(attempt.outcome, Outcome::Refused);
    let later = world.guest(105, "tap105i0").unwrap();
    world.wait_replies(&agent, "tap105i0").unwrap();
    world.wait_closed(&later).unwrap();
    let metrics = agent.metrics().unwrap();
    assert!(metrics.sum(RETURNED, &[("verdict", "allow")]) > Some(0.0));
    assert_eq!(metrics.sum(RETURNED, &[("verdict", "drop")]), Some(0.0));
}

#[test]
fn connections_that_are_led_elsewhere_go_on_where_returns_are_judged() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let redirected = world.guest_by(101, "tap101i0", Link::RoutedVeth).unwrap();
    let told = world.guest(102, "tap102i0").unwrap();
    let policy = PolicyText::default()
        .redirecting("mailers")
        .noticing("told")
        .customer_of("mailers", "c-101", "tap101i0")
        .customer_of("told", "c-102", "tap102i0")
        .container_of("mailers", "c-1", &world.below("box"));
    let listen = format!(
        "notice: {{listen: [\"{}:2525\", \"[{}]:2525\"]}}\n",
        Hosting::GATEWAY.v4,
        Hosting::GATEWAY.v6
    );
    let settings = Settings {
        more: format!("{ON}{listen}"),
        ..world.settings()
    };
    let agent = world.agent_with(settings, &policy).unwrap();
    for to in [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ] {
        let mut held = Held::open(&redirected.ns, to, LIMIT).unwrap();
        assert_eq!(held.greeting(), "220 greeter");
        assert_eq!(held.command("NOOP").unwrap(), "250 ok");
        let mail = send(&told.ns, to, "somebody@example.org", "news").unwrap();
        assert!(mail.transcript.contains("c-102"), "{}", mail.transcript);
        // There they may go by themselves.
        let attempt = connect(&told.ns, Hosting::RELAY.v4_port(25), LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected);
    }
    let network = Network::own(104, "veth104i0");
    let container = world.container("box", &network).unwrap();
    world.wait_replies(&agent, "veth104i0").unwrap();
    for to in [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ] {
        let greeting = container.tenant.hold("one", to).unwrap();
        assert!(greeting.contains("greeter"), "{to}: {greeting}");
    }
    assert_eq!(world.witness.settled().unwrap(), 0);
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum(RETURNED, &[("verdict", "drop")]), Some(0.0));
}

#[test]
fn hosts_that_cannot_judge_what_comes_back_say_so_and_enforce_the_rest() {
    let filter = Settings {
        args: ["--attach", "filter"].map(str::to_owned).into(),
        ..settings(ON)
    };
    let nftables = settings("block_return: true\nbackend: nftables\n");
    for (world, settings, why) in [
        (World::new(), filter, "without tcx"),
        (World::for_nftables(), nftables, "backend nftables"),
    ] {
        let world = world.unwrap();
        let guest = world.guest(101, "tap101i0").unwrap();
        let agent = world.agent_with(settings, &closed()).unwrap();
        world.check_closed(&guest).unwrap();
        let metrics = agent.metrics().unwrap();
        assert_eq!(feature(&metrics, "return_packets"), Some(0.0), "{why}");
        assert_eq!(hook(&metrics), Some(0.0), "{why}");
        let status = agent.command(&["status"]).unwrap().out;
        let told = |line: &str| line.contains("`block_return` is without effect");
        let line = status.lines().find(|line| told(line));
        assert!(line.is_some_and(|line| line.contains(why)), "{status}");
        assert!(agent.log().lines().any(told), "{}", agent.log());
        let complained = metrics.sum("gate25_complaints", &[("subject", "returns")]);
        assert_eq!(complained, Some(1.0), "{why}");
    }
}
