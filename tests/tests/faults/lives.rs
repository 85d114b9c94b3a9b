//! Ends, starts, pauses and full disks, under senders that never pause.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gate25_tests::{
    Accounts, May, Meter, Network, PolicyText, Rounds, Settings, Trial, World, after, paced, poll,
};
use nix::sys::signal::Signal;

use super::besieged::{besieged, closed, either};

const LIMIT: Duration = Duration::from_secs(20);

/// Ends the agent by SIGTERM and SIGKILL in turn, and starts it again.
#[track_caller]
pub(crate) fn restarted(times: u64) {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let mut before = agent.metrics().unwrap();
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        let signal = if round % 2 == 0 {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        };
        meter.phase(&format!("{signal}, round {round}")).unwrap();
        agent.signal(signal).unwrap();
        agent.process().wait(LIMIT).unwrap();
        agent.restart().unwrap();
        let now = agent.metrics().unwrap();
        now.check_not_below(&before).unwrap();
        before = now;
    }
    meter.check().unwrap();
    let (what, times) = ("end and start of the agent", rounds.begun());
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::Customers)
        .unwrap();
}

/// Starts the agent with programs other than those that are attached: the guarded ports are
/// constants of theirs.
#[track_caller]
pub(crate) fn restarted_with_other_programs(times: u64) {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        let ports = if round % 2 == 0 { "25, 2525" } else { "25" };
        meter
            .phase(&format!("ports {ports}, round {round}"))
            .unwrap();
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        agent.settings().more = format!("guarded_ports: [{ports}]\n");
        agent.restart().unwrap();
        meter.check().unwrap();
    }
    let (what, times) = (
        "start with programs other than the attached",
        rounds.begun(),
    );
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::Customers)
        .unwrap();
}

/// Stops the agent as a debugger or a freezer does, changes the policy's files meanwhile, and lets
/// it go on.
#[track_caller]
pub(crate) fn suspended(times: u64) {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("stopped, round {round}")).unwrap();
        let generation = agent
            .metrics()
            .unwrap()
            .sum("gate25_policy_generation", &[]);
        agent.signal(Signal::SIGSTOP).unwrap();
        let policy = either(&world, round);
        agent.write_policy("policy.yaml", &policy.text()).unwrap();
        meter.wait_sent(2000).unwrap();
        meter.check().unwrap();
        meter.phase(&format!("let go on, round {round}")).unwrap();
        agent.signal(Signal::SIGCONT).unwrap();
        agent
            .wait_metric("gate25_policy_generation", &[], LIMIT, |now| {
                Some(now) > generation
            })
            .unwrap();
        meter.check().unwrap();
    }
    let (what, times) = (
        "agent suspended, its policy changed meanwhile",
        rounds.begun(),
    );
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::Host)
        .unwrap();
}

/// Lets an exemption expire while the agent is dead, and sends once it has.
#[track_caller]
pub(crate) fn expired_while_dead(times: u64) {
    /// Both clocks are read one after the other.
    const PUNCTUAL: Duration = Duration::from_millis(20);
    let term = paced(Duration::from_secs(2));
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    meter
        .guest(&world, &guest, Some("c-1"), May::RelayOnly)
        .unwrap();
    let container = world.container("late", &Network::own(102, "veth102i0"));
    let container = container.unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .container("c-2", &world.below("late"));
    let mut agent = world.agent_with(world.settings(), &policy).unwrap();
    world.settle(&container).unwrap();
    meter
        .container(&world, container, Some("c-2"), May::RelayOnly)
        .unwrap();
    let what = "exemption expires while the agent is dead";
    for _ in Rounds::of(times).unwrap() {
        let (expires, ends) = (after(term), Instant::now() + term);
        let text = ["c-1", "c-2"]
            .iter()
            .fold(policy.clone(), |policy, id| {
                policy.exempt_until(id, expires)
            })
            .text();
        agent.apply_policy("policy.yaml", &text).unwrap();
        world.check_open(&guest).unwrap();
        for container in meter.containers() {
            world.wait_free(&container.tenant).unwrap();
        }
        meter.begin(&agent).unwrap();
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        assert!(
            Instant::now() < ends,
            "the exemption ended too early to tell"
        );
        poll("the exemption to expire", LIMIT, || {
            Ok((Instant::now() > ends + paced(PUNCTUAL)).then_some(()))
        })
        .unwrap();
        meter.fire().unwrap();
        meter.wait_sent(500).unwrap();
        meter.check().unwrap();
        agent.restart().unwrap();
        meter.check().unwrap();
        meter
            .judge(&agent, Trial::Fault, what, 1, Accounts::Customers)
            .unwrap();
    }
}

/// Fills the disk that holds the state, changes the policy, kills the agent and starts it again.
#[track_caller]
pub(crate) fn disk_full(times: u64) {
    const FOLDER: &str = "/var/lib/full";
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("mkdir", &[FOLDER]).unwrap();
    host.exec(
        "mount",
        &["-t", "tmpfs", "-o", "size=64k,mode=0700", "none", FOLDER],
    )
    .unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let settings = Settings {
        more: format!("state_dir: {FOLDER}\n"),
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &closed(&world)).unwrap();
    meter.attack(&world, &agent).unwrap();
    let ballast = Path::new(FOLDER).join("ballast");
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("full, round {round}")).unwrap();
        // Until nothing more fits.
        host.run(|| fs::write(&ballast, vec![0; 1 << 20]))
            .unwrap()
            .unwrap_err();
        let text = either(&world, round).text();
        agent.apply_policy("policy.yaml", &text).unwrap();
        meter.check().unwrap();
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        agent.restart().unwrap();
        meter.check().unwrap();
        let told = agent.command(&["status", "-j"]).unwrap();
        assert!(told.out.contains("not kept"), "{told:?}");
        host.run(|| fs::remove_file(&ballast)).unwrap().unwrap();
    }
    let what = "disk full where the agent keeps its state";
    meter
        .judge(&agent, Trial::Fault, what, rounds.begun(), Accounts::Host)
        .unwrap();
}
