//! What runs inside a container: it connects as it is told, over a Unix socket.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

use super::{
    packets::{self, hardware},
    sockets,
    tricks::{self, Target},
};
use crate::{
    Attempt, Held, Sender, Tally, far_side,
    flood::{Flood, Plan, Sent, Way},
    paced,
};

const LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts of a storm's senders.
const PAUSE: Duration = Duration::from_millis(2);

/// Does what the arguments say: `serve PATH`; `once ADDRESS...`, which connects to each address without
/// looking around first; `greet PORT`, which greets whoever connects; `storm RATE FROM TO...`, which
/// connects without pause and sends SYNs made by hand. The last two go on until they are killed.
///
/// # Errors
/// When the arguments are not understood, or the socket cannot be had.
pub fn tenant(args: &[String]) -> anyhow::Result<()> {
    match args {
        [word, path] if word == "serve" => serve(Path::new(path)),
        [word, addresses @ ..] if word == "once" => once(addresses),
        [word, port] if word == "greet" => {
            far_side::greet_here(port.parse().context("a port")?)?;
            for_ever()
        }
        [word, rate, pairs @ ..] if word == "storm" => storm(rate, pairs),
        other => bail!("not understood: {other:?}"),
    }
}

fn once(addresses: &[String]) -> anyhow::Result<()> {
    for to in addresses {
        let to = to.parse().context("an address")?;
        let attempt = Attempt::of(|| TcpStream::connect_timeout(&to, LIMIT));
        writeln!(io::stdout(), "{}", attempt.outcome).context("tell what became of it")?;
    }
    Ok(())
}

/// From where to where, in pairs.
fn storm(rate: &str, pairs: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = pairs.iter().map(String::as_str).collect();
    let plan = plan(rate, Way::Packets, &words)?;
    let to: Vec<SocketAddr> = plan.pairs.iter().map(|(_, to)| *to).collect();
    let _flood = Flood::start(|| Ok(()), plan)?;
    let senders = to.into_iter().map(|to| Sender::start_here(to, PAUSE));
    let _senders: Vec<Sender> = senders.collect::<anyhow::Result<_>>()?;
    for_ever()
}

fn for_ever() -> ! {
    loop {
        thread::park();
    }
}

fn serve(path: &Path) -> anyhow::Result<()> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
    let (stream, _) = listener.accept().context("wait for who tells what to do")?;
    let mut output = stream.try_clone().context("copy the socket")?;
    let mut state = State::default();
    for line in BufReader::new(stream).lines() {
        let line = line.context("read a command")?;
        let words: Vec<&str> = line.split('\t').collect();
        let answer = match state.carry_out(&words) {
            Ok(text) => format!("ok\t{text}\n"),
            Err(error) => format!("error\t{}\n", format!("{error:#}").replace('\n', " ")),
        };
        output
            .write_all(answer.as_bytes())
            .context("write an answer")?;
    }
    Ok(())
}

#[derive(Default)]
struct State {
    held: BTreeMap<String, Held>,
    senders: BTreeMap<String, Sender>,
    floods: BTreeMap<String, Flood>,
    echoes: BTreeMap<String, Echo>,
    /// Out of the network that the process has left.
    hidden: Option<sockets::Wire>,
    /// Made by another tenant.
    kept: Option<OwnedFd>,
}

