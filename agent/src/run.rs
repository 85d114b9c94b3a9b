//! `gate25 run`: puts the parts together and keeps them going.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::abi::SkbLayout;
use gate25_common::decide::HostMode;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::{ClockWatch, Offset};
use crate::http;
use crate::kernel::bpf::pins::Pins;
use crate::kernel::bpf::{Attachment, Bpf, DebugLines, LoadOptions, events, skb};
use crate::kernel::links::{LinkEvent, Links, Subscription};
use crate::metrics::{Constants, Metrics, Timings};
use crate::reconcile::{Host, Noted, RETRY, Reconciler};
use crate::settings::{Enforcement, LogLevel, Settings};
use crate::source::{Accepted, PolicyFiles, SourceError};
use crate::status::Shared;
use crate::watch::{PolicyWatch, Reason};

/// How often the windows of distinct destinations begin anew.
const SKETCH_WINDOW: Duration = Duration::from_secs(3600);

/// Where a run finds what is not in the settings.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// A BPF filesystem, mounted there if it is not.
    pub bpf_filesystem: PathBuf,
    /// How programs attach.
    pub attachment: Attachment,
    /// The host's name, where the settings give none.
    pub hostname: String,
}

/// Enforces until `shutdown` is cancelled. What is in the kernel stays there.
///
/// # Errors
///
/// If enforcement cannot begin.
pub async fn run(
    settings: Settings,
    surroundings: Surroundings,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Surroundings {
        bpf_filesystem,
        attachment,
        hostname,
    } = surroundings;
    let host_mode = match settings.enforcement {
        Enforcement::Policy => HostMode::Policy,
        Enforcement::Observe => HostMode::Observe,
    };
    let pins = Pins::open(&bpf_filesystem)?;
    let options = LoadOptions {
        ports: settings.guarded_ports.clone(),
        host: host_mode,
        layout: checksum_layout(),
        debug_lines: match settings.log.level {
            LogLevel::Trace => DebugLines::On,
            LogLevel::Error | LogLevel::Warn | LogLevel::Info | LogLevel::Debug => DebugLines::Off,
        },
        pins: None,
    };
    let mut bpf = Bpf::open(options, pins, attachment)?;
    let hook = bpf.hook();
    info!(hook, ports = ?settings.guarded_ports, mode = ?settings.enforcement, "programs loaded");
    let events = tokio::spawn(events::log(bpf.take_events()?));
    let debug_lines = tokio::spawn(bpf.debug_lines()?);
    let counters = bpf.counters();
    let status = Shared::default();
    let timings = Timings::new()?;
    let constants = Constants {
        host: host_mode,
        hook,
        backend_reason: "preferred",
        customer_series_limit: settings.http.customer_series_limit as usize,
    };
    let metrics = Metrics::new(status.clone(), counters.clone(), timings.clone(), constants);
    let server = tokio::spawn(http::serve(
        http::Settings {
            listen: settings.http.listen.clone(),
            web_config: settings.http.web_config.clone(),
            limits: http::Limits::default(),
        },
        Arc::new(metrics),
        shutdown.clone(),
    ));
    let host = Host {
        name: settings.host.clone().unwrap_or(hostname),
        interfaces: settings.interfaces.clone(),
    };
    let reconciler = Reconciler::new(bpf, host, status.clone(), timings, Offset::sample()?)?;
    let mut agent = Agent {
        links: Links::open(subscription(hook))?,
        subscription: subscription(hook),
        watch: PolicyWatch::new(
            &settings.policy_dir,
            settings.reload.quiet_time,
            settings.reload.rescan,
        )?,
        clock: ClockWatch::new()?,
        files: Files::Idle(PolicyFiles::new(settings.policy_dir.clone())),
        reconciler,
        dirty: true,
        reload_again: false,
    };
    let windows = tokio::spawn(sketch_windows(status, counters));
    agent.start().await?;
    let ended = shutdown.run_until_cancelled(agent.serve()).await;
    for task in [&windows, &debug_lines] {
        task.abort();
    }
    events.abort();
    shutdown.cancel();
    server.await?;
    info!("agent stops, enforcement stays");
    ended.unwrap_or(Ok(()))
}

/// Where the kernel keeps the state of its packets' checksums. Without it a guest with a driver
/// of its own can have the host write another port into a packet that has passed.
fn checksum_layout() -> SkbLayout {
    match skb::running_kernel() {
        Ok(layout) => layout,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            warn!(
                error,
                "checksums that guests leave to the host are not watched"
            );
            SkbLayout::UNKNOWN
        }
    }
}

fn subscription(hook: &str) -> Subscription {
    if hook == "tcx" {
        Subscription::Links
    } else {
        Subscription::LinksAndFilters
    }
}

