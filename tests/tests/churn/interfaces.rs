//! Interfaces that come and go, and change hands, while those behind them send from the first packet
//! on.

use gate25_tests::{Accounts, Agent, Guest, May, Meter, PolicyText, Rounds, Trial, World, poll};
use nix::sys::signal::Signal;

use super::scene::{LIMIT, Plug, check_tight, judge_guarded, watchful};

/// Customers of every other one; the rest is nobody's.
const GUESTS: [(u8, &str, Option<&str>); 6] = [
    (201, "tap201i0", Some("c-201")),
    (202, "tap202i0", None),
    (203, "tap203i0", Some("c-203")),
    (204, "tap204i0", None),
    (205, "tap205i0", Some("c-205")),
    (206, "tap206i0", None),
];

/// An interface that there is none of.
const ELSEWHERE: &str = "tap999i0";

/// Destroys all interfaces and makes others of their names, that many times. The guests never pause:
/// their first packets come before any program, and the guard stops them.
#[track_caller]
pub(crate) fn born_and_gone(times: u64) {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let mut policy = PolicyText::default();
    let mut guests = Vec::new();
    for (number, name, owner) in GUESTS {
        let guest = world.guest(number, name).unwrap();
        meter
            .guest_by_frames(&world, &guest, owner, May::RelayOnly)
            .unwrap();
        policy = owner
            .into_iter()
            .fold(policy, |it, id| it.customer(id, name));
        guests.push(guest);
    }
    let agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    let plugs: Vec<Plug> = guests
        .iter()
        .map(|guest| Plug {
            world: &world,
            guest,
            name: &guest.interface,
        })
        .collect();
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("born again, round {round}")).unwrap();
        let out: String = plugs.iter().map(Plug::line_out).collect();
        let into: String = plugs.iter().map(|plug| plug.line_in(None)).collect();
        world
            .hosting
            .hypervisor
            .ip(&format!("{out}{into}"))
            .unwrap();
        plugs.iter().for_each(Plug::up);
        // In some rounds they go again before the agent has dealt with them.
        let packets = [1, 10, 100][round as usize % 3];
        for plug in &plugs {
            plug.wait_forbidden(&meter, packets);
        }
        check_tight(&meter, &agent, &format!("round {round}"));
    }
    let owned = GUESTS
        .iter()
        .filter(|(_, _, owner)| owner.is_some())
        .count();
    world.wait_workloads(&agent, "enforced", owned).unwrap();
    world
        .wait_workloads(&agent, "unassigned", GUESTS.len() - owned)
        .unwrap();
    meter.check().unwrap();
    meter.wait_all_relayed().unwrap();
    let times = rounds.begun() * GUESTS.len() as u64;
    let what = "interface destroyed and made again, its guest sending from the first packet";
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::AtMost)
        .unwrap();
}

/// An exempt customer's interface goes, and one of the same name is a blocked customer's.
#[track_caller]
pub(crate) fn name_changes_hands(times: u64) {
    const NAME: &str = "tap251i0";
    let scene = Scene::new(NAME, NAME);
    let mut rounds = Rounds::of(times).unwrap();
    let Scene {
        world,
        mut meter,
        mut agent,
        exempt,
        closed,
    } = scene;
    let [exempt, closed] = [&exempt, &closed].map(|guest| Plug {
        world: &world,
        guest,
        name: NAME,
    });
    let host = &world.hosting.hypervisor;
    let (exempts, others) = (policy(NAME, ELSEWHERE), policy(ELSEWHERE, NAME));
    for round in rounds.by_ref() {
        if round > 0 {
            agent.apply_policy("policy.yaml", &exempts.text()).unwrap();
        }
        meter
            .silent_phase(&format!("exempt, round {round}"))
            .unwrap();
        host.ip(&exempt.line_in(None)).unwrap();
        exempt.up();
        wait_open(&meter, &agent, &exempt);
        // What he would send while the name is the other's already would be refused, and counted.
        exempt.down();
        agent.apply_policy("policy.yaml", &others.text()).unwrap();
        meter.phase(&format!("another's, round {round}")).unwrap();
        let seen = match round % 2 {
            0 => Seen::AsTheyHappen,
            _ => Seen::AtOnce,
        };
        replace(&meter, &mut agent, &exempt, &closed, seen);
        finish_round(&world, &meter, &agent, &closed, round);
    }
    let what = "interface of an exempt customer's replaced by a blocked one's of the same name";
    judge_guarded(&mut meter, &agent, what, rounds.begun());
}

