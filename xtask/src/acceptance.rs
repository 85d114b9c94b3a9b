//! The package's acceptance: a Debian of its own kernel is booted under QEMU, and has done to it what
//! operators do with the package, from installation to purge.

mod booting;
mod host;
mod installing;
mod leaving;
mod living;
mod share;
mod storm;
mod trouble;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use gate25_tests::Kernel;

use crate::{
    cargo::{Count, closing_line, target},
    debian, document,
    kernels::Series,
};
use booting::Boot;
use host::Host;
use share::Packages;

/// The document that holds the table.
const DOCUMENT: &str = "tests/PACKAGE.md";

/// What is done and looked at; it returns what was seen, or why it is not as it should be.
type Body = fn(&mut Acceptance) -> anyhow::Result<String>;

/// Whether the steps behind one make sense where it has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Ends,
    StaysAlone,
}

struct Step {
    name: &'static str,
    body: Body,
    failure: Failure,
}

const fn needed(name: &'static str, body: Body) -> Step {
    Step {
        name,
        body,
        failure: Failure::Ends,
    }
}

const fn alone(name: &'static str, body: Body) -> Step {
    Step {
        name,
        body,
        failure: Failure::StaysAlone,
    }
}

/// What helps to find out why a step has failed.
const LOOK: &str = "gate25 status; gate25 list workloads; tc -s filter show dev tap101i0 ingress; \
    nft list ruleset; ls -R /sys/fs/bpf/gate25; tail -n 20 /run/guest*; \
    journalctl --boot --no-pager --output=short-monotonic --lines=60 --unit='gate25*'";

/// In this order: each goes on from where the one before has left the machine.
const STEPS: [Step; 19] = [
    needed("a bare Debian boots", installing::bare),
    alone(
        "`apt install` beside an nftables that is too old",
        installing::old_nftables,
    ),
    needed("`apt install ./gate25_*.deb`", installing::install),
    alone("the package observes", installing::observe),
    needed("`enforcement: policy`", installing::enforce),
    alone("`gate25 doctor`", installing::doctor),
    needed("reboot with guests that start at boot", booting::reboot),
    alone("`gate25 doctor` after the boot", installing::doctor),
    alone("a policy is edited", living::edit),
    alone("the agent crashes", living::crash),
    alone("upgrade to other programs and tables", living::upgrade),
    alone("started twice", trouble::twice),
    alone("a state directory that cannot be written", trouble::state),
    alone("a policy directory that is read-only", trouble::policy),
    needed(
        "the power is cut in the middle of an installation",
        trouble::interrupted,
    ),
    alone("`apt remove`", leaving::remove),
    needed("`apt purge`", leaving::purge),
    needed(
        "installed on a kernel without programs (no `bpf()`)",
        trouble::no_programs,
    ),
    alone(
        "a kernel in lockdown, whose memory no program reads",
        trouble::lockdown,
    ),
];

/// The machine, and what has been learned.
struct Acceptance {
    host: Host,
    packages: Packages,
    times: Times,
}

/// How long what took.
#[derive(Debug, Default)]
struct Times {
    /// `apt install`, up to the agent's running.
    installed: Option<Duration>,
    /// From settings that say `enforcement: policy` to enforcing.
    switched: Option<Duration>,
    boot: Option<Boot>,
}

/// A step's line of the report.
struct Row {
    step: &'static str,
    seen: anyhow::Result<String>,
    took: Duration,
}

impl Row {
    fn line(&self) -> String {
        let Self { step, seen, took } = self;
        let took = took.as_secs_f64();
        match seen {
            Ok(seen) => format!("ok      {step} ({took:.0} s): {seen}"),
            Err(error) => format!("FAILED  {step} ({took:.0} s): {error:#}"),
        }
    }
}

