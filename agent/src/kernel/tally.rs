//! What a table of nftables counts, over all tables that had its name: whoever flushes the ruleset takes
//! the counters along, and what comes after the last look at them is lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::counters;
use super::netlink::NetlinkError;
use crate::netfilter::Table;

/// The named counters of a table.
#[derive(Debug)]
pub(crate) struct Tally {
    table: Table,
    read: Option<Instant>,
    totals: BTreeMap<String, Total>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Of tables that are gone, and of the one that is there.
#[derive(Debug, Clone, Copy, Default)]
struct Total {
    before: Count,
    now: Count,
}

impl Tally {
    pub(crate) fn new(table: Table) -> Self {
        Self {
            table,
            read: None,
            totals: BTreeMap::new(),
        }
    }

    /// How long ago the counters were read.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.read.map(|at| at.elapsed())
    }

    /// Reads the counters, if the table is there.
    pub(crate) fn read(&mut self) -> Result<(), NetlinkError> {
        self.add(counters::of_table(self.table)?);
        self.read = Some(Instant::now());
        Ok(())
    }

    fn add(&mut self, listed: Vec<(String, Count)>) {
        // Every table of ours has counters.
        if listed.is_empty() {
            self.lost();
        }
        for (name, count) in listed {
            let total = self.totals.entry(name).or_default();
            if count.packets < total.now.packets {
                total.close();
            }
            total.now = count;
        }
    }

    /// The table is gone: counting begins anew.
    pub(crate) fn lost(&mut self) {
        self.totals.values_mut().for_each(Total::close);
    }

    /// Whether there was ever a counter of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.totals.contains_key(name)
    }

    pub(crate) fn packets(&self, name: &str) -> u64 {
        self.sum(name).packets
    }

    pub(crate) fn sum(&self, name: &str) -> Count {
        self.totals.get(name).map(Total::sum).unwrap_or_default()
    }
}

impl Total {
    fn close(&mut self) {
        self.before = self.sum();
        self.now = Count::default();
    }

    fn sum(&self) -> Count {
        Count {
            packets: self.before.packets + self.now.packets,
            bytes: self.before.bytes + self.now.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::TABLES;

    #[test]
    fn count_goes_on_over_tables_that_went() {
        let mut tally = Tally::new(TABLES[0]);
        let listed = |packets| {
            let bytes = packets * 60;
            vec![("n".to_owned(), Count { packets, bytes })]
        };
        assert!(!tally.has("n"));
        for (packets, total) in [(3, 3), (5, 5), (2, 7), (2, 7), (4, 9)] {
            tally.add(listed(packets));
            assert_eq!(tally.packets("n"), total);
        }
        tally.lost();
        tally.add(Vec::new());
        assert_eq!(tally.sum("n").bytes, 9 * 60);
        // As many as before, in another table.
        tally.add(listed(4));
        assert_eq!(tally.packets("n"), 13);
    }
}
