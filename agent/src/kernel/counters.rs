//! Named counters of nftables as the kernel has them: a scrape reads them, and has no time for a process
//! that would start, ask for the same and end.

use super::netfilter::{self, NFGENMSG};
use super::netlink::{NetlinkError, Request, attributes, lossless, text};
use super::tally::Count;
use crate::netfilter::{Family, Table};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ` (linux/netfilter/nf_tables.h).
const GET_OBJECT: u16 = 10 << 8 | 19;

const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// The counters of a table by name; none where there is no such table.
///
/// # Errors
/// [`NetlinkError`]; needs `CAP_NET_ADMIN`.
pub(super) fn of_table(table: Table) -> Result<Vec<(String, Count)>, NetlinkError> {
    netfilter::listed(&request(table), |payload| counter(payload).map(Some))
}

fn request(table: Table) -> Request {
    // `NFPROTO_*` (linux/netfilter.h).
    let family = match table.family {
        Family::Inet => 1,
        Family::Netdev => 5,
        Family::Bridge => 7,
    };
    let name = [table.name.as_bytes(), &[0]].concat();
    Request::new(GET_OBJECT, 0, &[family, 0, 0, 0])
        .attribute(NFTA_OBJ_TABLE, &name)
        .attribute(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes())
}

fn counter(payload: &[u8]) -> Result<(String, Count), NetlinkError> {
    let rest = payload.get(NFGENMSG..).ok_or(NetlinkError::Malformed)?;
    let mut name = None;
    let (mut packets, mut bytes) = (None, None);
    for attribute in attributes(rest) {
        match attribute? {
            (NFTA_OBJ_NAME, value) => name = Some(lossless(text(value))),
            (NFTA_OBJ_DATA, value) => {
                for figure in attributes(value) {
                    match figure? {
                        (NFTA_COUNTER_PACKETS, value) => packets = Some(big_endian(value)?),
                        (NFTA_COUNTER_BYTES, value) => bytes = Some(big_endian(value)?),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    match (name, packets, bytes) {
        (Some(name), Some(packets), Some(bytes)) => Ok((name, Count { packets, bytes })),
        (None, _, _) | (_, None, _) | (_, _, None) => Err(NetlinkError::Malformed),
    }
}

fn big_endian(value: &[u8]) -> Result<u64, NetlinkError> {
    let bytes = value.first_chunk().ok_or(NetlinkError::Malformed)?;
    Ok(u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    proptest! {
        #[test]
        fn counter_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _counter = counter(&bytes);
        }
    }
}
