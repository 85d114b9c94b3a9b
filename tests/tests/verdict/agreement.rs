//! Random packets under random policies through the programs, through nftables and through the
//! pure functions: all three decide and count alike, but for what nftables cannot do
//! (ARCHITECTURE.md, "The nftables backend").

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25::compile::Prefix;
use gate25::dataplane::{Attached, Dataplane as _, MapImage};
use gate25::figures::Figures as _;
use gate25::kernel::nft::Nft;
use gate25::kernel::nftables::{Nftables, Options, Reject};
use gate25_common::abi::{Counting, CustomerId, InterfaceOwner};
use gate25_common::address::Family;
use gate25_common::counters::HostCounters;
use gate25_common::decide::{HostMode, Reason, Route, Subject, Verdict, decide};
use gate25_common::packet::{self, Malformed, Tunnel, parse};
use gate25_common::redirect::Target;
use gate25_common::testing::frames::{MemoryFrame, ethernet};
use gate25_common::testing::tables::MemoryTables;
use gate25_tests::{NetNs, Offload, Tap, fewer, poll, slowness, spare_bridges};
use nix::net::if_::if_nametoindex;

use super::form::{Form, Shape};
use super::kernel::{Kernel, LOOPBACK, Meta, NOTICE, NOTICE_V6, in_namespace};
use super::pure::{carried_out, judge, passes, possible};
use super::random::{Random, frame, policies};

const POLICIES: u32 = 16;
/// Changes of the workload's owner under each.
const OWNERS: u32 = 16;
/// Packets of each owner.
const ROUND: u32 = 480;
const LIMIT: Duration = Duration::from_secs(10);

/// A bridge with a guest whose packets nftables judges, one whose packets nobody judges, and who
/// receives what comes through.
pub(crate) struct Bridge {
    judged: Tap,
    unjudged: Tap,
    far: Tap,
    sent: u32,
}

impl Bridge {
    fn new(namespace: &NetNs) -> Self {
        spare_bridges(namespace).expect("bridges without netfilter");
        let tap = |name| Tap::new(namespace, name, Offload::None).expect("a tap");
        let (judged, unjudged, far) = (tap("judged"), tap("unjudged"), tap("far"));
        namespace
            .ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up")
            .expect("a bridge");
        for port in ["judged", "unjudged", "far"] {
            let up = format!("link set {port} master br0 up");
            namespace.ip(&up).expect("a port");
            let flood = ["link", "set", "dev", port, "learning", "off", "flood", "on"];
            namespace
                .exec("bridge", &flood)
                .expect("a port that floods");
        }
        let mut bridge = Self {
            judged,
            unjudged,
            far,
            sent: 0,
        };
        // What is sent before the kernel has noticed that the links are up is lost.
        let hello = ethernet(&[], 0x88b5, &[0; 46]);
        poll("the bridge", LIMIT, || {
            Ok((bridge.pass(&hello, true) && bridge.pass(&hello, false)).then_some(()))
        })
        .expect("the bridge forwards");
        bridge
    }

    /// Whether the frame comes through when a guest sends it. The kernel carries it there before
    /// the write to the tap returns. Its addresses are replaced: the bridge keeps some for itself,
    /// and by the sender's it is known again.
    pub(crate) fn pass(&mut self, frame: &[u8], judged: bool) -> bool {
        self.sent += 1;
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&[2, 0xff, 0, 0, 0, 1]);
        frame[6..8].copy_from_slice(&[2, 0]);
        frame[8..12].copy_from_slice(&self.sent.to_be_bytes());
        let from = if judged {
            &mut self.judged
        } else {
            &mut self.unjudged
        };
        from.send(&frame).expect("send a frame");
        let mut passed = false;
        for tap in [&mut self.far, &mut self.judged, &mut self.unjudged] {
            while let Some(seen) = tap.take().expect("read a tap") {
                passed |= seen.get(..12) == frame.get(..12);
            }
        }
        passed
    }
}

