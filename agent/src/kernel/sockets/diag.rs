//! Messages of sock_diag about TCP sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use gate25_common::address::Address;

use super::SocketsError;
use crate::kernel::netlink::{NetlinkError, Request, Requests, attributes, number};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bytes of `inet_diag_req_v2` before the socket's identity.
const REQUEST: usize = 8;
/// Bytes of `inet_diag_sockid`: ports, addresses, interface, cookie.
const SOCKID: usize = 48;
/// Where the identity is in an `inet_diag_msg`.
const IDENTITY: usize = 4;
/// Bytes of `inet_diag_msg`.
const MESSAGE: usize = 72;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// `INET_DIAG_NOCOOKIE`, twice: any socket with these addresses and ports.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// `INET_DIAG_BC_*`.
const BC_JMP: u8 = 1;
const BC_D_GE: u8 = 4;
const BC_D_LE: u8 = 5;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
/// The states of a socket that can still send, if only what is queued.
const SENDING: [u8; 7] = [
    ESTABLISHED,
    SYN_SENT,
    FIN_WAIT1,
    FIN_WAIT2,
    CLOSE_WAIT,
    LAST_ACK,
    CLOSING,
];

/// What the kernel calls a socket: its `inet_diag_sockid` and its family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    family: u8,
    sockid: [u8; SOCKID],
}

