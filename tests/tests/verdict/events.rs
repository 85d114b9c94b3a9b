//! Reports by ring buffer.

use std::net::IpAddr;

use gate25_common::abi::{Blocked, EVENTS_BYTES, Mode, Quarantine};
use gate25_common::address::Address;
use gate25_common::counters::Event;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::testing::frames::{
    ACK, Ipv4, Ipv6, SERVER_V4, SERVER_V6, Tcp, frame_v4, frame_v6,
};

use super::kernel::{Action, Kernel, LOOPBACK, Meta, in_namespace};
use super::table::{CUSTOMER, RELAY_V4, tables};

fn rejecting() -> Kernel {
    let mut kernel = Kernel::load(HostMode::Policy);
    kernel.fill(
        LOOPBACK,
        &tables(Mode::Enforce, Blocked::Drop, Quarantine::No),
    );
    kernel
}

fn read(kernel: &mut Kernel) -> Vec<Event> {
    let mut ring = kernel.events();
    let mut events = Vec::new();
    while let Some(item) = ring.next() {
        events.push(Event::from_bytes(&item).expect("an event"));
    }
    events
}

fn attempts(kernel: &Kernel, count: usize) {
    let frame = frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(25).bytes());
    for _ in 0..count {
        assert_eq!(kernel.run(&frame, Meta::default()), Action::Dropped);
    }
}

#[test]
fn event_tells_who_where_what_and_why() {
    in_namespace(|_| {
        let mut kernel = rejecting();
        attempts(&kernel, 1);
        let frame = frame_v6(&Ipv6::to(SERVER_V6), &Tcp::syn(25).bytes());
        kernel.run(&frame, Meta::default());
        let events = read(&mut kernel);
        let destinations: Vec<IpAddr> = events.iter().map(|e| e.destination().into()).collect();
        assert_eq!(
            destinations,
            [IpAddr::from(SERVER_V4), IpAddr::from(SERVER_V6)]
        );
        for event in events {
            assert_eq!(event.customer(), CUSTOMER);
            assert_eq!((event.interface(), event.cgroup()), (LOOPBACK, 0));
            assert_eq!(event.port(), 25);
            assert_eq!(event.verdict(), Some(Verdict::Drop));
            assert_eq!(event.reason(), Some(Reason::Profile));
        }
    });
}

#[test]
fn only_attempts_that_no_allowlist_covers_are_reported() {
    in_namespace(|_| {
        let mut kernel = rejecting();
        kernel.run(
            &frame_v4(&Ipv4::to(RELAY_V4), &Tcp::syn(25).bytes()),
            Meta::default(),
        );
        let data = Tcp::with_flags(25, ACK).bytes();
        kernel.run(&frame_v4(&Ipv4::to(SERVER_V4), &data), Meta::default());
        assert_eq!(read(&mut kernel), []);
    });
}

/// All of a CPU's first 16 of a customer, then every 64th: those numbered 64, 128 and so on,
/// counted from 0.
#[test]
fn events_are_sampled_after_the_first_sixteen() {
    in_namespace(|_| {
        let mut kernel = rejecting();
        attempts(&kernel, 16);
        assert_eq!(read(&mut kernel).len(), 16);
        attempts(&kernel, 64 - 16);
        assert_eq!(read(&mut kernel).len(), 0);
        attempts(&kernel, 1);
        assert_eq!(read(&mut kernel).len(), 1);
        attempts(&kernel, 640);
        assert_eq!(read(&mut kernel).len(), 10);
    });
}

#[test]
fn events_that_find_no_room_are_counted_and_change_no_verdict() {
    in_namespace(|_| {
        let mut kernel = rejecting();
        // Each takes its 48 bytes and a header of 8 (kernel/bpf/ringbuf.c); a buffer holds one
        // byte less than its size.
        let room = (EVENTS_BYTES - 1) / (size_of::<Event>() + 8);
        let rounds = room / 16 + 2;
        for _ in 0..rounds {
            attempts(&kernel, 16);
            // Its next 16 are reported again.
            kernel.track(CUSTOMER);
        }
        let lost = kernel.host_counters().events_lost();
        let read = read(&mut kernel).len();
        assert_eq!(read, room);
        assert_eq!(read as u64 + lost, 16 * rounds as u64);
        // With room again, events come again.
        attempts(&kernel, 1);
        let events = super::events::read(&mut kernel);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].destination(), Address::from_v4(SERVER_V4));
        assert_eq!(kernel.host_counters().events_lost(), lost);
    });
}
