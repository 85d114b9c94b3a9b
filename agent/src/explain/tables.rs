//! The kernel's tables in memory, as the decision reads them.

use gate25_common::abi::{CustomerId, CustomerPolicy, PrefixValue, SetId};
use gate25_common::address::Address;
use gate25_common::decide::Tables;

use crate::compile::longest;
use crate::dataplane::MapImage;

/// Tables as they are for one workload at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TablesAt<'i> {
    /// The tables.
    pub(crate) image: &'i MapImage,
    /// Whose workload it is.
    pub(crate) owner: CustomerId,
    /// The moment, in nanoseconds of the clock of the image's deadlines.
    pub(crate) now: u64,
}

impl Tables for TablesAt<'_> {
    fn owner(&self) -> Option<CustomerId> {
        Some(self.owner)
    }

    fn policy(&self, customer: CustomerId) -> Option<&CustomerPolicy> {
        self.image.customers.get(&customer)
    }

    fn prefix(&self, set: SetId, address: &Address) -> Option<PrefixValue> {
        let prefixes = self.image.sets.get(&set)?;
        longest(prefixes, address).map(|prefix| prefix.value())
    }

    fn now(&self) -> u64 {
        self.now
    }
}
