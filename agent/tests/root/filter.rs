//! The classic tc filter, with real packets.

use std::net::UdpSocket;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gate25::kernel::filter::{Filter, FilterError, Filters, HANDLE, Placement, Removed};
use gate25::kernel::links::{LinkEvent, Links, Subscription};

use crate::netns::{Elsewhere, deadline, index, output, run, within};

/// `TC_ACT_SHOT`: drop.
const SHOT: i32 = 2;
/// `TC_ACT_UNSPEC`: go on with the next filter, then pass.
const UNSPEC: i32 = -1;

#[test]
fn attach_dropping_program_stops_packets_and_detach_lets_them_pass() {
    within(|| async {
        let guest = Guest::new();
        assert!(guest.reaches_host());
        let mut filters = Filters::open().unwrap();
        filters.attach(guest.port, program(SHOT).as_fd()).unwrap();
        assert!(!guest.reaches_host());
        filters.attach(guest.port, program(UNSPEC).as_fd()).unwrap();
        assert!(guest.reaches_host());
        filters.attach(guest.port, program(SHOT).as_fd()).unwrap();
        assert!(!guest.reaches_host());
        assert_eq!(filters.detach(guest.port).unwrap(), Removed::Filter);
        assert!(guest.reaches_host());
        assert_eq!(filters.detach(guest.port).unwrap(), Removed::Nothing);
    });
}

#[test]
fn attach_places_what_tc_shows_as_first_filter_of_an_ingress_qdisc() {
    within(|| async {
        let port = port();
        let mut filters = Filters::open().unwrap();
        assert_eq!(filters.placement(port).unwrap(), Placement::Absent);
        filters.attach(port, program(UNSPEC).as_fd()).unwrap();
        let (qdiscs, _) = output("tc qdisc show dev port");
        assert!(qdiscs.contains("qdisc ingress ffff:"), "{qdiscs}");
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
        let (shown, _) = output("tc filter show dev port ingress");
        let Placement::First { program } = filters.placement(port).unwrap() else {
            panic!("{shown}")
        };
        for words in [
            "protocol all pref 1 bpf",
            "handle 0x25 gate25 direct-action",
        ] {
            assert!(shown.contains(words), "{shown}");
        }
        assert!(shown.contains(&format!(" id {program} ")), "{shown}");
    });
}

#[test]
fn attach_again_replaces_the_program_and_leaves_one_filter() {
    within(|| async {
        let port = port();
        let mut filters = Filters::open().unwrap();
        let mut programs = Vec::new();
        for verdict in [SHOT, UNSPEC, SHOT] {
            filters.attach(port, program(verdict).as_fd()).unwrap();
            let listed = filters.list(port).unwrap();
            assert_eq!(listed.len(), 1, "{listed:?}");
            programs.push(listed[0].program.unwrap());
        }
        programs.dedup();
        assert_eq!(programs.len(), 3);
    });
}

#[test]
fn attach_replacing_under_a_steady_sender_never_lets_a_packet_through() {
    within(|| async {
        let guest = Guest::new();
        let mut filters = Filters::open().unwrap();
        filters.attach(guest.port, program(SHOT).as_fd()).unwrap();
        let before = received(&guest.listener);
        assert_eq!(before, 0);
        let sender = guest.flood();
        let mut replaced = 0;
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            filters.attach(guest.port, program(SHOT).as_fd()).unwrap();
            replaced += 1;
        }
        let sent = sender.stop();
        assert_eq!(
            received(&guest.listener),
            0,
            "of {sent} sent over {replaced} replacements"
        );
        assert!(
            sent > 1000 && replaced > 20,
            "{sent} sent, {replaced} replacements"
        );
        filters.detach(guest.port).unwrap();
        assert!(
            guest.reaches_host(),
            "the sender's way must have been open otherwise"
        );
    });
}

#[test]
fn attach_where_a_clsact_is_uses_it() {
    within(|| async {
        let port = port();
        run("tc qdisc add dev port clsact");
        let mut filters = Filters::open().unwrap();
        filters.attach(port, program(UNSPEC).as_fd()).unwrap();
        assert!(matches!(
            filters.placement(port).unwrap(),
            Placement::First { .. }
        ));
        let (qdiscs, _) = output("tc qdisc show dev port");
        assert!(qdiscs.contains("clsact") && !qdiscs.contains("ingress ffff: parent ffff:fff1 "));
    });
}

