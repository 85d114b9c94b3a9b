//! The eBPF backend: loads the object, writes its tables, attaches its program.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, MapError, RingBuf};
use aya::programs::{Program, ProgramError, ProgramType, SchedClassifier};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use gate25_common::abi::{CustomerId, MAX_GUARDED_PORTS, SkbLayout};
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::decide::HostMode;
use gate25_common::names;

use crate::dataplane::{Applied, Attached, CapacityError, Dataplane, MapImage, Step, plan};
use crate::kernel::bpf::hook::Hook;
use crate::kernel::bpf::pins::{Pins, PinsError};
use crate::kernel::bpf::tables::{CounterTables, PolicyTables};
use crate::kernel::filter::FilterError;

mod debug_lines;
pub mod events;
mod hook;
mod link;
pub mod pins;
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
    #[error("{action} the program on interface {interface}")]
    Link {
        /// What was attempted.
        action: &'static str,
        /// Index of the interface.
        interface: u32,
        /// What the kernel said.
        source: io::Error,
    },
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
    /// Where the kernel keeps the state of its packets' checksums.
    pub layout: SkbLayout,
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
        layout,
        debug_lines,
        pins,
    } = options;
    let (ports, count) = guarded_ports(ports)?;
    let observes = match host {
        HostMode::Policy => 0u8,
        HostMode::Observe => 1u8,
    };
    let has_set_retval = u8::from(refusals_carry_an_error()?);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::GLOBAL_GUARDED_PORTS, &ports, true)
        .override_global(names::GLOBAL_GUARDED_COUNT, &count, true)
        .override_global(names::GLOBAL_HOST_OBSERVES, &observes, true)
        .override_global(names::GLOBAL_SKB_LAYOUT, layout, true)
        .override_global(names::GLOBAL_HAS_SET_RETVAL, &has_set_retval, true);
    if let Some(pins) = pins {
        for name in names::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let object = match debug_lines {
        DebugLines::Off => OBJECT,
        DebugLines::On => OBJECT_WITH_LOG,
    };
    let mut ebpf = loader.load(object).map_err(load_error)?;
    for name in names::PROGRAMS {
        load_program(&mut ebpf, name)?;
    }
    Ok(ebpf)
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
    let failed = |error| program_error_of(name, error);
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

fn program_error(error: ProgramError) -> BpfError {
    program_error_of(names::PROGRAM_TC_INGRESS, error)
}

fn program_error_of(name: &'static str, error: ProgramError) -> BpfError {
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

/// Whether the connect hooks can choose the error that a refused connect ends in (kernel 5.18).
fn refusals_carry_an_error() -> Result<bool, BpfError> {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .map_err(|error| program_error_of(names::PROGRAM_CGROUP_CONNECT4, error))
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

fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, BpfError> {
    let missing = BpfError::Missing {
        kind: "program",
        name: names::PROGRAM_TC_INGRESS,
    };
    let program = ebpf.program_mut(names::PROGRAM_TC_INGRESS).ok_or(missing)?;
    program.try_into().map_err(program_error)
}

/// The counters, for whoever reports them while the backend works.
#[derive(Clone)]
pub struct Counters(Arc<Mutex<CounterTables>>);

impl Counters {
    /// Totals of the host.
    ///
    /// # Errors
    ///
    /// [`BpfError::Table`].
    pub fn host(&self) -> Result<HostCounters, BpfError> {
        self.tables().host()
    }

    /// Totals of a customer; `None` for one that never had a workload here.
    ///
    /// # Errors
    ///
    /// [`BpfError::Table`].
    pub fn customer(&self, id: CustomerId) -> Result<Option<CustomerCounters>, BpfError> {
        self.tables().customer(id)
    }

    /// Destinations of a customer since its sketch was last cleared.
    ///
    /// # Errors
    ///
    /// [`BpfError::Table`].
    pub fn sketch(&self, id: CustomerId) -> Result<Option<Sketch>, BpfError> {
        self.tables().sketch(id)
    }

    /// Starts a customer's sketch afresh.
    ///
    /// # Errors
    ///
    /// [`BpfError::Table`].
    pub fn clear_sketch(&self, id: CustomerId) -> Result<(), BpfError> {
        self.tables().clear_sketch(id)
    }

    fn tables(&self) -> MutexGuard<'_, CounterTables> {
        // Nothing is left half-done in the tables when a reader panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The eBPF backend.
pub struct Bpf {
    ebpf: Ebpf,
    tables: PolicyTables,
    counters: Counters,
    installed: MapImage,
    hook: Hook,
}

impl Bpf {
    /// Loads the programs and takes over the tables and attachments that an earlier agent left.
    ///
    /// # Errors
    ///
    /// [`BpfError`].
    pub fn open(
        options: LoadOptions,
        pins: Pins,
        attachment: Attachment,
    ) -> Result<Self, BpfError> {
        let mut ebpf = load(&LoadOptions {
            pins: Some(pins.clone()),
            ..options
        })?;
        let open = |name| {
            MapData::from_pin(pins.map(name)).map_err(|source| BpfError::Table {
                action: "open",
                map: name,
                source,
            })
        };
        let tables = PolicyTables::open(open)?;
        let counters = Counters(Arc::new(Mutex::new(CounterTables::open(open)?)));
        let installed = tables.read()?;
        let hook = Hook::open(program(&mut ebpf)?, pins, attachment)?;
        Ok(Self {
            ebpf,
            tables,
            counters,
            installed,
            hook,
        })
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// The name of the hook in metrics.
    pub fn hook(&self) -> &'static str {
        match self.hook {
            Hook::Tcx { .. } => "tcx",
            Hook::Filter { .. } => "tc",
        }
    }

    /// The ring buffer of events.
    ///
    /// # Errors
    ///
    /// [`BpfError::Missing`] if it was taken before.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, BpfError> {
        let missing = BpfError::Missing {
            kind: "map",
            name: names::MAP_EVENTS,
        };
        let map = self.ebpf.take_map(names::MAP_EVENTS).ok_or(missing)?;
        RingBuf::try_from(map).map_err(|source| BpfError::Table {
            action: "open",
            map: names::MAP_EVENTS,
            source,
        })
    }

    /// Writes the debug lines of the object that has them to the log, as they come.
    ///
    /// # Errors
    ///
    /// [`BpfError::DebugLines`].
    pub fn debug_lines(&mut self) -> Result<impl Future<Output = ()> + Send + use<>, BpfError> {
        debug_lines::follow(&mut self.ebpf)
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), BpfError> {
        for step in steps {
            if let Some(customer) = step.owner() {
                self.counters.tables().track(customer)?;
            }
            self.tables.write(step)?;
            step.apply_to(&mut self.installed);
            if let Step::RemoveCustomer(customer) = step {
                self.counters.tables().forget(*customer)?;
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
                error = &error as &dyn std::error::Error,
                "roll back a failed change"
            );
        }
    }
}

impl Dataplane for Bpf {
    type Error = BpfError;

    fn installed(&self) -> &MapImage {
        &self.installed
    }

    fn apply(&mut self, wanted: &MapImage) -> Result<Applied, BpfError> {
        let steps = plan(&self.installed, wanted)?;
        self.counters.tables().track(CustomerId::UNASSIGNED)?;
        let before = self.installed.clone();
        for step in &steps {
            if let Err(error) = self.run(std::slice::from_ref(step)) {
                self.roll_back(&before, Some(step));
                return Err(error);
            }
        }
        Ok(Applied {
            writes: steps.iter().map(Step::writes).sum(),
        })
    }

    fn covered(&self) -> Vec<u32> {
        match &self.hook {
            Hook::Tcx { links, .. } => links.keys().copied().collect(),
            Hook::Filter { interfaces, .. } => interfaces.keys().copied().collect(),
        }
    }

    fn attach(&mut self, index: u32) -> Result<Attached, BpfError> {
        let program = program_fd(&mut self.ebpf)?;
        self.hook.attach(program.as_fd(), index)
    }

    fn detach(&mut self, index: u32) -> Result<(), BpfError> {
        self.hook.detach(index)
    }

    fn displaced(&mut self, among: &BTreeSet<u32>) -> Result<Vec<u32>, BpfError> {
        let program = program(&mut self.ebpf)?;
        let id = program.info().map_err(program_error)?.id();
        self.hook.displaced(id, among)
    }
}

fn program_fd(ebpf: &mut Ebpf) -> Result<OwnedFd, BpfError> {
    let fd = program(ebpf)?.fd().map_err(program_error)?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| program_error(ProgramError::IOError(error)))
}