impl State {
    fn carry_out(&mut self, words: &[&str]) -> anyhow::Result<String> {
        match words {
            ["connect", to] => plain(to),
            ["fastopen", to] => fast_open(to),
            ["peer", to] => peer(to),
            ["mptcp", to] => connect_by(sockets::mptcp, to),
            ["device", device, to] => through(device, to),
            ["from", from, to] => from_own(from, to),
            ["packet", from, to] => forge(from, to),
            ["frame", device, source, destination, from, to] => match &self.hidden {
                Some(wire) => frame(wire, [source, destination], from, to),
                None => {
                    let wire = sockets::wire(device).context("open the interface")?;
                    frame(&wire, [source, destination], from, to)
                }
            },
            ["trick", name, target @ ..] => {
                let (trick, target) = (name.parse()?, Target::from_words(target)?);
                attempt(|| tricks::play(trick, &target))
            }
            ["hide", device] => {
                self.hidden = Some(sockets::wire(device).context("open the interface")?);
                unshare(CloneFlags::CLONE_NEWNET).context("leave the network")?;
                Ok(String::new())
            }
            ["give", path, like] => hand_over(path, like),
            ["take", path, to] => connect_by(|_| take_over(path), to),
            ["keep", path] => {
                self.kept = Some(take_over(path)?);
                Ok(String::new())
            }
            ["connect-kept", to] => {
                let kept = self.kept.take().context("no socket is kept")?;
                connect_by(|_| Ok(kept), to)
            }
            ["greet", port] => {
                far_side::greet_here(port.parse().context("a port")?).map(|()| String::new())
            }
            ["enter", cgroup] => enter(cgroup),
            ["hold", name, to] => {
                let held = Held::open_here(address(to)?, LIMIT)?;
                let greeting = held.greeting().to_owned();
                self.held.insert((*name).to_owned(), held);
                Ok(greeting)
            }
            ["say", name, text] => self.held(name)?.command(text),
            ["wait-cut", name] => Ok(told(&self.held(name)?.wait_cut(LIMIT)?)),
            ["write-until-cut", name] => Ok(told(&self.held(name)?.write_until_cut(LIMIT)?)),
            ["hammer", name, to, micros] => {
                let pause = Duration::from_micros(micros.parse().context("a pause")?);
                let sender = Sender::start_here(address(to)?, pause)?;
                self.senders.insert((*name).to_owned(), sender);
                Ok(String::new())
            }
            ["tally", name] => self.tally(name),
            ["rest", name] => {
                let sender = self.senders.remove(*name).context("no such sender")?;
                Ok(tally_text(sender.finish()))
            }
            ["flood", name, rate, "packets", pairs @ ..] => {
                self.flood(name, rate, Way::Packets, pairs)
            }
            [
                "flood",
                name,
                rate,
                "frames",
                device,
                source,
                gateway,
                pairs @ ..,
            ] => {
                let way = Way::Frames {
                    device: (*device).to_owned(),
                    source: hardware(source)?,
                    gateway: hardware(gateway)?,
                };
                self.flood(name, rate, way, pairs)
            }
            ["flooded", name] => Ok(sent_text(
                self.floods.get(*name).context("no such flood")?.sent(),
            )),
            ["ebb", name] => {
                let flood = self.floods.remove(*name).context("no such flood")?;
                Ok(sent_text(flood.finish()))
            }
            ["echo", name, to] => {
                let echo = Echo::start(Held::open_here(address(to)?, LIMIT)?)?;
                self.echoes.insert((*name).to_owned(), echo);
                Ok(String::new())
            }
            ["hush", name] => {
                let echo = self.echoes.remove(*name).context("no such echo")?;
                echo.count()
            }
            ["echoes", name] => self.echoes.get(*name).context("no such echo")?.count(),
            other => bail!("not understood: {other:?}"),
        }
    }

    fn held(&mut self, name: &str) -> anyhow::Result<&mut Held> {
        self.held
            .get_mut(name)
            .with_context(|| format!("no connection {name}"))
    }

    fn tally(&self, name: &str) -> anyhow::Result<String> {
        let sender = self.senders.get(name).context("no such sender")?;
        Ok(tally_text(sender.tally()))
    }

    /// Starts sending from where to where, by turns.
    fn flood(
        &mut self,
        name: &str,
        rate: &str,
        way: Way,
        pairs: &[&str],
    ) -> anyhow::Result<String> {
        let flood = Flood::start(|| Ok(()), plan(rate, way, pairs)?)?;
        self.floods.insert(name.to_owned(), flood);
        Ok(String::new())
    }
}

fn plan(rate: &str, way: Way, pairs: &[&str]) -> anyhow::Result<Plan> {
    let pair = |words: &[&str]| -> anyhow::Result<(IpAddr, SocketAddr)> {
        let [from, to] = words else {
            bail!("an address to send from lacks one to send to");
        };
        Ok((from.parse().context("an address")?, address(to)?))
    };
    Ok(Plan {
        way,
        pairs: pairs.chunks(2).map(pair).collect::<anyhow::Result<_>>()?,
        rate: rate.parse().context("a rate")?,
    })
}

fn tally_text(tally: Tally) -> String {
    let last = tally.last_other.map(|other| other.to_string());
    format!(
        "{}\t{}\t{}\t{}\t{}",
        tally.connected,
        tally.refused,
        tally.others,
        tally.timed_out,
        last.unwrap_or_default()
    )
}

fn sent_text(sent: Sent) -> String {
    format!(
        "{}\t{}\t{}",
        sent.packets,
        sent.unsent,
        sent.trouble.unwrap_or_default()
    )
}

