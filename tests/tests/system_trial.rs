//! Changes that undo themselves: confirmed or not, with the agent alive, killed and restarted.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use gate25_tests::{
    Agent, Guest, Hosting, Outcome, PolicyText, Privileges, Sender, Settings, World, connect, poll,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(3);
const FILE: &str = "policy.yaml";
const END: &str = "gate25_policy_trial_end_timestamp_seconds";
const HELD: &str = "gate25_policy_files_held";

#[test]
fn change_that_nobody_confirms_is_undone_and_stays_so_until_the_files_change() {
    let mut scene = Scene::new("");
    // The watcher has taken the files over by the time that anybody says that they are on trial.
    scene
        .agent
        .apply_policy(FILE, &with_exemption().text())
        .unwrap();
    scene.world.check_open(&scene.guest).unwrap();
    scene.begin("3s");
    assert!(scene.value(END) > 0.0);
    scene.wait(END, 0.0);
    scene.check_closed();
    assert_eq!(scene.value(HELD), 1.0);
    scene.check_source("undone");
    let status = scene.agent.command(&["status"]).unwrap();
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(status.out.contains("undone at"), "{status:?}");
    let late = scene.agent.command(&["confirm"]).unwrap();
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.err.contains("too late"), "{late:?}");
    // The same files mean nothing new, written again or found by a start.
    scene
        .agent
        .write_policy(FILE, &with_exemption().text())
        .unwrap();
    scene.agent.restart().unwrap();
    scene.check_closed();
    assert_eq!(scene.value(HELD), 1.0);
    scene.check_source("undone");
    let more = with_exemption().customer("c-3", "tap103i0").text();
    scene.agent.apply_policy(FILE, &more).unwrap();
    scene.world.check_open(&scene.guest).unwrap();
    assert_eq!(scene.value(HELD), 0.0);
    scene.check_source("files");
    scene.check_others_unharmed();
}

#[test]
fn change_that_is_confirmed_stays() {
    // The agent hears of the files by the command alone.
    let scene = Scene::new("reload: {quiet_time: 5s}\n");
    scene
        .agent
        .write_policy(FILE, &with_exemption().text())
        .unwrap();
    let began = Instant::now();
    scene.begin("3s");
    scene.world.check_open(&scene.guest).unwrap();
    let confirmed = scene.agent.command(&["confirm"]).unwrap();
    assert_eq!(confirmed.code, Some(0), "{confirmed:?}");
    assert_eq!(scene.value(END), 0.0);
    passed(began, Duration::from_secs(4));
    scene.world.check_open(&scene.guest).unwrap();
    assert_eq!(scene.value(HELD), 0.0);
    let again = scene.agent.command(&["confirm"]).unwrap();
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.err.contains("nothing is on trial"), "{again:?}");
    scene.check_others_unharmed();
}

#[test]
fn undo_goes_back_once_with_a_trial_and_without() {
    let scene = Scene::new("");
    let nothing = scene.agent.command(&["undo"]).unwrap();
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(nothing.err.contains("nothing to go back to"), "{nothing:?}");
    scene
        .agent
        .apply_policy(FILE, &with_exemption().text())
        .unwrap();
    for trial in [false, true] {
        if trial {
            scene.begin("10m");
        }
        scene.world.check_open(&scene.guest).unwrap();
        let undone = scene.agent.command(&["undo"]).unwrap();
        assert_eq!(undone.code, Some(0), "{undone:?}");
        scene.check_closed();
        assert_eq!((scene.value(END), scene.value(HELD)), (0.0, 1.0));
        let again = scene.agent.command(&["undo"]).unwrap();
        assert_eq!(again.code, Some(1), "{again:?}");
        assert!(again.err.contains("undone already"), "{again:?}");
        // Whoever asks for the files gets them.
        let taken = scene.agent.command(&["reload", "--wait"]).unwrap();
        assert_eq!(taken.code, Some(0), "{taken:?}");
        assert_eq!(scene.value(HELD), 0.0);
    }
    scene.world.check_open(&scene.guest).unwrap();
    scene.check_others_unharmed();
}

