//! What the tables must look like for programs and agent of this version.

use std::path::Path;

use aya::maps::{MapError, MapInfo, MapType};
use gate25_common::abi::{
    CustomerId, CustomerPolicy, EVENTS_BYTES, InterfaceOwner, MAX_CUSTOMERS, MAX_PREFIXES,
    PrefixKey, PrefixValue,
};
use gate25_common::address::Family;
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::names;
use gate25_common::redirect::{
    Budget, Flow, Hindrances, MAX_BUDGETS, MAX_REDIRECTS, Redirected, SocketPeer,
};
use gate25_common::returns::ReturnCounters;

/// Bytes of a trie's key before its data.
const TRIE_LENGTH: usize = 4;

/// The form of a table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    kind: MapType,
    key: usize,
    value: usize,
    entries: usize,
}

impl Shape {
    /// The form that the table of this name must have; `None` for a name that is none of ours.
    pub(super) fn wanted(name: &str) -> Option<Self> {
        let (kind, key, value, entries) = match name {
            names::MAP_INTERFACES => (
                MapType::Hash,
                size_of::<u32>(),
                size_of::<InterfaceOwner>(),
                MAX_CUSTOMERS,
            ),
            names::MAP_CGROUPS => (
                MapType::Hash,
                size_of::<u64>(),
                size_of::<CustomerId>(),
                MAX_CUSTOMERS,
            ),
            names::MAP_CUSTOMERS => (
                MapType::Hash,
                size_of::<CustomerId>(),
                size_of::<CustomerPolicy>(),
                MAX_CUSTOMERS,
            ),
            names::MAP_PREFIXES => (
                MapType::LpmTrie,
                TRIE_LENGTH + size_of::<PrefixKey>(),
                size_of::<PrefixValue>(),
                MAX_PREFIXES,
            ),
            names::MAP_HOST_COUNTERS => (
                MapType::PerCpuArray,
                size_of::<u32>(),
                size_of::<HostCounters>(),
                1,
            ),
            names::MAP_CUSTOMER_COUNTERS => (
                MapType::PerCpuHash,
                size_of::<CustomerId>(),
                size_of::<CustomerCounters>(),
                MAX_CUSTOMERS,
            ),
            names::MAP_SKETCHES => (
                MapType::Hash,
                size_of::<CustomerId>(),
                size_of::<Sketch>(),
                MAX_CUSTOMERS,
            ),
            names::MAP_RETURN_COUNTERS => (
                MapType::PerCpuArray,
                size_of::<u32>(),
                size_of::<ReturnCounters>(),
                1,
            ),
            names::MAP_RETURN_CUSTOMERS => (
                MapType::PerCpuHash,
                size_of::<CustomerId>(),
                size_of::<ReturnCounters>(),
                MAX_CUSTOMERS,
            ),
            names::MAP_SOCKET_PEERS => (
                MapType::SkStorage,
                size_of::<u32>(),
                size_of::<SocketPeer>(),
                0,
            ),
            names::MAP_REDIRECTS => (
                MapType::LruHash,
                size_of::<Flow>(),
                size_of::<Redirected>(),
                MAX_REDIRECTS,
            ),
            names::MAP_BUDGETS => (
                MapType::LruHash,
                size_of::<u32>(),
                size_of::<Budget>(),
                MAX_BUDGETS,
            ),
            names::MAP_HINDRANCES => (
                MapType::PerCpuArray,
                size_of::<u32>(),
                size_of::<Hindrances>(),
                1,
            ),
            names::MAP_RESPONDERS => (
                MapType::SockMap,
                size_of::<u32>(),
                size_of::<u32>(),
                Family::ALL.len(),
            ),
            names::MAP_BYPASS => (MapType::Array, size_of::<u32>(), size_of::<Bypass>(), 1),
            names::MAP_SOCKETS => (MapType::SkStorage, size_of::<u32>(), size_of::<u64>(), 0),
            names::MAP_EVENTS => (MapType::RingBuf, 0, 0, EVENTS_BYTES),
            _ => return None,
        };
        Some(Self {
            kind,
            key,
            value,
            entries,
        })
    }

    /// The form of the table that is pinned at `path`; `None` if it is of a kind that nobody here knows.
    pub(super) fn pinned(path: &Path) -> Result<Option<Self>, MapError> {
        let info = MapInfo::from_pin(path)?;
        let Ok(kind) = info.map_type() else {
            return Ok(None);
        };
        Ok(Some(Self {
            kind,
            key: info.key_size() as usize,
            value: info.value_size() as usize,
            entries: info.max_entries() as usize,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_a_form_and_nothing_else() {
        for name in names::MAPS {
            assert!(
                Shape::wanted(name).is_some(),
                "{name} is replaced at every start"
            );
        }
        assert_eq!(Shape::wanted(names::PROGRAM_TC_INGRESS), None);
    }
}
