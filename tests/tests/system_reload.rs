//! The policy's files change in every way that people change files: whatever is wrong with them,
//! what is open stays open and what is closed stays closed.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{fs, os::unix::fs::symlink, time::Duration};

use gate25_tests::{Agent, Guest, Hosting, PolicyText, Sender, World, poll};

const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(3);
const FILE: &str = "policy.yaml";

#[test]
fn reload_of_a_file_edited_by_rename_in_place_or_by_symlink_is_applied_without_a_gap() {
    let scene = Scene::new();
    let policy = scene.agent.policy_dir();
    let edits: [&dyn Fn(&str); 3] = [
        &|text| scene.agent.write_policy(FILE, text).unwrap(),
        &|text| fs::write(policy.join(FILE), text).unwrap(),
        &|text| {
            let next = policy.with_extension("next");
            fs::create_dir_all(&next).unwrap();
            fs::write(next.join(FILE), text).unwrap();
            fs::rename(&policy, policy.with_extension("old")).unwrap();
            symlink(&next, &policy).unwrap();
        },
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let before = scene.value("gate25_policy_generation");
        let id = format!("c-new{number}");
        edit(&base().customer(&id, "tap199i0").text());
        scene
            .agent
            .wait_metric("gate25_policy_generation", &[], LIMIT, |now| now > before)
            .unwrap_or_else(|error| panic!("edit {number}: {error:#}\n{}", scene.agent.log()));
        assert_eq!(scene.value("gate25_policy_customers"), 3.0);
        scene.check_unharmed();
    }
    assert_eq!(scene.value("gate25_config_reload_failures_total"), 0.0);
}

#[test]
fn reload_of_a_directory_swapped_by_symlink_is_applied_each_time() {
    let scene = Scene::new();
    let policy = scene.agent.policy_dir();
    let place = policy.with_extension("swap");
    fs::rename(&policy, place.with_extension("0")).unwrap();
    symlink(place.with_extension("0"), &policy).unwrap();
    for number in 1..4 {
        let next = place.with_extension(number.to_string());
        fs::create_dir_all(&next).unwrap();
        let id = format!("c-new{number}");
        let text = base().customer(&id, "tap199i0").text();
        fs::write(next.join(FILE), text).unwrap();
        let before = scene.value("gate25_policy_generation");
        // As `ln -sfn` and ConfigMaps do it: a new link renamed over the old one.
        let link = place.with_extension("link");
        symlink(&next, &link).unwrap();
        fs::rename(&link, &policy).unwrap();
        scene
            .agent
            .wait_metric("gate25_policy_generation", &[], LIMIT, |now| now > before)
            .unwrap();
        scene.check_unharmed();
    }
}

#[test]
fn policy_directory_removed_leaves_the_running_policy_until_it_is_back() {
    let scene = Scene::new();
    let policy = scene.agent.policy_dir();
    let hash = scene.value("gate25_policy_hash");
    let away = policy.with_extension("away");
    fs::rename(&policy, &away).unwrap();
    scene.wait_successful(0.0);
    scene.check_unharmed();
    assert_eq!(scene.value("gate25_policy_generation"), 1.0);
    fs::rename(&away, &policy).unwrap();
    scene.wait_successful(1.0);
    scene.check_unharmed();
    assert_eq!(scene.value("gate25_policy_hash"), hash);
    fs::remove_dir_all(&policy).unwrap();
    scene.wait_successful(0.0);
    scene.check_unharmed();
    fs::create_dir(&policy).unwrap();
    fs::write(policy.join(FILE), base().text()).unwrap();
    scene.wait_successful(1.0);
    scene.check_unharmed();
}

#[test]
fn reload_of_an_invalid_file_is_refused_with_every_error_and_its_place() {
    let scene = Scene::new();
    // Each of the three wrong lines has an error of its own.
    let text = base().text()
        + "  - id: bad one\n    workloads: [{interface: \"tap10*\"}]\n    profil: default\n";
    let lines = text.lines().count();
    scene.check_refused(text.as_bytes());
    let log = scene.agent.log();
    for line in lines - 2..=lines {
        let source = text.lines().nth(line - 1).unwrap().trim();
        let told = log.lines().any(|entry| {
            entry.contains("ERROR")
                && entry.contains(&format!("{FILE}:{line}:"))
                && entry.contains(&source.replace('"', "\\\""))
        });
        assert!(told, "nothing of {FILE}:{line}: {source}\n{log}");
    }
}

