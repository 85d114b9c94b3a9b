//! Requests over rtnetlink, sock_diag and nfnetlink, one at a time and blocking.
//!
//! The kernel works on a request inside `send`, holding its own lock, so waiting for the answer
//! asynchronously would gain nothing. Attributes are read raw: the typed decoders refuse a whole
//! message over one interface name that is not UTF-8, and hide the flag that marks a torn dump.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

/// Room for one datagram; the kernel never sends more than 32 KiB of dump at a time, and one
/// notification is far smaller.
pub(super) const DATAGRAM: usize = 64 * 1024;

/// Listings torn by changes in a row after which one gives up.
pub(super) const LIST_ATTEMPTS: u32 = 20;

/// Bytes of the `nlmsghdr` before every message.
const HEADER: usize = 16;
/// `NLMSG_ERROR`: an acknowledgement when its code is 0.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// `NLM_F_CAPPED`: the error does not quote the request back.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes with the reason follow.
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the reason as text.
const ATTR_MSG: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`.
const NLA_FLAGS: u16 = 0xc000;

/// Why a request over netlink did not succeed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No socket, or not with the options asked for.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The request could not be sent.
    #[error("cannot send a netlink request")]
    Send(#[source] io::Error),
    /// The answer could not be received.
    #[error("cannot receive a netlink answer")]
    Receive(#[source] io::Error),
    /// The kernel's answer is not what the protocol says.
    #[error("malformed netlink message")]
    Malformed,
    /// The kernel refused.
    #[error("the kernel refused the request{}", reason(.message))]
    Refused {
        /// The errno.
        #[source]
        source: io::Error,
        /// The kernel's own words, where it has any.
        message: Option<String>,
    },
    /// The tables changed while they were listed.
    #[error("the listing was interrupted by a change")]
    Interrupted,
}

impl NetlinkError {
    /// The errno with which the kernel refused, if it was the kernel that did.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_)
            | Self::Send(_)
            | Self::Receive(_)
            | Self::Malformed
            | Self::Interrupted => None,
        }
    }
}

fn reason(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

/// A request being written.
#[derive(Debug, Clone)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of type `kind` (`RTM_*`) with the fixed structure that begins its payload.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Appends one attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Every value written here is a number or a short name: the length cannot overflow.
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that holds the attributes `fill` appends.
    pub(super) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A socket for requests.
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens an rtnetlink socket in the network namespace of the calling thread, where it stays.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Self::of(NETLINK_ROUTE)
    }

    /// As [`Requests::open`], for what is known about sockets.
    pub(super) fn open_sock_diag() -> Result<Self, NetlinkError> {
        Self::of(NETLINK_SOCK_DIAG)
    }

    /// As [`Requests::open`], for nftables' chains.
    pub(super) fn open_netfilter() -> Result<Self, NetlinkError> {
        Self::of(NETLINK_NETFILTER)
    }

    fn of(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket.set_ext_ack(true).map_err(NetlinkError::Open)?;
        socket.set_cap_ack(true).map_err(NetlinkError::Open)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request that changes something and waits for the kernel's verdict.
    pub(super) fn change(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.get(request, |_| Ok(()))
    }

    /// Sends a request that asks for one thing and hands the payload of the answer to `each`.
    pub(super) fn get(
        &mut self,
        mut request: Request,
        each: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        // The acknowledgement comes after the answer, and tells that there is no more.
        let flags = u16::from_ne_bytes([request.bytes[6], request.bytes[7]]) | NLM_F_ACK;
        request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.exchange(request, each)
    }

    /// Sends a request that lists something and hands the payload of every entry to `each`.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`] if the list changed meanwhile: what `each` saw is torn.
    pub(super) fn list(
        &mut self,
        mut request: Request,
        each: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let flags = u16::from_ne_bytes([request.bytes[6], request.bytes[7]]) | NLM_F_DUMP;
        request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.exchange(request, each)
    }

    /// What `read` makes of the entries of a listing, as at one moment: where a change tears it, it is
    /// asked for again, [`LIST_ATTEMPTS`] times in all.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`] if every attempt was torn.
    pub(super) fn list_whole<T>(
        &mut self,
        request: &Request,
        read: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut entries = Vec::new();
            let listed = self.list(request.clone(), |payload| {
                entries.extend(read(payload)?);
                Ok(())
            });
            match listed {
                Ok(()) => return Ok(entries),
                Err(NetlinkError::Interrupted) if attempt < LIST_ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn exchange(
        &mut self,
        request: Request,
        mut each: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket
            .send(&request.finish(self.sequence), 0)
            .map_err(NetlinkError::Send)?;
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let mut outcome = Ok(());
        loop {
            datagram.clear();
            self.socket
                .recv(&mut datagram, 0)
                .map_err(NetlinkError::Receive)?;
            for message in split(&datagram) {
                let message = message?;
                if message.sequence_number() != self.sequence {
                    continue;
                }
                if message.flags() & NLM_F_DUMP_INTR != 0 {
                    outcome = Err(NetlinkError::Interrupted);
                }
                match message.message_type() {
                    ERROR => return verdict(&message).and(outcome),
                    DONE => return code(message.payload()).and(outcome),
                    _ => each(message.payload())?,
                }
            }
        }
    }
}

/// The messages of one datagram.
pub(super) fn split(
    mut datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, NetlinkError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Ok(message) = NetlinkBuffer::new_checked(datagram) else {
            datagram = &[];
            return Some(Err(NetlinkError::Malformed));
        };
        let length = (message.length() as usize)
            .next_multiple_of(4)
            .min(datagram.len());
        datagram = &datagram[length..];
        Some(Ok(message))
    })
}

