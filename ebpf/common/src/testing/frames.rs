//! Frames, layer by layer. Every field that an attacker may set can be set; what is left alone
//! is right.

use std::vec;
use std::vec::Vec;

use crate::packet::Frame;

/// TCP flag (RFC 9293, 3.1).
pub const FIN: u8 = 1;
/// TCP flag.
pub const SYN: u8 = 2;
/// TCP flag.
pub const RST: u8 = 4;
/// TCP flag.
pub const PSH: u8 = 8;
/// TCP flag.
pub const ACK: u8 = 16;

/// Ethertype of a customer's VLAN tag (IEEE 802.1Q).
pub const TAG: u16 = 0x8100;
/// Ethertype of a provider's VLAN tag (IEEE 802.1ad).
pub const SERVICE_TAG: u16 = 0x88a8;
/// Ethertype of stacked tags before the standard.
pub const OLD_TAG: u16 = 0x9100;
/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Address of the gateway that the guest sends its frames to.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Address of the guest.
pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// Address of the guest.
pub const GUEST_V4: [u8; 4] = [10, 0, 0, 2];
/// Address of a mail server out there.
pub const SERVER_V4: [u8; 4] = [203, 0, 113, 25];
/// Address of the guest.
pub const GUEST_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Address of a mail server out there.
pub const SERVER_V6: [u8; 16] = [
    0x20, 1, 0x0d, 0xb8, 0, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x25,
];

/// A TCP segment (RFC 9293, 3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags.
    pub flags: u8,
    /// Length of the header in words, where it is not the true one.
    pub data_offset: Option<u8>,
    /// Options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Tcp {
    /// A SYN to `destination`.
    pub fn syn(destination: u16) -> Self {
        Self::with_flags(destination, SYN)
    }

    /// A segment to `destination` with `flags` and nothing in it.
    pub fn with_flags(destination: u16, flags: u8) -> Self {
        Self {
            source: 40_000,
            destination,
            sequence: 0x1020_3040,
            acknowledgement: 0x5060_7080,
            flags,
            data_offset: None,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// A segment that comes back to the guest from `source` with `flags` and nothing in it.
    pub fn back(source: u16, flags: u8) -> Self {
        Self {
            source,
            ..Self::with_flags(40_000, flags)
        }
    }

    /// The segment's bytes, with a checksum of 0.
    pub fn bytes(&self) -> Vec<u8> {
        let words = 5 + (self.options.len() / 4) as u8;
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.push(self.data_offset.unwrap_or(words) << 4);
        bytes.push(self.flags);
        bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        bytes
    }
}

/// An IPv4 header (RFC 791, 3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4 {
    /// Version.
    pub version: u8,
    /// Length of the header in words, where it is not the true one.
    pub ihl: Option<u8>,
    /// Length of the datagram, where it is not the true one.
    pub total_length: Option<u16>,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Protocol.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Options, a multiple of 4 bytes.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// Flag: more fragments follow.
    pub const MORE: u16 = 0x2000;
    /// Flag: don't fragment.
    pub const DONT: u16 = 0x4000;

    /// The header of a whole TCP packet from the guest to `destination`.
    pub fn to(destination: [u8; 4]) -> Self {
        Self {
            version: 4,
            ihl: None,
            total_length: None,
            fragment: 0,
            protocol: 6,
            source: GUEST_V4,
            destination,
            options: Vec::new(),
        }
    }

    /// The header of a whole TCP packet that comes back to the guest from `source`.
    pub fn back(source: [u8; 4]) -> Self {
        Self {
            source,
            ..Self::to(GUEST_V4)
        }
    }

    /// The packet's bytes, with a checksum of 0.
    pub fn with(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let ihl = self.ihl.unwrap_or((header / 4) as u8);
        let total = self.total_length.unwrap_or((header + payload.len()) as u16);
        let mut bytes = vec![self.version << 4 | ihl, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.source);
        bytes.extend(self.destination);
        bytes.extend(&self.options);
        bytes.extend(payload);
        bytes
    }
}

/// An IPv6 extension header (RFC 8200, 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// A header of type `kind` whose length counts units of 8 bytes beyond the first, and which
    /// holds no fields that matter here.
    Options {
        /// Its number.
        kind: u8,
        /// Its length field.
        length: u8,
    },
    /// Routing header (RFC 8200, 4.4) without addresses.
    Routing {
        /// Segments left.
        left: u8,
    },
    /// Fragment header (RFC 8200, 4.5).
    Fragment {
        /// Offset in units of 8 bytes.
        offset: u16,
        /// Whether more fragments follow.
        more: bool,
    },
    /// Authentication header (RFC 4302): length in words, less 2.
    Authentication {
        /// Its length field.
        length: u8,
    },
}

