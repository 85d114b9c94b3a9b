//! What changes take: starts, edits, new guests.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use gate25_common::names;
use gate25_tests::{
    Agent, Lab, Offload, Tap, after,
    bench::{Context, Program, is_watched},
    binary,
};

use super::{
    Pace,
    figures::Figures,
    frames::{self, OUTSIDE, Packet},
    lane::{self, Lane},
    rules::Place,
    samples::Samples,
    scale::{self, Guests, Scale},
};

/// The agent waits so long for further changes of files (`reload.quiet_time`).
const QUIET_TIME: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(60);
const EXEMPTIONS: &str = "exemptions.yaml";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const GUESTS: usize = 1_000;
const PASS: i32 = -1;

/// Measures the agent.
pub(crate) fn measure(lab: &Lab, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    cold_start(lab, pace, figures)?;
    check(lab, pace, figures)?;
    many_guests(lab, figures)?;
    let lane = Lane::new(lab, "control", &scale::interface(Scale::FULL.measured()))?;
    let files = Scale::FULL.files(Guests::Interfaces);
    let agent = lane::start(&lane.ns, lane::settings(""), &files)?;
    let probe = Probe::new(&lane)?;
    edits(&agent, &probe, pace, figures)?;
    new_guests(&lane, pace, figures)?;
    reload(&agent, pace, figures)
}

