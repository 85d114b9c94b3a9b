//! Names that the kernel object and the agent must agree on. The object test compares this list
//! with what the built object holds. The kernel keeps at most 15 bytes of a name.

/// Version of everything in [`crate::abi`] and [`crate::counters`]; names the folder of the pins.
pub const ABI_VERSION: u32 = 4;

/// The program on the host side of a guest's interface, in the direction that leaves the guest.
pub const PROGRAM_TC_INGRESS: &str = "tc_ingress";
/// The program on the same interface, in the direction that reaches the guest; only where
/// connections are redirected, or packets that come back are judged.
pub const PROGRAM_TC_EGRESS: &str = "tc_egress";
/// The program on what the sockets of a control group send.
pub const PROGRAM_CGROUP_EGRESS: &str = "cgroup_egress";
/// The program on IPv4 connects of a control group's tasks.
pub const PROGRAM_CGROUP_CONNECT4: &str = "cgroup_connect4";
/// The program on IPv6 connects of a control group's tasks.
pub const PROGRAM_CGROUP_CONNECT6: &str = "cgroup_connect6";
/// The program that tells a control group's tasks the other end of an IPv4 connection.
pub const PROGRAM_CGROUP_PEER4: &str = "cgroup_peer4";
/// The program that tells a control group's tasks the other end of an IPv6 connection.
pub const PROGRAM_CGROUP_PEER6: &str = "cgroup_peer6";
/// The program on sockets that a control group's tasks make.
pub const PROGRAM_CGROUP_SOCKET: &str = "cgroup_socket";

/// All programs.
pub const PROGRAMS: [&str; 8] = [
    PROGRAM_CGROUP_CONNECT4,
    PROGRAM_CGROUP_CONNECT6,
    PROGRAM_CGROUP_EGRESS,
    PROGRAM_CGROUP_PEER4,
    PROGRAM_CGROUP_PEER6,
    PROGRAM_CGROUP_SOCKET,
    PROGRAM_TC_EGRESS,
    PROGRAM_TC_INGRESS,
];

/// Interface index ([`u32`]) to [`crate::abi::InterfaceOwner`].
pub const MAP_INTERFACES: &str = "INTERFACES";
/// Id of a control group ([`u64`], the inode number of its directory) to owner
/// ([`crate::abi::CustomerId`]).
pub const MAP_CGROUPS: &str = "CGROUPS";
/// TCP socket to the id of the control group whose task made it ([`u64`]).
pub const MAP_SOCKETS: &str = "SOCKETS";
/// TCP socket that was redirected to its [`crate::redirect::SocketPeer`].
pub const MAP_SOCKET_PEERS: &str = "SOCKET_PEERS";
/// [`crate::redirect::Flow`] to [`crate::redirect::Redirected`].
pub const MAP_REDIRECTS: &str = "REDIRECTS";
/// Interface index ([`u32`]) to [`crate::redirect::Budget`].
pub const MAP_BUDGETS: &str = "BUDGETS";
/// One [`crate::redirect::Hindrances`] per CPU.
pub const MAP_HINDRANCES: &str = "HINDRANCES";
/// The sockets on which the running agent tells the notice, by [`crate::address::Family`]; they
/// leave it when they are closed.
pub const MAP_RESPONDERS: &str = "RESPONDERS";
/// One [`crate::bypass::Bypass`].
pub const MAP_BYPASS: &str = "BYPASS";
/// [`crate::abi::CustomerId`] to [`crate::abi::CustomerPolicy`].
pub const MAP_CUSTOMERS: &str = "CUSTOMERS";
/// [`crate::abi::PrefixKey`] to [`crate::abi::PrefixValue`].
pub const MAP_PREFIXES: &str = "PREFIXES";
/// One [`crate::counters::HostCounters`] per CPU.
pub const MAP_HOST_COUNTERS: &str = "HOST_COUNTERS";
/// [`crate::abi::CustomerId`] to one [`crate::counters::CustomerCounters`] per CPU.
pub const MAP_CUSTOMER_COUNTERS: &str = "CUSTOMER_COUNT";
/// [`crate::abi::CustomerId`] to [`crate::counters::Sketch`].
pub const MAP_SKETCHES: &str = "SKETCHES";
/// One [`crate::returns::ReturnCounters`] per CPU.
pub const MAP_RETURN_COUNTERS: &str = "RETURN_COUNTERS";
/// [`crate::abi::CustomerId`] to one [`crate::returns::ReturnCounters`] per CPU.
pub const MAP_RETURN_CUSTOMERS: &str = "RETURN_CUSTOMER";
/// Ring buffer of [`crate::counters::Event`].
pub const MAP_EVENTS: &str = "EVENTS";