impl Extension {
    /// Hop-by-hop options (RFC 8200, 4.3).
    pub const HOP_BY_HOP: Self = Self::Options { kind: 0, length: 0 };
    /// Destination options (RFC 8200, 4.6).
    pub const DESTINATION: Self = Self::Options {
        kind: 60,
        length: 0,
    };
    /// Mobility (RFC 6275, 6.1).
    pub const MOBILITY: Self = Self::Options {
        kind: 135,
        length: 0,
    };
    /// Host identity (RFC 7401, 5.1).
    pub const HOST_IDENTITY: Self = Self::Options {
        kind: 139,
        length: 0,
    };
    /// Shim6 (RFC 5533, 5.1).
    pub const SHIM6: Self = Self::Options {
        kind: 140,
        length: 0,
    };
    /// An atomic fragment (RFC 6946).
    pub const ATOMIC: Self = Self::Fragment {
        offset: 0,
        more: false,
    };

    /// Its number in the header before it.
    pub fn kind(&self) -> u8 {
        match *self {
            Self::Options { kind, .. } => kind,
            Self::Routing { .. } => 43,
            Self::Fragment { .. } => 44,
            Self::Authentication { .. } => 51,
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        match *self {
            Self::Options { length, .. } => {
                let mut bytes = vec![0; 8 * (usize::from(length) + 1)];
                bytes[0] = next;
                bytes[1] = length;
                // One option of padding over the rest (PadN).
                bytes[2] = 1;
                bytes[3] = 4;
                bytes
            }
            Self::Routing { left } => vec![next, 0, 4, left, 0, 0, 0, 0],
            Self::Fragment { offset, more } => {
                let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                vec![next, 0, high, low, 0, 0, 0x12, 0x34]
            }
            Self::Authentication { length } => {
                let mut bytes = vec![0; 4 * (usize::from(length) + 2)];
                bytes[0] = next;
                bytes[1] = length;
                bytes
            }
        }
    }
}

/// An IPv6 header (RFC 8200, 3) with its extension headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6 {
    /// Version.
    pub version: u8,
    /// Length of what follows the header, where it is not the true one.
    pub payload_length: Option<u16>,
    /// Number of what follows the last extension header.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Extension headers, the outermost first.
    pub extensions: Vec<Extension>,
}

impl Ipv6 {
    /// The header of a TCP packet from the guest to `destination`.
    pub fn to(destination: [u8; 16]) -> Self {
        Self {
            version: 6,
            payload_length: None,
            protocol: 6,
            source: GUEST_V6,
            destination,
            extensions: Vec::new(),
        }
    }

    /// The header of a TCP packet that comes back to the guest from `source`.
    pub fn back(source: [u8; 16]) -> Self {
        Self {
            source,
            ..Self::to(GUEST_V6)
        }
    }

    /// The same with `extensions`.
    pub fn through(destination: [u8; 16], extensions: &[Extension]) -> Self {
        Self {
            extensions: extensions.to_vec(),
            ..Self::to(destination)
        }
    }

    /// The packet's bytes.
    pub fn with(&self, payload: &[u8]) -> Vec<u8> {
        let mut rest = payload.to_vec();
        let mut next = self.protocol;
        for extension in self.extensions.iter().rev() {
            let mut bytes = extension.bytes(next);
            bytes.extend(&rest);
            rest = bytes;
            next = extension.kind();
        }
        let length = self.payload_length.unwrap_or(rest.len() as u16);
        let mut bytes = vec![self.version << 4, 0, 0, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(self.source);
        bytes.extend(self.destination);
        bytes.extend(&rest);
        bytes
    }
}

/// What stands between the Ethernet addresses and the ethertype of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A VLAN tag with this ethertype and this tag control information.
    Tag(u16, u16),
    /// An 802.3 length, and an LLC header with SNAP (RFC 1042) whose LLC bytes are these.
    Snap([u8; 3]),
}

impl Step {
    /// A tag with VLAN 0, which only carries a priority.
    pub const PRIORITY: Self = Self::Tag(TAG, 0);
    /// LLC/SNAP as in RFC 1042.
    pub const SNAP: Self = Self::Snap([0xaa, 0xaa, 0x03]);
}

/// A frame from the guest to its gateway.
pub fn ethernet(steps: &[Step], ethertype: u16, body: &[u8]) -> Vec<u8> {
    ethernet_to(GATEWAY_MAC, steps, ethertype, body)
}

