//! The policy's files changed in every way, right and wrong, under senders that never pause.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::Duration,
};

use gate25_tests::{Accounts, Agent, Meter, Metrics, Rounds, Settings, Trial, World, poll};

use super::besieged::{closed, either};

const LIMIT: Duration = Duration::from_secs(20);
const FILE: &str = "policy.yaml";
const GENERATION: &str = "gate25_policy_generation";
const FAILURES: &str = "gate25_config_reload_failures_total";
const SUCCESSFUL: &str = "gate25_config_last_reload_successful";
/// The least that the settings take.
const QUIET_TIME: &str = "reload: {quiet_time: 10ms}\n";
/// What nobody may read cannot be watched either: that it is there again shows at a rescan.
const RESCANNED: &str = "reload: {quiet_time: 10ms, rescan: 1s}\n";

/// Reloads as quickly as the agent takes them: two valid policies in turn, and every fourth time
/// one that is refused.
#[track_caller]
pub(crate) fn reloaded(times: u64) {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let settings = Settings {
        more: QUIET_TIME.to_owned(),
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &closed(&world)).unwrap();
    meter.attack(&world, &agent).unwrap();
    let (mut applied, mut refused) = (1.0, 0.0);
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        let valid = either(&world, round).text();
        if round % 4 == 3 {
            refused += 1.0;
            let text = spoiled(&valid, round / 4);
            agent.write_policy(FILE, &text).unwrap();
        } else {
            applied += 1.0;
            agent.write_policy(FILE, &valid).unwrap();
        }
        wait_counts(&mut agent, applied, refused);
        if round % 50 == 49 {
            meter.phase(&format!("from reload {round} on")).unwrap();
            meter.check().unwrap();
        }
    }
    meter.check().unwrap();
    let (what, times) = ("reload, valid and invalid", rounds.begun());
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::Host)
        .unwrap();
}

/// A policy with one mistake.
fn spoiled(text: &str, which: u64) -> String {
    let spoilers: [fn(&str) -> String; 6] = [
        |text| text[..text.len() * 2 / 3].to_owned(),
        |text| text.replace("profile: default", "profil: default"),
        |text| format!("{text}  - [\n"),
        |text| text.replace("schema: 1", "schema: 9"),
        |text| text.replace("m-exempt", "bad id"),
        |_| String::new(),
    ];
    spoilers[which as usize % spoilers.len()](text)
}

/// Takes the policy's directory away in every way, and puts it back.
#[track_caller]
pub(crate) fn directory_taken_away(times: u64) {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let settings = Settings {
        more: RESCANNED.to_owned(),
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &closed(&world)).unwrap();
    meter.attack(&world, &agent).unwrap();
    let dir = agent.policy_dir();
    let text = closed(&world).text();
    let mut tried = 0;
    for _ in Rounds::of(times).unwrap() {
        for (name, fault) in FAULTS {
            meter.phase(name).unwrap();
            fault(&dir);
            wait_refused(&mut agent, name);
            meter
                .check()
                .unwrap_or_else(|error| panic!("{name}: {error:#}"));
            restore(&dir, &text);
            agent
                .wait_metric(SUCCESSFUL, &[], LIMIT, |value| value == 1.0)
                .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
            tried += 1;
        }
    }
    meter.check().unwrap();
    let what = "policy directory emptied, replaced or unreadable";
    meter
        .judge(&agent, Trial::Fault, what, tried, Accounts::Customers)
        .unwrap();
}

type DirectoryFault = (&'static str, fn(&Path));

const FAULTS: [DirectoryFault; 8] = [
    ("emptied", |dir| {
        fs::remove_file(dir.join(FILE)).unwrap();
    }),
    ("away", |dir| {
        fs::rename(dir, dir.with_extension("away")).unwrap();
    }),
    ("an empty one renamed over it", |dir| {
        let empty = dir.with_extension("empty");
        fs::create_dir_all(&empty).unwrap();
        fs::rename(dir, dir.with_extension("away")).unwrap();
        fs::rename(&empty, dir).unwrap();
    }),
    ("a link to an empty one renamed over it", |dir| {
        let empty = dir.with_extension("empty");
        fs::create_dir_all(&empty).unwrap();
        point_to(dir, &empty);
    }),
    ("a link to nothing", |dir| {
        point_to(dir, Path::new("/nowhere"));
    }),
    ("a link to itself", |dir| point_to(dir, dir)),
    ("a file", |dir| {
        fs::rename(dir, dir.with_extension("away")).unwrap();
        fs::write(dir, "schema: 1\n").unwrap();
    }),
    ("unreadable", |dir| {
        fs::set_permissions(dir.join(FILE), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o000)).unwrap();
    }),
];

/// A link in the directory's place, which is renamed away before.
fn point_to(dir: &Path, target: &Path) {
    fs::rename(dir, dir.with_extension("away")).unwrap();
    symlink(target, dir).unwrap();
}

/// A new directory with the policy in the place of whatever is there.
#[track_caller]
fn restore(dir: &Path, text: &str) {
    let new = dir.with_extension("new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join(FILE), text).unwrap();
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(dir).unwrap(),
        Ok(_) => fs::remove_file(dir).unwrap(),
        Err(_) => {}
    }
    fs::rename(&new, dir).unwrap();
    let away = dir.with_extension("away");
    if away.exists() {
        fs::remove_dir_all(away).unwrap();
    }
}

/// Waits until so many policies were applied, and so many refused.
#[track_caller]
fn wait_counts(agent: &mut Agent, applied: f64, refused: f64) {
    let counts = |page: &Metrics| [GENERATION, FAILURES].map(|name| page.sum(name, &[]));
    let expected = [Some(applied), Some(refused)];
    let mut last = expected;
    poll("a reload", LIMIT, || {
        last = counts(&agent.metrics()?);
        Ok((last == expected).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last:?}, not {expected:?}\n{}", agent.log()));
}

/// Waits until what is there was refused, with the policy that runs staying as it is.
#[track_caller]
fn wait_refused(agent: &mut Agent, name: &str) {
    let before = agent.metrics().unwrap().sum(GENERATION, &[]);
    agent
        .wait_metric(SUCCESSFUL, &[], LIMIT, |value| value == 0.0)
        .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
    let now = agent.metrics().unwrap();
    assert_eq!(now.sum(GENERATION, &[]), before, "{name}");
}