#[test]
fn attach_where_a_stranger_holds_the_place_leaves_it_alone() {
    within(|| async {
        let port = port();
        run("tc qdisc add dev port ingress");
        let stranger = program(UNSPEC);
        add_stranger(port, &stranger, HANDLE, "cil_from_container");
        let mut filters = Filters::open().unwrap();
        let error = filters.attach(port, program(SHOT).as_fd()).unwrap_err();
        let FilterError::Occupied { filter, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(filter.name.as_deref(), Some("cil_from_container"));
        assert_eq!(filters.detach(port).unwrap(), Removed::Nothing);
        assert_eq!(filters.list(port).unwrap().len(), 1);
    });
}

#[test]
fn placement_behind_a_stranger_of_the_same_priority_is_told() {
    within(|| async {
        let port = port();
        let mut filters = Filters::open().unwrap();
        filters.attach(port, program(UNSPEC).as_fd()).unwrap();
        add_stranger(port, &program(UNSPEC), 0x26, "stranger");
        let Placement::Behind { first } = filters.placement(port).unwrap() else {
            panic!("{:?}", filters.list(port).unwrap())
        };
        assert_eq!(first.name.as_deref(), Some("stranger"));
    });
}

#[test]
fn attach_beside_a_stranger_of_the_same_priority_comes_first() {
    within(|| async {
        let port = port();
        run("tc qdisc add dev port ingress");
        add_stranger(port, &program(UNSPEC), 0x26, "stranger");
        let mut filters = Filters::open().unwrap();
        filters.attach(port, program(UNSPEC).as_fd()).unwrap();
        assert!(matches!(
            filters.placement(port).unwrap(),
            Placement::First { .. }
        ));
        let names: Vec<_> = filters
            .list(port)
            .unwrap()
            .iter()
            .map(Filter::is_ours)
            .collect();
        assert_eq!(names, [true, false]);
    });
}

#[test]
fn qdisc_deleted_and_added_by_others_is_reported_and_attach_repairs() {
    within(|| async {
        let guest = Guest::new();
        let mut filters = Filters::open().unwrap();
        filters.attach(guest.port, program(SHOT).as_fd()).unwrap();
        let mut links = Links::open(Subscription::LinksAndFilters).unwrap();
        // As Proxmox and libvirt do for a bandwidth limit; the first alone is harmless.
        let (said, succeeded) = output("tc qdisc add dev port handle ffff: ingress");
        assert!(!succeeded, "{said}");
        assert!(!guest.reaches_host());
        run("tc qdisc del dev port ingress");
        run("tc qdisc add dev port handle ffff: ingress");
        let event = tokio::time::timeout(deadline(), links.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event, LinkEvent::QdiscGone { index: guest.port });
        assert_eq!(filters.placement(guest.port).unwrap(), Placement::Absent);
        filters.attach(guest.port, program(SHOT).as_fd()).unwrap();
        assert!(!guest.reaches_host());
    });
}

#[test]
fn filter_deleted_by_others_is_reported() {
    within(|| async {
        let port = port();
        let mut filters = Filters::open().unwrap();
        let mut links = Links::open(Subscription::LinksAndFilters).unwrap();
        for command in [
            "tc filter del dev port ingress",
            "tc filter del dev port ingress pref 1",
            "tc filter del dev port ingress pref 1 handle 0x25 bpf",
        ] {
            filters.attach(port, program(UNSPEC).as_fd()).unwrap();
            run(command);
            let event = tokio::time::timeout(deadline(), links.next())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(event, LinkEvent::QdiscGone { index: port }, "{command}");
        }
    });
}

#[test]
fn attach_to_an_interface_that_vanished_says_so() {
    within(|| async {
        let port = port();
        run("ip link del port");
        let mut filters = Filters::open().unwrap();
        let error = filters.attach(port, program(SHOT).as_fd()).unwrap_err();
        assert!(error.is_gone(), "{error:?}");
        assert_eq!(filters.placement(port).unwrap(), Placement::Absent);
        assert_eq!(filters.detach(port).unwrap(), Removed::Nothing);
    });
}

#[test]
fn attach_something_that_is_no_program_carries_the_kernels_reason() {
    within(|| async {
        let file = tempfile::tempfile().unwrap();
        let error = Filters::open()
            .unwrap()
            .attach(port(), file.as_fd())
            .unwrap_err();
        assert!(matches!(error, FilterError::Attach { .. }), "{error}");
        assert!(!error.is_gone());
    });
}

/// A guest in a namespace of its own, behind a veth pair whose host end is `port`.
struct Guest {
    namespace: Elsewhere,
    port: u32,
    listener: UdpSocket,
}

impl Guest {
    fn new() -> Self {
        let namespace = Elsewhere::new();
        let pid = namespace.pid();
        run("ip link add port type veth peer name eth0");
        run(&format!("ip link set eth0 netns {pid}"));
        run("ip addr add 192.0.2.1/24 dev port");
        run("ip link set port up");
        for command in [
            "ip addr add 192.0.2.2/24 dev eth0",
            "ip link set eth0 up",
            // No ARP: it would be dropped, too, and hide what happens to packets.
            &format!("ip neigh add 192.0.2.1 lladdr {} dev eth0", address()),
        ] {
            run(&format!("nsenter --net=/proc/{pid}/ns/net {command}"));
        }
        let listener = UdpSocket::bind("192.0.2.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            namespace,
            port: index("port"),
            listener,
        }
    }

    /// Sends one packet from the guest: a veth hands it over before `send` returns, so whether it
    /// arrived is known at once; only the kernel's own deferral makes a short wait necessary.
    fn reaches_host(&self) -> bool {
        received(&self.listener);
        let to = self.listener.local_addr().unwrap();
        let sent = self.inside(move || {
            UdpSocket::bind("0.0.0.0:0")
                .unwrap()
                .send_to(b"x", to)
                .unwrap();
        });
        sent.join().unwrap();
        let deadline = Instant::now() + Duration::from_millis(200);
        while Instant::now() < deadline {
            if received(&self.listener) > 0 {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// Starts sending without pause from inside the guest.
    fn flood(&self) -> Flood {
        let to = self.listener.local_addr().unwrap();
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = self.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            while !stopped.load(Ordering::Relaxed) {
                // A full queue refuses a packet now and then.
                if socket.send_to(b"x", to).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let deadline = Instant::now() + deadline();
        while sent.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline, "the sender did not start");
            std::thread::yield_now();
        }
        Flood { stop, sent, thread }
    }

    fn inside(&self, what: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
        let path = format!("/proc/{}/ns/net", self.namespace.pid());
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            what();
        })
    }
}

struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// Packets that arrived since the last call.
fn received(listener: &UdpSocket) -> usize {
    std::iter::from_fn(|| listener.recv_from(&mut [0; 8]).ok()).count()
}

/// A tap without anybody behind it.
fn port() -> u32 {
    run("ip tuntap add port mode tap");
    index("port")
}

/// Link-layer address of `port`.
fn address() -> String {
    let (shown, _) = output("ip -o link show dev port");
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    words.next().unwrap().to_owned()
}

/// Adds a filter of priority 1 under another name. Not by `tc`, which lets nobody choose the name.
fn add_stranger(port: u32, program: &OwnedFd, handle: u32, name: &str) {
    let request = stranger_request(port, program, handle, name);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&netlink_sys::SocketAddr::new(0, 0)).unwrap();
    socket.send(&request, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let code = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(code, 0, "{}", std::io::Error::from_raw_os_error(-code));
}

/// `RTM_NEWTFILTER` written out by hand, apart from the code under test.
fn stranger_request(port: u32, program: &OwnedFd, handle: u32, name: &str) -> Vec<u8> {
    use std::os::fd::AsRawFd as _;
    let attribute = |kind: u16, value: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let options = [
        attribute(6, &program.as_raw_fd().to_ne_bytes()),
        attribute(7, format!("{name}\0").as_bytes()),
        attribute(8, &1u32.to_ne_bytes()),
    ]
    .concat();
    let mut payload = Vec::new();
    let info = 1 << 16 | u32::from(3u16.to_be());
    for word in [0, port, handle, 0xffff_fff2, info] {
        payload.extend(word.to_ne_bytes());
    }
    payload.extend(attribute(1, b"bpf\0"));
    payload.extend(attribute(2, &options));
    let mut message = Vec::new();
    message.extend((payload.len() as u32 + 16).to_ne_bytes());
    message.extend(44u16.to_ne_bytes());
    // NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE
    message.extend(0x605u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    message
}

/// Loads `r0 = verdict; exit` as a `sched_cls` program.
fn program(verdict: i32) -> OwnedFd {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 16],
    }
    let instructions = [0xb7u64 | u64::from(verdict as u32) << 32, 0x95];
    let load = Load {
        kind: 3,
        count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        rest: [0; 16],
    };
    let deadline = Instant::now() + deadline();
    let made = loop {
        // SAFETY: the pointers in `load` are to arrays of those lengths that outlive the call.
        let made = unsafe { libc::syscall(libc::SYS_bpf, 5, &raw const load, size_of::<Load>()) };
        if made >= 0 {
            break made;
        }
        let error = std::io::Error::last_os_error();
        // The kernel asks to try again when something interrupts it.
        let again = error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline;
        assert!(again, "{error}");
    };
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(made as i32) }
}
