//! The SMTP notice of the real agent, to Postfix and swaks as they are installed.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use gate25_tests::{
    Agent, Guest, Held, Hosting, Outcome, PolicyText, Postfix, Role, Sender, Settings, World, poll,
    send,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

const LIMIT: Duration = Duration::from_secs(20);
/// Not a guarded port: guests reach it themselves.
const PORT: u16 = 2525;
/// What a connection may take of the agent's memory.
const BYTES_A_CONNECTION: u64 = 12 * 1024;

#[test]
fn postfix_bounces_with_the_notice_in_its_log() {
    let lab = Notice::new("");
    for (number, next_hop) in [
        (101, format!("[{}]:{PORT}", Hosting::GATEWAY.v4)),
        (102, format!("[{}]:{PORT}", Hosting::GATEWAY.v6)),
    ] {
        let guest = lab.guest(number);
        let networks = "127.0.0.0/8".to_owned();
        let server = Postfix::start(&guest.ns, &Role::Relay { networks, next_hop }).unwrap();
        let local = SocketAddr::from(([127, 0, 0, 1], 25));
        let delivery = send(&guest.ns, local, "somebody@example.org", "news").unwrap();
        assert!(delivery.accepted, "{}", delivery.transcript);
        let line = server.outcome_for("somebody@example.org", LIMIT).unwrap();
        for part in [
            "dsn=5.7.1",
            "status=bounced",
            "554-5.7.1 Port 25 is closed for unassigned.",
            "554 5.7.1 Ask at https://noc.example.net/25",
            "in reply to MAIL FROM command",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    let refusals = lab
        .agent
        .metrics()
        .unwrap()
        .sum("gate25_notice_refusals_total", &[]);
    assert!(refusals >= Some(2.0), "{refusals:?}");
}

#[test]
fn swaks_shows_the_notice_over_both_families() {
    let lab = Notice::new("");
    let guest = lab.guest(101);
    for to in [
        Hosting::GATEWAY.v4_port(PORT),
        Hosting::GATEWAY.v6_port(PORT),
    ] {
        let delivery = send(&guest.ns, to, "somebody@example.org", "news").unwrap();
        assert!(!delivery.accepted);
        for line in [
            "554-5.7.1 Port 25 is closed for unassigned.",
            "554 5.7.1 Ask at https://noc.example.net/25",
            "221 2.0.0 hv1 closes",
        ] {
            let found = delivery.transcript.contains(line);
            assert!(found, "{line}: {}", delivery.transcript);
        }
    }
    let answered = [("result", "answered")];
    lab.agent
        .wait_metric("gate25_notice_connections_total", &answered, LIMIT, |it| {
            it == 2.0
        })
        .unwrap();
}

#[test]
fn status_and_metrics_tell_whether_the_notice_is_listened_for() {
    let world = World::new().unwrap();
    let taken = Hosting::GATEWAY.v4_port(PORT);
    let holder = world
        .hosting
        .hypervisor
        .run(|| std::net::TcpListener::bind(taken).unwrap())
        .unwrap();
    let agent = world
        .agent_with(settings(""), &PolicyText::default())
        .unwrap();
    let status = || agent.command(&["status"]).unwrap().out;
    let failed = poll("the status to tell of the failure", LIMIT, || {
        let status = status();
        Ok(status
            .contains("not listening on 198.51.100.1:2525: Address already in use")
            .then_some(status))
    });
    let failed = failed.unwrap();
    assert!(
        failed.contains("listening on [2001:db8:100::1]:2525"),
        "{failed}"
    );
    assert!(failed.contains("senders get no notice"), "{failed}");
    let page = agent.metrics().unwrap();
    let count = |state| page.sum("gate25_notice_listeners", &[("state", state)]);
    assert_eq!(
        (count("listening"), count("waiting")),
        (Some(1.0), Some(1.0))
    );
    for result in ["answered", "unanswered", "limited", "timeout", "error"] {
        let labels = [("result", result)];
        assert_eq!(
            page.sum("gate25_notice_connections_total", &labels),
            Some(0.0)
        );
    }
    drop(holder);
    poll("the address to be bound", LIMIT, || {
        let status = status();
        let bound = !status.contains("not listening") && !status.contains("senders get no notice");
        Ok(bound.then_some(()))
    })
    .unwrap();
}

#[test]
fn thousand_connections_cost_little_memory_and_hold_no_reload_up() {
    // A quarter is one customer's, or nobody's.
    let more = "  max_connections: 4000\n  max_connections_per_peer: 1000\n  \
                max_connections_per_second: 10000\n";
    let mut lab = Notice::new(more);
    let guest = lab.guest(101);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096).min(hard), hard).unwrap();
    let to = Hosting::GATEWAY.v4_port(PORT);
    let before = resident(&mut lab.agent);
    let mut held: Vec<TcpStream> = guest
        .ns
        .run(|| {
            (0..1000)
                .map(|_| TcpStream::connect_timeout(&to, LIMIT).unwrap())
                .collect()
        })
        .unwrap();
    for stream in &mut held {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ");
    }
    let open = lab
        .agent
        .metrics()
        .unwrap()
        .sum("gate25_notice_open_connections", &[]);
    assert_eq!(open, Some(1000.0));
    // One more is refused, as `blocked: reject` does.
    let error = Held::open(&guest.ns, to, LIMIT).unwrap_err();
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    let grown = resident(&mut lab.agent).saturating_sub(before);
    println!("1000 connections: {} KiB", grown / 1024);
    assert!(grown <= 1000 * BYTES_A_CONNECTION, "{grown} bytes");
    // Nor do those that try again and again.
    let pause = Duration::ZERO;
    let senders: Vec<Sender> = (0..4)
        .map(|_| Sender::start(&guest.ns, to, pause).unwrap())
        .collect();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i*")
        .exempt("c-1");
    lab.agent
        .apply_policy("policy.yaml", &policy.text())
        .unwrap();
    lab.world.check_open(&guest).unwrap();
    for sender in senders {
        let tally = sender.more(100).unwrap();
        // The kernel completes the handshake, then the agent resets.
        println!("{} attempts", tally.attempts());
    }
    let limited = [("result", "limited")];
    lab.agent
        .wait_metric("gate25_notice_connections_total", &limited, LIMIT, |it| {
            it >= 400.0
        })
        .unwrap();
    drop(held);
    lab.agent
        .wait_metric("gate25_notice_open_connections", &[], LIMIT, |open| {
            open == 0.0
        })
        .unwrap();
}

