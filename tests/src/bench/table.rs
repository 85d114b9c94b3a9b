//! Tables of programs, pinned by the agent or made for a measurement.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::Context as _;

use crate::{NetNs, bench::Program, bpf};

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;

/// A table of the kernel's.
#[derive(Debug)]
pub struct Table {
    map: OwnedFd,
}

impl Table {
    /// The one that is pinned at `pin` in `ns`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pinned(ns: &NetNs, pin: &Path) -> anyhow::Result<Self> {
        let map = ns.run(|| bpf::open(pin))??;
        Ok(Self { map })
    }

    /// A new one that holds these numbers by index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_numbers(numbers: &[u64]) -> anyhow::Result<Self> {
        let count = u32::try_from(numbers.len()).context("so many numbers")?;
        let map = bpf::create(BPF_MAP_TYPE_ARRAY, (4, 8), count)?;
        let table = Self { map };
        for (index, number) in (0u32..).zip(numbers) {
            table.put(&index.to_ne_bytes(), &number.to_ne_bytes())?;
        }
        Ok(table)
    }

    /// A new one that leads tail calls to `program`, at index 0.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leading_to(program: &Program) -> anyhow::Result<Self> {
        let map = bpf::create(BPF_MAP_TYPE_PROG_ARRAY, (4, 4), 1)?;
        let table = Self { map };
        let fd = program.descriptor().as_raw_fd();
        table.put(&0u32.to_ne_bytes(), &fd.to_ne_bytes())?;
        Ok(table)
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put(&self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        bpf::put(&self.map, key, value).context("write into a table")
    }

    /// What the kernel says that it takes of memory, in bytes (since 6.4 what it really takes, less
    /// a trie's inner nodes).
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let file = format!("/proc/self/fdinfo/{}", self.map.as_raw_fd());
        let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        line.and_then(|number| number.trim().parse().ok())
            .with_context(|| format!("no memlock in {file}"))
    }

    /// For [`crate::bench::Instructions::table`].
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.map
    }
}