/// The three who decide.
pub(crate) struct Deciders {
    pub(crate) tables: MemoryTables,
    /// The same without targets: nftables leads nobody elsewhere.
    untargeted: MemoryTables,
    pub(crate) kernel: Kernel,
    pub(crate) nftables: Nftables,
    interface: u32,
    pub(crate) bridge: Bridge,
    host: HostMode,
    load: Box<dyn Fn() -> Kernel>,
}

/// How often packets of a form were sent, and how often nftables was stricter.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    packets: u32,
    stricter: u32,
    laxer: u32,
}

impl Deciders {
    pub(crate) fn new(namespace: &NetNs, host: HostMode, tables: MemoryTables) -> Self {
        Self::with(namespace, host, move || Kernel::load(host), tables)
    }

    /// The same with programs that are made to be as the host is.
    fn with(
        namespace: &NetNs,
        host: HostMode,
        load: impl Fn() -> Kernel + 'static,
        tables: MemoryTables,
    ) -> Self {
        let bridge = Bridge::new(namespace);
        let interface = if_nametoindex("judged").expect("its index");
        let options = Options {
            ports: vec![25],
            host,
            guard: None,
            reject: Reject::Reset,
        };
        let mut nftables = Nftables::open(Nft::default(), options).expect("nftables");
        nftables
            .apply(&image(&untargeted(&tables), interface))
            .expect("apply the policy");
        let attached = nftables.attach_interface(interface).expect("hook the tap");
        assert_eq!(attached, Attached::Yes);
        let mut kernel = load();
        kernel.fill(LOOPBACK, &tables);
        kernel.listen(&[NOTICE, NOTICE_V6]);
        Self {
            load: Box::new(load),
            untargeted: untargeted(&tables),
            tables,
            kernel,
            nftables,
            interface,
            bridge,
            host,
        }
    }

    /// Puts other policies in the place of those there are.
    fn follow(&mut self, tables: MemoryTables) {
        self.kernel = (self.load)();
        self.kernel.listen(&[NOTICE, NOTICE_V6]);
        self.fill(tables);
    }

    /// The same where there were none of their customers and sets.
    pub(crate) fn fill(&mut self, tables: MemoryTables) {
        self.kernel.fill(LOOPBACK, &tables);
        self.untargeted = untargeted(&tables);
        self.tables = tables;
    }

    pub(crate) fn own(&mut self, owner: Option<CustomerId>) {
        self.tables.owner = owner;
        self.untargeted.owner = owner;
        self.kernel.own(LOOPBACK, owner);
        let image = image(&self.untargeted, self.interface);
        self.nftables.apply(&image).expect("apply the policy");
    }

    /// Packets on which all three must agree, and what they count of them.
    fn agree(&mut self, frames: &[(u32, Vec<u8>, Shape)], seen: &mut [u32], context: &str) {
        let counters = self.nftables.counters();
        let nft_before = figures(&counters.host().expect("nftables counts"));
        let kernel_before = figures(&self.kernel.host_counters());
        let (mut of_nft, mut of_kernel) = (HostCounters::ZERO, HostCounters::ZERO);
        for (number, frame, shape) in frames {
            let context = format!("{context}, packet {number}: {frame:02x?}");
            // What the kernel itself does not bridge is never judged.
            let bridged = self.bridge.pass(frame, false);
            let action = self.kernel.run(frame, Meta::default());
            let parsed = parse(&MemoryFrame::new(frame));
            let length = frame.len() - shape.stripped;
            let decision = judge(&self.tables, self.host, parsed, length, &mut of_kernel);
            let verdict = decision.map(|decision| decision.verdict);
            assert!(
                carried_out(&self.tables, decision, frame, &action),
                "{context}: {action:?} for {verdict:?}"
            );
            let without = judge(&self.untargeted, self.host, parsed, length, &mut of_nft);
            let without = without.map(|decision| decision.verdict);
            let passed = self.bridge.pass(frame, true);
            assert_eq!(passed, bridged && passes(without), "{context}: {without:?}");
            if let Some(verdict) = verdict {
                seen[verdict as usize] += 1;
            }
        }
        let nft = grown(
            &nft_before,
            &figures(&counters.host().expect("nftables counts")),
        );
        assert_eq!(
            unlike(&nft, &figures(&of_nft)),
            [],
            "nftables, {context}: {frames:02x?}"
        );
        let mut kernel = grown(&kernel_before, &figures(&self.kernel.host_counters()));
        // It sees the tags.
        kernel.retain(|name, _| !name.starts_with("bytes"));
        assert_eq!(
            unlike(&kernel, &figures(&of_kernel)),
            [],
            "programs, {context}"
        );
    }

