//! Cgroups that change hands under their paths, with processes that send as the first thing they do.

use gate25_tests::{Hosting, Network, Outcome, PolicyText, Rounds, Trial, Tried, World};
use nix::sys::signal::Signal;

use super::scene::watchful;

/// Births after each change, and connections of each.
const BIRTHS: u64 = 3;
const CONNECTIONS: usize = 12;

/// An exempt customer's cgroup goes, and the next one under its path is a blocked customer's.
#[track_caller]
pub(crate) fn path_changes_hands(times: u64) {
    const PATH: &str = "swapped";
    let world = World::new().unwrap();
    let owned_by = |exempt: &str, closed: &str| {
        PolicyText::default()
            .container("c-exempt", &world.below(exempt))
            .exempt("c-exempt")
            .container("c-closed", &world.below(closed))
    };
    let (before, after) = (owned_by(PATH, "other"), owned_by("other", PATH));
    let mut agent = world.agent_with(watchful(&world, ""), &before).unwrap();
    let to = Hosting::EXCHANGER;
    let to = [to.v4_port(25), to.v6_port(25), to.mapped_port(25)];
    let to: Vec<_> = to.into_iter().cycle().take(CONNECTIONS).collect();
    let (mut sent, mut leaked) = (0, 0);
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        if round > 0 {
            agent.apply_policy("policy.yaml", &before.text()).unwrap();
        }
        let container = world.container(PATH, &Network::Hypervisor).unwrap();
        world
            .wait_free(&container.tenant)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}\n{}", agent.log()));
        // What this edit says holds for whoever sends from now on.
        agent.apply_policy("policy.yaml", &after.text()).unwrap();
        let at_once = round % 2 == 1;
        if at_once {
            agent.signal(Signal::SIGSTOP).unwrap();
        }
        drop(container);
        let arrived = world.witness.settled().unwrap();
        for _ in 0..BIRTHS {
            let outcomes = world.connect_at_birth(PATH, &to).unwrap();
            let refused = |outcome: &Outcome| *outcome == Outcome::Refused;
            assert!(outcomes.iter().all(refused), "round {round}: {outcomes:?}");
            sent += outcomes.len() as u64;
        }
        if at_once {
            agent.signal(Signal::SIGCONT).unwrap();
        }
        leaked += world.witness.settled().unwrap() - arrived;
        // The customer's as well, once the agent knows.
        let closed = world.container(PATH, &Network::Hypervisor).unwrap();
        world.check_contained(&closed.tenant).unwrap();
    }
    let what = "cgroup of an exempt customer's made again as a blocked one's, its processes sending at once";
    let tried = Tried {
        trial: Trial::Fault,
        what: what.to_owned(),
        times: rounds.begun(),
        sent,
        leaked,
    };
    tried.judge().unwrap();
}