/// The attributes in `bytes`, with their kind free of flags.
pub(super) fn attributes(
    mut bytes: &[u8],
) -> impl Iterator<Item = Result<(u16, &[u8]), NetlinkError>> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & !NLA_FLAGS;
        let Some(value) = bytes.get(4..length) else {
            bytes = &[];
            return Some(Err(NetlinkError::Malformed));
        };
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some(Ok((kind, value)))
    })
}

/// The number at `offset`, in host order.
pub(super) fn number(bytes: &[u8], offset: usize) -> Result<u32, NetlinkError> {
    let end = offset + 4;
    match bytes.get(offset..end).map(<[u8; 4]>::try_from) {
        Some(Ok(number)) => Ok(u32::from_ne_bytes(number)),
        Some(Err(_)) | None => Err(NetlinkError::Malformed),
    }
}

/// The text of an attribute, up to its terminating zero.
pub(super) fn text(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Text that loses no byte: what is not UTF-8 becomes `\xNN`.
pub(super) fn lossless(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

fn code(payload: &[u8]) -> Result<(), NetlinkError> {
    let code = number(payload, 0)? as i32;
    if code == 0 {
        return Ok(());
    }
    Err(NetlinkError::Refused {
        source: io::Error::from_raw_os_error(-code),
        message: None,
    })
}

fn verdict(message: &NetlinkBuffer<&[u8]>) -> Result<(), NetlinkError> {
    let payload = message.payload();
    let Err(NetlinkError::Refused { source, .. }) = code(payload) else {
        return code(payload);
    };
    let message = (message.flags() & ACK_TLVS != 0)
        .then(|| explanation(payload, message.flags() & CAPPED != 0))
        .flatten();
    Err(NetlinkError::Refused { source, message })
}

/// The kernel's explanation, which follows the code and the quoted request.
fn explanation(payload: &[u8], capped: bool) -> Option<String> {
    let quoted = if capped {
        HEADER
    } else {
        number(payload, 4).ok()? as usize
    };
    let tail = payload.get(4 + quoted.next_multiple_of(4)..)?;
    attributes(tail)
        .filter_map(Result::ok)
        .find(|(kind, _)| *kind == ATTR_MSG)
        .map(|(_, value)| String::from_utf8_lossy(text(value)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_with_nested_attributes_parses_back() {
        let request = Request::new(44, 0, &[7; 20])
            .attribute(1, b"bpf\0")
            .nested(2, |inner| {
                inner.attribute(6, &9u32.to_ne_bytes()).attribute(7, b"x\0")
            });
        let bytes = request.finish(5);
        let messages: Vec<_> = split(&bytes).map(Result::unwrap).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!(
            (messages[0].message_type(), messages[0].sequence_number()),
            (44, 5)
        );
        let outer: Vec<_> = attributes(&messages[0].payload()[20..])
            .map(Result::unwrap)
            .collect();
        assert_eq!(outer[0], (1, b"bpf\0".as_slice()));
        let inner: Vec<_> = attributes(outer[1].1).map(Result::unwrap).collect();
        assert_eq!((outer[1].0, inner.len()), (2, 2));
        assert_eq!(inner[0], (6, 9u32.to_ne_bytes().as_slice()));
    }

    #[test]
    fn split_truncated_datagram_is_malformed() {
        let bytes = Request::new(16, 0, &[0; 16]).finish(1);
        let mut messages = split(&bytes[..20]);
        assert!(matches!(
            messages.next(),
            Some(Err(NetlinkError::Malformed))
        ));
        assert!(messages.next().is_none());
    }

    #[test]
    fn lossless_name_that_is_not_utf8_keeps_every_byte() {
        assert_eq!(lossless(b"tap101i0"), "tap101i0");
        assert_eq!(lossless(b"tap\xff\xc3i0"), "tap\\xff\\xc3i0");
        assert_eq!(lossless("gäst".as_bytes()), "gäst");
    }

    #[test]
    fn request_refused_carries_the_errno() {
        let mut requests = Requests::open().unwrap();
        // An interface that does not exist: RTM_GETQDISC wants a device.
        let mut fixed = [0u8; 16];
        fixed[4..8].copy_from_slice(&0x7fff_ff00u32.to_ne_bytes());
        let error = requests.change(Request::new(18, 0, &fixed)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
    }
}
