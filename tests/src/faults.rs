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

/// The command that runs the agent's and writes its calls of bpf(2) to a file.
#[must_use]
pub fn count_bpf_calls(log: &Path) -> Vec<String> {
    let log = log.to_string_lossy();
    ["strace", "-D", "-f", "-qq", "-o", &log, "-e", "trace=bpf"]
        .map(str::to_owned)
        .to_vec()
}

/// The most calls of bpf(2) that a thread has made, of those written to the file.
///
/// # Errors
/// When it cannot be read.
pub fn bpf_calls(log: &Path) -> anyhow::Result<u32> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let mut threads = std::collections::BTreeMap::<&str, u32>::new();
    // A call that another thread interrupts takes two lines.
    let begun = text.lines().filter(|line| line.contains("bpf("));
    for thread in begun.filter_map(|line| line.split_whitespace().next()) {
        *threads.entry(thread).or_default() += 1;
    }
    Ok(threads.into_values().max().unwrap_or_default())
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

/// Writes the calls of bpf(2) that a running agent makes from now on to a file.
///
/// # Errors
/// When strace does not take hold of it.
pub fn count_later(ns: &NetNs, agent: &mut Agent, log: &Path) -> anyhow::Result<Process> {
    attach(ns, agent, &["-o", &log.to_string_lossy()])
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
