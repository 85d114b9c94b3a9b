//! A host that is bypassed: nothing is refused until a moment that the kernel keeps by itself.

use gate25::dataplane::Returns;
use gate25_common::abi::{Blocked, Mode, Quarantine};
use gate25_common::address::Family;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::packet::Malformed;
use gate25_common::returns::Fate;
use gate25_common::testing::frames::{ACK, IPV4, Ipv4, SERVER_V4, SYN, Tcp, ethernet, frame_v4};
use gate25_tests::poll;

use super::kernel::{Action, Kernel, LOOPBACK, Meta, boot_time, in_namespace};
use super::table::{RELAY_V4, tables};

const OUTSIDE: [u8; 4] = [203, 0, 113, 9];
const SOON: u64 = 200_000_000;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

#[test]
fn bypass_lets_pass_what_is_refused_until_its_moment_and_no_longer() {
    in_namespace(|_| {
        for blocked in [Blocked::Reject, Blocked::Drop] {
            let mut kernel = Kernel::load(HostMode::Policy);
            kernel.fill(LOOPBACK, &tables(Mode::Enforce, blocked, Quarantine::No));
            let frame = syn(OUTSIDE);
            assert_ne!(kernel.run(&frame, Meta::default()), Action::Passed);
            let until = boot_time() + SOON;
            kernel.bypass(until);
            let action = kernel.run(&frame, Meta::default());
            assert!(
                action == Action::Passed || boot_time() >= until,
                "{action:?}"
            );
            let ended = poll("the bypass to end", LIMIT, || {
                let before = boot_time();
                let action = kernel.run(&frame, Meta::default());
                let after = boot_time();
                assert!(
                    before < until || action != Action::Passed,
                    "late: {before} {until}"
                );
                assert!(
                    after >= until || action == Action::Passed,
                    "early: {after} {until}"
                );
                Ok((after >= until).then_some(()))
            });
            ended.expect("the bypass ends");
            kernel.bypass(u64::MAX);
            assert_eq!(kernel.run(&frame, Meta::default()), Action::Passed);
            kernel.bypass(0);
            assert_ne!(kernel.run(&frame, Meta::default()), Action::Passed);
        }
    });
}

#[test]
fn bypass_counts_what_it_lets_pass_with_the_reason_for_which_it_would_be_refused() {
    in_namespace(|_| {
        let mut kernel = Kernel::load_bypassed();
        kernel.fill(
            LOOPBACK,
            &tables(Mode::Enforce, Blocked::Reject, Quarantine::No),
        );
        for frame in [syn(OUTSIDE), syn(RELAY_V4), short_fragment()] {
            assert_eq!(kernel.run(&frame, Meta::default()), Action::Passed);
        }
        let counters = kernel.host_counters();
        let attempts = |verdict, reason| counters.connections(verdict, reason, Family::V4);
        assert_eq!(attempts(Verdict::Observe, Reason::Profile), 1);
        assert_eq!(attempts(Verdict::Allow, Reason::Allowlist), 1);
        assert_eq!(counters.malformed(Malformed::ShortFragment), 1);
        assert_eq!(counters.packets(Verdict::Observe, Family::V4), 2);
        for verdict in [Verdict::Reject, Verdict::Drop] {
            assert_eq!(counters.packets(verdict, Family::V4), 0);
        }
    });
}

#[test]
fn bypass_lets_what_comes_back_reach_the_guest() {
    in_namespace(|_| {
        let mut kernel = Kernel::load_with(HostMode::Policy, Returns::Judged);
        kernel.fill(
            LOOPBACK,
            &tables(Mode::Enforce, Blocked::Reject, Quarantine::No),
        );
        let answer = frame_v4(&Ipv4::back(SERVER_V4), &Tcp::back(25, SYN | ACK).bytes());
        let fate = |kernel: &Kernel, fate| kernel.returns().packets(fate, Family::V4);
        assert_eq!(kernel.reply(&answer, Meta::default()).0, 2);
        kernel.bypass(u64::MAX);
        assert_eq!(kernel.reply(&answer, Meta::default()).0, -1);
        assert_eq!(
            (fate(&kernel, Fate::Drop), fate(&kernel, Fate::Observe)),
            (1, 1)
        );
    });
}

fn syn(to: [u8; 4]) -> Vec<u8> {
    frame_v4(&Ipv4::to(to), &Tcp::with_flags(25, SYN).bytes())
}

/// A first fragment that holds less than a TCP header.
fn short_fragment() -> Vec<u8> {
    let mut ip = Ipv4::to(OUTSIDE);
    ip.fragment = Ipv4::MORE;
    let tcp = Tcp::with_flags(25, SYN).bytes();
    let mut frame = ethernet(&[], IPV4, &ip.with(&tcp[..8]));
    frame.resize(60, 0);
    frame
}