#[test]
fn agent_that_ends_closes_connections_and_a_new_one_answers() {
    let mut lab = Notice::new("");
    let guest = lab.guest(101);
    let to = Hosting::GATEWAY.v4_port(PORT);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut held = Held::open(&guest.ns, to, LIMIT).unwrap();
        assert_eq!(held.greeting(), "220 hv1 ESMTP");
        lab.agent.signal(signal).unwrap();
        lab.agent.process().wait(LIMIT).unwrap();
        if signal == Signal::SIGTERM {
            assert_eq!(held.line().unwrap(), "421 4.3.2 hv1 stops");
        }
        let cut = held.wait_cut(LIMIT).unwrap();
        let ends = [Outcome::Other("closed".to_owned()), Outcome::Reset];
        assert!(ends.contains(&cut.outcome), "{signal}: {cut}");
        lab.agent.restart().unwrap();
        poll("the responder to greet again", LIMIT, || {
            Ok(Held::open(&guest.ns, to, LIMIT).ok().map(drop))
        })
        .unwrap();
    }
}

/// An agent that answers with a notice on the guests' gateway.
struct Notice {
    agent: Agent,
    world: World,
}

impl Notice {
    fn new(more: &str) -> Self {
        let world = World::new().unwrap();
        let agent = world
            .agent_with(settings(more), &PolicyText::default())
            .unwrap();
        let state = [("state", "listening")];
        agent
            .wait_metric("gate25_notice_listeners", &state, LIMIT, |count| {
                count == 2.0
            })
            .unwrap();
        Self { agent, world }
    }

    fn guest(&self, number: u8) -> Guest {
        self.world.guest(number, &format!("tap{number}i0")).unwrap()
    }
}

fn settings(more: &str) -> Settings {
    Settings {
        more: format!(
            "notice:\n  listen: [\"{}\", \"{}\"]\n  text: |\n    Port 25 is closed for {{customer}}.\n    \
             Ask at {{url}}\n  url: https://noc.example.net/25\n{more}",
            Hosting::GATEWAY.v4_port(PORT),
            Hosting::GATEWAY.v6_port(PORT),
        ),
        ..Settings::default()
    }
}

/// Memory that the agent has, in bytes.
fn resident(agent: &mut Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process().id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}
