//! Chooses what enforces, and takes the other one's rules away once it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::tables::Tables;
use crate::chain::in_full;
use crate::dataplane::Dataplane as _;
use crate::features::Feature;
use crate::figures::Figures;
use crate::kernel::bpf::leftover::{Leftover, LeftoverError, Removals, Version};
use crate::kernel::bpf::pins::{Pins, PinsError};
use crate::kernel::bpf::skb::{self, SkbAccess};
use crate::kernel::bpf::{Attachment, Bpf, DebugLines, LoadOptions, events};
use crate::kernel::links::Subscription;
use crate::kernel::nft::Nft;
use crate::kernel::nftables::{self, Nftables, NftablesError, Reject};
use crate::kernel::privileges;
use crate::kernel::removal::Removal;
use crate::notice::{Lead, Unled};
use crate::settings::{Backend, LogLevel, Settings};
use crate::state::lock::ExclusiveLock;

/// A backend that is open, and what it needs around it.
pub(super) struct Opened<D> {
    pub(super) dataplane: D,
    pub(super) figures: Arc<dyn Figures>,
    pub(super) choice: Choice,
    pub(super) subscription: Subscription,
    pub(super) responders: Arc<dyn Lead>,
    pub(super) tables: Tables,
    /// What goes on beside the loop.
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) other: Other,
}

/// Which backend, why, and how it is hooked to interfaces.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) name: &'static str,
    pub(super) reason: &'static str,
    pub(super) hook: &'static str,
    /// What it cannot do here.
    pub(super) lacks: Vec<Feature>,
}

impl Choice {
    /// What it cannot do here, in a sentence.
    pub(super) fn shortcomings(&self) -> Option<String> {
        let lacks: Vec<&str> = self.lacks.iter().map(|it| it.lack()).collect();
        let (name, lacks) = (self.name, lacks.join("; "));
        (!lacks.is_empty()).then(|| format!("backend {name} cannot do everything here: {lacks}"))
    }
}

/// Either backend.
pub(super) enum Either {
    Ebpf(Box<Opened<Bpf>>),
    Nftables(Box<Opened<Nftables>>),
}

/// What an earlier agent with the other backend may have left.
pub(super) enum Other {
    /// Tables of nftables.
    Table(Nft),
    /// Programs, tables and links.
    Programs(Pins),
    /// Nothing, or it is gone.
    None,
}

/// The folder by whose lock a second agent is kept away, and the pins where there can be some.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) lock: ExclusiveLock,
    pub(super) pins: Option<Pins>,
}

impl Place {
    /// On the BPF filesystem; where there can be none, beside the control socket.
    pub(super) fn lock(settings: &Settings, filesystem: &Path) -> anyhow::Result<Self> {
        let (folder, pins) = match Pins::open(filesystem) {
            Ok(pins) => (pins.own_folder(), Some(pins)),
            // There may be an agent of another user, who holds the lock there.
            Err(error @ (PinsError::Closed { .. } | PinsError::Exposed(_))) => {
                return Err(error.into());
            }
            Err(error) => {
                let folder = match settings.backend {
                    Backend::Ebpf => return Err(error.into()),
                    Backend::Auto | Backend::Nftables => beside(&settings.control.socket),
                };
                let folder = folder.with_context(|| in_full(&error))?;
                let error = in_full(&error);
                warn!(error, "without a BPF filesystem there is no eBPF");
                (folder, None)
            }
        };
        let lock = ExclusiveLock::acquire(&folder)?;
        Ok(Self { folder, lock, pins })
    }
}

