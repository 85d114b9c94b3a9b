//! What a program costs by itself: run over and over on one packet, against the empty program that
//! returns the same, in turns.

use std::{
    fs,
    path::PathBuf,
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gate25_common::names;
use gate25_tests::{
    Agent, Cgroup, Lab,
    bench::{Context, Instructions, Kind, Program, Register, Size, Table, helper},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    Pace,
    figures::Figures,
    frames::{self, OUTSIDE, Packet},
    lane::{self, Lane},
    samples::Samples,
    scale::{self, Guests, Scale},
};

/// An interface that nothing else is measured on: another customer's.
const LOOPBACK: u32 = 1;
/// Runs for a profiler to look at, in one go.
const REPEATED: u32 = 10_000_000;
const PASS: i32 = -1;
const DROP: i32 = 2;
/// What programs on control groups return.
const GROUP_PASS: i32 = 1;
const GROUP_DROP: i32 = 0;

/// A host whose tables hold a policy of some size, every customer of it with guests here.
#[derive(Debug)]
struct Host {
    lane: Lane,
    scale: Scale,
    tc: Program,
    egress: Program,
    interfaces: Table,
    /// It reads the events meanwhile.
    agent: Agent,
    #[expect(dead_code, reason = "its members own what is measured")]
    groups: Cgroup,
}

/// A program on a packet.
struct Run<'a> {
    host: &'a Host,
    program: &'a Program,
    packet: &'a [u8],
    interface: u32,
    expected: i32,
}

/// What is compared: figure, ours, the empty one.
struct Pair<'a> {
    name: String,
    ours: Run<'a>,
    empty: Run<'a>,
    samples: (Samples, Samples),
}