    /// Packets that nftables cannot look into: it lets no packet go that the programs stop, but
    /// for those whose headers it follows further.
    fn differ(
        &mut self,
        frames: &[(u32, Vec<u8>, Shape)],
        seen: &mut BTreeMap<Form, Seen>,
        context: &str,
    ) {
        for (number, frame, shape) in frames {
            let context = format!("{context}, packet {number}: {frame:02x?}");
            let bridged = self.bridge.pass(frame, false);
            let action = self.kernel.run(frame, Meta::default());
            let parsed = parse(&MemoryFrame::new(frame));
            let mut uncounted = HostCounters::ZERO;
            let decision = judge(&self.tables, self.host, parsed, frame.len(), &mut uncounted);
            let verdict = decision.map(|decision| decision.verdict);
            assert!(
                carried_out(&self.tables, decision, frame, &action),
                "{context}: {action:?} for {verdict:?}"
            );
            let passed = self.bridge.pass(frame, true);
            let seen = seen.entry(shape.form).or_default();
            seen.packets += 1;
            seen.stricter += u32::from(!passed && bridged && passes(verdict));
            if passed && !passes(verdict) {
                seen.laxer += 1;
                assert!(self.is_judged_further(shape), "{context}: {verdict:?}");
            }
        }
    }

    /// Whether the packet has headers that the programs do not follow, and may go where it goes.
    fn is_judged_further(&self, shape: &Shape) -> bool {
        let verdict = shape.guarded.map(|destination| {
            let subject = Subject::Guarded {
                destination,
                port: 25u16.to_be_bytes(),
                route: Route::Direct,
                family: Family::V6,
                form: packet::Form::Plain,
            };
            decide(&self.untargeted, self.host, &subject).verdict
        });
        shape.further && passes(verdict)
    }
}

fn untargeted(tables: &MemoryTables) -> MemoryTables {
    let mut tables = tables.clone();
    for policy in tables.policies.values_mut() {
        *policy = policy.with_targets(Target::NONE, Target::NONE);
    }
    tables
}

/// The tables as the backend takes them.
fn image(tables: &MemoryTables, interface: u32) -> MapImage {
    let sets = tables.prefixes.iter().map(|(set, prefixes)| {
        let prefixes = prefixes.iter().map(|((address, length), value)| Prefix {
            address: *address,
            length: *length,
            entry: value.entry(),
        });
        (*set, prefixes.collect())
    });
    let owner = tables
        .owner
        .map(|owner| (interface, InterfaceOwner::new(owner, Counting::All)));
    MapImage {
        customers: tables.policies.clone().into_iter().collect(),
        sets: Arc::new(sets.collect()),
        interfaces: owner.into_iter().collect(),
        cgroups: BTreeMap::new(),
    }
}

type Figures = BTreeMap<String, u64>;

fn figures(counters: &HostCounters) -> Figures {
    let mut figures = Figures::new();
    for family in Family::ALL {
        for verdict in Verdict::ALL {
            for reason in Reason::ALL {
                let name = format!("connections {verdict:?} {reason:?} {family:?}");
                figures.insert(name, counters.connections(verdict, reason, family));
            }
            let name = |what| format!("{what} {verdict:?} {family:?}");
            figures.insert(name("packets"), counters.packets(verdict, family));
            figures.insert(name("bytes"), counters.bytes(verdict, family));
        }
    }
    for kind in Malformed::ALL {
        figures.insert(format!("{kind:?}"), counters.malformed(kind));
    }
    for tunnel in Tunnel::ALL {
        figures.insert(format!("{tunnel:?}"), counters.tunnels(tunnel));
    }
    figures
}