impl Identity {
    /// The interface that the socket is bound to, or 0.
    pub(super) fn interface(&self) -> u32 {
        let [.., a, b, c, d, _, _, _, _, _, _, _, _] = self.sockid;
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// A socket in a listing; addresses with IPv4 as IPv4, however the socket was made.
#[derive(Debug)]
pub(super) struct Found {
    state: u8,
    pub(super) cgroup: Option<u64>,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) identity: Identity,
}

impl Found {
    /// Whether it is what the kernel keeps of a closed socket, which is listed in the state of the
    /// socket it stands for.
    pub(super) fn is_remnant(&self) -> bool {
        self.state == FIN_WAIT2
    }
}

/// A request for the sockets of a family that can send to one of `ports`.
pub(super) fn listing(family: u8, ports: &[u16]) -> Request {
    let states = SENDING.iter().fold(0, |mask, state| mask | 1 << state);
    let fixed = request(family, states, &[0; SOCKID]);
    Request::new(SOCK_DIAG_BY_FAMILY, 0, &fixed)
        .attribute(INET_DIAG_REQ_BYTECODE, &destination_is_one_of(ports))
}

/// A request to destroy a socket.
pub(super) fn destruction(socket: &Identity) -> Request {
    let states = SENDING.iter().fold(0, |mask, state| mask | 1 << state);
    Request::new(
        SOCK_DESTROY,
        0,
        &request(socket.family, states, &socket.sockid),
    )
}

/// The cgroup of the listening socket at `address` of the calling thread's namespace.
pub(in crate::kernel) fn listener_cgroup(address: SocketAddr) -> Result<Option<u64>, SocketsError> {
    let mut sockid = [0; SOCKID];
    sockid[..2].copy_from_slice(&address.port().to_be_bytes());
    let family = match address.ip() {
        IpAddr::V4(v4) => {
            sockid[4..8].copy_from_slice(&v4.octets());
            libc::AF_INET
        }
        IpAddr::V6(v6) => {
            sockid[4..20].copy_from_slice(&v6.octets());
            libc::AF_INET6
        }
    };
    sockid[40..].copy_from_slice(&NO_COOKIE);
    let mut requests = Requests::open_sock_diag().map_err(SocketsError::List)?;
    let fixed = request(family as u8, 1 << LISTEN, &sockid);
    let mut cgroup = None;
    let outcome = requests.get(Request::new(SOCK_DIAG_BY_FAMILY, 0, &fixed), |payload| {
        cgroup = found(payload)?.and_then(|found| found.cgroup);
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(cgroup),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(SocketsError::List(error)),
    }
}

/// The socket that an `inet_diag_msg` describes; none of another family.
pub(super) fn found(payload: &[u8]) -> Result<Option<Found>, NetlinkError> {
    let Some((fixed, rest)) = payload.split_at_checked(MESSAGE) else {
        return Err(NetlinkError::Malformed);
    };
    let mut sockid = [0; SOCKID];
    sockid.copy_from_slice(&fixed[IDENTITY..IDENTITY + SOCKID]);
    let Some(source) = address(fixed[0], &sockid[4..20]) else {
        return Ok(None);
    };
    let Some(destination) = address(fixed[0], &sockid[20..36]) else {
        return Ok(None);
    };
    let mut cgroup = None;
    for attribute in attributes(rest) {
        if let (INET_DIAG_CGROUP_ID, value) = attribute? {
            cgroup = Some(wide(value)?);
        }
    }
    Ok(Some(Found {
        state: fixed[1],
        cgroup,
        source,
        destination,
        port: u16::from_be_bytes([sockid[2], sockid[3]]),
        identity: Identity {
            family: fixed[0],
            sockid,
        },
    }))
}

/// The form of an address that tables and events have.
pub(super) fn canonical(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::from_v4(v4.octets()),
        IpAddr::V6(v6) => Address::from_v6(v6.octets()),
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    match i32::from(family) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = bytes;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

fn request(family: u8, states: u32, sockid: &[u8; SOCKID]) -> [u8; REQUEST + SOCKID] {
    let mut bytes = [0; REQUEST + SOCKID];
    bytes[..2].copy_from_slice(&[family, libc::IPPROTO_TCP as u8]);
    bytes[4..8].copy_from_slice(&states.to_ne_bytes());
    bytes[REQUEST..].copy_from_slice(sockid);
    bytes
}

/// A filter for the kernel to run on every socket: each port in turn, accepting by a jump to the
/// end and refusing by one beyond it.
fn destination_is_one_of(ports: &[u16]) -> Vec<u8> {
    const STEP: u16 = 4;
    let block = 5 * STEP;
    // At most as many as there may be guarded ports, far from overflowing.
    let mut left = ports.len() as u16 * block - STEP;
    let mut code = Vec::with_capacity(usize::from(left));
    for (at, port) in ports.iter().enumerate() {
        // At the last port, what would be the next block is 4 beyond the end.
        code.extend(operation(BC_D_GE, 2 * STEP as u8, block));
        code.extend(operation(0, 0, *port));
        code.extend(operation(BC_D_LE, 2 * STEP as u8, 3 * STEP));
        code.extend(operation(0, 0, *port));
        if at + 1 < ports.len() {
            left -= 4 * STEP;
            code.extend(operation(BC_JMP, STEP as u8, left));
            left -= STEP;
        }
    }
    code
}

/// An `inet_diag_bc_op`: how far to go on if it holds and if it does not.
fn operation(code: u8, yes: u8, no: u16) -> [u8; 4] {
    let [low, high] = no.to_ne_bytes();
    [code, yes, low, high]
}

fn wide(value: &[u8]) -> Result<u64, NetlinkError> {
    let low = number(value, 0)?.to_ne_bytes();
    let high = number(value, 4)?.to_ne_bytes();
    let [a, b, c, d] = low;
    let [e, f, g, h] = high;
    Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn found_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _found = found(&bytes);
        }

        #[test]
        fn filter_holds_for_its_ports_only(
            ports in prop::collection::vec(1u16..40, 1..9),
            destination in 1u16..40,
        ) {
            let code = destination_is_one_of(&ports);
            prop_assert_eq!(run(&code, destination), ports.contains(&destination));
        }
    }

    /// What the kernel's `inet_diag_bc_run` makes of it.
    fn run(code: &[u8], destination: u16) -> bool {
        let (mut at, end) = (0, code.len());
        while at < end {
            let operand = || u16::from_ne_bytes([code[at + 6], code[at + 7]]);
            let holds = match code[at] {
                BC_JMP => false,
                BC_D_GE => destination >= operand(),
                BC_D_LE => destination <= operand(),
                other => panic!("{other}"),
            };
            let no = u16::from_ne_bytes([code[at + 2], code[at + 3]]);
            at += usize::from(if holds { u16::from(code[at + 1]) } else { no });
        }
        at == end
    }
}
