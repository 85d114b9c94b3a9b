//! Entries of somebody else in a pinned table: they take the room of the agent's own.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use anyhow::Context as _;
use nix::libc;

use crate::{
    World,
    bpf::{self, MapInfo},
    poll,
};

const LIMIT: Duration = Duration::from_secs(20);
/// `enum bpf_map_type`.
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
/// Interfaces have no such numbers, or not before this many came and went.
const FIRST_INDEX: u32 = 0x4000_0000;

/// A pinned table with entries that nobody asked for.
#[derive(Debug)]
pub struct ForeignEntries {
    map: OwnedFd,
    info: MapInfo,
    value: Vec<u8>,
    /// How many are in, the first ones by number.
    count: u64,
}

impl ForeignEntries {
    /// Puts entries into the agent's table of this name until it takes no more. One that makes room
    /// by itself gets as many as it holds.
    ///
    /// # Errors
    /// When there is no such table, or the kernel refuses for another reason than the lack of room.
    pub fn fill(world: &World, name: &str) -> anyhow::Result<Self> {
        let pin = world.pinned_map(name)?;
        let map = world
            .hosting
            .hypervisor
            .run(|| bpf::open(&pin))?
            .with_context(|| format!("open {}", pin.display()))?;
        let info = bpf::map_info(&map).with_context(|| format!("ask for the shape of {name}"))?;
        // Tables with a value for each processor take that many.
        let value_bytes = info.value_size.next_multiple_of(8) as usize * processors()?;
        let mut entries = Self {
            map,
            info,
            value: vec![0; value_bytes],
            count: 0,
        };
        entries
            .fill_up()
            .with_context(|| format!("fill {name} after {} entries", entries.count))?;
        Ok(entries)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes so many out again.
    ///
    /// # Errors
    /// When the kernel refuses, or there are not so many.
    pub fn make_room(&mut self, entries: u64) -> anyhow::Result<()> {
        let left = self.count.checked_sub(entries);
        let left = left.with_context(|| format!("only {} entries", self.count))?;
        for number in left..self.count {
            let key = self.key(number);
            self.delete(&key)
                .with_context(|| format!("take entry {number} out"))?;
        }
        self.count = left;
        Ok(())
    }

    fn fill_up(&mut self) -> anyhow::Result<()> {
        let most = u64::from(self.info.max_entries);
        for number in 0..most {
            let key = self.key(number);
            match self.put_patiently(&key)? {
                Ok(()) => self.count += 1,
                Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        // It was empty before, or makes room by itself.
        Ok(())
    }

    /// The kernel takes memory for such entries from a stock that it refills by and by.
    fn put_patiently(&self, key: &[u8]) -> anyhow::Result<io::Result<()>> {
        poll("memory for an entry", LIMIT, || match self.put(key) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(None),
            result => Ok(Some(result)),
        })
    }

    fn put(&self, key: &[u8]) -> io::Result<()> {
        bpf::put(&self.map, key, &self.value)
    }

    fn delete(&self, key: &[u8]) -> io::Result<()> {
        bpf::delete(&self.map, key)
    }

    /// A key that is the agent's by accident only: of 64 bits or more, made from the number.
    fn key(&self, number: u64) -> Vec<u8> {
        let size = self.info.key_size as usize;
        if size == 4 {
            return (FIRST_INDEX + number as u32).to_le_bytes().to_vec();
        }
        let mut key = Vec::with_capacity(size + 8);
        if self.info.kind == BPF_MAP_TYPE_LPM_TRIE {
            let bits = (self.info.key_size - 4) * 8;
            key.extend(bits.to_le_bytes());
        }
        for word in 0.. {
            if key.len() >= size {
                break;
            }
            key.extend(mixed(number * 16 + word).to_le_bytes());
        }
        key.truncate(size);
        key
    }
}

/// Steele, Lea and Flood's splitmix64: another number for each.
fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Processors that there may be: the last number of `/sys/devices/system/cpu/possible`, and one.
fn processors() -> anyhow::Result<usize> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(FILE).with_context(|| format!("read {FILE}"))?;
    let last = text.trim().rsplit(['-', ',']).next();
    let last: Option<usize> = last.and_then(|last| last.parse().ok());
    last.map(|last| last + 1)
        .with_context(|| format!("no processors in {text:?}"))
}
