//! What agents have left in the kernel, read and removed without loading a program.
//!
//! What is gate25's own is told by its place: the folder on the BPF filesystem, and the names that
//! stand in it. Whatever else lies there is somebody else's.

mod folder;
mod objects;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError};
use gate25_common::abi::{CustomerId, CustomerPolicy};
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters};
use gate25_common::names;

use super::BpfError;
use super::bypass::BypassTable;
use super::pins::{OWN_FOLDER, Pins};
use super::place::Place;
use super::tables::CounterTables;
use crate::clock::ClockError;
use crate::kernel::filter::{Filter, FilterError, Filters, Removed};
use crate::kernel::links::{self, Interface, LinkError};
use crate::kernel::removal::Removal;
pub use folder::{Pinned, Survey, Version};

/// Why what was left could not be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A table could not be read.
    #[error("read table {}", path.display())]
    Table {
        /// Where it is pinned.
        path: PathBuf,
        /// What the kernel said.
        source: MapError,
    },
    /// The counters could not be read.
    #[error(transparent)]
    Counters(#[from] BpfError),
    /// A filter could not be handled.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The interfaces could not be listed.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// The clocks could not be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
}

/// Everything that is pinned under one BPF filesystem.
#[derive(Debug, Clone)]
pub struct Leftover {
    folder: PathBuf,
}

/// What the tables of this version's agents hold.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Owners by interface index.
    pub interfaces: BTreeMap<u32, CustomerId>,
    /// Owners by cgroup id.
    pub cgroups: BTreeMap<u64, CustomerId>,
    /// What applies to customers.
    pub customers: BTreeMap<CustomerId, CustomerPolicy>,
}

/// What was removed.
#[derive(Debug, Default)]
pub struct Removals {
    /// Pins and folders.
    pub pins: Vec<PathBuf>,
    /// Interfaces from which a filter was taken.
    pub filters: Vec<Interface>,
    /// What is not gate25's and stays.
    pub foreign: Vec<PathBuf>,
    /// What could not be removed.
    pub errors: Vec<LeftoverError>,
}

impl Leftover {
    /// What is pinned on the BPF filesystem at `filesystem`.
    #[must_use]
    pub fn at(filesystem: &Path) -> Self {
        Self {
            folder: filesystem.join(OWN_FOLDER),
        }
    }

    /// What these pins, and those of other versions beside them, are.
    #[must_use]
    pub fn of(pins: &Pins) -> Self {
        Self {
            folder: pins.own_folder(),
        }
    }