/// Connects, and says what the socket is connected to.
fn peer(to: &str) -> anyhow::Result<String> {
    let to = address(to)?;
    let stream =
        TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connect to {to}"))?;
    Ok(stream
        .peer_addr()
        .context("ask for the other end")?
        .to_string())
}

fn plain(to: &str) -> anyhow::Result<String> {
    connect_by(sockets::tcp, to)
}

fn fast_open(to: &str) -> anyhow::Result<String> {
    let to = address(to)?;
    attempt(|| sockets::fast_open(to, LIMIT))
}

fn connect_by(
    open: impl FnOnce(SocketAddr) -> io::Result<OwnedFd>,
    to: &str,
) -> anyhow::Result<String> {
    let to = address(to)?;
    let socket = open(to).context("make a socket")?;
    attempt(|| sockets::connect_within(&socket, to, LIMIT))
}

/// Runs what ends as a connect does.
fn attempt<T>(body: impl FnOnce() -> io::Result<T>) -> anyhow::Result<String> {
    Ok(told(&Attempt::of(body)))
}

fn told(attempt: &Attempt) -> String {
    format!("{}\t{}", attempt.took.as_micros(), attempt.outcome)
}

fn through(device: &str, to: &str) -> anyhow::Result<String> {
    let to = address(to)?;
    let socket = sockets::tcp(to).context("make a socket")?;
    sockets::bind_to_device(&socket, device).with_context(|| format!("bind to {device}"))?;
    attempt(|| sockets::connect_within(&socket, to, LIMIT))
}

fn from_own(from: &str, to: &str) -> anyhow::Result<String> {
    let to = address(to)?;
    let from = from.parse().context("an address without a port")?;
    let socket = sockets::tcp(to).context("make a socket")?;
    sockets::bind_to_address(&socket, from).with_context(|| format!("bind to {from}"))?;
    sockets::connect_within(&socket, to, LIMIT)?;
    let own = TcpStream::from(socket)
        .local_addr()
        .context("ask for the address")?;
    Ok(own.to_string())
}

fn forge(from: &str, to: &str) -> anyhow::Result<String> {
    let (from, to) = (address(from)?, address(to)?);
    attempt(|| sockets::send_packet(to, &packets::syn(from, to)))
}

fn frame(
    wire: &sockets::Wire,
    [source, destination]: [&str; 2],
    from: &str,
    to: &str,
) -> anyhow::Result<String> {
    let [source, destination] = [hardware(source)?, hardware(destination)?];
    let frame = packets::syn_frame(source, destination, address(from)?, address(to)?);
    attempt(|| sockets::send_frame(wire, &frame))
}

/// Makes a TCP socket of the address's family and hands it over in the background.
fn hand_over(path: &str, like: &str) -> anyhow::Result<String> {
    let socket = sockets::tcp(address(like)?).context("make a socket")?;
    let path = PathBuf::from(path);
    thread::Builder::new()
        .name("giver".to_owned())
        .spawn(move || drop(sockets::give(&path, &socket)))
        .context("start a thread")?;
    Ok(String::new())
}

fn take_over(path: &str) -> io::Result<OwnedFd> {
    crate::poll("a socket to be handed over", LIMIT, || {
        Ok(sockets::take(Path::new(path)).ok())
    })
    .map_err(io::Error::other)
}

fn enter(cgroup: &str) -> anyhow::Result<String> {
    fs::create_dir_all(cgroup).with_context(|| format!("create {cgroup}"))?;
    let file = Path::new(cgroup).join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("write {}", file.display()))?;
    Ok(String::new())
}

fn address(text: &str) -> anyhow::Result<SocketAddr> {
    text.parse()
        .with_context(|| format!("not an address: {text}"))
}

/// A connection that is used again and again, as often as leaves others their turn.
struct Echo {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    answers: u64,
    end: Option<String>,
}

impl Echo {
    fn start(mut held: Held) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let answer = held.command("NOOP");
                    let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    match answer {
                        Ok(_) => seen.answers += 1,
                        Err(error) => {
                            seen.end = Some(format!("{error:#}"));
                            return;
                        }
                    }
                    drop(seen);
                    thread::sleep(paced(Duration::from_millis(1)));
                }
            })
            .context("start a thread")?;
        Ok(Self {
            stop,
            seen,
            thread: Some(thread),
        })
    }

    fn count(&self) -> anyhow::Result<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &seen.end {
            None => Ok(seen.answers.to_string()),
            Some(end) => bail!("the connection ended after {} answers: {end}", seen.answers),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