/// Measures programs alone.
pub(crate) fn measure(lab: &Lab, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let mut hosts = [10, 1_000, 10_000]
        .map(|customers| Host::new(lab, Scale::new(customers, 10)))
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    let large = hosts.last().context("no host")?;
    let empties = Empties::load()?;
    let packets = Packets::new(large.scale);
    let lots = hosts
        .iter()
        .map(|host| Ok([host.by_lot(&host.tc)?, host.by_lot(&empties.drop)?]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut pairs = packets.judged_by(large, &empties);
    for (host, [ours, empty]) in hosts.iter().zip(&lots) {
        let customers = host.scale.customers;
        let attempt = &packets.attempt.bytes;
        let one = |program| Run::new(host, program, attempt, DROP);
        pairs.push(Pair::new(
            format!("refused_{customers}_customers"),
            one(&host.tc),
            one(&empties.drop),
        ));
        pairs.push(Pair::new(
            format!("refused_random_{customers}_customers"),
            one(&ours.program).by_lot(),
            one(&empty.program).by_lot(),
        ));
    }
    run(&mut pairs, pace)?;
    for pair in &pairs {
        let cost = pair.ours_over_empty();
        figures.put_samples(format!("program_{}_ns", pair.name), &cost);
        let (_, empty) = &pair.samples;
        figures.put_samples(format!("program_{}_empty_ns", pair.name), empty);
    }
    promised(figures, &packets);
    for together in [Together::SameCustomer, Together::Others] {
        let samples = at_once(large, &packets.attempt, together, pace)?;
        figures.put_samples(together.figure(), &samples);
    }
    drop(pairs);
    let large = hosts.last_mut().context("no host")?;
    weigh(large, pace, figures)
}

/// Nanoseconds of a run on one packet, the median of the rounds, without the empty program's being taken off.
pub(crate) fn repeat(lab: &Lab, pace: Pace, name: &str) -> anyhow::Result<f64> {
    let host = Host::new(lab, Scale::new(10_000, 10))?;
    let (empties, packets) = (Empties::load()?, Packets::new(host.scale));
    let pairs = packets.judged_by(&host, &empties);
    let names: Vec<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
    let pair = pairs.iter().find(|pair| pair.name == name);
    let pair = pair.with_context(|| format!("no packet {name}: there are {}", names.join(", ")))?;
    println!("process {} begins", process::id());
    let mut times = Samples::default();
    for _ in 0..pace.rounds {
        times.push(pair.ours.time(REPEATED)?);
    }
    let summary = times.summary().context("no round")?;
    Ok(summary.value)
}

/// What an agent takes whose customers have all been counted.
fn weigh(host: &mut Host, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    const MIB: f64 = 1_048_576.0;
    let mut scrapes = Samples::default();
    for _ in 0..pace.rounds {
        let start = Instant::now();
        host.agent.metrics_page()?;
        scrapes.push(start.elapsed().as_secs_f64() * 1e3);
    }
    figures.put_samples("scrape_ms", &scrapes);
    let status = format!("/proc/{}/status", host.agent.process().id());
    let text = fs::read_to_string(&status).with_context(|| format!("read {status}"))?;
    for (name, key) in [
        ("agent_rss_mib", "VmRSS:"),
        ("agent_rss_peak_mib", "VmHWM:"),
    ] {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        figures.put(
            name,
            number.with_context(|| format!("no {key} in {status}"))? / 1024.0,
        );
    }
    let mut all = 0.0;
    for name in names::MAPS {
        let bytes = lane::table(&host.lane.ns, name)?.memory()? as f64;
        figures.put(format!("map_{}_mib", name.to_lowercase()), bytes / MIB);
        all += bytes;
    }
    figures.put("maps_mib", all / MIB);
    Ok(())
}

/// A program that goes on with another.
struct Led {
    program: Program,
    #[expect(dead_code, reason = "empties itself when it is closed")]
    next: Table,
}

/// Programs that do nothing.
struct Empties {
    pass: Program,
    /// Another one like it: what is measured between the two is the error of the method.
    again: Program,
    drop: Program,
    group_pass: Program,
    group_drop: Program,
}

impl Empties {
    fn load() -> anyhow::Result<Self> {
        Ok(Self {
            pass: Program::returning(Kind::Classifier, PASS)?,
            again: Program::returning(Kind::Classifier, PASS)?,
            drop: Program::returning(Kind::Classifier, DROP)?,
            group_pass: Program::returning(Kind::Cgroup, GROUP_PASS)?,
            group_drop: Program::returning(Kind::Cgroup, GROUP_DROP)?,
        })
    }
}

/// The packets that are tried.
struct Packets {
    web: Packet,
    plain: Vec<Packet>,
    unusual: Vec<Packet>,
    relayed: Packet,
    listed: Packet,
    attempt: Packet,
    attempt_v6: Packet,
    data: Packet,
}

impl Packets {
    fn new(scale: Scale) -> Self {
        let own = scale.prefixes(scale.measured()).next();
        Self {
            web: frames::web_v4(),
            plain: frames::plain(),
            unusual: frames::unusual(),
            relayed: frames::relayed(),
            listed: frames::attempt("listed", own.map_or(OUTSIDE, |prefix| prefix.address)),
            attempt: frames::attempt("attempt", OUTSIDE),
            attempt_v6: frames::attempt_v6(),
            data: frames::data(),
        }
    }

    /// All of them, and what says how well this measures.
    fn judged_by<'a>(&'a self, host: &'a Host, empties: &'a Empties) -> Vec<Pair<'a>> {
        let Empties {
            pass,
            again,
            drop,
            group_pass,
            group_drop,
        } = empties;
        let web = &self.web;
        let (tc, group) = (&host.tc, &host.egress);
        let passing = self.plain.iter().chain(&self.unusual);
        let mut cases: Vec<_> = passing
            .map(|packet| ("pass", packet, tc, pass, PASS))
            .collect();
        cases.extend([
            ("allowed", &self.relayed, tc, pass, PASS),
            ("allowed", &self.listed, tc, pass, PASS),
            ("refused", &self.attempt, tc, drop, DROP),
            ("refused", &self.attempt_v6, tc, drop, DROP),
            ("refused", &self.data, tc, drop, DROP),
            ("cgroup_pass", web, group, group_pass, GROUP_PASS),
            (
                "cgroup_allowed",
                &self.relayed,
                group,
                group_pass,
                GROUP_PASS,
            ),
            (
                "cgroup_refused",
                &self.attempt,
                group,
                group_drop,
                GROUP_DROP,
            ),
            ("empty_over_empty", web, again, pass, PASS),
        ]);
        let pair = |(verdict, packet, ours, empty, expected): (_, &'a Packet, _, _, _)| {
            Pair::new(
                format!("{verdict}_{}", packet.name),
                Run::new(host, ours, &packet.bytes, expected),
                Run::new(host, empty, &packet.bytes, expected),
            )
        };
        cases.into_iter().map(pair).collect()
    }
}