    /// The folder, which a running agent has locked.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is anything.
    ///
    /// # Errors
    /// [`LeftoverError::Io`]: most likely, only root may look.
    pub fn exists(&self) -> Result<bool, LeftoverError> {
        match fs::symlink_metadata(&self.folder) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("look at", &self.folder)(source)),
        }
    }

    /// Everything in the folder.
    ///
    /// # Errors
    /// [`LeftoverError::Io`].
    pub fn survey(&self) -> Result<Survey, LeftoverError> {
        folder::survey(&self.folder)
    }

    /// What the tables hold; `None` where no agent of this version has made any.
    ///
    /// # Errors
    /// [`LeftoverError`].
    pub fn contents(&self) -> Result<Option<Contents>, LeftoverError> {
        let customers = self.table(names::MAP_CUSTOMERS);
        if !customers.exists() {
            return Ok(None);
        }
        let failed = |source| LeftoverError::Table {
            path: customers.clone(),
            source,
        };
        let map = MapData::from_pin(&customers).map_err(failed)?;
        let map: HashMap<MapData, CustomerId, CustomerPolicy> =
            HashMap::try_from(Map::HashMap(map)).map_err(failed)?;
        Ok(Some(Contents {
            interfaces: self.owners(names::MAP_INTERFACES, u32::from_ne_bytes)?,
            cgroups: self.owners(names::MAP_CGROUPS, u64::from_ne_bytes)?,
            customers: map.iter().collect::<Result<_, _>>().map_err(failed)?,
        }))
    }

    /// Interfaces that have an owner in the tables of this version's agents; `None` without such
    /// a table.
    ///
    /// # Errors
    /// [`LeftoverError::Io`].
    pub fn owned_interfaces(&self) -> Result<Option<BTreeMap<u32, CustomerId>>, LeftoverError> {
        if !self.table(names::MAP_INTERFACES).exists() {
            return Ok(None);
        }
        self.owners(names::MAP_INTERFACES, u32::from_ne_bytes)
            .map(Some)
    }

    /// The programs that are pinned, and where pinned links attach some.
    ///
    /// # Errors
    /// [`LeftoverError::Io`].
    pub fn pinned(&self) -> Result<Pinned, LeftoverError> {
        match self.exists()? {
            true => folder::pinned(&self.folder),
            false => Ok(Pinned::default()),
        }
    }

    /// Where pinned links attach programs.
    ///
    /// # Errors
    /// [`LeftoverError::Io`].
    pub fn links(&self) -> Result<Vec<Place>, LeftoverError> {
        folder::links(&self.folder)
    }

    /// Until when the programs only observe.
    ///
    /// # Errors
    /// [`LeftoverError::Counters`].
    pub fn bypass(&self) -> Result<Bypass, LeftoverError> {
        Ok(self.bypass_table()?.read()?)
    }

    /// Has the programs refuse again, as an agent does that ends a bypass.
    ///
    /// # Errors
    /// [`LeftoverError::Counters`].
    pub fn end_bypass(&self) -> Result<(), LeftoverError> {
        Ok(self.bypass_table()?.write(&Bypass::NONE)?)
    }

    fn bypass_table(&self) -> Result<BypassTable, LeftoverError> {
        let open = |name| {
            MapData::from_pin(self.table(name)).map_err(|source| BpfError::Table {
                action: "open",
                map: name,
                source,
            })
        };
        Ok(BypassTable::open(open)?)
    }

    /// Totals of the host.
    ///
    /// # Errors
    /// [`LeftoverError::Counters`].
    pub fn host(&self) -> Result<HostCounters, LeftoverError> {
        Ok(self.counters()?.host()?)
    }

    /// Totals of these customers; none of one that never had a workload here.
    ///
    /// # Errors
    /// [`LeftoverError::Counters`].
    pub fn customers(
        &self,
        ids: impl Iterator<Item = CustomerId>,
    ) -> Result<BTreeMap<CustomerId, CustomerCounters>, LeftoverError> {
        let counters = self.counters()?;
        let mut totals = BTreeMap::new();
        for id in ids {
            if let Some(found) = counters.customer(id)? {
                totals.insert(id, found);
            }
        }
        Ok(totals)
    }

    /// Interfaces of this network namespace that bear gate25's filter, on kernels without tcx.
    ///
    /// # Errors
    /// [`LeftoverError::Links`], [`LeftoverError::Filter`].
    pub fn filtered() -> Result<Vec<Interface>, LeftoverError> {
        let mut filters = Filters::open()?;
        let mut filtered = Vec::new();
        for interface in links::snapshot()? {
            if filters.list(interface.index)?.iter().any(Filter::is_ours) {
                filtered.push(interface);
            }
        }
        Ok(filtered)
    }

    /// Removes everything: what attaches programs first, then programs and tables. Goes on after
    /// an error. The caller sees to it that no agent runs.
    #[must_use]
    pub fn remove(&self, removal: Removal) -> Removals {
        let mut removals = Removals::default();
        remove_filters(removal, &mut removals);
        match self.exists() {
            Ok(true) => folder::remove(&self.folder, removal, &mut removals),
            Ok(false) => {}
            Err(error) => removals.errors.push(error),
        }
        removals
    }

    fn table(&self, name: &str) -> PathBuf {
        let version = format!("v{}", names::ABI_VERSION);
        self.folder.join(version).join(name)
    }

    fn counters(&self) -> Result<CounterTables, BpfError> {
        CounterTables::open(|name| {
            MapData::from_pin(self.table(name)).map_err(|source| BpfError::Table {
                action: "open",
                map: name,
                source,
            })
        })
    }

    /// A table of owners: whatever else a value holds, the customer comes first.
    fn owners<const N: usize, K: Ord>(
        &self,
        name: &str,
        key: impl Fn([u8; N]) -> K,
    ) -> Result<BTreeMap<K, CustomerId>, LeftoverError> {
        let path = self.table(name);
        let rows = match objects::rows(&path) {
            Ok(rows) => rows,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(failed("read table", &path)(source)),
        };
        let mut owners = BTreeMap::new();
        for (row, value) in rows {
            let owner = value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
            let (Some(row), Some(owner)) = (row.first_chunk::<N>(), owner) else {
                let torn = io::Error::from(io::ErrorKind::InvalidData);
                return Err(failed("read table", &path)(torn));
            };
            owners.insert(key(*row), CustomerId::from_raw(owner));
        }
        Ok(owners)
    }
}

fn remove_filters(removal: Removal, removals: &mut Removals) {
    let filtered = match Leftover::filtered() {
        Ok(filtered) => filtered,
        Err(error) => {
            removals.errors.push(error);
            return;
        }
    };
    if removal == Removal::DryRun {
        removals.filters = filtered;
        return;
    }
    let mut filters = match Filters::open() {
        Ok(filters) => filters,
        Err(error) => {
            removals.errors.push(error.into());
            return;
        }
    };
    for interface in filtered {
        match filters.detach(interface.index) {
            Ok(Removed::Filter) => removals.filters.push(interface),
            Ok(Removed::Nothing) => {}
            Err(error) if error.is_gone() => {}
            Err(error) => removals.errors.push(error.into()),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LeftoverError {
    let path = path.to_owned();
    move |source| LeftoverError::Io {
        action,
        path,
        source,
    }
}
