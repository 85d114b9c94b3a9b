//! Senders at work, and what the trials of churn have in common.

use std::{fs, time::Duration};

use gate25_tests::{
    Accounts, Agent, Guest, Meter, PolicyText, Settings, Trial, World, paced, poll,
};

const RESCAN: Duration = Duration::from_secs(1);
/// Longer than anything takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The senders of [`Meter::prepare`] at work.
#[track_caller]
pub(crate) fn besieged(world: &World) -> (Meter, Agent) {
    besieged_with(world, watchful(world, ""))
}

/// The same, and the agent has these settings.
#[track_caller]
pub(crate) fn besieged_with(world: &World, settings: Settings) -> (Meter, Agent) {
    let mut meter = Meter::prepare(world).unwrap();
    let agent = world.agent_with(settings, &closed(world)).unwrap();
    meter.attack(world, &agent).unwrap();
    (meter, agent)
}

/// Their policy, with a customer whose containers are yet to come.
pub(crate) fn closed(world: &World) -> PolicyText {
    Meter::policy(world).container("c-later", &world.below("later-*"))
}

/// Settings under which the agent looks every second, on a slow machine more rarely, whether everything is in
/// its place.
pub(crate) fn watchful(world: &World, more: &str) -> Settings {
    Settings {
        more: format!("reload: {{rescan: {}s}}\n{more}", paced(RESCAN).as_secs()),
        ..world.settings()
    }
}

/// A guest's veth that is taken away and made again, in the bridge.
pub(crate) struct Plug<'a> {
    pub(crate) world: &'a World,
    pub(crate) guest: &'a Guest,
    /// Its name on the hypervisor.
    pub(crate) name: &'a str,
}

impl Plug<'_> {
    /// A line for `ip` that takes it away.
    pub(crate) fn line_out(&self) -> String {
        format!("link del {}\n", self.name)
    }

    /// Lines that make it, with this index if the kernel is not to choose one.
    pub(crate) fn line_in(&self, index: Option<u32>) -> String {
        let (name, holder) = (self.name, self.guest.ns.holder());
        let index = index.map_or(String::new(), |index| format!("index {index}"));
        format!(
            "link add {name} {index} type veth peer name eth0 netns {holder}\n\
             link set {name} master vmbr0 up\n"
        )
    }

    /// The guest notices.
    #[track_caller]
    pub(crate) fn up(&self) {
        self.guest.ns.ip("link set eth0 up").unwrap();
    }

    /// The guest can send no more.
    #[track_caller]
    pub(crate) fn down(&self) {
        self.guest.ns.ip("link set eth0 down").unwrap();
    }

    /// Waits until the guest has sent so many forbidden packets out of an interface that has just been
    /// made. Until the kernel has noticed that its link is up, what is sent is lost.
    #[track_caller]
    pub(crate) fn wait_forbidden(&self, meter: &Meter, packets: u64) {
        let file = format!("/sys/class/net/{}/statistics/rx_packets", self.name);
        let host = &self.world.hosting.hypervisor;
        let mut last = None;
        poll("the link of a new interface", LIMIT, || {
            last = host.run(|| fs::read_to_string(&file))?.ok();
            let count = last.as_ref().and_then(|text| text.trim().parse().ok());
            Ok(count.is_some_and(|count: u64| count > 0).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{}, {last:?}: {error:#}", self.name));
        meter
            .wait_sent_by(self.guest.addresses, packets)
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
    }
}

/// Checks that nothing has leaked so far; asks no sender to send again.
#[track_caller]
pub(crate) fn check_tight(meter: &Meter, agent: &Agent, what: &str) {
    let measured = meter.measured().unwrap();
    assert_eq!(measured.leaked, 0, "{what}: {measured:?}\n{}", agent.log());
}

/// Ends a trial in which the guard has met packets.
#[track_caller]
pub(crate) fn judge_guarded(meter: &mut Meter, agent: &Agent, what: &str, times: u64) {
    meter
        .judge(agent, Trial::Fault, what, times, Accounts::Guarded)
        .unwrap();
}

/// What the agent counts as put right of what others did to its programs and pins.
#[track_caller]
pub(crate) fn repairs(agent: &Agent) -> f64 {
    let metrics = agent.metrics().unwrap();
    let name = "gate25_drift_repairs_total";
    metrics.sum(name, &[("backend", "ebpf")]).unwrap()
}

/// Waits until as many more are.
#[track_caller]
pub(crate) fn wait_repairs(agent: &Agent, before: f64, more: usize) {
    let name = "gate25_drift_repairs_total";
    let until = before + more as f64;
    agent
        .wait_metric(name, &[("backend", "ebpf")], LIMIT, |now| now >= until)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}
