//! The eBPF backend: loads the object, writes its tables, attaches its programs.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, iter};

use aya::maps::{MapData, MapError, RingBuf};
use aya::programs::{Program, ProgramError, ProgramType, SchedClassifier};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use gate25_common::abi::{CustomerId, InterfaceOwner, MAX_GUARDED_PORTS};
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::decide::HostMode;
use gate25_common::names;
use gate25_common::redirect::{Flow, Hindrances, MAX_TARGET_PORTS, Redirected};
use gate25_common::returns::ReturnCounters;

use crate::chain::in_full;
use crate::dataplane::{
    Applied, Attached, BypassError, CapacityError, Dataplane, Lost, MapImage, Returns, Site, Step,
    plan,
};
use crate::figures::{Figures, FiguresError};
use crate::guard::Mark;
use crate::kernel::bpf::attachments::Attachments;
use crate::kernel::bpf::bypass::BypassTable;
use crate::kernel::bpf::debug_lines::DebugLog;
use crate::kernel::bpf::pins::{Pins, PinsError};
use crate::kernel::bpf::programs::Programs;
use crate::kernel::bpf::responders::Responders;
use crate::kernel::bpf::returns::ReturnTables;
use crate::kernel::bpf::skb::SkbAccess;
use crate::kernel::bpf::tables::{CounterTables, PolicyTables};
use crate::kernel::cgroups::{CgroupError, Hierarchy};
use crate::kernel::filter::FilterError;
use crate::policy::RELAY_PORT;

mod attachments;
mod batch;
mod bypass;
mod cast;
pub mod debug_lines;
pub mod events;
pub mod features;
pub mod hooks;
mod inherit;
pub mod leftover;
mod link;
mod patience;
pub mod pins;
pub mod place;
mod programs;
mod responders;
mod returns;
mod shape;
pub mod skb;
mod tables;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate25"));
static OBJECT_WITH_LOG: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate25-log"));

