//! A program inside a container that connects, sends and forges as a test tells it to.

pub(crate) mod packets;
mod program;
mod ring;
pub(crate) mod sockets;
mod tricks;

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};

pub use program::tenant;
pub use tricks::{MEETING_PORT, Target, Trick};

use crate::{
    Attempt, Outcome, Tally,
    flood::{Hardware, Plan, Sent, Way},
    paced, poll,
};

/// Longer than anything a tenant waits for.
const LIMIT: Duration = Duration::from_secs(10);
/// Containers may take this long to start on a busy machine.
const START: Duration = Duration::from_secs(20);

/// The hold on a tenant: `gate25-tenant serve PATH`, or another program that calls [`tenant`].
#[derive(Debug)]
pub struct Tenant {
    name: String,
    line: Mutex<BufReader<UnixStream>>,
}

/// Hardware and IP addresses of a frame made by hand.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// The tenant's interface.
    pub device: &'a str,
    /// Its hardware address.
    pub source: &'a str,
    /// Its gateway's hardware address.
    pub gateway: &'a str,
    /// The sender's address and port.
    pub from: SocketAddr,
    /// The receiver's.
    pub to: SocketAddr,
}

/// The program that Cargo builds beside the tests.
///
/// # Errors
/// When it is not there.
pub fn program() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("find this program")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("gate25-tenant"))
        .find(|path| path.exists());
    found.with_context(|| format!("no gate25-tenant beside {}", own.display()))
}

impl Tenant {
    /// Takes hold of the tenant that serves at this path, as soon as it does. `ended` is asked
    /// meanwhile and tells why it never will.
    pub(crate) fn reach(
        name: &str,
        path: &Path,
        mut ended: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let stream = poll(&format!("the tenant of {name}"), START, || {
            ended()?;
            Ok(UnixStream::connect(path).ok())
        })?;
        stream
            .set_read_timeout(Some(paced(LIMIT)))
            .context("set the read timeout")?;
        Ok(Self {
            name: name.to_owned(),
            line: Mutex::new(BufReader::new(stream)),
        })
    }