struct Agent {
    links: Links,
    subscription: Subscription,
    watch: PolicyWatch,
    clock: ClockWatch,
    files: Files,
    reconciler: Reconciler<Bpf>,
    dirty: bool,
    reload_again: bool,
}

/// The policy's files, at rest or being read on another thread.
enum Files {
    Idle(PolicyFiles),
    Loading(JoinHandle<(PolicyFiles, Result<Accepted, SourceError>)>),
    Taken,
}

impl Agent {
    /// The first policy goes in before the first program is attached, so that an exempt customer
    /// is not cut off for a moment; interfaces of an earlier start are covered all the while.
    async fn start(&mut self) -> anyhow::Result<()> {
        let interfaces = self.links.snapshot().await?;
        self.reconciler.snapshot(interfaces, Instant::now());
        self.load();
        self.loaded().await?;
        Ok(())
    }

    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut retry = tokio::time::interval(RETRY);
        loop {
            let busy = self.dirty || self.reconciler.has_waiting();
            tokio::select! {
                biased;
                result = self.clock.set() => {
                    result?;
                    self.reconciler.clock(Offset::sample()?);
                    self.dirty = true;
                }
                loaded = loading(&mut self.files) => self.take(loaded?),
                reason = self.watch.changed() => {
                    match reason? {
                        Reason::Changed => {}
                        Reason::Rescan => self.rescan().await?,
                    }
                    self.load();
                }
                event = self.links.next() => match event {
                    Ok(event) => self.link(event).await?,
                    Err(error) => {
                        warn!(error = &error as &dyn std::error::Error, "subscribe again");
                        self.links = Links::open(self.subscription)?;
                        self.rescan().await?;
                    }
                },
                _ = retry.tick(), if self.reconciler.has_failed() => {
                    self.reconciler.retry(Instant::now());
                    self.dirty = true;
                }
                () = std::future::ready(()), if busy => {
                    if std::mem::take(&mut self.dirty) {
                        self.reconciler.converge();
                    } else {
                        self.reconciler.attach_next(Instant::now());
                        // Others get their turn: an attachment takes milliseconds.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    async fn link(&mut self, event: LinkEvent) -> anyhow::Result<()> {
        let now = Instant::now();
        match event {
            LinkEvent::Upsert(interface) => match self.reconciler.interface(interface, now) {
                Noted::News => {}
                Noted::Known => return Ok(()),
            },
            LinkEvent::Gone { index } => self.reconciler.interface_gone(index),
            LinkEvent::QdiscGone { index } => self.reconciler.displaced(index, now),
            LinkEvent::Lost => self.rescan().await?,
        }
        self.dirty = true;
        Ok(())
    }

    async fn rescan(&mut self) -> anyhow::Result<()> {
        let interfaces = self.links.snapshot().await?;
        self.reconciler.snapshot(interfaces, Instant::now());
        self.reconciler.converge();
        self.reconciler.verify(Offset::sample()?);
        self.dirty = true;
        Ok(())
    }

    /// Begins to read the files, or sees to it that they are read again after the reading that is
    /// under way.
    fn load(&mut self) {
        match std::mem::replace(&mut self.files, Files::Taken) {
            Files::Idle(mut files) => {
                self.files = Files::Loading(tokio::task::spawn_blocking(move || {
                    let loaded = files.load(Timestamp::now());
                    (files, loaded)
                }));
            }
            loading @ (Files::Loading(_) | Files::Taken) => {
                self.files = loading;
                self.reload_again = true;
            }
        }
    }

    async fn loaded(&mut self) -> anyhow::Result<()> {
        let loaded = loading(&mut self.files).await?;
        self.take(loaded);
        Ok(())
    }

    fn take(&mut self, (files, loaded): (PolicyFiles, Result<Accepted, SourceError>)) {
        self.files = Files::Idle(files);
        self.reconciler.files(loaded, Timestamp::now());
        self.dirty = true;
        if std::mem::take(&mut self.reload_again) {
            self.load();
        }
    }
}

/// What the reading came to; never, while there is none.
async fn loading(
    files: &mut Files,
) -> anyhow::Result<(PolicyFiles, Result<Accepted, SourceError>)> {
    match files {
        Files::Loading(task) => Ok(task.await?),
        Files::Idle(_) | Files::Taken => std::future::pending().await,
    }
}

async fn sketch_windows(status: Shared, counters: crate::kernel::bpf::Counters) {
    let mut window = tokio::time::interval(SKETCH_WINDOW);
    window.tick().await;
    loop {
        window.tick().await;
        for id in status.get().policy.customers.keys() {
            let cleared = match counters.sketch(*id) {
                Ok(Some(_)) => counters.clear_sketch(*id),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = cleared {
                error!(
                    error = &error as &dyn std::error::Error,
                    "window of destinations goes on"
                );
            }
        }
    }
}