#[test]
fn trial_goes_on_over_a_crash_and_is_over_at_a_start_after_its_deadline_or_a_boot() {
    let mut scene = Scene::new("");
    for end in ["deadline", "boot"] {
        scene
            .agent
            .apply_policy(FILE, &with_exemption().text())
            .unwrap();
        let began = Instant::now();
        scene.begin(if end == "boot" { "10m" } else { "8s" });
        let ends = scene.value(END);
        scene.agent.signal(Signal::SIGKILL).unwrap();
        scene.agent.restart().unwrap();
        if began.elapsed() < Duration::from_secs(6) {
            assert_eq!(scene.value(END), ends);
            scene.world.check_open(&scene.guest).unwrap();
        }
        scene.agent.signal(Signal::SIGKILL).unwrap();
        scene.agent.process().wait(LIMIT).unwrap();
        match end {
            "deadline" => passed(began, Duration::from_secs(9)),
            _ => {
                let shell = "sed -i 's/\"boot\":\"[^\"]*\"/\"boot\":\"another\"/' /var/lib/gate25/trial.json \
                             && grep -q another /var/lib/gate25/trial.json";
                scene
                    .world
                    .hosting
                    .hypervisor
                    .exec("sh", &["-c", shell])
                    .unwrap();
            }
        }
        scene.agent.restart().unwrap();
        scene.check_closed();
        scene.check_source("undone");
        assert_eq!((scene.value(END), scene.value(HELD)), (0.0, 1.0));
        // The files as they were before are nothing that was undone.
        scene.agent.apply_policy(FILE, &base().text()).unwrap();
        assert_eq!(scene.value(HELD), 0.0);
        scene.check_closed();
    }
    scene.check_others_unharmed();
}

#[test]
fn files_that_change_during_a_trial_are_undone_with_it_and_files_put_back_end_it() {
    let scene = Scene::new("");
    scene
        .agent
        .apply_policy(FILE, &with_exemption().text())
        .unwrap();
    scene.begin("10m");
    scene.agent.apply_policy(FILE, &base().text()).unwrap();
    scene.wait(END, 0.0);
    assert_eq!(scene.value(HELD), 0.0);
    scene
        .agent
        .apply_policy(FILE, &with_exemption().text())
        .unwrap();
    scene.begin("4s");
    let more = with_exemption().customer("c-3", "tap103i0").text();
    scene.agent.apply_policy(FILE, &more).unwrap();
    assert_eq!(scene.value("gate25_policy_customers"), 3.0);
    scene.wait(HELD, 1.0);
    assert_eq!(scene.value("gate25_policy_customers"), 2.0);
    scene.check_closed();
    scene.check_others_unharmed();
}

#[test]
fn files_that_are_refused_begin_no_trial_and_harm_none() {
    let scene = Scene::new("");
    scene
        .agent
        .write_policy(FILE, "schema: 1\nprofils: []\n")
        .unwrap();
    let refused = scene
        .agent
        .command(&["reload", "--confirm-within", "3s"])
        .unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(scene.value(END), 0.0);
    scene
        .agent
        .write_policy(FILE, &with_exemption().text())
        .unwrap();
    scene.agent.command(&["reload", "--wait"]).unwrap();
    scene.begin("10m");
    let ends = scene.value(END);
    scene
        .agent
        .write_policy(FILE, "schema: 1\nprofils: []\n")
        .unwrap();
    let refused = scene
        .agent
        .command(&["reload", "--confirm-within", "3s"])
        .unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(scene.value(END), ends);
    scene.world.check_open(&scene.guest).unwrap();
    scene.check_others_unharmed();
}

