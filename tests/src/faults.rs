//! The agent killed at a moment of the test's choice.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{Agent, NetNs, Process, poll};

const LIMIT: Duration = Duration::from_secs(20);

/// The command that runs the agent's and kills it at this call of bpf(2), counted in each thread
/// from 1 on.
#[must_use]
pub fn kill_at_bpf_call(number: u32) -> Vec<String> {
    // The tracer is a child of the agent's, so that the agent keeps its place and its number.
    let inject = format!("inject=bpf:signal=KILL:when={number}");
    [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=bpf",
        "-e",
        &inject,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The command that runs the agent's, fails this call of bpf(2), counted in each thread from 1 on, and
/// writes all of them to a file; with `None`, it fails none.
#[must_use]
pub fn fail_bpf_call(number: Option<usize>, log: &Path) -> Vec<String> {
    let log = log.to_string_lossy();
    let mut words = vec![
        "strace",
        "-D",
        "-f",
        "-qq",
        "-s",
        "256",
        "-o",
        &log,
        "-e",
        "trace=bpf",
    ];
    let inject = number.map(|number| format!("inject=bpf:error=ENOMEM:when={number}"));
    if let Some(inject) = &inject {
        words.extend(["-e", inject]);
    }
    words.into_iter().map(str::to_owned).collect()
}

/// Which calls of bpf(2) in the file have this word in them, counted in their threads from 1 on.
///
/// # Errors
/// When it cannot be read.
pub fn bpf_calls_with(log: &Path, word: &str) -> anyhow::Result<Vec<usize>> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let mut threads = std::collections::BTreeMap::<&str, usize>::new();
    let mut found = Vec::new();
    // A call that another thread interrupts takes two lines.
    for line in text.lines().filter(|line| line.contains("bpf(")) {
        let thread = line.split_whitespace().next().unwrap_or_default();
        let calls = threads.entry(thread).or_default();
        *calls += 1;
        if line.contains(word) {
            found.push(*calls);
        }
    }
    Ok(found)
}

/// Kills a running agent at this call of bpf(2) from now on, counted in each thread from 1 on.
/// The tracer ends with the agent.
///
/// # Errors
/// When strace does not take hold of it.
pub fn kill_later(ns: &NetNs, agent: &mut Agent, number: u32) -> anyhow::Result<Process> {
    let inject = format!("inject=bpf:signal=KILL:when={number}");
    attach(ns, agent, &["-e", &inject, "-o", "/dev/null"])
}

fn attach(ns: &NetNs, agent: &mut Agent, args: &[&str]) -> anyhow::Result<Process> {
    let mut command = ns.command("strace");
    command.args(["-f", "-e", "trace=bpf", "-p"]);
    command.arg(agent.process().id().to_string()).args(args);
    let tracer = ns.spawn("strace", command)?;
    poll("strace to take hold of the agent", LIMIT, || {
        Ok(tracer.log().contains("attached").then_some(()))
    })?;
    Ok(tracer)
}
