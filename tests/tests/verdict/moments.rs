//! Exemptions that begin and end while packets are sent: the programs follow the clock, nftables
//! is never later with an end than they, and never earlier with a beginning.

use std::time::{Duration, Instant};

use gate25::dataplane::Dataplane as _;
use gate25_common::abi::{Blocked, CustomerId, CustomerPolicy, Exemption, Mode, Quarantine, SetId};
use gate25_common::address::{Address, Family};
use gate25_common::decide::{HostMode, Route, Subject, decide};
use gate25_common::packet::Form as Headers;
use gate25_common::testing::frames::{Ipv4, Tcp, frame_v4};
use gate25_common::testing::tables::MemoryTables;
use gate25_tests::{paced, slowness};

use super::agreement::Deciders;
use super::kernel::{Action, Meta, boot_time, in_namespace};
use super::pure::passes;
use super::random::Random;

const CUSTOMER: CustomerId = CustomerId::from_raw(7);
const EXEMPTIONS: u8 = 16;
const MILLISECOND: u64 = 1_000_000;
/// Element time-outs are whole seconds, and the kernel looks at them by its own ticks.
const ROUNDED: Duration = Duration::from_millis(1_100);
/// What a change is taken to take.
const ALLOWED: Duration = Duration::from_secs(1);
/// All exemptions are over by then, on an ordinary machine.
const LENGTH: Duration = Duration::from_secs(7);

fn policy() -> CustomerPolicy {
    CustomerPolicy::new(
        Mode::Enforce,
        Blocked::Drop,
        Quarantine::No,
        SetId::NONE,
        SetId::NONE,
    )
}

fn address(number: u8) -> [u8; 4] {
    [203, 0, 113, number]
}

/// Nobody has anything.
fn closed() -> MemoryTables {
    let mut tables = MemoryTables::default();
    tables.policies.insert(CustomerId::UNASSIGNED, policy());
    tables
}

/// One destination an exemption, at times within the next seconds.
fn tables(random: &mut Random) -> MemoryTables {
    let mut tables = closed();
    let now = boot_time();
    let exemptions: Vec<_> = (0..EXEMPTIONS)
        .map(|number| {
            let set = SetId::new(u64::from(number) + 1).expect("not reserved");
            tables.insert(set, Address::from_v4(address(number)), 128, 0);
            // A slow machine takes seconds until the first packet is sent.
            let unit = u64::from(slowness()) * MILLISECOND;
            let starts = now + random.below(3000) as u64 * unit;
            let length = (1500 + random.below(2000)) as u64 * unit;
            Exemption::new(set, starts, starts + length)
        })
        .collect();
    let exempt = policy().with_exemptions(&exemptions).expect("at most 16");
    tables.policies.insert(CUSTOMER, exempt);
    tables
}

/// How much earlier than it should an element may end, where no change has taken longer: for longer ones twice
/// as much is allowed as the last time.
fn early(longest: Duration) -> u64 {
    let early = ROUNDED + ALLOWED.max(longest.saturating_mul(2));
    u64::try_from(early.as_nanos()).expect("seconds")
}

#[test]
fn exemptions_begin_and_end_alike() {
    in_namespace(|namespace| {
        let mut random = Random(2502);
        let mut deciders = Deciders::new(namespace, HostMode::Policy, closed());
        // Only now: where programs load slowly, all would be over by then.
        let filling = Instant::now();
        deciders.fill(tables(&mut random));
        let mut longest = filling.elapsed();
        let mut applied = boot_time();
        deciders.own(Some(CUSTOMER));
        let wanted = deciders.nftables.installed().clone();
        let (mut packets, mut allowed, mut allowed_by_nft) = (0u32, 0u32, 0u32);
        let start = Instant::now();
        while start.elapsed() < paced(LENGTH) {
            if deciders
                .nftables
                .due()
                .is_some_and(|due| due <= Instant::now())
            {
                // What begins while the tables are written has to wait for the next time.
                applied = boot_time();
                let applying = Instant::now();
                let done = deciders.nftables.apply(&wanted);
                done.expect("apply what is due");
                longest = longest.max(applying.elapsed());
            }
            let to = address(random.below(EXEMPTIONS.into()) as u8);
            let frame = frame_v4(&Ipv4::to(to), &Tcp::syn(25).bytes());
            let open = |at: u64| {
                let subject = Subject::Guarded {
                    destination: Address::from_v4(to),
                    port: 25u16.to_be_bytes(),
                    route: Route::Direct,
                    family: Family::V4,
                    form: Headers::Plain,
                };
                let mut tables = deciders.tables.clone();
                tables.now = at;
                Some(decide(&tables, HostMode::Policy, &subject).verdict)
            };
            let before = boot_time();
            let action = deciders.kernel.run(&frame, Meta::default());
            let passed = deciders.bridge.pass(&frame, true);
            let after = boot_time();
            assert!(
                [before, after]
                    .iter()
                    .any(|at| passes(open(*at)) == (action == Action::Passed)),
                "{to:?} between {before} and {after}: {action:?}"
            );
            let at_the_time = [before, after].map(|at| passes(open(at)));
            assert!(
                !passed || at_the_time.contains(&true),
                "{to:?} between {before} and {after} passes nftables"
            );
            let throughout = [applied, before, after + early(longest)].map(|at| passes(open(at)));
            assert!(
                passed || throughout.contains(&false),
                "{to:?} between {before} and {after} does not pass nftables"
            );
            packets += 1;
            allowed += u32::from(at_the_time.contains(&true));
            allowed_by_nft += u32::from(passed);
        }
        assert!(
            allowed > packets / 10 && allowed < packets / 2,
            "{allowed} of {packets}"
        );
        assert!(
            allowed_by_nft > packets / 20,
            "{allowed_by_nft} of {packets}"
        );
    });
}
