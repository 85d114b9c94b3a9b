//! Settings of this host: `gate25.yaml`.
//!
//! Parts of the language that this version does not have are refused where they ask for something;
//! nothing is accepted and ignored.

mod cgroups;
mod language;
mod notice;
mod scalar;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gate25_common::decide::HostMode;
use serde::Serialize;

use crate::dataplane::Returns;
use crate::diagnostic::{Diagnostic, Problems};
use crate::guard::Mark;
use crate::policy::Pattern;
use crate::policy::directory::{Links, open_regular, read_bounded};
use crate::trust::{Trust, TrustError};

/// Where the settings are, unless somebody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/gate25/gate25.yaml";

/// What applies on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether refusals are carried out at all.
    pub enforcement: Enforcement,
    /// What `hosts:` is matched against; `None` means the host's name.
    pub host: Option<String>,
    /// Where the policy is.
    pub policy_dir: PathBuf,
    /// Where the agent keeps what it must find again; never inside `policy_dir`.
    pub state_dir: PathBuf,
    /// What enforces.
    pub backend: Backend,
    /// How the guard knows packets that were judged; `None` without a guard.
    pub guard: Option<Mark>,
    /// Destination ports that are judged: 1 to 8, distinct, sorted.
    pub guarded_ports: Vec<u16>,
    /// What becomes of packets that come back to guests from these ports.
    pub block_return: Returns,
    /// Which interfaces are workloads.
    pub interfaces: Interfaces,
    /// Which cgroups are workloads.
    pub cgroups: Cgroups,
    /// When the policy is read again.
    pub reload: Reload,
    /// The HTTP endpoint.
    pub http: Http,
    /// Where commands reach the agent.
    pub control: Control,
    /// The SMTP notice.
    pub notice: crate::notice::Settings,
    /// What is logged, and how.
    pub log: Log,
}

/// Whether refusals are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Nothing is refused, whatever the policy says.
    Observe,
    /// The policy decides.
    Policy,
}

/// What enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The best that the host has.
    Auto,
    /// eBPF only.
    Ebpf,
    /// nftables only.
    Nftables,
}

/// Which interfaces are workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interfaces {
    /// Patterns of those that are.
    pub matched: Vec<Pattern>,
    /// Patterns of those among them that are not.
    pub ignored: Vec<Pattern>,
}

/// Which cgroups are workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Patterns of paths below the cgroup2 mount, without a leading or trailing slash. What lies
    /// below a matching cgroup is judged, and the cgroup itself; none lies below another, none is
    /// a cgroup of the host's own services. None means no containers.
    pub roots: Vec<Pattern>,
}

/// When the policy is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reload {
    /// How long nothing must have changed.
    pub quiet_time: Duration,
    /// How often the files are compared, changes seen or not.
    pub rescan: Duration,
    /// A set that loses more objects than this part of them is not applied unasked: 1 to 100.
    pub max_shrink_percent: u8,
    /// Sets with fewer objects than this may shrink as they like.
    pub shrink_min_objects: u32,
}

/// The HTTP endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Addresses to listen on; none means off.
    pub listen: Vec<SocketAddr>,
    /// TLS and passwords, in the form of Prometheus's exporters.
    pub web_config: Option<PathBuf>,
    /// Customers with series of their own.
    pub customer_series_limit: u32,
}

/// Where commands reach the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The socket; at most 107 bytes.
    pub socket: PathBuf,
    /// Whose members may read and reload.
    pub group: String,
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least important that is logged.
    pub level: LogLevel,
    /// How it is written.
    pub format: LogFormat,
}

/// Importance of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Not enforcing.
    Error,
    /// Degraded.
    Warn,
    /// Changes of state.
    Info,
    /// Details; may hold addresses.
    Debug,
    /// Every packet.
    Trace,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// To the journal where it is connected, else text.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
    /// The journal's own protocol.
    Journal,
}

