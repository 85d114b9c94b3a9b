//! The tables that count packets that come back to guests.

use aya::maps::{MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use gate25_common::abi::CustomerId;
use gate25_common::names;
use gate25_common::returns::ReturnCounters;

use super::BpfError;
use super::patience::patiently;
use super::tables::{NO_REPLACE, absent_is_fine, present, present_is_fine, typed};

/// Counters of the host and of customers. Reading needs no exclusive access.
pub(super) struct ReturnTables {
    host: PerCpuArray<MapData, ReturnCounters>,
    customers: PerCpuHashMap<MapData, CustomerId, ReturnCounters>,
    cpus: usize,
}

impl ReturnTables {
    pub(super) fn open(
        open: impl Fn(&'static str) -> Result<MapData, BpfError>,
    ) -> Result<Self, BpfError> {
        Ok(Self {
            host: typed(&open, names::MAP_RETURN_COUNTERS, |map| {
                PerCpuArray::try_from(aya::maps::Map::PerCpuArray(map))
            })?,
            customers: typed(&open, names::MAP_RETURN_CUSTOMERS, |map| {
                PerCpuHashMap::try_from(aya::maps::Map::PerCpuHashMap(map))
            })?,
            cpus: nr_cpus().map_err(|(file, source)| BpfError::Cpus { file, source })?,
        })
    }

    /// Totals of the host.
    pub(super) fn host(&self) -> Result<ReturnCounters, BpfError> {
        let values = self.host.get(&0, 0).map_err(|source| BpfError::Table {
            action: "read",
            map: names::MAP_RETURN_COUNTERS,
            source,
        })?;
        Ok(total(&values))
    }

    /// Totals of a customer; `None` for one that was never tracked.
    pub(super) fn customer(&self, id: CustomerId) -> Result<Option<ReturnCounters>, BpfError> {
        let values = present(self.customers.get(&id, 0), names::MAP_RETURN_CUSTOMERS)?;
        Ok(values.as_ref().map(total))
    }

    /// Gives a customer counters, unless it has them.
    pub(super) fn track(&mut self, id: CustomerId) -> Result<(), BpfError> {
        let inserted = patiently(|| {
            let zero = PerCpuValues::try_from(vec![ReturnCounters::ZERO; self.cpus])?;
            present_is_fine(self.customers.insert(id, zero, NO_REPLACE))
        });
        inserted.map_err(|source| BpfError::Table {
            action: "write into",
            map: names::MAP_RETURN_CUSTOMERS,
            source,
        })
    }

    /// Forgets the counters of a customer that the policy no longer has.
    pub(super) fn forget(&mut self, id: CustomerId) -> Result<(), BpfError> {
        absent_is_fine(self.customers.remove(&id)).map_err(|source| BpfError::Table {
            action: "remove from",
            map: names::MAP_RETURN_CUSTOMERS,
            source,
        })
    }
}

/// The sum over all CPUs.
fn total(values: &PerCpuValues<ReturnCounters>) -> ReturnCounters {
    values.iter().fold(ReturnCounters::ZERO, |mut sum, cpu| {
        sum.add(cpu);
        sum
    })
}
