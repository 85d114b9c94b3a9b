//! Another network, and a guest whose packets leave by it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use gate25_tests::{Addresses, Hosting, NetNs, Offload, Tap, World};

const LIMIT: Duration = Duration::from_secs(10);
const SMTP: u16 = 25;
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FIRST: u32 = 0x1020_3040;

/// A way to a server by which nobody asks where packets come from.
pub(crate) struct Detour(Tap);

/// A guest without a network stack: what reaches it is read frame by frame.
pub(crate) struct Machine(Tap);

/// A TCP segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    sequence: u32,
    acknowledged: u32,
    pub(crate) payload: Vec<u8>,
}

/// The two ends of a connection, and how far it has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) guest: SocketAddr,
    pub(crate) server: SocketAddr,
    sent: u32,
    heard: u32,
}

impl Connection {
    /// From a port of the machine to the exchanger, over both families.
    pub(crate) fn both(port: u16) -> [Self; 2] {
        let guest = Machine::addresses();
        let ends = [
            (guest.v4_port(port), Hosting::EXCHANGER.v4_port(SMTP)),
            (guest.v6_port(port), Hosting::EXCHANGER.v6_port(SMTP)),
        ];
        ends.map(|(guest, server)| Self {
            guest,
            server,
            sent: FIRST,
            heard: 0,
        })
    }

    /// The word for its family in metrics.
    pub(crate) fn family(&self) -> &'static str {
        if self.server.is_ipv4() {
            "ipv4"
        } else {
            "ipv6"
        }
    }
}

impl Detour {
    /// To `server`, which takes what comes by it.
    pub(crate) fn to(server: &NetNs) -> Self {
        let tap = Tap::new(server, "other0", Offload::None).unwrap();
        server
            .ip("link set other0 address 02:00:00:00:00:08 up")
            .unwrap();
        let lax = ["all", "other0"].map(|it| format!("ipv4/conf/{it}/rp_filter"));
        server
            .sysctl(&[(lax[0].as_str(), "0"), (lax[1].as_str(), "0")])
            .unwrap();
        Self(tap)
    }

    /// Begins a connection in the guest's name.
    pub(crate) fn begin(&mut self, connection: &Connection) {
        let syn = Segment {
            syn: true,
            sequence: connection.sent,
            ..Segment::default()
        };
        self.send(connection, &syn);
    }

    /// Says something in the guest's name, on a connection whose beginning it has heard.
    pub(crate) fn say(&mut self, connection: &mut Connection, payload: &[u8]) {
        let segment = Segment {
            ack: true,
            sequence: connection.sent,
            acknowledged: connection.heard,
            payload: payload.to_vec(),
            ..Segment::default()
        };
        self.send(connection, &segment);
        connection.sent = connection.sent.wrapping_add(payload.len() as u32);
    }

    fn send(&mut self, connection: &Connection, segment: &Segment) {
        let Connection { guest, server, .. } = connection;
        let link = PacketBuilder::ethernet2(SENDER_MAC, SERVER_MAC);
        let ip = match (guest.ip(), server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            ends => panic!("{ends:?}"),
        };
        let mut tcp = ip.tcp(guest.port(), server.port(), segment.sequence, 64_000);
        if segment.syn {
            tcp = tcp.syn();
        }
        if segment.ack {
            tcp = tcp.ack(segment.acknowledged);
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, &segment.payload).unwrap();
        self.0.send(&frame).unwrap();
    }
}

impl Machine {
    /// Its addresses.
    pub(crate) fn addresses() -> Addresses {
        Hosting::bridged(101)
    }

    /// Behind `tap101i0`.
    pub(crate) fn new(world: &World) -> Self {
        let host = &world.hosting.hypervisor;
        let tap = Tap::new(host, "tap101i0", Offload::None).unwrap();
        let Addresses { v4, v6 } = Self::addresses();
        let [a, b, c, d, e, f] = GUEST_MAC;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        host.ip(&format!(
            "link set tap101i0 up
             route add {v4}/32 dev tap101i0
             route add {v6}/128 dev tap101i0
             neigh replace {v4} lladdr {mac} dev tap101i0 nud permanent
             neigh replace {v6} lladdr {mac} dev tap101i0 nud permanent"
        ))
        .unwrap();
        Self(tap)
    }

    /// Waits for the exchanger's next segment of the connection that is as `wanted`.
    #[track_caller]
    pub(crate) fn hear(
        &mut self,
        connection: &mut Connection,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Segment {
        let ends = *connection;
        let of_interest = |frame: &[u8]| answer(frame, &ends).is_some_and(|it| wanted(&it));
        let frame = self.0.receive(LIMIT, of_interest).unwrap();
        let segment = answer(&frame, &ends).unwrap();
        let length = segment.payload.len() as u32 + u32::from(segment.syn);
        connection.heard = segment.sequence.wrapping_add(length);
        segment
    }

    /// Whether nothing of the connection has come since the machine was last asked.
    pub(crate) fn has_heard_nothing(&mut self, connection: &Connection) -> bool {
        let mut nothing = true;
        while let Some(frame) = self.0.take().unwrap() {
            nothing &= answer(&frame, connection).is_none();
        }
        nothing
    }

    /// Makes the connection by the detour until the exchanger has greeted the guest, which has said
    /// nothing at all by itself.
    #[track_caller]
    pub(crate) fn check_greeted(&mut self, detour: &mut Detour, connection: &mut Connection) {
        detour.begin(connection);
        connection.sent = connection.sent.wrapping_add(1);
        let accepted = self.hear(connection, |it| it.syn && it.ack);
        assert_eq!(accepted.acknowledged, connection.sent);
        detour.say(connection, b"");
        let greeting = self.hear(connection, |it| !it.payload.is_empty());
        assert_eq!(greeting.payload, b"220 greeter\r\n");
        detour.say(connection, b"");
    }
}

/// The segment in a frame, if it is one of the exchanger's in this connection.
fn answer(frame: &[u8], connection: &Connection) -> Option<Segment> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        return None;
    };
    let is_of = SocketAddr::new(from, tcp.source_port()) == connection.server
        && SocketAddr::new(to, tcp.destination_port()) == connection.guest;
    is_of.then(|| Segment {
        syn: tcp.syn(),
        ack: tcp.ack(),
        sequence: tcp.sequence_number(),
        acknowledged: tcp.acknowledgment_number(),
        payload: tcp.payload().to_vec(),
    })
}
