//! The sockets to which senders are led.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{MapData, SockMap};
use gate25_common::address::Family;
use gate25_common::names;

use super::BpfError;
use super::tables::typed;
use crate::notice::{Lead, LeadError};

/// The table of sockets that tell the notice, one a family. The kernel takes out what is closed, so
/// that nobody can take the place of an agent that is dead.
#[derive(Clone)]
pub struct Responders(Arc<Mutex<SockMap<MapData>>>);

impl Responders {
    pub(super) fn open(
        open: impl Fn(&'static str) -> Result<MapData, BpfError>,
    ) -> Result<Self, BpfError> {
        let table = typed(&open, names::MAP_RESPONDERS, |map| {
            SockMap::try_from(aya::maps::Map::SockMap(map))
        })?;
        Ok(Self(Arc::new(Mutex::new(table))))
    }
}

impl Lead for Responders {
    fn lead_to(&self, family: Family, listener: BorrowedFd<'_>) -> Result<(), LeadError> {
        // A write is whole or has not been.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table
            .set(family as u32, &listener.as_raw_fd(), 0)
            .map_err(|source| {
                LeadError::new(BpfError::Table {
                    action: "write into",
                    map: names::MAP_RESPONDERS,
                    source,
                })
            })
    }
}