fn grown(before: &Figures, after: &Figures) -> Figures {
    let grown = after
        .iter()
        .map(|(name, count)| (name.clone(), count - before[name]));
    grown.collect()
}

/// Figures by name: what was counted, and what should have been.
fn unlike(counted: &Figures, expected: &Figures) -> Vec<(String, u64, u64)> {
    let pairs = counted
        .iter()
        .map(|(name, count)| (name.clone(), *count, expected[name]));
    pairs.filter(|(_, count, right)| count != right).collect()
}

/// Mostly one on which all three must agree.
fn framed(random: &mut Random) -> (Vec<u8>, Shape) {
    loop {
        let frame = frame(0, random);
        let shape = Shape::of(&frame);
        if shape.form == Form::Plain || random.one_in(4) {
            return (frame, shape);
        }
    }
}

fn three_agree(namespace: &NetNs, host: HostMode, load: impl Fn() -> Kernel + 'static, seed: u64) {
    let mut random = Random(seed);
    let mut deciders = Deciders::with(namespace, host, load, policies(&mut random));
    let (mut seen, mut forms) = ([0; Verdict::ALL.len()], BTreeMap::new());
    let (mut plain, start) = (0, Instant::now());
    // Enough of each that every verdict is seen.
    let [policies_tried, owners] = [POLICIES, OWNERS].map(|count| fewer(count).max(4));
    for policy in 0..policies_tried {
        for owner in 0..owners {
            let context = format!("seed {seed}, policy {policy}, owner {owner}");
            let owners: Vec<_> = deciders.tables.policies.keys().copied().collect();
            deciders.own((!random.one_in(10)).then(|| random.of(&owners)));
            let frames = (0..ROUND).map(|number| {
                let (frame, shape) = framed(&mut random);
                (number, frame, shape)
            });
            let (alike, others): (Vec<_>, Vec<_>) =
                frames.partition(|(_, _, shape)| shape.form == Form::Plain);
            plain += alike.len();
            deciders.agree(&alike, &mut seen, &context);
            deciders.differ(&others, &mut forms, &context);
        }
        deciders.follow(policies(&mut random));
    }
    let rate = f64::from(policies_tried * owners * ROUND) / start.elapsed().as_secs_f64();
    report(&format!(
        "{host:?}: {plain} packets decided alike by all three, {seen:?}; others {forms:?}; {rate:.0} a second"
    ));
    assert!(
        plain > (policies_tried * owners * ROUND) as usize * 49 / 100,
        "{plain}"
    );
    for verdict in possible(host) {
        assert!(
            seen[*verdict as usize] > plain as u32 / 100,
            "{verdict:?} in {seen:?}"
        );
    }
    if host == HostMode::Policy {
        let [.., redirected, told, _] = seen;
        let few = fewer(50);
        assert!(redirected > few && told > few, "{seen:?}");
    }
    // Some forms are rare: on a slow machine one packet of each has to do.
    let enough = if slowness() == 1 { 20 } else { 0 };
    for form in [
        Form::Hidden,
        Form::Unwalked,
        Form::Fragment,
        Form::Routing,
        Form::Further,
        Form::Options,
        Form::Long,
    ] {
        assert!(forms[&form].packets > enough, "{form:?} in {forms:?}");
    }
}

#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
fn report(line: &str) {
    println!("{line}");
}

#[test]
fn three_agree_on_random_packets_under_random_policies() {
    in_namespace(|namespace| {
        three_agree(
            namespace,
            HostMode::Policy,
            || Kernel::load(HostMode::Policy),
            2500,
        )
    });
}

#[test]
fn three_agree_on_random_packets_where_the_host_observes() {
    in_namespace(|namespace| {
        three_agree(
            namespace,
            HostMode::Observe,
            || Kernel::load(HostMode::Observe),
            2501,
        )
    });
}

/// While a host is bypassed its programs do what they do where the settings say that it observes.
#[test]
fn three_agree_on_random_packets_while_the_host_is_bypassed() {
    in_namespace(|namespace| {
        three_agree(namespace, HostMode::Observe, Kernel::load_bypassed, 2502);
    });
}
