//! The kernel's tables in memory, as the decision reads them.

use gate25_common::abi::{CustomerId, CustomerPolicy, PrefixValue, SetId};
use gate25_common::address::Address;
use gate25_common::decide::Tables;

use crate::compile::longest;
use crate::dataplane::MapImage;

/// Tables as they are for one workload at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TablesAt<'i> {
    image: &'i MapImage,
    owner: CustomerId,
    policy: Option<CustomerPolicy>,
    now: u64,
}

impl<'i> TablesAt<'i> {
    /// The tables of `image` for a workload of `owner`; `now` is in nanoseconds of the clock of the
    /// image's deadlines.
    pub(crate) fn new(image: &'i MapImage, owner: CustomerId, now: u64) -> Self {
        Self {
            image,
            owner,
            policy: image.customers.get(&owner),
            now,
        }
    }
}

impl Tables for TablesAt<'_> {
    fn owner(&self) -> Option<CustomerId> {
        Some(self.owner)
    }

    fn policy(&self, customer: CustomerId) -> Option<&CustomerPolicy> {
        // Nobody else's is asked for.
        self.policy.as_ref().filter(|_| customer == self.owner)
    }

    fn prefix(&self, set: SetId, address: &Address) -> Option<PrefixValue> {
        let prefixes = self.image.sets.get(&set)?;
        longest(prefixes, address).map(|prefix| prefix.value())
    }

    fn now(&self) -> u64 {
        self.now
    }
}