/// A frame from the guest to `mac`.
pub fn ethernet_to(mac: [u8; 6], steps: &[Step], ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut rest = ethertype.to_be_bytes().to_vec();
    rest.extend(body);
    for step in steps.iter().rev() {
        let mut outer = Vec::new();
        match step {
            Step::Tag(tag, information) => {
                outer.extend(tag.to_be_bytes());
                outer.extend(information.to_be_bytes());
            }
            Step::Snap(llc) => {
                let length = (rest.len() + 6).min(1500) as u16;
                outer.extend(length.to_be_bytes());
                outer.extend(llc);
                outer.extend([0, 0, 0]);
            }
        }
        outer.extend(&rest);
        rest = outer;
    }
    let mut bytes = mac.to_vec();
    bytes.extend(GUEST_MAC);
    bytes.extend(&rest);
    bytes
}

/// A frame with an IPv4 packet.
pub fn frame_v4(ip: &Ipv4, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ip.with(payload))
}

/// A frame with an IPv6 packet.
pub fn frame_v6(ip: &Ipv6, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV6, &ip.with(payload))
}

/// An Ethernet frame with TCP behind an authentication header (RFC 4302) in IPv4.
pub fn authenticated_v4(segment: &[u8]) -> Vec<u8> {
    const AUTHENTICATION: u8 = 51;
    const TCP: u8 = 6;
    // The length in words less two, reserved; an index, a sequence number, a check value.
    let mut payload = vec![TCP, 4, 0, 0];
    payload.resize(24, 0);
    payload.extend(segment);
    let header = Ipv4 {
        protocol: AUTHENTICATION,
        ..Ipv4::to(SERVER_V4)
    };
    frame_v4(&header, &payload)
}

/// Frames that are nobody's business while this port is guarded and `port` is not, by their names.
pub fn unguarded(guarded: u16, port: u16) -> Vec<(&'static str, Vec<u8>)> {
    let (segment, guarded) = (Tcp::syn(port).bytes(), Tcp::syn(guarded).bytes());
    let v4 = Ipv4::to(SERVER_V4);
    let of = |protocol| Ipv4 {
        protocol,
        ..v4.clone()
    };
    let later = Ipv4 {
        fragment: 2,
        ..v4.clone()
    };
    let options = Ipv4 {
        options: vec![1, 1, 1, 0],
        ..v4.clone()
    };
    let later_v6 = Extension::Fragment {
        offset: 2,
        more: false,
    };
    let through = |extension| Ipv6::through(SERVER_V6, &[extension]);
    let tagged = |ethertype, packet: &[u8]| ethernet(&[Step::Tag(TAG, 5)], ethertype, packet);
    let datagram = [0x9c, 0x40, 0, 25, 0, 8, 0, 0];
    let mut spanning_tree = ethernet(&[], 38, &[0x42, 0x42, 3]);
    spanning_tree.resize(60, 0);
    vec![
        ("another port", frame_v4(&v4, &segment)),
        ("another port behind options", frame_v4(&options, &segment)),
        (
            "another port over IPv6",
            frame_v6(&Ipv6::to(SERVER_V6), &segment),
        ),
        (
            "another port behind IPv6 options",
            frame_v6(&through(Extension::HOP_BY_HOP), &segment),
        ),
        ("another port in AH", authenticated_v4(&segment)),
        ("another port in a tag", tagged(IPV4, &v4.with(&segment))),
        ("UDP", frame_v4(&of(17), &datagram)),
        ("a tunnel", frame_v4(&of(4), &v4.with(&guarded))),
        ("a later fragment", frame_v4(&later, &guarded)),
        (
            "a later fragment over IPv6",
            frame_v6(&through(later_v6), &guarded),
        ),
        (
            "a later fragment over IPv6 in a tag",
            tagged(IPV6, &through(later_v6).with(&guarded)),
        ),
        ("ARP", ethernet(&[], 0x0806, &[0; 28])),
        ("LLC without SNAP", spanning_tree),
    ]
}

/// A frame as the kernel holds it: its first `linear` bytes can be read directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryFrame {
    /// The whole frame.
    pub bytes: Vec<u8>,
    /// How much of it can be read.
    pub linear: usize,
    /// Tags that were taken off it.
    pub stripped: u32,
    /// Guarded ports.
    pub ports: Vec<u16>,
}

impl MemoryFrame {
    /// A frame all of which can be read, where port 25 is guarded.
    pub fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            linear: bytes.len(),
            stripped: 0,
            ports: vec![25],
        }
    }

    /// The same after `stripped` tags were taken off it.
    pub fn stripped(self, stripped: u32) -> Self {
        Self { stripped, ..self }
    }

    /// The same, of which only `linear` bytes can be read.
    pub fn linear(self, linear: usize) -> Self {
        Self {
            linear: linear.min(self.bytes.len()),
            ..self
        }
    }
}

impl Frame for MemoryFrame {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes[..self.linear]
            .get(offset..)?
            .first_chunk()
            .copied()
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn stripped_tags(&self) -> u32 {
        self.stripped
    }

    fn guarded(&self, port: [u8; 2]) -> bool {
        self.ports.contains(&u16::from_be_bytes(port))
    }
}