#[test]
fn undo_that_fails_leaves_the_trial_and_its_deadline_as_they_were() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let _second = world.guest(102, "tap102i0").unwrap();
    let host = &world.hosting.hypervisor;
    let folder = "/var/lib/state25";
    let mut settings = Settings {
        more: format!("backend: nftables\nstate_dir: {folder}\n"),
        privileges: Privileges::Root,
        ..Settings::default()
    };
    let refusing = "[ -e $0.broken ] && [ \"$1\" = -e ] && { echo 'Error: no' >&2; exit 1; }";
    settings.env = world.nft_that(refusing).unwrap();
    let agent = world.agent_with(settings, &base()).unwrap();
    world.check_closed(&guest).unwrap();
    agent.apply_policy(FILE, &with_exemption().text()).unwrap();
    let begun = agent
        .command(&["reload", "--confirm-within", "12s"])
        .unwrap();
    assert_eq!(begun.code, Some(0), "{begun:?}\n{}", agent.log());
    let broken = world.nft().with_extension("broken");
    fs::write(&broken, "").unwrap();
    let refused = agent.command(&["undo"]).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    fs::remove_file(&broken).unwrap();
    poll("the trial to go on, on disk too", LIMIT, || {
        let kept = host.run(|| fs::read_to_string(format!("{folder}/trial.json")))??;
        let kept: serde_json::Value = serde_json::from_str(&kept)?;
        Ok(kept["running"].is_object().then_some(()))
    })
    .unwrap();
    world.check_open(&guest).unwrap();
    let over = agent.wait_metric(END, &[], LIMIT, |value| value == 0.0);
    over.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    world.check_closed(&guest).unwrap();
}

/// Customer c-2 is exempt.
fn base() -> PolicyText {
    PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
        .exempt_until("c-2", "2100-01-01T00:00:00Z".parse().unwrap())
}

/// Customer c-1 is, too.
fn with_exemption() -> PolicyText {
    base().exempt_until("c-1", "2100-01-01T00:00:00Z".parse().unwrap())
}

struct Scene {
    /// Of a customer who is exempt whatever happens.
    other: Sender,
    agent: Agent,
    guest: Guest,
    #[expect(dead_code, reason = "kept for what its drop does")]
    second: Guest,
    world: World,
}

impl Scene {
    #[track_caller]
    fn new(more: &str) -> Self {
        let world = World::new().unwrap();
        let guest = world.guest(101, "tap101i0").unwrap();
        let second = world.guest(102, "tap102i0").unwrap();
        let mut settings = world.settings();
        settings.more = more.to_owned();
        let agent = world.agent_with(settings, &base()).unwrap();
        world.check_closed(&guest).unwrap();
        world.check_open(&second).unwrap();
        let to = Hosting::EXCHANGER.v4_port(25);
        let other = Sender::start(&second.ns, to, PAUSE).unwrap();
        Self {
            other,
            agent,
            guest,
            second,
            world,
        }
    }

    /// Others send to the exchanger all the while, so that it cannot be asked what arrives.
    #[track_caller]
    fn check_closed(&self) {
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
        ] {
            let attempt = connect(&self.guest.ns, to, LIMIT).unwrap();
            let log = self.agent.log();
            assert_eq!(attempt.outcome, Outcome::Refused, "{to}: {attempt}\n{log}");
        }
    }

    #[track_caller]
    fn begin(&self, within: &str) {
        let begun = self
            .agent
            .command(&["reload", "--confirm-within", within])
            .unwrap();
        assert_eq!(begun.code, Some(0), "{begun:?}\n{}", self.agent.log());
        assert!(begun.out.contains("on trial until"), "{begun:?}");
    }

    #[track_caller]
    fn value(&self, metric: &str) -> f64 {
        self.agent.metrics().unwrap().sum(metric, &[]).unwrap()
    }

    #[track_caller]
    fn wait(&self, metric: &str, expected: f64) {
        let waited = self
            .agent
            .wait_metric(metric, &[], LIMIT, |value| value == expected);
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", self.agent.log()));
    }

    #[track_caller]
    fn check_source(&self, source: &str) {
        let metrics = self.agent.metrics().unwrap();
        let value = metrics.sum("gate25_policy_source", &[("source", source)]);
        assert_eq!(value, Some(1.0), "{source}\n{}", self.agent.log());
    }

    /// Whoever both sets allow has met nothing else from the beginning on.
    #[track_caller]
    fn check_others_unharmed(&self) {
        let other = self.other.more(10).unwrap();
        assert_eq!(other.connected, other.attempts(), "{other:?}");
    }
}

/// Waits until so much time has passed since a moment.
#[track_caller]
fn passed(since: Instant, time: Duration) {
    poll("time to pass", LIMIT, || {
        Ok((since.elapsed() > time).then_some(()))
    })
    .unwrap();
}
