//! The leak meter's senders at work, and two policies that are the same to them.

use gate25_tests::{Agent, Meter, PolicyText, World};

/// The senders' policy, with customers beside them.
pub(crate) fn closed(world: &World) -> PolicyText {
    Meter::policy(world)
        .customer("c-3", "tap900i*")
        .exempt("c-3")
        .customer("c-5", "tap905i*")
        .container("c-6", &world.below("elsewhere-6-*"))
}

/// The same to the senders, and as different as can be in all else.
pub(crate) fn other(world: &World) -> PolicyText {
    Meter::policy_of_others(world)
        .profile("other", "enforce", "reject")
        .customer_of("other", "c-5", "tap906i*")
        .container("c-6", &world.below("elsewhere-6-*"))
        .exempt("c-6")
        .customer("c-3", "tap900i*")
}

/// One of both, by turns.
pub(crate) fn either(world: &World, round: u64) -> PolicyText {
    if round.is_multiple_of(2) {
        other(world)
    } else {
        closed(world)
    }
}

/// The senders at work under [`closed`].
#[track_caller]
pub(crate) fn besieged(world: &World) -> (Meter, Agent) {
    let mut meter = Meter::prepare(world).unwrap();
    let agent = world.agent_with(world.settings(), &closed(world)).unwrap();
    meter.attack(world, &agent).unwrap();
    (meter, agent)
}
