//! What a filter adds to the path of real packets: frames injected into an interface's receive
//! path, the same policy in the hands of each contender, lane beside lane, in turns.

use std::time::Instant;

use anyhow::Context as _;
use gate25_tests::{
    Agent, Lab,
    bench::{Attached, Kind, Program},
};

use super::{
    Pace,
    figures::Figures,
    frames::{self, OUTSIDE, Packet},
    lane::{self, Lane},
    program::pin,
    rules::{self, Place},
    samples::Samples,
    scale::{self, Guests, Scale},
};

const XDP_PASS: i32 = 2;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filter {
    /// Nobody.
    Nobody,
    /// A hook with nothing in it that passes everything.
    EmptyPass(Hook),
    /// The same that drops everything.
    EmptyDrop(Hook),
    Contender(Contender),
}

/// Where a filter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    Tcx,
    NetdevIngress,
    RawPrerouting,
}

/// Whoever enforces the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// gate25's programs.
    Gate25,
    /// The same and gate25's guard behind them.
    Gate25Guarded,
    /// gate25's other backend.
    Gate25Nft,
    /// By hand, a verdict map and sets.
    NftMap,
    /// By hand, one set.
    NftSet,
    Ipset,
    Iptables,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Traffic {
    /// Not for a guarded port.
    Web,
    /// Refused.
    Mail,
}

impl Traffic {
    const ALL: [Self; 2] = [Self::Web, Self::Mail];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Web => "pass",
            Self::Mail => "refused",
        }
    }
}

impl Hook {
    const ALL: [Self; 3] = [Self::Tcx, Self::NetdevIngress, Self::RawPrerouting];

    const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::NetdevIngress => "netdev",
            Self::RawPrerouting => "raw",
        }
    }
}

impl Contender {
    pub(crate) const ALL: [Self; 7] = [
        Self::Gate25,
        Self::Gate25Guarded,
        Self::Gate25Nft,
        Self::NftMap,
        Self::NftSet,
        Self::Ipset,
        Self::Iptables,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gate25 => "gate25",
            Self::Gate25Guarded => "gate25_guard",
            Self::Gate25Nft => "gate25_nft",
            Self::NftMap => "nft_map",
            Self::NftSet => "nft_set",
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
        }
    }

    /// What a reader is told.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Gate25 => "gate25",
            Self::Gate25Guarded => "gate25 with its guard",
            Self::Gate25Nft => "gate25, backend nftables",
            Self::NftMap => "nftables, verdict map and sets",
            Self::NftSet => "nftables, one set",
            Self::Ipset => "iptables with ipset",
            Self::Iptables => "iptables, a rule a customer",
        }
    }

    const fn hook(self) -> Hook {
        match self {
            Self::Gate25 | Self::Gate25Guarded => Hook::Tcx,
            Self::Gate25Nft | Self::NftMap | Self::NftSet => Hook::NetdevIngress,
            Self::Ipset | Self::Iptables => Hook::RawPrerouting,
        }
    }

    /// Whether its rules grow with the policy, as far as is measured: the backend holds customers
    /// of this host only, and the guard none.
    const fn grows(self) -> bool {
        match self {
            Self::Gate25Nft | Self::Gate25Guarded => false,
            Self::Gate25 | Self::NftMap | Self::NftSet | Self::Ipset | Self::Iptables => true,
        }
    }

    /// Whether a customer's prefixes make a difference to it.
    const fn knows_prefixes(self) -> bool {
        match self {
            Self::Iptables => false,
            Self::Gate25
            | Self::Gate25Guarded
            | Self::Gate25Nft
            | Self::NftMap
            | Self::NftSet
            | Self::Ipset => self.grows(),
        }
    }
}

impl Filter {
    /// Part of a figure's name.
    fn name(self, scale: Scale) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::EmptyPass(hook) => format!("empty_{}_pass", hook.name()),
            Self::EmptyDrop(hook) => format!("empty_{}_drop", hook.name()),
            Self::Contender(contender) => contender_name(contender, scale),
        }
    }
}

/// The name of a contender's figures.
pub(crate) fn contender_name(contender: Contender, scale: Scale) -> String {
    let Scale {
        customers,
        prefixes,
    } = scale;
    format!("{}_{customers}x{prefixes}", contender.name())
}

/// A lane and who decides there.
struct Contest {
    filter: Filter,
    scale: Scale,
    lane: Lane,
    samples: [Samples; 2],
    /// Frames in a turn, by traffic.
    frames: [u32; 2],
    #[expect(dead_code, reason = "kept for what its drop does")]
    attached: Option<Attached>,
    #[expect(dead_code, reason = "kept for what its drop does")]
    agent: Option<Agent>,
}

