//! `gate25 run`: puts the parts together and keeps them going.

mod backend;
mod bypass;
mod containers;
mod doctor;
mod guard;
mod mounts;
mod notice;
mod routes;
mod senders;
mod serve;
mod sockets;
mod store;
mod tables;
mod timing;
mod trial;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chain::in_full;
use crate::clock::{ClockWatch, Offset};
use crate::dataplane::Dataplane;
use crate::figures::Figures;
use crate::guard::Guard;
use crate::kernel::bpf::{Attachment, Bpf};
use crate::kernel::guard::Unmarked;
use crate::kernel::links::{self, Links};
use crate::kernel::nft::Nft;
use crate::kernel::privileges;
use crate::kernel::routes::way_to;
use crate::metrics::{Constants, Metrics, Timings};
use crate::notice::Lead;
use crate::notice::counts::Counts;
use crate::notice::server::{Listener, Responder};
use crate::notify::{Environment, Notifier};
use crate::policy::shrink::Limits;
use crate::reconcile::{Circumstances, Reconciler};
use crate::run::backend::{Choice, Either, Opened, Place};
use crate::run::bypass::Bypassing;
use crate::run::containers::Containers;
use crate::run::doctor::Doctor;
use crate::run::guard::Keeper;
use crate::run::mounts::Mounts;
use crate::run::notice::Notice;
use crate::run::routes::Routes;
use crate::run::senders::Senders;
use crate::run::serve::{Agent, Files, Reloads};
use crate::run::sockets::Sweeper;
use crate::run::store::Store;
use crate::run::timing::after_every;
use crate::run::trial::Trials;
use crate::settings::Settings;
use crate::source::PolicyFiles;
use crate::status::{Shared, Subject};
use crate::watch::PolicyWatch;
use crate::workloads::Host;
use crate::{control, http, notice as responder};

/// How often the windows of distinct destinations begin anew.
const SKETCH_WINDOW: Duration = Duration::from_secs(3600);
/// Requests of the control socket that wait for the loop.
const COMMANDS: usize = 16;

/// Where a run finds what is not in the settings.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// A BPF filesystem, mounted there if it is not.
    pub bpf_filesystem: PathBuf,
    /// How programs attach.
    pub attachment: Attachment,
    /// The host's name, where the settings give none.
    pub hostname: String,
    /// What the service manager told.
    pub notify: Environment,
}

/// Enforces until `shutdown` is cancelled. What is in the kernel stays there.
///
/// # Errors
///
/// If enforcement cannot begin, or another agent does it already.
pub async fn run(
    settings: Settings,
    surroundings: Surroundings,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    raise_open_files();
    let Place { folder, lock, pins } = Place::lock(&settings, &surroundings.bpf_filesystem)?;
    let notifier = Arc::new(notifier(&surroundings.notify));
    // The loop waits for this one.
    let nft = Nft::default().watched_by(Arc::clone(&notifier));
    let opened = backend::open(&settings, pins.as_ref(), surroundings.attachment, &nft)?;
    // Every other thread did at its start.
    privileges::confine_to_enforcing()?;
    let base = Base {
        notifier,
        host: Host {
            name: settings.host.clone().unwrap_or(surroundings.hostname),
            interfaces: settings.interfaces.clone(),
            roots: settings.cgroups.roots.clone(),
        },
        mounts: Mounts::watch(folder, lock)?,
        doctor: Doctor::new(&settings, &surroundings.bpf_filesystem),
        settings,
    };
    match opened {
        Either::Ebpf(opened) => {
            let prepare = |bpf: &mut Bpf, containers: &Containers, interfaces| {
                bpf.look_into(containers.hierarchy().cloned());
                // Filters leave no pins: they are found by looking.
                bpf.discover(&interfaces)
            };
            enforce(base, *opened, prepare, shutdown).await
        }
        Either::Nftables(opened) => enforce(base, *opened, |_, _, _| Ok(()), shutdown).await,
    }
}

/// What a run has whichever backend it uses.
struct Base {
    settings: Settings,
    notifier: Arc<Notifier>,
    host: Host,
    mounts: Mounts,
    doctor: Doctor,
}

