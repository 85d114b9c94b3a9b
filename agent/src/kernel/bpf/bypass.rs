//! The table that says until when this host only observes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, MapData};
use gate25_common::bypass::Bypass;
use gate25_common::names;

use super::BpfError;
use super::tables::typed;

/// Shared by whoever writes it and whoever reports it.
#[derive(Clone)]
pub(super) struct BypassTable(Arc<Mutex<Array<MapData, Bypass>>>);

impl BypassTable {
    pub(super) fn open(
        open: impl Fn(&'static str) -> Result<MapData, BpfError>,
    ) -> Result<Self, BpfError> {
        let table = typed(&open, names::MAP_BYPASS, |map| {
            Array::try_from(aya::maps::Map::Array(map))
        })?;
        Ok(Self(Arc::new(Mutex::new(table))))
    }

    pub(super) fn read(&self) -> Result<Bypass, BpfError> {
        self.table().get(&0, 0).map_err(|source| BpfError::Table {
            action: "read",
            map: names::MAP_BYPASS,
            source,
        })
    }

    pub(super) fn write(&self, bypass: &Bypass) -> Result<(), BpfError> {
        let written = self.table().set(0, bypass, 0);
        written.map_err(|source| BpfError::Table {
            action: "write into",
            map: names::MAP_BYPASS,
            source,
        })
    }

    fn table(&self) -> MutexGuard<'_, Array<MapData, Bypass>> {
        // Nothing is left half-done in the table when a reader panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