/// Lines of the verifier's log that an error shows: the reason is at its end.
const VERIFIER_LINES: usize = 12;

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Privileges are missing.
    #[error(
        "not allowed to load programs into the kernel: run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    Privileges(#[source] Box<EbpfError>),
    /// The object was not accepted.
    #[error("load the programs into the kernel")]
    Load(#[source] Box<EbpfError>),
    /// The verifier did not accept a program.
    #[error("the kernel refuses program {name}; the verifier's last lines:\n{log}\n")]
    Verifier {
        /// Its name.
        name: &'static str,
        /// The end of what the verifier wrote.
        log: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program could not be used.
    #[error("use program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The object lacks something.
    #[error("the built object has no {kind} {name}")]
    Missing {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The host's settings do not fit.
    #[error("{0} guarded ports; between 1 and {MAX_GUARDED_PORTS} are possible")]
    Ports(usize),
    /// A table could not be used.
    #[error("{action} table {map}")]
    Table {
        /// What was attempted.
        action: &'static str,
        /// On which table.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A table could not be read as a whole.
    #[error("read all of table {map}")]
    Whole {
        /// Which table.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The number of CPUs could not be found out.
    #[error("read the number of CPUs from {file}")]
    Cpus {
        /// Where from.
        file: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The policy does not fit.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The folder of pins could not be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A link could not be handled.
    #[error("{action} the program on {place}")]
    Link {
        /// What was attempted.
        action: &'static str,
        /// The interface, or the cgroup and the hook.
        place: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whether a cgroup was removed could not be found out.
    #[error("programs stay on a cgroup that is no root any more")]
    Removed(#[source] CgroupError),
    /// Somebody attached a program without leave for others.
    #[error(
        "program {hook} is refused: a program of somebody else is attached exclusively to this cgroup or one above it (`bpftool cgroup tree` shows it)"
    )]
    Exclusive {
        /// The program that has no place.
        hook: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A cgroup's directory could not be opened.
    #[error("open the directory of cgroup {}", path.display())]
    Cgroup {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pin could not be handled.
    #[error("use pin {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What an earlier start has pinned could not be looked at: nobody knows whether it is fit.
    #[error("look at what is pinned at {}", path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A descriptor could not be kept.
    #[error("duplicate a descriptor")]
    Descriptor(#[source] io::Error),
    /// A filter could not be handled.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The debug lines cannot be read.
    #[error("follow the programs' debug lines")]
    DebugLines(#[source] aya_log::Error),
    /// The reactor does not watch a descriptor.
    #[error("watch a ring buffer")]
    Reactor(#[source] io::Error),
}

/// Whether the programs' own debug lines are compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugLines {
    /// No code and no table for them.
    Off,
    /// They are written to the agent's log.
    On,
}

/// How the programs attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// tcx where the kernel has it (6.6), else a filter.
    Auto,
    /// A filter of priority 1 on an `ingress` qdisc.
    Filter,
}

/// What a load depends on.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Guarded TCP ports.
    pub ports: Vec<u16>,
    /// Whether refusals are carried out at all.
    pub host: HostMode,
    /// The bit of the packet's mark by which the guard knows what was judged; `None` without one.
    pub guard: Option<Mark>,
    /// Where the notice is told, at most once a family.
    pub notice: Vec<SocketAddr>,
    /// What becomes of packets that come back from guarded ports.
    pub returns: Returns,
    /// How the state of a packet's checksum is read.
    pub layout: SkbAccess,
    /// Whether the object with debug lines is taken.
    pub debug_lines: DebugLines,
    /// Where tables are pinned; `None` ties them to this process (tests).
    pub pins: Option<Pins>,
}

/// Loads the object and its programs, on the pinned tables where there are some.
///
/// # Errors
///
/// [`BpfError`].
pub fn load(options: &LoadOptions) -> Result<Ebpf, BpfError> {
    let LoadOptions {
        ports,
        host,
        guard,
        notice,
        returns,
        layout,
        debug_lines,
        pins,
    } = options;
    let (ports, count) = guarded_ports(ports)?;
    let block_return = match returns {
        Returns::Open => 0u8,
        Returns::Judged => 1u8,
    };
    let targets = target_ports(notice);
    let observes = match host {
        HostMode::Policy => 0u8,
        HostMode::Observe => 1u8,
    };
    let mark = guard.map_or(0, Mark::get);
    let has_set_retval = u8::from(refusals_carry_an_error()?);
    let object = cast::led(object(*debug_lines), layout);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::GLOBAL_GUARDED_PORTS, &ports, true)
        .override_global(names::GLOBAL_GUARDED_COUNT, &count, true)
        .override_global(names::GLOBAL_HOST_OBSERVES, &observes, true)
        .override_global(names::GLOBAL_GUARD_MARK, &mark, true)
        .override_global(names::GLOBAL_TARGET_PORTS, &targets, true)
        .override_global(names::GLOBAL_SKB_LAYOUT, &layout.layout, true)
        .override_global(names::GLOBAL_BLOCK_RETURN, &block_return, true)
        .override_global(names::GLOBAL_HAS_SET_RETVAL, &has_set_retval, true);
    if let Some(pins) = pins {
        for name in names::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(object.bytes()).map_err(load_error)?;
    for name in names::PROGRAMS {
        load_program(&mut ebpf, name)?;
    }
    Ok(ebpf)
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
    let failed = |error| program_error(name, error);
    let missing = BpfError::Missing {
        kind: "program",
        name,
    };
    let program = ebpf.program_mut(name).ok_or(missing)?;
    let loaded = if let Program::CgroupSkb(program) = program {
        program.load()
    } else if let Program::CgroupSockAddr(program) = program {
        program.load()
    } else if let Program::CgroupSock(program) = program {
        program.load()
    } else {
        let program: Result<&mut SchedClassifier, _> = program.try_into();
        program.and_then(SchedClassifier::load)
    };
    loaded.map_err(failed)?;
    let info = program.info().map_err(failed)?;
    tracing::debug!(
        name,
        id = info.id(),
        verified_instructions = info.verified_instruction_count(),
        "program accepted by the verifier"
    );
    Ok(())
}

/// Whether the connect hooks can choose the error that a refused connect ends in (kernel 5.18).
fn refusals_carry_an_error() -> Result<bool, BpfError> {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .map_err(|error| program_error(names::PROGRAM_CGROUP_CONNECT4, error))
}

fn object(debug_lines: DebugLines) -> &'static [u8] {
    match debug_lines {
        DebugLines::Off => OBJECT,
        DebugLines::On => OBJECT_WITH_LOG,
    }
}

fn program_error(name: &'static str, error: ProgramError) -> BpfError {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(VERIFIER_LINES);
        BpfError::Verifier {
            name,
            log: lines[last..].join("\n"),
            source: io_error,
        }
    } else {
        BpfError::Program {
            name,
            source: Box::new(error),
        }
    }
}

fn guarded_ports(ports: &[u16]) -> Result<([u16; MAX_GUARDED_PORTS], u8), BpfError> {
    let mut slots = [0; MAX_GUARDED_PORTS];
    match slots.get_mut(..ports.len()) {
        Some(used) if !ports.is_empty() => {
            for (slot, port) in used.iter_mut().zip(ports) {
                *slot = port.to_be();
            }
            Ok((slots, ports.len() as u8))
        }
        _ => Err(BpfError::Ports(ports.len())),
    }
}

/// Ports from which connections that were led elsewhere are answered, in network order; 0 for none.
fn target_ports(notice: &[SocketAddr]) -> [u16; MAX_TARGET_PORTS] {
    let ports = iter::once(RELAY_PORT).chain(notice.iter().map(SocketAddr::port));
    let mut slots = [0; MAX_TARGET_PORTS];
    for (slot, port) in slots.iter_mut().zip(ports) {
        *slot = port.to_be();
    }
    slots
}

fn load_error(error: EbpfError) -> BpfError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if inner
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            return BpfError::Privileges(Box::new(error));
        }
        source = inner.source();
    }
    BpfError::Load(Box::new(error))
}

/// The counters, for whoever reports them while the backend works.
#[derive(Clone)]
pub struct Counters {
    tables: Arc<Mutex<CounterTables>>,
    returns: Arc<Mutex<ReturnTables>>,
    bypass: BypassTable,
}

impl Counters {
    fn tables(&self) -> MutexGuard<'_, CounterTables> {
        // Nothing is left half-done in the tables when a reader panics.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn returned(&self) -> MutexGuard<'_, ReturnTables> {
        // As above.
        self.returns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures for Counters {
    fn host(&self) -> Result<HostCounters, FiguresError> {
        self.tables().host().map_err(FiguresError::new)
    }

    fn customer(&self, id: CustomerId) -> Result<Option<CustomerCounters>, FiguresError> {
        self.tables().customer(id).map_err(FiguresError::new)
    }

    fn customers(&self, ids: &[CustomerId]) -> Result<Vec<Option<CustomerCounters>>, FiguresError> {
        self.tables().customers(ids).map_err(FiguresError::new)
    }

    fn sketch(&self, id: CustomerId) -> Result<Option<Sketch>, FiguresError> {
        self.tables().sketch(id).map_err(FiguresError::new)
    }

    fn returns(&self) -> Result<ReturnCounters, FiguresError> {
        self.returned().host().map_err(FiguresError::new)
    }

    fn customer_returns(&self, id: CustomerId) -> Result<Option<ReturnCounters>, FiguresError> {
        self.returned().customer(id).map_err(FiguresError::new)
    }

    fn redirected(&self, flow: &Flow) -> Result<Option<Redirected>, FiguresError> {
        self.tables().redirected(flow).map_err(FiguresError::new)
    }

    fn hindrances(&self) -> Result<Hindrances, FiguresError> {
        self.tables().hindrances().map_err(FiguresError::new)
    }

    fn bypass(&self) -> Result<Bypass, FiguresError> {
        self.bypass.read().map_err(FiguresError::new)
    }

    fn clear_sketch(&self, id: CustomerId) -> Result<(), FiguresError> {
        self.tables().clear_sketch(id).map_err(FiguresError::new)
    }
}

/// The eBPF backend.
pub struct Bpf {
    tables: PolicyTables,
    counters: Counters,
    returns: Returns,
    responders: Responders,
    events: Option<RingBuf<MapData>>,
    debug_lines: Option<DebugLog>,
    pinned_tables: Vec<(&'static str, OwnedFd)>,
    pins: Pins,
    installed: MapImage,
    programs: Programs,
    attachments: Attachments,
    hierarchy: Option<Hierarchy>,
    /// Roots that are gone, for all that is known, while sockets of theirs are not.
    removed: BTreeSet<u64>,
    adopted: Adopted,
}

/// Whether what an earlier agent attached has the programs of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adopted {
    /// Not before the tables are filled.
    NotYet,
    Yes,
}

impl Bpf {
    /// Takes over the tables, programs and attachments that an earlier agent left, and makes what
    /// is missing. What is attached stays as it is until [`Dataplane::adopt`].
    ///
    /// # Errors
    ///
    /// [`BpfError`].
    pub fn open(
        options: LoadOptions,
        pins: Pins,
        attachment: Attachment,
    ) -> Result<Self, BpfError> {
        let options = LoadOptions {
            pins: Some(pins.clone()),
            ..options
        };
        discard_unfit(&pins)?;
        inherit::inherit(&pins)?;
        let reused = match options.debug_lines {
            DebugLines::Off => Programs::reopen(&options, &pins)?,
            DebugLines::On => None,
        };
        let mut debug_lines = None;
        let programs = match reused {
            Some(programs) => programs,
            None => {
                let mut ebpf = load(&options)?;
                let programs = Programs::of(&mut ebpf, &options)?;
                match options.debug_lines {
                    DebugLines::Off => programs.pin(&pins)?,
                    DebugLines::On => debug_lines = Some(DebugLog::open(&mut ebpf)?),
                }
                programs
            }
        };
        let open = |name| {
            MapData::from_pin(pins.map(name)).map_err(|source| BpfError::Table {
                action: "open",
                map: name,
                source,
            })
        };
        let tables = PolicyTables::open(open)?;
        let mut counters = CounterTables::open(open)?;
        counters.track(CustomerId::UNASSIGNED)?;
        let mut returns = ReturnTables::open(open)?;
        let responders = Responders::open(open)?;
        let bypass = BypassTable::open(open)?;
        let events = RingBuf::try_from(aya::maps::Map::RingBuf(open(names::MAP_EVENTS)?));
        let events = events.map_err(|source| BpfError::Table {
            action: "open",
            map: names::MAP_EVENTS,
            source,
        })?;
        let pinned_tables = names::MAPS
            .into_iter()
            .map(|name| Ok((name, open_pin(&pins.map(name))?)))
            .collect::<Result<_, BpfError>>()?;
        let installed = tables.read()?;
        match options.returns {
            Returns::Open => {}
            Returns::Judged => {
                // Owners that an earlier agent wrote when nobody asked for this.
                let owners = installed.interfaces.values().map(InterfaceOwner::customer);
                let mut owners = owners.chain([CustomerId::UNASSIGNED]);
                owners.try_for_each(|owner| returns.track(owner))?;
            }
        }
        let attachments = Attachments::open(&programs, pins.clone(), attachment)?;
        Ok(Self {
            tables,
            counters: Counters {
                tables: Arc::new(Mutex::new(counters)),
                returns: Arc::new(Mutex::new(returns)),
                bypass,
            },
            returns: options.returns,
            responders,
            events: Some(events),
            debug_lines,
            pinned_tables,
            pins,
            installed,
            programs,
            attachments,
            removed: BTreeSet::new(),
            hierarchy: None,
            adopted: Adopted::NotYet,
        })
    }

    /// Has cgroups that were removed told from those that are no roots any more.
    pub fn look_into(&mut self, hierarchy: Option<Hierarchy>) {
        self.hierarchy = hierarchy;
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// The table of sockets to which senders are led.
    pub fn responders(&self) -> Responders {
        self.responders.clone()
    }

    /// The name of the interfaces' hook in metrics.
    pub fn hook(&self) -> &'static str {
        self.attachments.hook()
    }

    /// Looks which of these interfaces an earlier agent covered in a way that leaves no pin.
    ///
    /// # Errors
    ///
    /// [`BpfError::Filter`].
    pub fn discover(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), BpfError> {
        self.attachments.discover(interfaces)
    }

    /// The ring buffer of events.
    ///
    /// # Errors
    ///
    /// [`BpfError::Missing`] if it was taken before.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, BpfError> {
        self.events.take().ok_or(BpfError::Missing {
            kind: "map",
            name: names::MAP_EVENTS,
        })
    }

    /// The debug lines of the object that has them.
    pub fn take_debug_lines(&mut self) -> Option<DebugLog> {
        self.debug_lines.take()
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), BpfError> {
        for step in steps {
            if let Some(customer) = step.owner() {
                self.counters.tables().track(customer)?;
            }
            match (step, self.returns) {
                (Step::PutInterface(_, owner), Returns::Judged) => {
                    self.counters.returned().track(owner.customer())?;
                }
                (_, Returns::Open | Returns::Judged) => {}
            }
            self.tables.write(step)?;
            step.apply_to(&mut self.installed);
            if let Step::RemoveCustomer(customer) = step {
                self.counters.tables().forget(*customer)?;
                self.counters.returned().forget(*customer)?;
            }
        }
        Ok(())
    }

    /// Undoes what a failed change has done.
    fn roll_back(&mut self, before: &MapImage, failed: Option<&Step>) {
        // A set that failed half-way is known to nobody; it goes first.
        let leftover = failed.and_then(|step| match step {
            Step::AddSet(set, prefixes) => Some(Step::RemoveSet(*set, Arc::clone(prefixes))),
            Step::PutCustomer(..)
            | Step::PutInterface(..)
            | Step::RemoveInterface(_)
            | Step::PutCgroup(..)
            | Step::RemoveCgroup(_)
            | Step::RemoveCustomer(_)
            | Step::RemoveSet(..) => None,
        });
        let undone = plan(&self.installed, before)
            .map_err(BpfError::from)
            .and_then(|steps| self.run(&leftover.into_iter().chain(steps).collect::<Vec<_>>()));
        if let Err(error) = undone {
            tracing::error!(
                error = in_full(&error),
                "a failed change could not be taken back: the kernel's tables may hold a part of it"
            );
        }
    }
}

impl Dataplane for Bpf {
    type Error = BpfError;

    const LOST: Lost = Lost::WithTheAgent;

    fn installed(&self) -> &MapImage {
        &self.installed
    }

    fn apply(&mut self, wanted: &MapImage) -> Result<Applied, BpfError> {
        let steps = plan(&self.installed, wanted)?;
        let before = self.installed.clone();
        for step in &steps {
            if let Err(error) = self.run(std::slice::from_ref(step)) {
                self.roll_back(&before, Some(step));
                return Err(error);
            }
        }
        // The same, in memory that is shared with who wants it.
        self.installed = wanted.clone();
        Ok(Applied {
            writes: steps.iter().map(Step::writes).sum(),
        })
    }

    fn adopt(&mut self) -> Result<usize, BpfError> {
        match self.adopted {
            Adopted::Yes => Ok(0),
            Adopted::NotYet => {
                let changed = self.attachments.adopt(&self.programs)?;
                self.pins.remove_leftovers(self.programs.digest())?;
                self.adopted = Adopted::Yes;
                Ok(changed)
            }
        }
    }

    fn covered(&self) -> BTreeSet<Site> {
        self.attachments.covered()
    }

    fn attach_interface(&mut self, index: u32) -> Result<Attached, BpfError> {
        self.attachments.attach_interface(&self.programs, index)
    }

    fn replies(&self) -> Result<(), &'static str> {
        if self.attachments.has_replies() {
            Ok(())
        } else {
            Err("what goes to guests is not seen without tcx (Linux 6.6)")
        }
    }

    fn attach_replies(&mut self, index: u32) -> Result<Attached, BpfError> {
        self.attachments.attach_replies(&self.programs, index)
    }

    fn attach_root(&mut self, id: u64, directory: &Path) -> Result<Attached, BpfError> {
        let failed = |source| BpfError::Cgroup {
            path: directory.to_owned(),
            source,
        };
        // A path of its own is enough, whatever its owner has made of the directory's mode.
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY);
        let cgroup = match options.open(directory) {
            Ok(cgroup) => cgroup,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Attached::Vanished);
            }
            Err(source) => return Err(failed(source)),
        };
        // Another one of the same name may have taken its place.
        if cgroup.metadata().map_err(failed)?.ino() != id {
            return Ok(Attached::Vanished);
        }
        self.attachments
            .attach_root(&self.programs, id, cgroup.as_fd())
    }

    fn detach(&mut self, site: Site) -> Result<(), BpfError> {
        if let (Site::Root(id), Some(hierarchy)) = (site, &self.hierarchy)
            && self.attachments.are_in_use(id)?
        {
            // No other one will ever have the number of one that is gone: asked once, since the answer may take
            // a look through all of them.
            if !self.removed.contains(&id) {
                match hierarchy.path_of(id) {
                    Ok(Some(_)) => return self.attachments.detach(site),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(
                        id,
                        error = in_full(&error),
                        "programs stay while sockets do: whether their cgroup is gone is not known"
                    ),
                }
                self.removed.insert(id);
            }
            return Ok(());
        }
        if let Site::Root(id) = site {
            self.removed.remove(&id);
        }
        self.attachments.detach(site)
    }

    fn displaced(&mut self, among: &BTreeSet<Site>) -> Result<BTreeSet<Site>, BpfError> {
        self.attachments.displaced(&self.programs, among)
    }

    fn bypass(&mut self, bypass: &Bypass) -> Result<(), BypassError<BpfError>> {
        let written = self.counters.bypass.write(bypass);
        written.map_err(BypassError::Backend)
    }

    fn repin(&mut self) -> Result<usize, BpfError> {
        self.pins.ensure()?;
        let mut missing = self.attachments.repin()?;
        for (name, map) in &self.pinned_tables {
            let path = self.pins.map(name);
            if !path.exists() {
                link::pin(map.as_fd(), &path).map_err(|source| BpfError::Pin { path, source })?;
                missing += 1;
            }
        }
        // Without their pins the next start loads programs of its own and replaces them.
        if missing > 0 && self.debug_lines.is_none() {
            self.programs.pin(&self.pins)?;
        }
        Ok(missing)
    }
}

fn open_pin(path: &Path) -> Result<OwnedFd, BpfError> {
    link::open(path).map_err(|source| BpfError::Pin {
        path: path.to_owned(),
        source,
    })
}

/// Removes pins in the places of our tables that are not what our programs work with. Whatever is
/// attached goes on with what it has until it is replaced.
fn discard_unfit(pins: &Pins) -> Result<(), BpfError> {
    for name in names::MAPS {
        let path = pins.map(name);
        if !inherit::is_there(&path)? {
            continue;
        }
        if !inherit::fits(&path, name)? {
            tracing::warn!(pin = %path.display(), "pin is no table of this version, replaced");
            pins::remove(&path)?;
        }
    }
    Ok(())
}