#[test]
fn reload_of_hostile_files_is_refused() {
    let scene = Scene::new();
    let good = base().text();
    let half = good.get(..good.len() * 2 / 3).unwrap();
    let deep = format!(
        "schema: 1\ncustomers: {}{}\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let hostile: [(&str, Vec<u8>); 7] = [
        ("half of a file", half.as_bytes().to_vec()),
        (
            "5 MB",
            [good.as_bytes(), &b"# padding\n".repeat(500_000)].concat(),
        ),
        ("invalid UTF-8", [good.as_bytes(), b"# \xff\xfe\n"].concat()),
        ("a key twice", format!("schema: 1\n{good}").into_bytes()),
        ("deep nesting", deep.into_bytes()),
        (
            "an alias",
            good.replace("allow: [relays]", "allow: &a [relays]")
                .into_bytes(),
        ),
        ("an empty file", Vec::new()),
    ];
    for (what, bytes) in hostile {
        let refused = scene.refused(&bytes);
        refused.unwrap_or_else(|error| panic!("{what}: {error:#}\n{}", scene.agent.log()));
        // A file that was half-written is written to its end and renamed.
        scene.agent.write_policy(FILE, &good).unwrap();
        scene.wait_successful(1.0);
    }
    scene.check_unharmed();
}

#[test]
fn start_without_a_valid_policy_refuses_everything_and_says_so() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let settings = gate25_tests::Settings::default();
    let host = &world.hosting.hypervisor;
    let agent = Agent::start_unready(host, settings, &[(FILE, "schema: 2\n")]).unwrap();
    poll("a page", LIMIT, || {
        let answer = agent.get("/readyz").ok();
        Ok(answer.filter(|(status, text)| *status == 503 && text.contains("no valid policy")))
    })
    .unwrap();
    agent
        .wait_metric("gate25_workloads", &[("state", "unassigned")], LIMIT, |n| {
            n == 1.0
        })
        .unwrap();
    for to in [Hosting::EXCHANGER.v4_port(25), Hosting::RELAY.v6_port(25)] {
        let attempt = gate25_tests::connect(&guest.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, gate25_tests::Outcome::Refused, "{to}");
    }
    let builtin = [("source", "builtin")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_policy_source", &builtin), Some(1.0));
    // The NOC mends it, and the relay opens.
    agent.write_policy(FILE, &base().text()).unwrap();
    world.wait_open(&guest).unwrap();
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
}

/// Customer c-1 is exempt, customer c-2 is not.
fn base() -> PolicyText {
    PolicyText::default()
        .exempt("c-1")
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
}

struct Scene {
    open: Sender,
    closed: Sender,
    agent: Agent,
    #[expect(dead_code, reason = "kept for what its drop does")]
    guests: [Guest; 2],
    #[expect(dead_code, reason = "kept for what its drop does")]
    world: World,
}

impl Scene {
    /// The agent at work, with both customers sending without a pause.
    #[track_caller]
    fn new() -> Self {
        let world = World::new().unwrap();
        let guests = [
            world.guest(101, "tap101i0").unwrap(),
            world.guest(102, "tap102i0").unwrap(),
        ];
        let agent = world.agent(&base()).unwrap();
        world.check_open(&guests[0]).unwrap();
        world.check_closed(&guests[1]).unwrap();
        let to = Hosting::EXCHANGER.v4_port(25);
        let open = Sender::start(&guests[0].ns, to, PAUSE).unwrap();
        let to = Hosting::EXCHANGER.v6_port(25);
        let closed = Sender::start(&guests[1].ns, to, PAUSE).unwrap();
        Self {
            open,
            closed,
            agent,
            guests,
            world,
        }
    }

    #[track_caller]
    fn value(&self, metric: &str) -> f64 {
        self.agent.metrics().unwrap().sum(metric, &[]).unwrap()
    }

    #[track_caller]
    fn wait_successful(&self, value: f64) {
        let name = "gate25_config_last_reload_successful";
        let result = self.agent.wait_metric(name, &[], LIMIT, |now| now == value);
        result.unwrap_or_else(|error| panic!("{error:#}\n{}", self.agent.log()));
    }

    /// Neither sender has met anything but what it should, from the beginning on.
    #[track_caller]
    fn check_unharmed(&self) {
        let open = self.open.more(10).unwrap();
        let closed = self.closed.more(10).unwrap();
        assert_eq!(open.connected, open.attempts(), "{open:?}");
        assert_eq!(closed.refused, closed.attempts(), "{closed:?}");
    }

    #[track_caller]
    fn check_refused(&self, bytes: &[u8]) {
        let refused = self.refused(bytes);
        refused.unwrap_or_else(|error| panic!("{error:#}\n{}", self.agent.log()));
        self.check_unharmed();
    }

    /// Puts a file in place and waits until the agent has refused it.
    fn refused(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let generation = self.value("gate25_policy_generation");
        let name = "gate25_config_reload_failures_total";
        let before = self.value(name);
        fs::write(self.agent.policy_dir().join(FILE), bytes)?;
        self.agent
            .wait_metric(name, &[], LIMIT, |now| now > before)?;
        let now = self.value("gate25_policy_generation");
        anyhow::ensure!(now == generation, "generation {now} after {generation}");
        anyhow::ensure!(self.value("gate25_config_last_reload_successful") == 0.0);
        Ok(())
    }
}
