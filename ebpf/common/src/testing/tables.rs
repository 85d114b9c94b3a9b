//! The policy's tables in memory, read in the plainest way there is.

use std::collections::BTreeMap;

use crate::abi::{CustomerId, CustomerPolicy, PrefixValue, SetId};
use crate::address::Address;
use crate::decide::Tables;

/// Tables of one workload.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables {
    /// Who owns the workload.
    pub owner: Option<CustomerId>,
    /// Every customer's policy.
    pub policies: BTreeMap<CustomerId, CustomerPolicy>,
    /// Every set's prefixes: address, bits that count, and value.
    pub prefixes: BTreeMap<SetId, BTreeMap<(Address, u8), PrefixValue>>,
    /// The time.
    pub now: u64,
}

impl MemoryTables {
    /// The same tables, read for a workload of `owner`.
    pub fn owned_by(&self, owner: Option<CustomerId>) -> Self {
        Self {
            owner,
            ..self.clone()
        }
    }

    /// Adds `prefix` of `length` bits, as the source with index `entry`, to `set`.
    pub fn insert(&mut self, set: SetId, prefix: Address, length: u8, entry: u16) {
        self.prefixes
            .entry(set)
            .or_default()
            .insert((prefix, length), PrefixValue::new(entry, length));
    }
}

impl Tables for MemoryTables {
    fn owner(&self) -> Option<CustomerId> {
        self.owner
    }

    fn policy(&self, customer: CustomerId) -> Option<&CustomerPolicy> {
        self.policies.get(&customer)
    }

    fn prefix(&self, set: SetId, address: &Address) -> Option<PrefixValue> {
        self.prefixes
            .get(&set)?
            .iter()
            .filter(|((prefix, length), _)| covers(*prefix, *length, *address))
            .max_by_key(|((_, length), _)| *length)
            .map(|(_, value)| *value)
    }

    fn now(&self) -> u64 {
        self.now
    }
}

fn covers(prefix: Address, length: u8, address: Address) -> bool {
    let prefix = u128::from_be_bytes(prefix.octets());
    let address = u128::from_be_bytes(address.octets());
    match length {
        0 => true,
        length => (prefix ^ address) >> (128 - u32::from(length)) == 0,
    }
}
