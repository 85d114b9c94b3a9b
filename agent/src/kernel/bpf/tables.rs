//! The kernel's tables, read and written.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use gate25_common::abi::{
    CustomerId, CustomerPolicy, InterfaceOwner, PrefixKey, PrefixValue, SetId,
};
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::names;
use gate25_common::redirect::{Flow, Hindrances, Redirected};

use crate::compile::Prefix;
use crate::dataplane::{MapImage, Sets, Step};
use crate::kernel::bpf::patience::patiently;
use crate::kernel::bpf::{BpfError, batch};

/// `BPF_NOEXIST`: what is counted stays.
pub(super) const NO_REPLACE: u64 = 1;

/// The tables that the policy is written into.
pub(super) struct PolicyTables {
    interfaces: HashMap<MapData, u32, InterfaceOwner>,
    cgroups: HashMap<MapData, u64, CustomerId>,
    customers: HashMap<MapData, CustomerId, CustomerPolicy>,
    prefixes: LpmTrie<MapData, PrefixKey, PrefixValue>,
}

impl PolicyTables {
    pub(super) fn open(
        open: impl Fn(&'static str) -> Result<MapData, BpfError>,
    ) -> Result<Self, BpfError> {
        Ok(Self {
            interfaces: typed(&open, names::MAP_INTERFACES, |map| {
                HashMap::try_from(aya::maps::Map::HashMap(map))
            })?,
            cgroups: typed(&open, names::MAP_CGROUPS, |map| {
                HashMap::try_from(aya::maps::Map::HashMap(map))
            })?,
            customers: typed(&open, names::MAP_CUSTOMERS, |map| {
                HashMap::try_from(aya::maps::Map::HashMap(map))
            })?,
            prefixes: typed(&open, names::MAP_PREFIXES, |map| {
                LpmTrie::try_from(aya::maps::Map::LpmTrie(map))
            })?,
        })
    }

    /// Everything that the kernel holds.
    pub(super) fn read(&self) -> Result<MapImage, BpfError> {
        let failed = |map| {
            move |source| BpfError::Table {
                action: "read",
                map,
                source,
            }
        };
        let interfaces = self
            .interfaces
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed(names::MAP_INTERFACES))?;
        let cgroups = self
            .cgroups
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed(names::MAP_CGROUPS))?;
        let customers = self
            .customers
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed(names::MAP_CUSTOMERS))?;
        let mut sets: BTreeMap<SetId, Vec<Prefix>> = BTreeMap::new();
        for item in self.prefixes.iter() {
            let (key, value) = item.map_err(failed(names::MAP_PREFIXES))?;
            let prefix = key.data();
            sets.entry(prefix.set()).or_default().push(Prefix {
                address: prefix.address(),
                length: value.length(),
                entry: value.entry(),
            });
        }
        let sets: Sets = sets
            .into_iter()
            .map(|(id, mut prefixes)| {
                prefixes.sort_unstable();
                (id, Arc::from(prefixes))
            })
            .collect();
        Ok(MapImage {
            customers,
            sets: Arc::new(sets),
            interfaces,
            cgroups,
        })
    }

    /// Carries out one step. A set that fails half-way is left half-filled: nothing refers to it.
    pub(super) fn write(&mut self, step: &Step) -> Result<(), BpfError> {
        let failed = |action, map| {
            move |source| BpfError::Table {
                action,
                map,
                source,
            }
        };
        match step {
            Step::AddSet(set, prefixes) => prefixes
                .iter()
                .try_for_each(|prefix| {
                    let key = key(*set, prefix);
                    patiently(|| self.prefixes.insert(&key, prefix.value(), 0))
                })
                .map_err(failed("write into", names::MAP_PREFIXES)),
            Step::RemoveSet(set, prefixes) => prefixes
                .iter()
                .try_for_each(|prefix| absent_is_fine(self.prefixes.remove(&key(*set, prefix))))
                .map_err(failed("remove from", names::MAP_PREFIXES)),
            Step::PutCustomer(id, policy) => patiently(|| self.customers.insert(id, **policy, 0))
                .map_err(failed("write into", names::MAP_CUSTOMERS)),
            Step::RemoveCustomer(id) => absent_is_fine(self.customers.remove(id))
                .map_err(failed("remove from", names::MAP_CUSTOMERS)),
            Step::PutInterface(index, owner) => {
                patiently(|| self.interfaces.insert(index, owner, 0))
                    .map_err(failed("write into", names::MAP_INTERFACES))
            }
            Step::RemoveInterface(index) => absent_is_fine(self.interfaces.remove(index))
                .map_err(failed("remove from", names::MAP_INTERFACES)),
            Step::PutCgroup(id, customer) => patiently(|| self.cgroups.insert(id, customer, 0))
                .map_err(failed("write into", names::MAP_CGROUPS)),
            Step::RemoveCgroup(id) => absent_is_fine(self.cgroups.remove(id))
                .map_err(failed("remove from", names::MAP_CGROUPS)),
        }
    }
}

