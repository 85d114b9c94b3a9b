//! SYNs made by hand, sent at a rate without waiting for answers, and counted.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    Tap,
    tenant::{packets, sockets},
};

/// How often a part of a second's packets is sent, at most.
const BURSTS_A_SECOND: u32 = 100;
/// Ports that the packets come from, one after the other.
const PORTS: std::ops::Range<u16> = 20_000..60_000;

/// A hardware address.
pub(crate) type Hardware = [u8; 6];

/// How the packets get out.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// As frames out of an interface, past IP.
    Frames {
        device: String,
        source: Hardware,
        gateway: Hardware,
    },
    /// Through a raw IP socket.
    Packets,
    /// As frames of a guest without a kernel.
    Tap {
        tap: Arc<Mutex<Tap>>,
        source: Hardware,
        gateway: Hardware,
    },
}

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) way: Way,
    /// From where to where, in turn.
    pub(crate) pairs: Vec<(IpAddr, SocketAddr)>,
    /// Packets a second, at least one.
    pub(crate) rate: u32,
}

impl Plan {
    /// The same sent in another way.
    pub(crate) fn by(&self, way: Way) -> Self {
        Self {
            way,
            ..self.clone()
        }
    }
}

/// What has become of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Packets that got as far as the first hook that may judge them.
    pub(crate) packets: u64,
    /// Packets that the sender's own side did not take.
    pub(crate) unsent: u64,
    /// Why not, the last time.
    pub(crate) trouble: Option<String>,
}

/// A thread that sends; it ends with this value.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Sent>>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts a thread that first moves to where it sends from.
    ///
    /// # Errors
    /// When it cannot be made or cannot move.
    pub(crate) fn start(
        enter: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
        plan: Plan,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(Mutex::new(Sent::default()));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let (entered, wait) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("flood".to_owned())
            .spawn(move || {
                let inside = enter();
                let go_on = inside.is_ok();
                if entered.send(inside).is_ok() && go_on {
                    send_until(&stopped, &counted, &plan);
                }
            })
            .context("start a thread")?;
        wait.recv().context("the flood's thread")??;
        Ok(Self {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// What was sent so far.
    pub(crate) fn sent(&self) -> Sent {
        self.sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends it; what was sent in all.
    pub(crate) fn finish(mut self) -> Sent {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}

fn send_until(stop: &AtomicBool, sent: &Mutex<Sent>, plan: &Plan) {
    let (burst, pause) = bursts(plan.rate);
    let mut pairs = plan.pairs.iter().cycle();
    let mut ports = PORTS.cycle();
    let mut outlet = Outlet::default();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let mut now = Sent::default();
        for ((from, to), port) in pairs.by_ref().zip(ports.by_ref()).take(burst as usize) {
            match outlet.send(&plan.way, SocketAddr::from((*from, port)), *to) {
                Ok(()) => now.packets += 1,
                Err(error) => {
                    // The interface may be gone, and another of its name there.
                    outlet = Outlet::default();
                    now.unsent += 1;
                    now.trouble = Some(error.to_string());
                    break;
                }
            }
        }
        add(sent, now);
        // What was missed is not made up for: a burst would overrun queues.
        next = (next + pause).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// How many packets to send at once, and how long to wait between.
fn bursts(rate: u32) -> (u32, Duration) {
    let burst = (rate / BURSTS_A_SECOND).max(1);
    (burst, Duration::from_secs(burst.into()) / rate)
}

fn add(sum: &Mutex<Sent>, more: Sent) {
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    let Sent {
        packets,
        unsent,
        trouble,
    } = more;
    sum.packets += packets;
    sum.unsent += unsent;
    sum.trouble = trouble.or(sum.trouble.take());
}

/// What the packets are written to, opened when it is first needed.
#[derive(Default)]
struct Outlet {
    wire: Option<sockets::Wire>,
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Outlet {
    fn send(&mut self, way: &Way, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        match way {
            Way::Frames {
                device,
                source,
                gateway,
            } => {
                let frame = packets::crafted_frame(*source, *gateway, from, to);
                let wire = match self.wire.take() {
                    Some(wire) => wire,
                    None => sockets::wire(device)?,
                };
                sockets::send_frame(self.wire.insert(wire), &frame)
            }
            Way::Packets => {
                let place = if to.is_ipv4() {
                    &mut self.v4
                } else {
                    &mut self.v6
                };
                let socket = match place.take() {
                    Some(socket) => socket,
                    None => sockets::raw(to)?,
                };
                let packet = packets::crafted(from, to);
                match sockets::send_packet_by(place.insert(socket), to, &packet) {
                    // The cgroup's program has judged it: it was sent as far as that.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                    other => other,
                }
            }
            Way::Tap {
                tap,
                source,
                gateway,
            } => {
                let frame = packets::crafted_frame(*source, *gateway, from, to);
                let mut tap = tap.lock().unwrap_or_else(PoisonError::into_inner);
                // Nobody reads the answers: they would fill the queue.
                while tap.take().map_err(io::Error::other)?.is_some() {}
                tap.send(&frame).map_err(io::Error::other)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_keep_to_the_rate_however_low_it_is() {
        for rate in [1, 5, 50, 100, 150, 500, 1000] {
            let (burst, pause) = bursts(rate);
            let sent = f64::from(burst) / pause.as_secs_f64();
            assert!(
                (sent / f64::from(rate) - 1.0).abs() < 1e-6,
                "{rate}: {sent}"
            );
            assert!(pause >= Duration::from_millis(5), "{rate}: {pause:?}");
        }
    }
}