/// Takes the steps with an older and a newer package, prints what came of each, and counts them.
pub(crate) fn run(packages: &[PathBuf; 2], publish: bool) -> anyhow::Result<Count> {
    let disk = debian::provide()?;
    let kernel = Kernel::find(Series::V6_1.name())?;
    let copy = target().join("acceptance.disk");
    let (host, packages) = Host::new(&disk, kernel, copy, |folder| {
        share::gather(folder, packages)
    })?;
    let mut acceptance = Acceptance {
        host,
        packages,
        times: Times::default(),
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut ended = None;
    for step in STEPS {
        let row = match ended {
            None => take(&mut acceptance, &step),
            Some(before) => Row {
                step: step.name,
                seen: Err(anyhow!("not tried, since this failed: {before}")),
                took: Duration::ZERO,
            },
        };
        println!("{}", row.line());
        if row.seen.is_err() && step.failure == Failure::Ends && ended.is_none() {
            ended = Some(step.name);
        }
        rows.push(row);
    }
    let table = markdown(&acceptance.times, &rows);
    println!("\n{table}");
    if publish {
        document::publish(DOCUMENT, &table)?;
    }
    Ok(count(&rows))
}

fn take(acceptance: &mut Acceptance, step: &Step) -> Row {
    let start = Instant::now();
    let seen = (step.body)(acceptance);
    if seen.is_err() {
        match acceptance.host.run(LOOK) {
            Ok((_, said)) => println!("{}: the machine as it is:\n{said}", step.name),
            Err(error) => println!("{}: the machine tells nothing: {error:#}", step.name),
        }
    }
    Row {
        step: step.name,
        seen,
        took: start.elapsed(),
    }
}

fn count(rows: &[Row]) -> Count {
    let mut count = Count::default();
    for row in rows {
        match row.seen {
            Ok(_) => count.passed += 1,
            Err(_) => count.failed += 1,
        }
    }
    count
}

/// The two times that an operator asks for, and a row for each step.
fn markdown(times: &Times, rows: &[Row]) -> String {
    let mut text = String::new();
    let Times {
        installed,
        switched,
        boot,
    } = times;
    text.push_str("| time, under software emulation | |\n|---|---|\n");
    let figure = |time: &Option<Duration>| {
        time.map_or_else(
            || "not seen".to_owned(),
            |it| format!("{:.1} s", it.as_secs_f64()),
        )
    };
    text.push_str(&format!(
        "| from `apt install ./gate25_*.deb` to the agent's running, observing | {} |\n\
         | from `enforcement: policy` in the settings, checked and the agent restarted, to enforcing | {} |\n",
        figure(installed),
        figure(switched)
    ));
    let installation = installed.zip(*switched).map(|(one, other)| one + other);
    text.push_str(&format!(
        "| together: from `apt install` to enforcing | {} |\n",
        figure(&installation)
    ));
    for (what, time) in moments(boot.as_ref()) {
        text.push_str(&format!(
            "| from power-on to {what} | {} |\n",
            figure(&time)
        ));
    }
    text.push_str("\n| step | seen | took |\n|---|---|---|\n");
    for Row { step, seen, took } in rows {
        let seen = match seen {
            Ok(seen) => seen.clone(),
            Err(error) => format!("FAILED: {error:#}").replace(['\n', '|'], " "),
        };
        text.push_str(&format!(
            "| {step} | {seen} | {:.0} s |\n",
            took.as_secs_f64()
        ));
    }
    text.push_str(&format!("\n{}\n", closing_line(count(rows))));
    text
}

/// What happens in a boot, and how long after power-on.
fn moments(boot: Option<&Boot>) -> [(&'static str, Option<Duration>); 5] {
    [
        ("the kernel's start", boot.map(|boot| boot.kernel)),
        ("the guard", boot.map(|boot| boot.guard)),
        ("enforcing", boot.map(|boot| boot.enforcing)),
        (
            "the first unit that starts guests",
            boot.map(|boot| boot.starter),
        ),
        (
            "the first guest's interface, whatever unit made it",
            boot.map(|boot| boot.guest),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_of_a_step_that_failed_says_so_in_one_row_and_counts_it() {
        let rows = [
            Row {
                step: "one",
                seen: Ok("as it should be".to_owned()),
                took: Duration::from_secs(2),
            },
            Row {
                step: "other",
                seen: Err(anyhow!("a | b\nc")),
                took: Duration::from_secs(3),
            },
        ];
        let times = Times {
            installed: Some(Duration::from_millis(1_500)),
            ..Times::default()
        };
        let text = markdown(&times, &rows);
        assert!(text.contains("running, observing | 1.5 s |\n"), "{text}");
        assert!(text.contains("to enforcing | not seen |\n"), "{text}");
        assert!(
            text.contains("| other | FAILED: a   b c | 3 s |\n"),
            "{text}"
        );
        assert!(text.ends_with("\n1 passed, 1 failed\n"), "{text}");
    }
}