/// The figures of the issue, from those of the programs.
fn promised(figures: &mut Figures, packets: &Packets) {
    for (name, packets) in [
        ("pass_over_empty_ns", &packets.plain),
        ("pass_unusual_over_empty_ns", &packets.unusual),
    ] {
        let names = packets
            .iter()
            .map(|packet| format!("program_pass_{}_ns", packet.name));
        let medians = names.filter_map(|name| Some((figures.get(&name)?, name)));
        let worst = medians.max_by(|(one, _), (other, _)| one.total_cmp(other));
        if let Some((_, of)) = worst {
            figures.copy(name, &of);
        }
    }
    for (name, of) in [
        ("refused_over_empty_ns", "program_refused_attempt_ns"),
        (
            "refused_random_ns",
            "program_refused_random_10000_customers_ns",
        ),
    ] {
        figures.copy(name, of);
    }
    let growth = [
        (
            "growth_10_to_10000",
            "program_refused_attempt_ns",
            "program_refused_10_customers_ns",
        ),
        (
            "growth_random_10_to_10000",
            "program_refused_random_10000_customers_ns",
            "program_refused_random_10_customers_ns",
        ),
    ];
    for (name, large, small) in growth {
        if let (Some(large), Some(small)) = (figures.get(large), figures.get(small)) {
            figures.put(name, large / small);
        }
    }
}

/// Two processors at work at the same time.
#[derive(Debug, Clone, Copy)]
enum Together {
    SameCustomer,
    Others,
}

impl Together {
    const fn figure(self) -> &'static str {
        match self {
            Self::SameCustomer => "refused_two_cpus_same_customer_ns",
            Self::Others => "refused_two_cpus_other_customers_ns",
        }
    }
}

/// Time of a refused packet while the other processor refuses too.
fn at_once(
    host: &Host,
    packet: &Packet,
    together: Together,
    pace: Pace,
) -> anyhow::Result<Samples> {
    let other = match together {
        Together::SameCustomer => host.lane.index,
        Together::Others => LOOPBACK,
    };
    let mut samples = Samples::default();
    for _ in 0..pace.rounds {
        let elapsed = thread::scope(|scope| {
            let threads = [(0, host.lane.index), (1, other)].map(|(cpu, interface)| {
                scope.spawn(move || {
                    host.lane.ns.enter()?;
                    pin(cpu)?;
                    let context = Context { interface };
                    host.tc.run(&packet.bytes, context, pace.runs)
                })
            });
            let mut elapsed = Duration::ZERO;
            for thread in threads {
                let ran = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                ensure!(ran.returned == DROP, "the packet was not refused");
                elapsed = elapsed.max(ran.elapsed);
            }
            Ok(elapsed)
        })?;
        samples.push(per_run(elapsed, pace.runs));
    }
    Ok(samples)
}

fn per_run(elapsed: Duration, runs: u32) -> f64 {
    elapsed.as_nanos() as f64 / f64::from(runs)
}

/// Takes all in turns, every round in the same order.
fn run(pairs: &mut [Pair<'_>], pace: Pace) -> anyhow::Result<()> {
    for _ in 0..pace.rounds {
        for pair in &mut *pairs {
            let Pair {
                ours,
                empty,
                samples,
                name,
            } = pair;
            for (run, samples) in [(empty, &mut samples.1), (ours, &mut samples.0)] {
                samples.push(run.time(pace.runs).with_context(|| name.clone())?);
            }
        }
    }
    Ok(())
}

impl<'a> Pair<'a> {
    fn new(name: String, ours: Run<'a>, empty: Run<'a>) -> Self {
        Self {
            name,
            ours,
            empty,
            samples: <(Samples, Samples)>::default(),
        }
    }

    fn ours_over_empty(&self) -> Samples {
        let (ours, empty) = &self.samples;
        ours.over(empty)
    }
}

impl<'a> Run<'a> {
    const fn new(host: &'a Host, program: &'a Program, packet: &'a [u8], expected: i32) -> Self {
        Self {
            host,
            program,
            packet,
            interface: host.lane.index,
            expected,
        }
    }

    /// The same from a guest drawn by lot.
    const fn by_lot(mut self) -> Self {
        self.interface = LOOPBACK;
        self
    }

    /// Nanoseconds a run.
    fn time(&self, runs: u32) -> anyhow::Result<f64> {
        let Self {
            host,
            program,
            packet,
            interface,
            expected,
        } = self;
        let context = Context {
            interface: *interface,
        };
        let ran = host.lane.ns.run(|| {
            pin(0)?;
            program.run(packet, context, runs)
        })??;
        ensure!(
            ran.returned == *expected,
            "the program returned {} instead of {expected}",
            ran.returned
        );
        Ok(per_run(ran.elapsed, runs))
    }
}

/// Keeps the calling thread on a processor.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).context("a processor's number")?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("stay on processor {cpu}"))
}