/// What the sizes of the policy are.
pub(crate) fn scales(growth: bool) -> Vec<Scale> {
    let mut scales = vec![Scale::new(10, 10), Scale::FULL];
    if growth {
        scales.extend([
            Scale::new(1_000, 10),
            Scale::new(10, 1),
            Scale::new(10, 100),
            Scale::new(10, 1_000),
            Scale::new(10, 10_000),
        ]);
    }
    scales.sort();
    scales
}

/// Measures all contenders on the path.
pub(crate) fn measure(lab: &Lab, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let injector = Program::returning(Kind::Xdp, XDP_PASS)?;
    let mut contests = contests(lab, pace, figures)?;
    let packets = [frames::web_v4(), frames::attempt("attempt", OUTSIDE)];
    for contest in &mut contests {
        contest.calibrate(&injector, &packets, pace)?;
    }
    for _ in 0..pace.rounds {
        for contest in &mut contests {
            contest.turn(&injector, &packets)?;
        }
    }
    for contest in &contests {
        for (traffic, samples) in Traffic::ALL.into_iter().zip(&contest.samples) {
            let name = contest.filter.name(contest.scale);
            figures.put_samples(format!("path_{name}_{}_ns", traffic.name()), samples);
        }
    }
    added(&contests, figures);
    ratios(figures);
    Ok(())
}

/// Makes all lanes; those that cannot be made are noted.
fn contests(lab: &Lab, pace: Pace, figures: &mut Figures) -> anyhow::Result<Vec<Contest>> {
    let mut filters = vec![(Filter::Nobody, Scale::FULL)];
    for hook in Hook::ALL {
        filters.push((Filter::EmptyPass(hook), Scale::FULL));
        filters.push((Filter::EmptyDrop(hook), Scale::FULL));
    }
    for scale in scales(pace.growth) {
        for contender in Contender::ALL {
            let tens = scale.prefixes == Scale::FULL.prefixes;
            if scale == Scale::FULL
                || (tens && contender.grows())
                || (!tens && contender.knows_prefixes())
            {
                filters.push((Filter::Contender(contender), scale));
            }
        }
    }
    let mut contests = Vec::new();
    for (filter, scale) in filters {
        match Contest::new(lab, filter, scale, figures) {
            Ok(contest) => contests.push(contest),
            Err(error) => match filter {
                Filter::Contender(contender @ (Contender::Ipset | Contender::Iptables)) => {
                    let name = format!("refused_{}_ratio", contender.name());
                    figures.refuse(&name, format!("{error:#}"));
                }
                Filter::Contender(_)
                | Filter::Nobody
                | Filter::EmptyPass(_)
                | Filter::EmptyDrop(_) => {
                    return Err(error).with_context(|| format!("set up {}", filter.name(scale)));
                }
            },
        }
    }
    Ok(contests)
}

impl Contest {
    fn new(lab: &Lab, filter: Filter, scale: Scale, figures: &mut Figures) -> anyhow::Result<Self> {
        let name = filter.name(scale);
        let lane = Lane::new(lab, &name, &scale::interface(scale.measured()))?;
        let place = Place {
            scale,
            index: lane.index,
        };
        let (mut attached, mut agent) = (None, None);
        let mut timed = |program: &[&str], text: &str| {
            let start = Instant::now();
            lane.load(program, text)?;
            figures.put(format!("load_{name}_s"), start.elapsed().as_secs_f64());
            anyhow::Ok(())
        };
        let nft = ["nft", "-f", "-"];
        match filter {
            Filter::Nobody => {}
            Filter::EmptyPass(Hook::Tcx) => attached = Some(empty(&lane, TCX_NEXT)?),
            Filter::EmptyDrop(Hook::Tcx) => attached = Some(empty(&lane, TCX_DROP)?),
            Filter::EmptyPass(Hook::NetdevIngress) => {
                lane.load(&nft, &place.nft_empty("accept"))?;
            }
            Filter::EmptyDrop(Hook::NetdevIngress) => lane.load(&nft, &place.nft_empty("drop"))?,
            Filter::EmptyPass(Hook::RawPrerouting) => {
                lane.load(&["iptables-restore"], &rules::iptables_empty("ACCEPT"))?;
            }
            Filter::EmptyDrop(Hook::RawPrerouting) => {
                lane.load(&["iptables-restore"], &rules::iptables_empty("DROP"))?;
            }
            Filter::Contender(Contender::Gate25) => {
                agent = Some(gate25(&lane, scale, "guard: false\n")?);
            }
            Filter::Contender(Contender::Gate25Guarded) => {
                agent = Some(gate25(&lane, scale, "")?);
            }
            Filter::Contender(Contender::Gate25Nft) => {
                agent = Some(gate25(&lane, scale, "guard: false\nbackend: nftables\n")?);
            }
            Filter::Contender(Contender::NftMap) => timed(&nft, &place.nft_map())?,
            Filter::Contender(Contender::NftSet) => timed(&nft, &place.nft_set())?,
            Filter::Contender(Contender::Ipset) => {
                timed(&["ipset", "restore"], &place.ipset_members())?;
                lane.load(&["iptables-restore"], &place.ipset())?;
            }
            Filter::Contender(Contender::Iptables) => {
                timed(&["iptables-restore"], &place.iptables())?;
            }
        }
        Ok(Self {
            filter,
            scale,
            lane,
            samples: Default::default(),
            frames: [0; 2],
            attached,
            agent,
        })
    }

