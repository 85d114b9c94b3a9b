//! The agent gets less memory than it needs: it fails, and opens nothing.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{fs, process::ExitStatus, time::Duration};

use gate25_tests::{
    Agent, Cgroup, Guest, Hosting, PolicyText, Sender, Settings, Trial, Tried, World,
    customers_text, inside, poll,
};
use nix::sys::signal::Signal;

const PAUSE: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;
const CUSTOMERS: usize = 2_000;

#[test]
fn start_that_runs_out_of_memory_at_any_point_opens_nothing() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let narrow = Narrow::new(&world);
    let mut agent = start(&world, &narrow).unwrap();
    agent.signal(Signal::SIGKILL).unwrap();
    let sender = attack(&world, &guest);
    let large = customers_text(0, CUSTOMERS);
    agent.write_policy("customers.yaml", &large).unwrap();
    let mut failed = 0;
    let enough = (1..100)
        .map(|step| step * 3 * MIB)
        .find(|limit| {
            narrow.limit(*limit);
            agent.restart_unready().unwrap();
            let started = ended_or_ready(&mut agent).is_none();
            failed += u64::from(!started);
            sender.more(5).unwrap();
            started
        })
        .unwrap();
    println!("{failed} starts failed, {} MiB are enough", enough / MIB);
    assert!(failed > 2, "{failed}");
    let customers = agent.metrics().unwrap().sum("gate25_policy_customers", &[]);
    assert_eq!(customers, Some(CUSTOMERS as f64 + 1.0));
    judge(&world, &sender, "start without enough memory", failed);
}

#[test]
fn reload_that_runs_out_of_memory_opens_nothing() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let narrow = Narrow::new(&world);
    let mut agent = start(&world, &narrow).unwrap();
    let sender = attack(&world, &guest);
    narrow.limit(narrow.used() + MIB);
    let large = customers_text(0, CUSTOMERS);
    agent.write_policy("customers.yaml", &large).unwrap();
    let ended = poll("the agent to run out of memory", LIMIT, || {
        agent.process().status()
    })
    .unwrap();
    assert!(!ended.success(), "{ended}");
    sender.more(20).unwrap();
    narrow.limit(512 * MIB);
    agent.restart().unwrap();
    let customers = agent.metrics().unwrap().sum("gate25_policy_customers", &[]);
    assert_eq!(customers, Some(CUSTOMERS as f64 + 1.0));
    judge(&world, &sender, "reload without enough memory", 1);
}

/// A cgroup with little memory.
struct Narrow {
    cgroup: Cgroup,
}

impl Narrow {
    fn new(world: &World) -> Self {
        assert!(
            inside(),
            "this test has the kernel kill for memory: run it by `./xtask/x vm`"
        );
        let switch = world.lab.cgroup().join("cgroup.subtree_control");
        fs::write(switch, "+memory").unwrap();
        Self {
            cgroup: world.lab.containers("narrow").unwrap(),
        }
    }

    fn limit(&self, bytes: u64) {
        fs::write(self.cgroup.dir().join("memory.max"), bytes.to_string()).unwrap();
    }

    fn used(&self) -> u64 {
        let file = self.cgroup.dir().join("memory.current");
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    /// The command that runs another one in it.
    fn wrapper(&self) -> Vec<String> {
        let enter = format!(
            r#"echo 0 >"{}" && exec "$@""#,
            self.cgroup.dir().join("cgroup.procs").display()
        );
        ["/bin/sh", "-c", &enter, "sh"].map(str::to_owned).to_vec()
    }
}

/// An agent with a small policy in the cgroup, without limit yet.
fn start(world: &World, narrow: &Narrow) -> anyhow::Result<Agent> {
    let settings = Settings {
        wrapper: narrow.wrapper(),
        ..Settings::default()
    };
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    world.agent_with(settings, &policy)
}

/// A sender whom nothing may let through.
fn attack(world: &World, guest: &Guest) -> Sender {
    world.wait_closed(guest).unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let sender = Sender::start(&guest.ns, to, PAUSE).unwrap();
    sender.more(5).unwrap();
    sender
}

/// How the agent ended, unless it got ready.
fn ended_or_ready(agent: &mut Agent) -> Option<ExitStatus> {
    poll("the agent to end or be ready", LIMIT, || {
        if let Some(status) = agent.process().status()? {
            assert!(!status.success(), "{status}");
            return Ok(Some(Some(status)));
        }
        let ready = agent.get("/readyz").is_ok_and(|(status, _)| status == 200);
        Ok(ready.then_some(None))
    })
    .unwrap()
}

#[track_caller]
fn judge(world: &World, sender: &Sender, what: &str, times: u64) {
    let tally = sender.tally();
    assert_eq!(tally.refused, tally.attempts(), "{tally:?}");
    let tried = Tried {
        trial: Trial::Fault,
        what: what.to_owned(),
        times,
        sent: tally.attempts(),
        leaked: world.witness.packets().unwrap(),
    };
    tried.judge().unwrap();
}