impl Host {
    fn new(lab: &Lab, scale: Scale) -> anyhow::Result<Self> {
        let name = format!("host{}", scale.customers);
        let lane = Lane::new(lab, &name, &scale::interface(scale.measured()))?;
        let groups = lab.containers(&name)?;
        for customer in 0..scale.customers {
            let dir = groups.dir().join(scale::group(customer));
            fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let root = groups.path();
        let mut settings = lane::settings("");
        settings.cgroups = vec![root.clone()];
        let agent = lane::start(&lane.ns, settings, &scale.files(Guests::Groups(&root)))?;
        let host = Self {
            tc: lane::program(&lane.ns, names::PROGRAM_TC_INGRESS)?,
            egress: lane::program(&lane.ns, names::PROGRAM_CGROUP_EGRESS)?,
            interfaces: lane::table(&lane.ns, names::MAP_INTERFACES)?,
            lane,
            scale,
            agent,
            groups,
        };
        host.own_group()?;
        let other = scale::number(scale.measured() + 1);
        host.interfaces
            .put(&LOOPBACK.to_ne_bytes(), &owner(other))?;
        Ok(host)
    }

    /// Makes the group that packets of this process belong to the measured customer's.
    fn own_group(&self) -> anyhow::Result<()> {
        let table = lane::table(&self.lane.ns, names::MAP_CGROUPS)?;
        let id = own_group_id()?;
        table.put(
            &id.to_ne_bytes(),
            &scale::number(self.scale.measured()).to_ne_bytes(),
        )
    }

    /// A program that gives the packet to a customer and a destination drawn by lot, then goes on
    /// with `program`. Customers are drawn by changing the owner of the interface, so its own entry
    /// is the only one that stays in the processor's cache.
    fn by_lot(&self, program: &Program) -> anyhow::Result<Led> {
        const FRAME: i16 = 34;
        const DESTINATION: i16 = 30;
        const DATA: i16 = 76;
        const DATA_END: i16 = 80;
        use Register::{R0, R1, R2, R3, R6, R7, R8, R10};

        let numbers: Vec<u64> = (0..self.scale.customers).map(scale::number).collect();
        let numbers = Table::of_numbers(&numbers)?;
        let next = Table::leading_to(program)?;
        let mut code = Instructions::new();
        let failed = code.label();
        code.copy(R6, R1)
            .call(helper::RANDOM)
            .copy(R7, R0)
            .modulo(R7, self.scale.customers as u32)
            .store(Size::Word, R10, -4, R7)
            .table(R1, numbers.descriptor())
            .copy(R2, R10)
            .add(R2, -4)
            .call(helper::LOOKUP)
            .if_zero(R0, failed)
            .load(Size::Double, R8, R0, 0)
            .set(R7, LOOPBACK as i32)
            .store(Size::Word, R10, -4, R7)
            .table(R1, self.interfaces.descriptor())
            .copy(R2, R10)
            .add(R2, -4)
            .call(helper::LOOKUP)
            .if_zero(R0, failed)
            .store(Size::Double, R0, 0, R8)
            .call(helper::RANDOM)
            // 10.0.0.0/11 in network order: where the prefixes are.
            .and(R0, 0xffff_1f00)
            .or(R0, 10)
            .copy(R7, R0)
            .load(Size::Word, R1, R6, DATA)
            .load(Size::Word, R2, R6, DATA_END)
            .copy(R3, R1)
            .add(R3, i32::from(FRAME))
            .if_greater(R3, R2, failed)
            .store(Size::Word, R1, DESTINATION, R7)
            .copy(R1, R6)
            .table(R2, next.descriptor())
            .set(R3, 0)
            .call(helper::TAIL_CALL)
            .here(failed)
            .set(R0, -100)
            .exit();
        let program = Program::load(Kind::Classifier, "by_lot", &code.words())
            .context("load the program that draws by lot")?;
        Ok(Led { program, next })
    }
}

/// An interface's owner, everything of it counted (`InterfaceOwner`).
fn owner(customer: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&customer.to_ne_bytes());
    bytes[8] = 1;
    bytes
}

/// The number of the control group (v2) of this process.
fn own_group_id() -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let text = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.context("this process is in no control group of version 2")?;
    let dir: PathBuf = gate25_tests::cgroup_mount()?.join(path);
    let metadata = fs::metadata(&dir).with_context(|| format!("look at {}", dir.display()))?;
    Ok(metadata.ino())
}