/// An exempt customer's interface goes, and a blocked customer's gets its index before the agent has
/// looked.
#[track_caller]
pub(crate) fn index_changes_hands(times: u64) {
    const EXEMPT: &str = "tap251i0";
    const CLOSED: &str = "tap252i0";
    let scene = Scene::new(EXEMPT, CLOSED);
    let Scene {
        world,
        mut meter,
        mut agent,
        exempt,
        closed,
    } = scene;
    let plug = |guest, name| Plug {
        world: &world,
        guest,
        name,
    };
    let (exempt, closed) = (plug(&exempt, EXEMPT), plug(&closed, CLOSED));
    let host = &world.hosting.hypervisor;
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter
            .silent_phase(&format!("exempt, round {round}"))
            .unwrap();
        host.ip(&exempt.line_in(None)).unwrap();
        exempt.up();
        wait_open(&meter, &agent, &exempt);
        meter.phase(&format!("another's, round {round}")).unwrap();
        replace(&meter, &mut agent, &exempt, &closed, Seen::AtOnce);
        finish_round(&world, &meter, &agent, &closed, round);
    }
    let what = "index of an exempt customer's interface given to a blocked one's";
    judge_guarded(&mut meter, &agent, what, rounds.begun());
}

/// One guest that may send everywhere and one that may not, both sending, neither plugged in.
struct Scene {
    agent: Agent,
    meter: Meter,
    exempt: Guest,
    closed: Guest,
    world: World,
}

impl Scene {
    #[track_caller]
    fn new(exempt_name: &str, closed_name: &str) -> Self {
        let world = World::new().unwrap();
        let mut meter = Meter::bare(&world).unwrap();
        let host = &world.hosting.hypervisor;
        let mut guest = |number, name: &str, owner, may| {
            let guest = world.guest(number, name).unwrap();
            meter
                .guest_by_frames(&world, &guest, Some(owner), may)
                .unwrap();
            host.ip(&format!("link del {name}")).unwrap();
            guest
        };
        let exempt = guest(231, exempt_name, "c-exempt", May::Everything);
        let closed = guest(232, closed_name, "c-closed", May::RelayOnly);
        // Where both have one name, the rounds say whose it is.
        let closed_name = match closed_name {
            name if name == exempt_name => ELSEWHERE,
            name => name,
        };
        let policy = policy(exempt_name, closed_name);
        let agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
        meter.begin(&agent).unwrap();
        meter.fire().unwrap();
        Self {
            agent,
            meter,
            exempt,
            closed,
            world,
        }
    }
}

/// The first of these names is the exempt customer's, the second one the other's.
fn policy(exempt: &str, closed: &str) -> PolicyText {
    PolicyText::default()
        .customer("c-exempt", exempt)
        .exempt("c-exempt")
        .customer("c-closed", closed)
}

/// Waits until the exempt guest's packets arrive.
#[track_caller]
fn wait_open(meter: &Meter, agent: &Agent, exempt: &Plug<'_>) {
    let seen = || meter.seen_by_exchanger(exempt.guest.addresses);
    let before = seen().unwrap();
    poll("packets of the exempt guest", LIMIT, || {
        Ok((seen()? > before + 20).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}

/// How the agent gets to know of an interface that goes and one that comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    AsTheyHappen,
    /// Suspended meanwhile, and both have the same index.
    AtOnce,
}

/// Puts the blocked guest's interface into the place of the exempt one's, and waits for its packets.
#[track_caller]
fn replace(meter: &Meter, agent: &mut Agent, exempt: &Plug<'_>, closed: &Plug<'_>, seen: Seen) {
    let world = exempt.world;
    let index = (seen == Seen::AtOnce).then(|| world.index(exempt.name).unwrap());
    if seen == Seen::AtOnce {
        agent.signal(Signal::SIGSTOP).unwrap();
    }
    let lines = format!("{}{}", exempt.line_out(), closed.line_in(index));
    world.hosting.hypervisor.ip(&lines).unwrap();
    closed.up();
    closed.wait_forbidden(meter, 20);
    if seen == Seen::AtOnce {
        agent.signal(Signal::SIGCONT).unwrap();
    }
}

/// The blocked guest goes on until it has its program, and for a while under it; then its interface
/// goes.
#[track_caller]
fn finish_round(world: &World, meter: &Meter, agent: &Agent, closed: &Plug<'_>, round: u64) {
    let refused = || {
        let labels = [("customer", "c-closed"), ("verdict", "reject")];
        let metrics = agent.metrics().ok()?;
        metrics.sum("gate25_customer_connections_total", &labels)
    };
    let before = refused().unwrap_or_default();
    poll(
        "the program on the blocked guest's interface",
        LIMIT,
        || {
            Ok(refused()
                .is_some_and(|now| now > before + 20.0)
                .then_some(()))
        },
    )
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    check_tight(meter, agent, &format!("round {round}"));
    meter
        .wait_relayed(closed.guest.addresses)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    world.hosting.hypervisor.ip(&closed.line_out()).unwrap();
}