    /// Finds out how many frames make a turn.
    fn calibrate(
        &mut self,
        injector: &Program,
        packets: &[Packet; 2],
        pace: Pace,
    ) -> anyhow::Result<()> {
        const TRIED: u32 = 2_000;
        for (packet, frames) in packets.iter().zip(&mut self.frames) {
            let each = inject(&self.lane, injector, packet, TRIED)? / 1e9;
            let wanted = pace.turn.as_secs_f64() / each;
            *frames = wanted.clamp(f64::from(TRIED), 4e6) as u32;
        }
        Ok(())
    }

    fn turn(&mut self, injector: &Program, packets: &[Packet; 2]) -> anyhow::Result<()> {
        let turns = packets.iter().zip(self.frames).zip(&mut self.samples);
        for ((packet, frames), samples) in turns {
            samples.push(inject(&self.lane, injector, packet, frames)?);
        }
        Ok(())
    }
}

fn gate25(lane: &Lane, scale: Scale, more: &str) -> anyhow::Result<Agent> {
    let files = scale.files(Guests::Interfaces);
    lane::start(&lane.ns, lane::settings(more), &files)
}

fn empty(lane: &Lane, verdict: i32) -> anyhow::Result<Attached> {
    Program::returning(Kind::Classifier, verdict)?.attach(&lane.ns, lane.index)
}

/// Nanoseconds a packet.
fn inject(lane: &Lane, injector: &Program, packet: &Packet, frames: u32) -> anyhow::Result<f64> {
    let elapsed = lane.ns.run(|| {
        pin(0)?;
        injector.inject(&packet.bytes, lane.index, frames)
    })??;
    Ok(elapsed.as_nanos() as f64 / f64::from(frames))
}

/// What each contender adds to the empty hook of the same kind with the same verdict.
fn added(contests: &[Contest], figures: &mut Figures) {
    let samples_of = |filter| {
        let contest = contests.iter().find(|contest| contest.filter == filter);
        contest.map(|contest| &contest.samples)
    };
    for contest in contests {
        let Filter::Contender(contender) = contest.filter else {
            continue;
        };
        let hook = contender.hook();
        let name = contender_name(contender, contest.scale);
        let [pass, refused] = &contest.samples;
        for (traffic, ours, empty) in [
            (Traffic::Web, pass, Filter::EmptyPass(hook)),
            (Traffic::Mail, refused, Filter::EmptyDrop(hook)),
        ] {
            let at = traffic as usize;
            if let Some(empty) = samples_of(empty).and_then(|samples| samples.get(at)) {
                let name = format!("added_{name}_{}_ns", traffic.name());
                figures.put_samples(name, &ours.over(empty));
            }
        }
        if let Some([nobody, _]) = samples_of(Filter::Nobody) {
            let name = format!("added_{name}_pass_over_nobody_ns");
            figures.put_samples(name, &pass.over(nobody));
        }
    }
}

/// What others add over what gate25 adds, at full size.
fn ratios(figures: &mut Figures) {
    let summary = |figures: &Figures, contender, traffic: Traffic| {
        let name = contender_name(contender, Scale::FULL);
        figures.summary(&format!("added_{name}_{}_ns", traffic.name()))
    };
    let added = |figures: &Figures, contender, traffic| {
        summary(figures, contender, traffic).map(|summary| summary.value)
    };
    let best = |figures: &Figures, traffic| {
        [Contender::NftMap, Contender::NftSet]
            .into_iter()
            .filter_map(|contender| added(figures, contender, traffic))
            .min_by(f64::total_cmp)
    };
    let theirs = [
        ("pass_nft_ratio", Traffic::Web, best(figures, Traffic::Web)),
        (
            "refused_nft_ratio",
            Traffic::Mail,
            best(figures, Traffic::Mail),
        ),
        (
            "refused_ipset_ratio",
            Traffic::Mail,
            added(figures, Contender::Ipset, Traffic::Mail),
        ),
        (
            "refused_iptables_ratio",
            Traffic::Mail,
            added(figures, Contender::Iptables, Traffic::Mail),
        ),
    ];
    for (name, traffic, theirs) in theirs {
        let (Some(theirs), Some(ours)) = (theirs, summary(figures, Contender::Gate25, traffic))
        else {
            continue;
        };
        // What cannot be told from nothing is taken for as much as would have been seen.
        let seen = ours.spread.unwrap_or(0.0);
        figures.put(name, theirs / ours.value.max(seen));
        if ours.value < seen {
            figures.bound_below(name);
        }
    }
}