fn beside(socket: &Path) -> anyhow::Result<PathBuf> {
    let folder = socket
        .parent()
        .context("find the control socket's folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder.to_owned())
}

/// Opens the backend that the settings want, or else the best that there is.
pub(super) fn open(
    settings: &Settings,
    pins: Option<&Pins>,
    attachment: Attachment,
    nft: &Nft,
) -> anyhow::Result<Either> {
    let ebpf = |reason| {
        let pins = pins.context("backend ebpf needs the BPF filesystem")?;
        open_ebpf(settings, pins, attachment, nft, reason)
    };
    let nftables = |reason| open_nftables(settings, pins, nft, reason);
    match settings.backend {
        Backend::Ebpf => ebpf("configured"),
        Backend::Nftables => nftables("configured"),
        Backend::Auto => ebpf("preferred").or_else(|error| {
            // They judge sockets, which nftables cannot, and what hinders this start may pass.
            if pins.is_some_and(programs_enforce) {
                return Err(error.context("take over the programs that enforce here"));
            }
            let why = format!("{error:#}");
            match nftables("fallback") {
                Ok(opened) => {
                    warn!(why, "eBPF cannot be used, nftables enforces");
                    Ok(opened)
                }
                Err(nftables) => {
                    let nftables = format!("{nftables:#}");
                    warn!(nftables, "nor can nftables be used");
                    Err(error)
                }
            }
        }),
    }
}

/// Whether programs of an earlier start are attached, or may be.
fn programs_enforce(pins: &Pins) -> bool {
    let look = || -> Result<bool, LeftoverError> {
        let survey = Leftover::of(pins).survey()?;
        let is_linked = survey.versions.iter().any(|it| !it.links.is_empty());
        Ok(is_linked || !Leftover::filtered()?.is_empty())
    };
    look().unwrap_or_else(|error| {
        let error = in_full(&error);
        warn!(error, "what an earlier start left cannot be looked at");
        true
    })
}

fn open_ebpf(
    settings: &Settings,
    pins: &Pins,
    attachment: Attachment,
    nft: &Nft,
    reason: &'static str,
) -> anyhow::Result<Either> {
    privileges::require(&privileges::FOR_EBPF)?;
    let options = load_options(settings);
    let sees_checksums = options.layout.layout.is_known();
    let mut bpf = Bpf::open(options, pins.clone(), attachment)?;
    let hook = bpf.hook();
    info!(hook, ports = ?settings.guarded_ports, mode = ?settings.enforcement, "programs loaded");
    let events = events::log(bpf.take_events()?);
    let mut tasks = vec![tokio::spawn(events)];
    if let Some(lines) = bpf.take_debug_lines() {
        tasks.push(tokio::spawn(lines.follow()));
    }
    Ok(Either::Ebpf(Box::new(Opened {
        figures: Arc::new(bpf.counters()),
        choice: Choice {
            name: "ebpf",
            reason,
            hook,
            lacks: [
                (sees_checksums, Feature::LateChecksums),
                (bpf.replies().is_ok(), Feature::Redirection),
                (bpf.replies().is_ok(), Feature::ReturnPackets),
            ]
            .into_iter()
            .filter_map(|(can, feature)| (!can).then_some(feature))
            .collect(),
        },
        subscription: if hook == "tcx" {
            Subscription::Links
        } else {
            Subscription::LinksAndFilters
        },
        responders: Arc::new(bpf.responders()),
        dataplane: bpf,
        tables: Tables::unwatched(),
        tasks,
        other: Other::Table(nft.clone()).if_any(),
    })))
}

fn open_nftables(
    settings: &Settings,
    pins: Option<&Pins>,
    nft: &Nft,
    reason: &'static str,
) -> anyhow::Result<Either> {
    privileges::require(&privileges::FOR_NFTABLES)?;
    // Before the first look, so that no change falls between the two.
    let tables = Tables::watched()?;
    let options = nftables::Options {
        ports: settings.guarded_ports.clone(),
        host: settings.host_mode(),
        guard: settings.guard,
        reject: Reject::Reset,
    };
    let backend = Nftables::open(nft.clone(), options)?;
    info!(ports = ?settings.guarded_ports, mode = ?settings.enforcement, "nftables enforces");
    let lacks = backend.lacks();
    Ok(Either::Nftables(Box::new(Opened {
        figures: Arc::new(backend.counters()),
        choice: Choice {
            name: "nftables",
            reason,
            hook: nftables::HOOK,
            lacks,
        },
        subscription: Subscription::Links,
        responders: Arc::new(Unled),
        dataplane: backend,
        tables,
        tasks: Vec::new(),
        other: match pins {
            Some(pins) => Other::Programs(pins.clone()).if_any(),
            None => Other::None,
        },
    })))
}

/// Why rules of the other backend are still there.
#[derive(Debug, thiserror::Error)]
enum OtherError {
    #[error(transparent)]
    Table(#[from] NftablesError),
    #[error("{}", .0.iter().map(|it| in_full(it)).collect::<Vec<_>>().join("; "))]
    Programs(Vec<LeftoverError>),
    #[error(transparent)]
    Look(#[from] LeftoverError),
    #[error(transparent)]
    Folder(#[from] PinsError),
}

impl Other {
    /// None, if a look finds nothing to remove.
    fn if_any(self) -> Self {
        match self.is_there() {
            Ok(false) => Self::None,
            // What cannot be looked at may be there.
            Ok(true) | Err(_) => self,
        }
    }

    fn is_there(&self) -> Result<bool, OtherError> {
        match self {
            Self::None => Ok(false),
            Self::Table(nft) => Ok(!tables(nft, Removal::DryRun)?.is_empty()),
            Self::Programs(pins) => {
                let survey = Leftover::of(pins).survey()?;
                // Folders alone are this agent's.
                let is_pinned = survey.versions.iter().any(|version| {
                    let Version {
                        number: _,
                        tables,
                        links,
                        programs,
                    } = version;
                    !(tables.is_empty() && links.is_empty() && programs.is_empty())
                });
                Ok(is_pinned || !Leftover::filtered()?.is_empty())
            }
        }
    }

    /// Whether something of the other backend may be there.
    pub(super) fn is_any(&self) -> bool {
        match self {
            Self::Table(_) | Self::Programs(_) => true,
            Self::None => false,
        }
    }

    /// What it means that it has to stay for now.
    pub(super) fn stays(&self) -> Option<String> {
        let name = match self {
            Self::Table(_) => "nftables",
            Self::Programs(_) => "ebpf",
            Self::None => return None,
        };
        Some(format!(
            "rules of backend {name} still refuse by the policy of an earlier start, until every interface has its program"
        ))
    }

    /// Takes away what the other backend left, which enforces no longer alone. Returns what is
    /// wrong; another try may succeed then.
    pub(super) fn remove(&mut self) -> Option<String> {
        if let Err(error) = self.take_away() {
            return Some(format!(
                "rules of the other backend are not removed and still refuse by an earlier policy: {}",
                in_full(&error)
            ));
        }
        *self = Self::None;
        None
    }

    fn take_away(&self) -> Result<(), OtherError> {
        match self {
            Self::None => {}
            Self::Table(nft) => {
                let tables = tables(nft, Removal::Real)?;
                info!(?tables, "tables of the other backend removed");
            }
            Self::Programs(pins) => {
                let Removals {
                    pins: removed,
                    filters,
                    foreign: _,
                    errors,
                } = Leftover::of(pins).remove(Removal::Real);
                // The folder that keeps other agents away.
                pins.ensure()?;
                if !errors.is_empty() {
                    return Err(OtherError::Programs(errors));
                }
                let (pins, filters) = (removed.len(), filters.len());
                info!(pins, filters, "programs of the other backend removed");
            }
        }
        Ok(())
    }
}

/// The backend's tables. One that only has its name is not the other backend's.
fn tables(nft: &Nft, removal: Removal) -> Result<Vec<String>, NftablesError> {
    match nftables::remove(nft, removal) {
        Err(NftablesError::Foreign) => Ok(Vec::new()),
        tables => tables,
    }
}

fn load_options(settings: &Settings) -> LoadOptions {
    LoadOptions {
        ports: settings.guarded_ports.clone(),
        host: settings.host_mode(),
        guard: settings.guard,
        notice: settings.notice.listen.clone(),
        returns: settings.block_return,
        layout: checksum_layout(),
        debug_lines: match settings.log.level {
            LogLevel::Trace => DebugLines::On,
            LogLevel::Error | LogLevel::Warn | LogLevel::Info | LogLevel::Debug => DebugLines::Off,
        },
        pins: None,
    }
}

/// Where the kernel keeps the state of its packets' checksums. Without it a guest with a driver
/// of its own can have the host write another port into a packet that has passed.
fn checksum_layout() -> SkbAccess {
    match skb::running_kernel() {
        Ok(layout) => layout,
        Err(error) => {
            let error = in_full(&error);
            warn!(
                error,
                "checksums that guests leave to the host are not watched"
            );
            SkbAccess::UNKNOWN
        }
    }
}