async fn enforce<D: Dataplane>(
    base: Base,
    opened: Opened<D>,
    prepare: impl FnOnce(&mut D, &Containers, BTreeSet<u32>) -> Result<(), D::Error>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Base {
        settings,
        notifier,
        host,
        mounts,
        doctor,
    } = base;
    let Opened {
        mut dataplane,
        figures,
        choice,
        subscription,
        responders,
        tables,
        tasks,
        other,
    } = opened;
    let shortcomings = choice.shortcomings();
    let status = Shared::default();
    let timings = Timings::new()?;
    let (commands, requests) = mpsc::channel(COMMANDS);
    let (listeners, notice) = Notice::new();
    let reporting = Reporting {
        status: status.clone(),
        listeners,
        responders,
        figures: Arc::clone(&figures),
        timings: timings.clone(),
        choice,
    };
    let servers = reporting.serve(&settings, &host.name, commands, &shutdown);
    let containers = Containers::open(&settings.cgroups.roots, &host.name);
    let circumstances = Circumstances {
        notice: settings.notice.listen.clone(),
        returns: settings.block_return,
        way_to: |address| way_to(address).map_err(|error| in_full(&error)),
        cgroup_mount: containers.mount(),
        policy_dir: settings.policy_dir.clone(),
        shrink: Limits {
            max_percent: settings.reload.max_shrink_percent,
            min_objects: settings.reload.shrink_min_objects,
        },
        status: status.clone(),
        timings,
        host,
    };
    let mut agent = Agent {
        links: Links::open(subscription)?,
        subscription,
        watch: PolicyWatch::new(
            &settings.policy_dir,
            settings.reload.quiet_time,
            settings.reload.rescan,
        )?,
        rescans: after_every(settings.reload.rescan),
        clock: ClockWatch::new()?,
        mounts,
        tables,
        routes: Routes::watched(),
        other,
        guard: Keeper::new(Guard::new(&settings)),
        doctor,
        notice,
        sweeper: Sweeper::new(settings.guarded_ports.clone(), settings.host_mode()),
        files: Files::Idle(PolicyFiles::new(settings.policy_dir.clone())),
        store: Store::new(settings.state_dir.clone()),
        trials: Trials::new(settings.state_dir.clone(), settings.policy_dir.clone()),
        trial_unkept: None,
        bypassing: Bypassing::of(&*figures),
        mode: settings.host_mode(),
        reconciler: {
            let interfaces = links::snapshot()?;
            let indices = interfaces.iter().map(|interface| interface.index).collect();
            prepare(&mut dataplane, &containers, indices)?;
            Reconciler::new(dataplane, circumstances, Offset::sample()?)?
        },
        containers,
        requests,
        reloads: Reloads::default(),
        notifier,
        announced: false,
        unheard: false,
        status: status.clone(),
        dirty: true,
        hoards: true,
    };
    agent.reconciler.complain(Subject::Backend, shortcomings);
    let windows = tokio::spawn(sketch_windows(status, figures));
    let ended = shutdown
        .run_until_cancelled(async {
            agent.start().await?;
            agent.serve().await
        })
        .await;
    agent.stopping();
    for task in tasks.into_iter().chain([windows]) {
        task.abort();
    }
    shutdown.cancel();
    for server in servers {
        server.await?;
    }
    info!("agent stops, enforcement stays");
    ended.unwrap_or(Ok(()))
}

/// Every attached interface is an open file, and every container's namespace for a moment; the
/// soft limit is for programs that still use select(2).
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(error = in_full(&error), "open files stay limited");
    }
}

fn notifier(environment: &Environment) -> Notifier {
    match Notifier::from_environment(environment, std::process::id()) {
        Ok(notifier) => notifier,
        Err(error) => {
            let error = in_full(&error);
            warn!(error, "the service manager is not told how things are");
            Notifier::silent()
        }
    }
}

/// What the servers tell.
struct Reporting {
    status: Shared,
    /// Where the notice's responder says how listening goes.
    listeners: watch::Sender<Vec<Listener>>,
    /// What leads senders to it.
    responders: Arc<dyn Lead>,
    figures: Arc<dyn Figures>,
    timings: Timings,
    choice: Choice,
}

impl Reporting {
    fn serve(
        self,
        settings: &Settings,
        host: &str,
        commands: mpsc::Sender<control::Command>,
        shutdown: &CancellationToken,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let Self {
            status,
            listeners,
            responders,
            figures,
            timings,
            choice,
        } = self;
        let counts = Arc::new(Counts::default());
        let senders = Senders {
            status: status.clone(),
            figures: Arc::clone(&figures),
        };
        let notice = settings.notice.clone();
        let responder = Responder::new(notice, host, Arc::new(senders), Arc::clone(&counts));
        let notice = responder::server::serve(responder, responders, listeners, shutdown.clone());
        let constants = Constants {
            host: settings.host_mode(),
            backend: choice.name,
            hook: choice.hook,
            backend_reason: choice.reason,
            lacks: choice.lacks,
            customer_series_limit: settings.http.customer_series_limit as usize,
        };
        let metrics = Metrics::new(
            status.clone(),
            Arc::clone(&figures),
            timings,
            counts,
            Unmarked::default(),
            constants,
        );
        let web = http::serve(
            http::Settings {
                listen: settings.http.listen.clone(),
                web_config: settings.http.web_config.clone(),
                limits: http::Limits::default(),
            },
            Arc::new(metrics),
            shutdown.clone(),
        );
        let control = control::serve(
            control::Settings {
                socket: settings.control.socket.clone(),
                group: settings.control.group.clone(),
                limits: control::Limits::default(),
            },
            control::Agent {
                status,
                figures,
                constants: Arc::new(control::Constants {
                    host: host.to_owned(),
                    enforcement: settings.enforcement,
                    backend: (choice.name, choice.reason),
                    hook: choice.hook,
                    policy_dir: settings.policy_dir.clone(),
                    started: Timestamp::now(),
                }),
                commands,
            },
            shutdown.clone(),
        );
        vec![
            tokio::spawn(web),
            tokio::spawn(control),
            tokio::spawn(notice),
        ]
    }
}

async fn sketch_windows(status: Shared, figures: Arc<dyn Figures>) {
    let mut window = tokio::time::interval(SKETCH_WINDOW);
    window.tick().await;
    loop {
        window.tick().await;
        for id in status.get().policy.customers.keys() {
            let cleared = match figures.sketch(*id) {
                Ok(Some(_)) => figures.clear_sketch(*id),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = cleared {
                error!(
                    error = in_full(&error),
                    customer = id.get(),
                    "destinations go on to be counted from before this window"
                );
            }
        }
    }
}