/// The tables that the kernel counts in. Reading needs no exclusive access.
pub(super) struct CounterTables {
    host: PerCpuArray<MapData, HostCounters>,
    /// The table of `customers` once more, to be read as a whole.
    all_customers: MapData,
    customers: PerCpuHashMap<MapData, CustomerId, CustomerCounters>,
    sketches: HashMap<MapData, CustomerId, Sketch>,
    redirects: HashMap<MapData, Flow, Redirected>,
    hindrances: PerCpuArray<MapData, Hindrances>,
    cpus: usize,
}

impl CounterTables {
    pub(super) fn open(
        open: impl Fn(&'static str) -> Result<MapData, BpfError>,
    ) -> Result<Self, BpfError> {
        Ok(Self {
            host: typed(&open, names::MAP_HOST_COUNTERS, |map| {
                PerCpuArray::try_from(aya::maps::Map::PerCpuArray(map))
            })?,
            all_customers: open(names::MAP_CUSTOMER_COUNTERS)?,
            customers: typed(&open, names::MAP_CUSTOMER_COUNTERS, |map| {
                PerCpuHashMap::try_from(aya::maps::Map::PerCpuHashMap(map))
            })?,
            sketches: typed(&open, names::MAP_SKETCHES, |map| {
                HashMap::try_from(aya::maps::Map::HashMap(map))
            })?,
            redirects: typed(&open, names::MAP_REDIRECTS, |map| {
                HashMap::try_from(aya::maps::Map::LruHashMap(map))
            })?,
            hindrances: typed(&open, names::MAP_HINDRANCES, |map| {
                PerCpuArray::try_from(aya::maps::Map::PerCpuArray(map))
            })?,
            cpus: nr_cpus().map_err(|(file, source)| BpfError::Cpus { file, source })?,
        })
    }

    /// Totals of the host.
    pub(super) fn host(&self) -> Result<HostCounters, BpfError> {
        let values = self.host.get(&0, 0).map_err(|source| BpfError::Table {
            action: "read",
            map: names::MAP_HOST_COUNTERS,
            source,
        })?;
        Ok(values.iter().fold(HostCounters::ZERO, |mut sum, cpu| {
            sum.add(cpu);
            sum
        }))
    }

    /// Totals of a customer; `None` for one that was never tracked.
    pub(super) fn customer(&self, id: CustomerId) -> Result<Option<CustomerCounters>, BpfError> {
        let values = present(self.customers.get(&id, 0), names::MAP_CUSTOMER_COUNTERS)?;
        Ok(values.map(|values| sum(&values)))
    }

    /// The same of many customers, in their order.
    pub(super) fn customers(
        &self,
        ids: &[CustomerId],
    ) -> Result<Vec<Option<CustomerCounters>>, BpfError> {
        let mut all = std::collections::HashMap::with_capacity(ids.len());
        let map = self.all_customers.fd().as_fd();
        let read = batch::per_cpu(map, self.cpus, CustomerCounters::ZERO, |id: u64, values| {
            all.insert(CustomerId::from_raw(id), sum(values));
        });
        read.map_err(|error| BpfError::Whole {
            map: names::MAP_CUSTOMER_COUNTERS,
            source: error,
        })?;
        Ok(ids.iter().map(|id| all.get(id).copied()).collect())
    }

    /// Destinations of a customer since its sketch was last cleared.
    pub(super) fn sketch(&self, id: CustomerId) -> Result<Option<Sketch>, BpfError> {
        present(self.sketches.get(&id, 0), names::MAP_SKETCHES)
    }

    /// What is remembered of a connection that was led elsewhere, if it is known.
    pub(super) fn redirected(&self, flow: &Flow) -> Result<Option<Redirected>, BpfError> {
        present(self.redirects.get(flow, 0), names::MAP_REDIRECTS)
    }

    /// What kept packets and connects from being led elsewhere.
    pub(super) fn hindrances(&self) -> Result<Hindrances, BpfError> {
        let values = self
            .hindrances
            .get(&0, 0)
            .map_err(|source| BpfError::Table {
                action: "read",
                map: names::MAP_HINDRANCES,
                source,
            })?;
        Ok(values.iter().fold(Hindrances::ZERO, |mut sum, cpu| {
            sum.add(cpu);
            sum
        }))
    }

    /// Starts a customer's sketch afresh.
    pub(super) fn clear_sketch(&mut self, id: CustomerId) -> Result<(), BpfError> {
        self.sketches
            .insert(id, Sketch::EMPTY, 0)
            .map_err(|source| BpfError::Table {
                action: "clear",
                map: names::MAP_SKETCHES,
                source,
            })
    }

    /// Gives a customer counters, unless it has them.
    pub(super) fn track(&mut self, id: CustomerId) -> Result<(), BpfError> {
        let inserted = patiently(|| {
            let zero = PerCpuValues::try_from(vec![CustomerCounters::ZERO; self.cpus])?;
            present_is_fine(self.customers.insert(id, zero, NO_REPLACE))
        });
        inserted.map_err(|source| BpfError::Table {
            action: "write into",
            map: names::MAP_CUSTOMER_COUNTERS,
            source,
        })?;
        let inserted =
            patiently(|| present_is_fine(self.sketches.insert(id, Sketch::EMPTY, NO_REPLACE)));
        inserted.map_err(|source| BpfError::Table {
            action: "write into",
            map: names::MAP_SKETCHES,
            source,
        })
    }

    /// Forgets the counters of a customer that the policy no longer has.
    pub(super) fn forget(&mut self, id: CustomerId) -> Result<(), BpfError> {
        absent_is_fine(self.customers.remove(&id)).map_err(|source| BpfError::Table {
            action: "remove from",
            map: names::MAP_CUSTOMER_COUNTERS,
            source,
        })?;
        absent_is_fine(self.sketches.remove(&id)).map_err(|source| BpfError::Table {
            action: "remove from",
            map: names::MAP_SKETCHES,
            source,
        })
    }
}

/// What all CPUs together have counted.
fn sum(values: &[CustomerCounters]) -> CustomerCounters {
    values.iter().fold(CustomerCounters::ZERO, |mut sum, cpu| {
        sum.add(cpu);
        sum
    })
}

pub(super) fn typed<T>(
    open: impl Fn(&'static str) -> Result<MapData, BpfError>,
    name: &'static str,
    wrap: impl FnOnce(MapData) -> Result<T, MapError>,
) -> Result<T, BpfError> {
    wrap(open(name)?).map_err(|source| BpfError::Table {
        action: "open",
        map: name,
        source,
    })
}

fn key(set: SetId, prefix: &Prefix) -> Key<PrefixKey> {
    Key::new(
        PrefixKey::SET_BITS + u32::from(prefix.length),
        PrefixKey::new(set, prefix.address),
    )
}

pub(super) fn present<V>(
    result: Result<V, MapError>,
    map: &'static str,
) -> Result<Option<V>, BpfError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(BpfError::Table {
            action: "read",
            map,
            source,
        }),
    }
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => result,
    }
}

pub(super) fn present_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
        {
            Ok(())
        }
        result => result,
    }
}