    /// Connects; the connection is closed at once.
    ///
    /// # Errors
    /// When the tenant is gone. A refused connect is an outcome, not an error.
    pub fn connect(&self, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["connect", &to.to_string()])
    }

    /// Connects, and says what it is told that it is connected to.
    ///
    /// # Errors
    /// When the connect fails.
    pub fn peer(&self, to: SocketAddr) -> anyhow::Result<SocketAddr> {
        let said = self.ask(&["peer", &to.to_string()])?;
        said.parse().with_context(|| format!("no address: {said}"))
    }

    /// Sends data with the SYN (TCP Fast Open, `sendto` with `MSG_FASTOPEN`).
    ///
    /// # Errors
    /// As [`Tenant::connect`].
    pub fn fast_open(&self, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["fastopen", &to.to_string()])
    }

    /// Connects a multipath socket.
    ///
    /// # Errors
    /// As [`Tenant::connect`], and where the kernel has none.
    pub fn connect_mptcp(&self, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["mptcp", &to.to_string()])
    }

    /// Connects a socket bound to an interface.
    ///
    /// # Errors
    /// As [`Tenant::connect`].
    pub fn connect_through(&self, device: &str, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["device", device, &to.to_string()])
    }

    /// Connects from an address of its own, with whatever port; returns where the connection then
    /// comes from.
    ///
    /// # Errors
    /// When it does not come about.
    pub fn connect_from(&self, from: IpAddr, to: SocketAddr) -> anyhow::Result<SocketAddr> {
        let own = self.ask(&["from", &from.to_string(), &to.to_string()])?;
        own.parse().context("an address")
    }

    /// Sends a SYN made by hand through a raw IP socket. Connected means sent.
    ///
    /// # Errors
    /// As [`Tenant::connect`].
    pub fn forge(&self, from: SocketAddr, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["packet", &from.to_string(), &to.to_string()])
    }

    /// Sends a SYN made by hand through a packet socket. Connected means sent.
    ///
    /// # Errors
    /// As [`Tenant::connect`].
    pub fn send_frame(&self, frame: &Frame<'_>) -> anyhow::Result<Attempt> {
        let Frame {
            device,
            source,
            gateway,
            from,
            to,
        } = frame;
        self.attempt(&[
            "frame",
            device,
            source,
            gateway,
            &from.to_string(),
            &to.to_string(),
        ])
    }

    /// Reaches an address in an unusual way. Connected may mean sent.
    ///
    /// # Errors
    /// As [`Tenant::connect`].
    pub fn play(&self, trick: Trick, target: &Target) -> anyhow::Result<Attempt> {
        let mut words = vec!["trick".to_owned(), format!("{trick:?}")];
        words.extend(target.to_words());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.attempt(&words)
    }

    /// Leaves its network for a new one, and keeps a packet socket for [`Tenant::send_frame`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hide(&self, device: &str) -> anyhow::Result<()> {
        self.ask(&["hide", device]).map(drop)
    }

    /// Makes a TCP socket for addresses like this one and hands it to whoever asks at the path.
    ///
    /// # Errors
    /// When the tenant is gone.
    pub fn give(&self, path: &Path, like: SocketAddr) -> anyhow::Result<()> {
        self.ask(&["give", &path.to_string_lossy(), &like.to_string()])
            .map(drop)
    }

    /// Takes the socket that another tenant hands over at the path, and connects it.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&self, path: &Path, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["take", &path.to_string_lossy(), &to.to_string()])
    }

    /// Takes such a socket and keeps it for [`Tenant::connect_kept`].
    ///
    /// # Errors
    /// When there is none.
    pub fn keep(&self, path: &Path) -> anyhow::Result<()> {
        self.ask(&["keep", &path.to_string_lossy()]).map(drop)
    }

    /// Connects the socket that it keeps.
    ///
    /// # Errors
    /// When it keeps none.
    pub fn connect_kept(&self, to: SocketAddr) -> anyhow::Result<Attempt> {
        self.attempt(&["connect-kept", &to.to_string()])
    }

    /// Greets whoever connects to this port.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn greet(&self, port: u16) -> anyhow::Result<()> {
        self.ask(&["greet", &port.to_string()]).map(drop)
    }

    /// Makes a cgroup, given by its folder, where there is none, and moves into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self, cgroup: &Path) -> anyhow::Result<()> {
        self.ask(&["enter", &cgroup.to_string_lossy()]).map(drop)
    }

    /// Opens a connection and returns the greeting.
    ///
    /// # Errors
    /// When there is none.
    pub fn hold(&self, name: &str, to: SocketAddr) -> anyhow::Result<String> {
        self.ask(&["hold", name, &to.to_string()])
    }

    /// Sends an SMTP command over an open connection; returns the answer's first line.
    ///
    /// # Errors
    /// When the connection is cut.
    pub fn say(&self, name: &str, command: &str) -> anyhow::Result<String> {
        self.ask(&["say", name, command])
    }

    /// Waits for the end of an open connection without sending anything, at most five seconds.
    ///
    /// # Errors
    /// When the tenant is gone.
    pub fn wait_cut(&self, name: &str) -> anyhow::Result<Attempt> {
        self.attempt(&["wait-cut", name])
    }

    /// Writes to an open connection until it ends, at most five seconds.
    ///
    /// # Errors
    /// When it goes on working.
    pub fn write_until_cut(&self, name: &str) -> anyhow::Result<Attempt> {
        self.attempt(&["write-until-cut", name])
    }

    /// Starts connecting without pause but this.
    ///
    /// # Errors
    /// When the tenant is gone.
    pub fn hammer(&self, name: &str, to: SocketAddr, pause: Duration) -> anyhow::Result<()> {
        let pause = pause.as_micros().to_string();
        self.ask(&["hammer", name, &to.to_string(), &pause])
            .map(drop)
    }

    /// What became of a hammer's attempts so far; without the times.
    ///
    /// # Errors
    /// When there is no such hammer.
    pub fn tally(&self, name: &str) -> anyhow::Result<Tally> {
        tally(&self.ask(&["tally", name])?)
    }

    /// Ends a hammer; what became of all its attempts, without the times.
    ///
    /// # Errors
    /// When there is no such hammer.
    pub fn rest(&self, name: &str) -> anyhow::Result<Tally> {
        tally(&self.ask(&["rest", name])?)
    }

    /// Starts sending SYNs made by hand, out of a raw socket or past IP.
    pub(crate) fn flood(&self, name: &str, plan: &Plan) -> anyhow::Result<()> {
        let Plan { way, pairs, rate } = plan;
        let mut words = vec!["flood".to_owned(), name.to_owned(), rate.to_string()];
        match way {
            Way::Packets => words.push("packets".to_owned()),
            Way::Frames {
                device,
                source,
                gateway,
            } => {
                words.extend(["frames".to_owned(), device.clone()]);
                words.extend([source, gateway].map(|address| hardware_text(*address)));
            }
            Way::Tap { .. } => bail!("a tenant has no tap"),
        }
        for (from, to) in pairs {
            words.extend([from.to_string(), to.to_string()]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.ask(&words).map(drop)
    }

    /// What such a flood has sent so far.
    pub(crate) fn flooded(&self, name: &str) -> anyhow::Result<Sent> {
        sent(&self.ask(&["flooded", name])?)
    }

    /// Ends such a flood; what it has sent in all.
    pub(crate) fn ebb(&self, name: &str) -> anyhow::Result<Sent> {
        sent(&self.ask(&["ebb", name])?)
    }

    /// Opens a connection and keeps asking and reading.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn echo(&self, name: &str, to: SocketAddr) -> anyhow::Result<()> {
        self.ask(&["echo", name, &to.to_string()]).map(drop)
    }

    /// The answers that such a connection has got so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn echoes(&self, name: &str) -> anyhow::Result<u64> {
        self.ask(&["echoes", name])?.parse().context("a number")
    }

    /// Closes such a connection; the answers that it got.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn hush(&self, name: &str) -> anyhow::Result<u64> {
        self.ask(&["hush", name])?.parse().context("a number")
    }

    fn attempt(&self, words: &[&str]) -> anyhow::Result<Attempt> {
        let text = self.ask(words)?;
        let (micros, outcome) = text.split_once('\t').context("an attempt")?;
        Ok(Attempt {
            outcome: outcome.into(),
            took: Duration::from_micros(micros.parse().context("a duration")?),
        })
    }

    fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let what = || format!("{} in {}", words.join(" "), self.name);
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let request = words.join("\t") + "\n";
        line.get_mut()
            .write_all(request.as_bytes())
            .with_context(what)?;
        let mut answer = String::new();
        line.read_line(&mut answer).with_context(what)?;
        match answer.trim_end_matches('\n').split_once('\t') {
            Some(("ok", text)) => Ok(text.to_owned()),
            Some((_, error)) => bail!("{}: {error}", what()),
            None => bail!("{}: the tenant ended", what()),
        }
    }
}

fn tally(text: &str) -> anyhow::Result<Tally> {
    let mut words = text.split('\t');
    let mut number = || -> anyhow::Result<u64> {
        let word = words.next().context("a tally has four numbers")?;
        word.parse().context("a number")
    };
    let [connected, refused, others, timed_out] = [number()?, number()?, number()?, number()?];
    let last_other = words.next().filter(|text| !text.is_empty());
    Ok(Tally {
        connected,
        refused,
        others,
        timed_out,
        last_other: last_other.map(Outcome::from),
        ..Tally::default()
    })
}

fn sent(text: &str) -> anyhow::Result<Sent> {
    let mut words = text.splitn(3, '\t');
    let mut number = || -> anyhow::Result<u64> {
        let word = words.next().context("what was sent is two numbers")?;
        word.parse().context("a number")
    };
    let [packets, unsent] = [number()?, number()?];
    let trouble = words.next().filter(|text| !text.is_empty());
    Ok(Sent {
        packets,
        unsent,
        trouble: trouble.map(str::to_owned),
    })
}

fn hardware_text([a, b, c, d, e, f]: Hardware) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
