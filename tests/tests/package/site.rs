//! A machine on the hypervisor's network, and a guest of its.

use std::{fs, time::Duration};

use gate25_tests::{Guest, Hosting, Machine, Outcome, PolicyText, World, connect};

use super::built::package;

/// The settings that the package ships.
pub(crate) const SETTINGS: &str = "/etc/gate25/gate25.yaml";
const POLICY: &str = "/etc/gate25/policy.d/policy.yaml";
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long systemd and the agent may take for something, on a busy machine.
pub(crate) const PROMPT: Duration = Duration::from_secs(30);

/// The machine goes before the network that it is on.
pub(crate) struct Site {
    pub(crate) machine: Machine,
    pub(crate) guest: Guest,
    pub(crate) world: World,
    /// What had arrived at the exchanger when enforcement began.
    before: u64,
}

impl Site {
    /// A machine that is not booted, and nothing installed.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let world = World::new().unwrap();
        let machine = Machine::new(&world.lab, &world.hosting.hypervisor).unwrap();
        let guest = world.guest(11, "tap101i0").unwrap();
        Self {
            machine,
            guest,
            world,
            before: 0,
        }
    }

    /// Nothing installed.
    #[track_caller]
    pub(crate) fn booted() -> Self {
        let mut site = Self::new();
        site.machine.boot().unwrap();
        site
    }

    /// The package installed, with a policy that closes, enforced.
    #[track_caller]
    pub(crate) fn enforcing() -> Self {
        let mut site = Self::booted();
        let install = bring(&site.machine, 1);
        site.machine.succeed(&install).unwrap();
        site.write_policy(&PolicyText::default());
        site.enforce();
        site.wait_enforcing();
        site.check_reached(Outcome::Refused);
        site.before = site.world.witness.settled().unwrap();
        site
    }

    #[track_caller]
    pub(crate) fn write_policy(&self, policy: &PolicyText) {
        self.machine.write(POLICY, policy.text()).unwrap();
    }

    /// Sets `enforcement: policy` as somebody would, and restarts the agent.
    #[track_caller]
    pub(crate) fn enforce(&self) {
        let words = format!(
            "sed -i 's/^enforcement: observe$/enforcement: policy/' {SETTINGS} && gate25 check && \
             systemctl restart gate25"
        );
        self.machine.succeed(&words).unwrap();
    }

    #[track_caller]
    pub(crate) fn wait_enforcing(&self) {
        let words = "systemctl is-active gate25 && gate25 status";
        self.machine.wait(words, PROMPT).unwrap();
    }

    /// Whether the guest reaches the exchanger's port 25.
    #[track_caller]
    pub(crate) fn check_reached(&self, outcome: Outcome) {
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
        ] {
            let attempt = connect(&self.guest.ns, to, ATTEMPT).unwrap();
            assert_eq!(attempt.outcome, outcome, "{to}: {attempt:?}");
        }
    }

    /// Packets to port 25 that have reached the exchanger since enforcement began.
    #[track_caller]
    pub(crate) fn leaked(&self) -> u64 {
        self.world.witness.packets().unwrap() - self.before
    }
}

/// Puts the package of a revision onto a machine; the words that install it there.
#[track_caller]
pub(crate) fn bring(machine: &Machine, revision: u32) -> String {
    let deb = package(revision, "deb");
    let path = format!("/root/{}", deb.file_name().unwrap().to_string_lossy());
    machine.write(&path, fs::read(&deb).unwrap()).unwrap();
    format!("apt-get --quiet --yes --allow-downgrades install {path}")
}
