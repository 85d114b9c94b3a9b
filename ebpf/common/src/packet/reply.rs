//! What comes back to a guest from a port that is judged, or from a target's.

use super::tcp::{TCP_ACK, TCP_JUDGED, TCP_RST};
use super::{Frame, Outline, ParseError};
use crate::address::Family;
use crate::decide::{Route, Subject};
use crate::redirect::Endpoint;

/// A frame towards a guest: of interest by the port that it comes from.
#[derive(Debug, Clone, Copy)]
pub struct ToGuest<F, P> {
    frame: F,
    is_judged: P,
}

impl<F: Frame, P: Fn([u8; 2]) -> bool> ToGuest<F, P> {
    /// `frame` as the guest gets it; `is_judged` says from which ports (network order).
    #[inline(always)]
    pub const fn new(frame: F, is_judged: P) -> Self {
        Self { frame, is_judged }
    }
}

impl<F: Frame, P: Fn([u8; 2]) -> bool> Frame for ToGuest<F, P> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.frame.load(offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.frame.length()
    }

    #[inline(always)]
    fn settled(&self, end: usize) -> bool {
        self.frame.settled(end)
    }

    #[inline(always)]
    fn stripped_tags(&self) -> u32 {
        self.frame.stripped_tags()
    }

    #[inline(always)]
    fn guarded(&self, port: [u8; 2]) -> bool {
        self.frame.guarded(port)
    }

    #[inline(always)]
    fn judged(&self, from: [u8; 2], _to: [u8; 2]) -> bool {
        (self.is_judged)(from)
    }

    /// It has arrived, whichever way it was to take.
    #[inline(always)]
    fn route_of_options(&self, _before: usize, _end: usize) -> Result<Route, ParseError> {
        Ok(Route::Direct)
    }
}

/// A TCP packet towards a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Where its headers are.
    pub outline: Outline,
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
    flags: u8,
}

impl Reply {
    /// The packet in `frame` that `outline` is of; `None` if the frame is another one.
    #[inline(always)]
    pub fn read<F: Frame>(outline: Outline, frame: &F) -> Option<Self> {
        let header: [u8; TCP_JUDGED] = frame.load(outline.transport)?;
        let (from, to) = ([header[0], header[1]], [header[2], header[3]]);
        let (source, destination) = match outline.family {
            Family::V4 => {
                let [a, b, c, d, e, f, g, h]: [u8; 8] = frame.load(outline.network + 12)?;
                (
                    Endpoint::v4(u32::from_ne_bytes([a, b, c, d]), from),
                    Endpoint::v4(u32::from_ne_bytes([e, f, g, h]), to),
                )
            }
            Family::V6 => (
                Endpoint::v6(words(frame.load(outline.network + 8)?), from),
                Endpoint::v6(words(frame.load(outline.network + 24)?), to),
            ),
        };
        Some(Self {
            outline,
            source,
            destination,
            flags: header[13],
        })
    }

    /// Whether it answers: it acknowledges and is no reset. Without any of these no connection goes
    /// on, since all segments of one but its first carry an acknowledgement, and receivers drop those
    /// that do not (RFC 9293, 3.10.7.4). A first segment from such a port is the beginning of
    /// somebody else's connection, and the guest's answer to it is judged on its way out.
    #[inline(always)]
    pub const fn answers(&self) -> bool {
        self.flags & (TCP_ACK | TCP_RST) == TCP_ACK
    }

    /// What there is to judge of it: a guest may hear from where it may send to.
    #[inline(always)]
    pub const fn subject(&self) -> Subject {
        Subject::Guarded {
            destination: self.source.address(),
            port: self.source.port(),
            route: Route::Direct,
            family: self.outline.family,
            form: self.outline.form,
        }
    }
}

#[inline(always)]
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