/// Files to enforcing, against the same policy loaded by nft.
fn cold_start(lab: &Lab, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let mut seconds = Samples::default();
    for round in 0..pace.starts {
        let name = format!("cold{round}");
        let lane = Lane::new(lab, &name, &scale::interface(Scale::FULL.measured()))?;
        write_files(&lane, Scale::FULL)?;
        let start = Instant::now();
        let agent = start_unwatched(&lane)?;
        wait_for("the agent to be ready", Duration::from_millis(2), || {
            let answer = agent.get("/readyz").ok();
            Ok(answer.is_some_and(|(status, _)| status == 200))
        })?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let ours = seconds.summary().context("no start")?;
    figures.put_samples("cold_start_s", &seconds);
    let theirs = loads_of_nft(lab, figures)?;
    figures.put("cold_start_nft_s", theirs);
    figures.put("cold_start_nft_ratio", ours.value / theirs);
    Ok(())
}

/// The quickest of nft's rulesets to load.
fn loads_of_nft(lab: &Lab, figures: &mut Figures) -> anyhow::Result<f64> {
    let scale = Scale::FULL;
    let mut quickest = f64::INFINITY;
    for name in ["nft_map", "nft_set"] {
        let figure = format!("load_{name}_{}x{}_s", scale.customers, scale.prefixes);
        let seconds = match figures.get(&figure) {
            Some(seconds) => seconds,
            None => {
                let lane = Lane::new(lab, name, &scale::interface(scale.measured()))?;
                let index = lane.index;
                let place = Place { scale, index };
                let text = match name {
                    "nft_map" => place.nft_map(),
                    _ => place.nft_set(),
                };
                let start = Instant::now();
                lane.load(&["nft", "-f", "-"], &text)?;
                let seconds = start.elapsed().as_secs_f64();
                figures.put(figure, seconds);
                seconds
            }
        };
        quickest = quickest.min(seconds);
    }
    Ok(quickest)
}

/// `gate25 check` of the whole policy.
fn check(lab: &Lab, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let lane = Lane::new(lab, "check", "tap0i0")?;
    let dir = write_files(&lane, Scale::FULL)?;
    let mut seconds = Samples::default();
    for _ in 0..pace.starts {
        let mut command = lane.ns.command(binary()?);
        command.arg("check").arg(&dir);
        let start = Instant::now();
        let said = lane.ns.ask(command, LIMIT)?;
        seconds.push(start.elapsed().as_secs_f64());
        ensure!(said.code == Some(0), "gate25 check: {}", said.err);
    }
    figures.put_samples("check_s", &seconds);
    Ok(())
}

/// A start with a thousand interfaces of guests.
fn many_guests(lab: &Lab, figures: &mut Figures) -> anyhow::Result<()> {
    let lane = Lane::new(lab, "many", &scale::interface(Scale::FULL.measured()))?;
    let mut lines = String::new();
    for guest in 1..GUESTS {
        // Writing to a String does not fail.
        writeln!(lines, "tuntap add dev tap{guest}i1 mode tap").ok();
    }
    lane.ns.ip(&lines)?;
    let indexes = (1..GUESTS)
        .map(|guest| lane::index(&lane.ns, &format!("tap{guest}i1")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    write_files(&lane, Scale::new(GUESTS, 10))?;
    let start = Instant::now();
    let agent = start_unwatched(&lane)?;
    wait_for("the guard", Duration::from_millis(2), || {
        let page = agent.metrics().ok();
        let in_place = page.and_then(|page| page.sum("gate25_guard_in_place", &[]));
        Ok(in_place == Some(1.0))
    })?;
    figures.put("covered_1000_s", start.elapsed().as_secs_f64());
    wait_for("all programs", Duration::from_millis(10), || {
        lane.ns.run(|| {
            for index in &indexes {
                if !is_watched(*index)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?
    })?;
    figures.put("programs_1000_s", start.elapsed().as_secs_f64());
    Ok(())
}

/// What becomes of a packet right now.
struct Probe<'a> {
    lane: &'a Lane,
    program: Program,
    packet: Packet,
}

impl<'a> Probe<'a> {
    fn new(lane: &'a Lane) -> anyhow::Result<Self> {
        Ok(Self {
            lane,
            program: lane::program(&lane.ns, names::PROGRAM_TC_INGRESS)?,
            packet: frames::attempt("attempt", OUTSIDE),
        })
    }

    /// How long it takes from `start` until the program passes the packet, or does not.
    fn time(&self, start: Instant, passes: bool) -> anyhow::Result<Duration> {
        let context = Context {
            interface: self.lane.index,
        };
        let packet = &self.packet.bytes;
        self.lane.ns.run(|| {
            wait_for("the verdict", Duration::from_micros(200), || {
                let ran = self.program.run(packet, context, 1)?;
                Ok((ran.returned == PASS) == passes)
            })?;
            Ok(start.elapsed())
        })?
    }
}

/// One exemption saved to the first packet that passes, and back.
fn edits(
    agent: &Agent,
    probe: &Probe<'_>,
    pace: Pace,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let customer = scale::id(Scale::FULL.measured());
    let exempt = format!(
        "schema: 1\nexemptions:\n  - {{id: measured, customer: {customer}, reason: measured, ticket: NOC-1, approved_by: noc, expires: {}, to: any}}\n",
        after(DAY)
    );
    let (mut granted, mut revoked) = (Samples::default(), Samples::default());
    for _ in 0..pace.edits {
        for (text, passes, samples) in [
            (exempt.as_str(), true, &mut granted),
            ("schema: 1\n", false, &mut revoked),
        ] {
            let start = Instant::now();
            agent.write_policy(EXEMPTIONS, text)?;
            let taken = probe.time(start, passes)?;
            samples.push((taken.as_secs_f64() - QUIET_TIME.as_secs_f64()) * 1e3);
        }
    }
    put_tail(figures, "exemption", &granted);
    put_tail(figures, "revocation", &revoked);
    Ok(())
}

/// A new tap to its program.
fn new_guests(lane: &Lane, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let mut samples = Samples::default();
    for guest in 0..pace.edits {
        let name = format!("tap{guest}i7");
        let start = Instant::now();
        let tap = Tap::new(&lane.ns, &name, Offload::None)?;
        let index = lane::index(&lane.ns, &name)?;
        lane.ns.run(|| {
            wait_for("the program", Duration::from_micros(200), || {
                is_watched(index)
            })
        })??;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
        drop(tap);
    }
    put_tail(figures, "tap_enforced", &samples);
    Ok(())
}

/// Another policy of the same size, in which every set differs.
fn reload(agent: &Agent, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let generation = || {
        let page = agent.metrics()?;
        let value = page.sum("gate25_policy_generation", &[]);
        value.context("no gate25_policy_generation")
    };
    let mut seconds = Samples::default();
    for round in 0..pace.starts {
        let prefixes = if round % 2 == 0 { 9 } else { 10 };
        let before = generation()?;
        for (name, text) in Scale::new(Scale::FULL.customers, prefixes).files(Guests::Interfaces) {
            agent.write_policy(&name, &text)?;
        }
        let start = Instant::now();
        wait_for("the other policy", Duration::from_millis(5), || {
            Ok(generation()? > before)
        })?;
        seconds.push(start.elapsed().as_secs_f64() - QUIET_TIME.as_secs_f64());
    }
    figures.put_samples("reload_s", &seconds);
    Ok(())
}

fn put_tail(figures: &mut Figures, name: &str, milliseconds: &Samples) {
    let rounds = format!("{name}_ms");
    figures.put_samples(&rounds, milliseconds);
    figures.put_tail(format!("{name}_p99_ms"), rounds);
}

/// Writes the policy where an agent of the lane looks for it.
fn write_files(lane: &Lane, scale: Scale) -> anyhow::Result<PathBuf> {
    let ns = &lane.ns;
    let dir = ns.dir().join(format!("{}-gate25/policy.d", ns.name()));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    for (name, text) in scale.files(Guests::Interfaces) {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(dir)
}

/// Starts an agent that may use every processor, on the files that are there.
fn start_unwatched(lane: &Lane) -> anyhow::Result<Agent> {
    let mut settings = lane::settings("");
    settings.wrapper.clear();
    Agent::start_unready(&lane.ns, settings, &[] as &[(&str, &str)])
}

fn wait_for(
    what: &str,
    pause: Duration,
    mut ask: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + LIMIT;
    while !ask()? {
        if Instant::now() >= end {
            bail!("waited {LIMIT:?} for {what}");
        }
        thread::sleep(pause);
    }
    Ok(())
}
