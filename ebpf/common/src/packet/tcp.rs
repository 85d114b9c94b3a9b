//! The TCP header.

use super::network::Piece;
use super::{Form, Frame, MAX_HEADERS, Malformed, Outline, ParseError, Segment};
use crate::address::{Address, Family};
use crate::decide::Route;

pub(super) const TCP_HEADER: usize = 20;
/// Bytes of a TCP header that a decision rests on: up to its flags.
pub(super) const TCP_JUDGED: usize = 14;
pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_RST: u8 = 0x04;
pub(super) const TCP_ACK: u8 = 0x10;

pub(super) struct Tcp {
    port: [u8; 2],
    flags: u8,
    transport: usize,
    header: usize,
    payload: usize,
}

impl Tcp {
    #[inline(always)]
    pub(super) fn segment(
        self,
        family: Family,
        destination: Address,
        route: Route,
        form: Form,
        network: usize,
    ) -> Segment {
        let Self {
            port,
            flags,
            transport,
            header: tcp_header,
            payload,
        } = self;
        Outline {
            family,
            route,
            form,
            network,
            transport,
            tcp_header,
            payload,
        }
        .segment(destination, port, flags)
    }
}

/// The TCP header at `transport`; `None` if its ports are none that are judged.
#[inline(always)]
pub(super) fn tcp<F: Frame>(
    frame: &F,
    transport: usize,
    end: usize,
    piece: Piece,
    family: Family,
) -> Result<Option<Tcp>, ParseError> {
    if transport > MAX_HEADERS {
        return Err(ParseError::Malformed(Malformed::Extensions, family));
    }
    if transport + TCP_HEADER > end {
        return Err(ParseError::Malformed(piece.cut_short(), family));
    }
    let header: [u8; TCP_JUDGED] = frame
        .load(transport)
        .ok_or(ParseError::ShortNetwork(family))?;
    let port = [header[2], header[3]];
    if !frame.judged([header[0], header[1]], port) {
        return Ok(None);
    }
    let length = usize::from(header[12] >> 4) * 4;
    Ok(Some(Tcp {
        port,
        flags: header[13],
        transport,
        header: length,
        payload: end.saturating_sub(transport + length),
    }))
}
