//! What not every backend can do on every kernel.

/// Something that a backend can do, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Sockets of control groups are judged, not only what crosses a veth.
    ContainerSockets,
    /// Checksums that guests leave to the host cannot change what was judged.
    LateChecksums,
    /// Connections are led to a relay or to the notice.
    Redirection,
    /// Packets that come back from guarded ports are judged (`block_return`).
    ReturnPackets,
    /// Distinct destinations are counted, and attempts are told one by one.
    Destinations,
    /// Headers in unusual places are looked up.
    HiddenHeaders,
    /// Who is rejected gets a reset.
    Resets,
}

impl Feature {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::ContainerSockets,
        Self::LateChecksums,
        Self::Redirection,
        Self::ReturnPackets,
        Self::Destinations,
        Self::HiddenHeaders,
        Self::Resets,
    ];

    /// The word for it in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ContainerSockets => "container_sockets",
            Self::LateChecksums => "late_checksums",
            Self::Redirection => "redirection",
            Self::ReturnPackets => "return_packets",
            Self::Destinations => "destinations",
            Self::HiddenHeaders => "hidden_headers",
            Self::Resets => "resets",
        }
    }

    /// What is so without it.
    #[must_use]
    pub const fn lack(self) -> &'static str {
        match self {
            Self::ContainerSockets => "containers' sockets: only their veths are covered",
            Self::LateChecksums => {
                "checksums left to the host: a guest with a driver of its own can have it write another port into a packet that has passed"
            }
            Self::Redirection => "redirection and the notice: rejected instead",
            Self::ReturnPackets => {
                "packets that come back from guarded ports (`block_return`): they pass"
            }
            Self::Destinations => "distinct destinations and events of attempts",
            Self::HiddenHeaders => {
                "lookups behind two VLAN tags, SNAP, IPv4 options and authentication headers: refused instead"
            }
            Self::Resets => {
                "resets (the kernel is built without CONFIG_NFT_REJECT_NETDEV): what is rejected is dropped, and connections hang"
            }
        }
    }
}
