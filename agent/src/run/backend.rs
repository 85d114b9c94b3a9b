//! Chooses what enforces, and takes the other one's rules away once it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use gate25_common::abi::SkbLayout;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::tables::Tables;
use crate::chain::in_full;
use crate::features::Feature;
use crate::figures::Figures;
use crate::kernel::bpf::leftover::{Leftover, Removal};
use crate::kernel::bpf::pins::{Pins, PinsError};
use crate::kernel::bpf::{Attachment, Bpf, DebugLines, LoadOptions, events, skb};
use crate::kernel::links::Subscription;
use crate::kernel::nft::Nft;
use crate::kernel::nftables::{self, Nftables, Reject};
use crate::kernel::privileges;
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
    /// What it cannot do.
    pub(super) lacks: Option<String>,
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
) -> anyhow::Result<Either> {
    let ebpf = |reason| {
        let pins = pins.context("backend ebpf needs the BPF filesystem")?;
        open_ebpf(settings, pins, attachment, reason)
    };
    let nftables = |reason| open_nftables(settings, pins, reason);
    match settings.backend {
        Backend::Ebpf => ebpf("configured"),
        Backend::Nftables => nftables("configured"),
        Backend::Auto => ebpf("preferred").or_else(|error| {
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

fn open_ebpf(
    settings: &Settings,
    pins: &Pins,
    attachment: Attachment,
    reason: &'static str,
) -> anyhow::Result<Either> {
    privileges::require(&privileges::FOR_EBPF)?;
    let options = load_options(settings);
    let sees_checksums = options.layout.is_known();
    let mut bpf = Bpf::open(options, pins.clone(), attachment)?;
    let hook = bpf.hook();
    info!(hook, ports = ?settings.guarded_ports, mode = ?settings.enforcement, "programs loaded");
    let events = events::log(bpf.take_events()?);
    let mut tasks = vec![tokio::spawn(async move { drop(events.await) })];
    if let Some(lines) = bpf.take_debug_lines() {
        tasks.push(tokio::spawn(lines.follow()));
    }
    Ok(Either::Ebpf(Box::new(Opened {
        figures: Arc::new(bpf.counters()),
        choice: Choice {
            name: "ebpf",
            reason,
            hook,
            lacks: match (hook == "tcx", sees_checksums) {
                (true, true) => Vec::new(),
                (true, false) => vec![Feature::LateChecksums],
                (false, true) => vec![Feature::Redirection, Feature::ReturnPackets],
                (false, false) => vec![
                    Feature::LateChecksums,
                    Feature::Redirection,
                    Feature::ReturnPackets,
                ],
            },
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
        other: Other::Table(Nft::default()),
        lacks: None,
    })))
}

fn open_nftables(
    settings: &Settings,
    pins: Option<&Pins>,
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
    let backend = Nftables::open(Nft::default(), options)?;
    info!(ports = ?settings.guarded_ports, mode = ?settings.enforcement, "nftables enforces");
    let lacks = backend.lacks();
    Ok(Either::Nftables(Box::new(Opened {
        figures: Arc::new(backend.counters()),
        choice: Choice {
            name: "nftables",
            reason,
            hook: nftables::HOOK,
            lacks: lacks.clone(),
        },
        subscription: Subscription::Links,
        responders: Arc::new(Unled),
        dataplane: backend,
        tables,
        tasks: Vec::new(),
        other: match pins {
            Some(pins) => Other::Programs(pins.clone()),
            None => Other::None,
        },
        lacks: {
            let lacks: Vec<&str> = lacks.iter().map(|it| it.lack()).collect();
            let lacks = lacks.join("; ");
            Some(format!("backend nftables cannot do everything: {lacks}"))
        },
    })))
}

impl Other {
    /// Takes away what the other backend left, which enforces no longer alone. Returns what is
    /// wrong.
    pub(super) fn remove(&mut self) -> Option<String> {
        let removed = match std::mem::replace(self, Self::None) {
            Self::None => return None,
            Self::Table(nft) => match nftables::remove(&nft, Removal::Real) {
                Ok(tables) => tables,
                Err(error) => return complaint(&error),
            },
            Self::Programs(pins) => {
                let removals = Leftover::of(&pins).remove(Removal::Real);
                // The folder that keeps other agents away.
                if let Err(error) = pins.ensure() {
                    return complaint(&error);
                }
                if let Some(error) = removals.errors.first() {
                    return complaint(error);
                }
                let pins = removals.pins.iter();
                pins.map(|pin| pin.display().to_string()).collect()
            }
        };
        if removed.len() > 1 || removed.iter().any(|it| !it.starts_with('/')) {
            info!(count = removed.len(), "rules of the other backend removed");
        }
        None
    }
}

fn complaint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let error = in_full(error);
    warn!(error, "rules of the other backend not removed");
    Some(format!("rules of the other backend not removed: {error}"))
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
fn checksum_layout() -> SkbLayout {
    match skb::running_kernel() {
        Ok(layout) => layout,
        Err(error) => {
            let error = in_full(&error);
            warn!(
                error,
                "checksums that guests leave to the host are not watched"
            );
            SkbLayout::UNKNOWN
        }
    }
}