impl Settings {
    /// Whether refusals are carried out, as the decision takes it.
    #[must_use]
    pub fn host_mode(&self) -> HostMode {
        match self.enforcement {
            Enforcement::Policy => HostMode::Policy,
            Enforcement::Observe => HostMode::Observe,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Policy,
            host: None,
            policy_dir: PathBuf::from("/etc/gate25/policy.d"),
            state_dir: PathBuf::from("/var/lib/gate25"),
            backend: Backend::Auto,
            guard: Some(Mark::DEFAULT),
            guarded_ports: vec![25],
            block_return: Returns::Open,
            interfaces: Interfaces {
                matched: ["tap*", "vnet*", "veth*i*"].map(Pattern::new).to_vec(),
                ignored: Vec::new(),
            },
            cgroups: Cgroups {
                roots: [
                    "machine.slice",
                    "lxc",
                    "lxc.payload.*",
                    "kubepods.slice",
                    "docker",
                ]
                .map(Pattern::new)
                .to_vec(),
            },
            reload: Reload {
                quiet_time: Duration::from_millis(300),
                rescan: Duration::from_secs(60),
                max_shrink_percent: 50,
                shrink_min_objects: 20,
            },
            http: Http {
                listen: vec![SocketAddr::from(([127, 0, 0, 1], 9425))],
                web_config: None,
                customer_series_limit: 1000,
            },
            control: Control {
                socket: PathBuf::from("/run/gate25/control.sock"),
                group: "gate25".to_owned(),
            },
            notice: crate::notice::Settings::default(),
            log: Log {
                level: LogLevel::Info,
                format: LogFormat::Auto,
            },
        }
    }
}

/// Settings and what somebody should look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What somebody should look at.
    pub warnings: Vec<Diagnostic>,
}

/// What a missing file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The defaults.
    Defaults,
    /// An error: somebody named the file.
    Refused,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could have written it.
    #[error("the settings are not gone by")]
    Exposed(#[from] TrustError),
    /// The file is wrong: everything that is, in one go.
    #[error("{} is not valid", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Errors first, then warnings.
        diagnostics: Vec<Diagnostic>,
    },
}

/// Reads the settings from a file, which must have been written by those whom `trust` names.
///
/// # Errors
/// See [`SettingsError`].
pub fn read(path: &Path, missing: Missing, trust: &Trust) -> Result<Loaded, SettingsError> {
    let read = || -> io::Result<_> {
        let file = open_regular(path, Links::Followed)?.ok_or_else(not_a_file)?;
        let mut bytes = Vec::new();
        read_bounded(&file, &mut bytes)?;
        Ok((file.metadata()?, bytes))
    };
    let bytes = match read() {
        Ok((metadata, bytes)) => {
            if let Trust::Keepers(keepers) = trust {
                keepers.judge(path, &metadata).map_err(TrustError::from)?;
                keepers.judge_way(path)?;
            }
            bytes
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Defaults => {
            return Ok(Loaded::default());
        }
        Err(source) => {
            return Err(SettingsError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    parse(&Arc::from(path), &bytes).map_err(|diagnostics| SettingsError::Invalid {
        path: path.to_owned(),
        diagnostics,
    })
}

/// Settings from a file's contents; `file` is its name in messages.
///
/// # Errors
/// Everything that is wrong with it: errors first, then warnings.
pub fn parse(file: &Arc<Path>, bytes: &[u8]) -> Result<Loaded, Vec<Diagnostic>> {
    let mut problems = Problems::default();
    let settings = language::read(file, bytes, &mut problems);
    let refused = problems.has_errors();
    let diagnostics = problems.finish(&BTreeMap::from([(&**file, bytes)]));
    match settings {
        Some(settings) if !refused => Ok(Loaded {
            settings,
            warnings: diagnostics,
        }),
        Some(_) | None => Err(diagnostics),
    }
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "this is not a regular file")
}