/// All maps of the ordinary object.
pub const MAPS: [&str; 17] = [
    MAP_INTERFACES,
    MAP_CGROUPS,
    MAP_SOCKETS,
    MAP_SOCKET_PEERS,
    MAP_REDIRECTS,
    MAP_BUDGETS,
    MAP_HINDRANCES,
    MAP_RESPONDERS,
    MAP_BYPASS,
    MAP_CUSTOMERS,
    MAP_PREFIXES,
    MAP_HOST_COUNTERS,
    MAP_CUSTOMER_COUNTERS,
    MAP_SKETCHES,
    MAP_RETURN_COUNTERS,
    MAP_RETURN_CUSTOMERS,
    MAP_EVENTS,
];

/// Maps that go on in the next version of the agent, each with the first [`ABI_VERSION`] in which
/// every byte of it meant what it means now. Whoever changes that raises both.
pub const INHERITED: [(&str, u32); 8] = [
    (MAP_HOST_COUNTERS, 1),
    (MAP_CUSTOMER_COUNTERS, 1),
    (MAP_SKETCHES, 1),
    (MAP_RETURN_COUNTERS, 3),
    (MAP_RETURN_CUSTOMERS, 3),
    (MAP_HINDRANCES, 3),
    (MAP_INTERFACES, 2),
    (MAP_BYPASS, 4),
];

/// Constant of the object: guarded ports in network byte order, `[u16; 8]`.
pub const GLOBAL_GUARDED_PORTS: &str = "GUARDED_PORTS";
/// Constant of the object: how many of the guarded ports count, `u8`.
pub const GLOBAL_GUARDED_COUNT: &str = "GUARDED_COUNT";
/// Constant of the object: ports of targets in network byte order,
/// `[u16; `[`crate::redirect::MAX_TARGET_PORTS`]`]`; 0 for none.
pub const GLOBAL_TARGET_PORTS: &str = "TARGET_PORTS";
/// Constant of the object: [`crate::abi::SkbLayout`].
pub const GLOBAL_SKB_LAYOUT: &str = "SKB_LAYOUT";
/// Constant of the object: 1 where a connect can be refused with an error of our choice (kernel
/// 5.18), `u8`.
pub const GLOBAL_HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
/// Constant of the object: the bit of the packet's mark by which the guard knows packets that were
/// judged; 0 without a guard. `u32`.
pub const GLOBAL_GUARD_MARK: &str = "GUARD_MARK";
/// Constant of the object: 1 where this host only observes, `u8`.
pub const GLOBAL_HOST_OBSERVES: &str = "HOST_OBSERVES";
/// Constant of the object: 1 where packets that come back to guests from guarded ports are judged,
/// `u8`.
pub const GLOBAL_BLOCK_RETURN: &str = "BLOCK_RETURN";

/// What the number in [`CAST`] is known by.
const MARK: u32 = 0x6761_7465;

/// Four instructions that give 0, "a checksum may be still to come":
/// `r0 = MARK; r0 &= 0; r0 &= 0; r0 ^= 0`. The agent puts others in their place, which look whether
/// one is, where the kernel has a function that shows programs its own structure (6.2).
pub const CAST: [u64; 4] = [(MARK as u64) << 32 | 0xb7, 0x57, 0x57, 0xa7];
/// The first of [`CAST`] as a number for the assembler.
pub const CAST_MARK: i32 = MARK as i32;
