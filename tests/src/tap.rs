//! Tap devices, and a guest on the other end of one.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::Stdio,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{NetNs, Process};

/// A frame with offloads may be this large, its virtio header included.
const LARGEST_FRAME: usize = 70_000;

/// What the frames on a tap look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Complete frames with complete checksums.
    None,
    /// Frames behind a virtio header, checksums and segmentation left to the other side: what
    /// QEMU sets up.
    VnetHeader,
}

/// The guest's end of a tap device. The device vanishes with this value.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offload: Offload,
}

impl Tap {
    /// Makes a tap device in a namespace. It is down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(ns: &NetNs, name: &str, offload: Offload) -> anyhow::Result<Self> {
        let file = ns
            .run(|| ioctl::open(name, offload))?
            .with_context(|| format!("make the tap {name} in {}", ns.name()))?;
        Ok(Self { file, offload })
    }

    /// Sends a frame as the guest. The virtio header, all zero, is put in front where needed.
    ///
    /// # Errors
    /// When the device is down.
    pub fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let mut bytes = vec![0; self.header()];
        bytes.extend_from_slice(frame);
        self.send_raw(&bytes)
    }

    /// Sends bytes as they are, the virtio header included.
    ///
    /// # Errors
    /// When the device is down.
    pub fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let count = self.file.write(bytes).context("write a frame to the tap")?;
        if count != bytes.len() {
            bail!("the tap took {count} of {} bytes", bytes.len());
        }
        Ok(())
    }

    /// The next frame sent to the guest for which `wanted` is true, without its virtio header.
    ///
    /// # Errors
    /// When none comes before the deadline.
    pub fn receive(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> anyhow::Result<Vec<u8>> {
        let (_header, frame) = self.receive_raw(limit, wanted)?;
        Ok(frame)
    }

    /// The same with the virtio header, which is empty where there is none.
    ///
    /// # Errors
    /// When none comes before the deadline.
    pub fn receive_raw(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; LARGEST_FRAME];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).context("deadline")?;
            poll(
                &mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)],
                timeout,
            )
            .context("wait for a frame")?;
            match self.file.read(&mut buffer) {
                Ok(count) => {
                    let read = buffer.get(..count).unwrap_or_default();
                    if let Some((header, frame)) = read.split_at_checked(self.header())
                        && wanted(frame)
                    {
                        return Ok((header.to_vec(), frame.to_vec()));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read a frame from the tap"),
            }
            if Instant::now() >= end {
                bail!("no such frame within {limit:?}");
            }
        }
    }

    /// A frame that is there already, without its virtio header.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn take(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; LARGEST_FRAME];
        match self.file.read(&mut buffer) {
            Ok(count) => {
                buffer.truncate(count);
                Ok(Some(buffer.split_off(self.header().min(count))))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("read a frame from the tap"),
        }
    }

    fn header(&self) -> usize {
        match self.offload {
            Offload::None => 0,
            Offload::VnetHeader => 10,
        }
    }
}

/// Carries frames between two taps, like the cable of a virtual machine.
#[derive(Debug)]
pub struct Pump {
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Carries frames in a thread until this value goes.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(a: Tap, b: Tap) -> anyhow::Result<Self> {
        // A child that inherited the end that stops would keep the thread alive.
        let (wait, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let thread = thread::Builder::new()
            .name("pump".to_owned())
            .spawn(move || {
                // It ends with the devices or with the pipe: nobody is left to be told.
                drop(pump(&a.file, &b.file, Some(wait.as_fd())));
            })
            .context("start a thread")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Carries frames in a process of its own, `program`, which calls [`pump_stdio`]: it outlives
    /// this one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_process(
        ns: &NetNs,
        program: &[String],
        a: Tap,
        b: Tap,
    ) -> anyhow::Result<Process> {
        let (program, args) = program.split_first().context("no program for the pump")?;
        let mut command = ns.command(program);
        command.args(args);
        ns.spawn_with(
            "pump",
            command,
            Stdio::from(OwnedFd::from(a.file)),
            Some(Stdio::from(OwnedFd::from(b.file))),
        )
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Carries frames between the taps that are stdin and stdout, until one of them is gone.
///
/// # Errors
/// When they cannot be read or written.
pub fn pump_stdio() -> anyhow::Result<()> {
    let a = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("copy stdin")?;
    let b = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("copy stdout")?;
    pump(&File::from(a), &File::from(b), None).context("carry frames")
}

fn pump(a: &File, b: &File, stop: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut buffer = vec![0; LARGEST_FRAME];
    loop {
        let mut waiting = vec![
            PollFd::new(a.as_fd(), PollFlags::POLLIN),
            PollFd::new(b.as_fd(), PollFlags::POLLIN),
        ];
        waiting.extend(stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
        poll(&mut waiting, PollTimeout::NONE)?;
        let ended = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        if waiting
            .iter()
            .any(|fd| fd.revents().is_none_or(|seen| seen.intersects(ended)))
        {
            return Ok(());
        }
        carry(a, b, &mut buffer)?;
        carry(b, a, &mut buffer)?;
    }
}

/// Moves what is there, up to a bound so that both directions get their turn.
fn carry(mut from: &File, mut to: &File, buffer: &mut [u8]) -> io::Result<()> {
    for _ in 0..64 {
        match from.read(buffer) {
            // A cable loses what the other side cannot take: it is down, or its queue is full.
            Ok(count) => drop(to.write(&buffer[..count])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

mod ioctl {
    use std::{
        fs::File,
        os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    };

    use anyhow::Context as _;
    use nix::fcntl::OFlag;

    use super::Offload;

    const IFF_TAP: u16 = 0x0002;
    const IFF_NO_PI: u16 = 0x1000;
    const IFF_VNET_HDR: u16 = 0x4000;
    /// CSUM, TSO4, TSO6, TSO_ECN: what a Linux guest offers.
    const OFFLOADS: i32 = 0x0f;

    /// `struct ifreq` as `TUNSETIFF` reads it.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }

    nix::ioctl_write_ptr_bad!(set_interface, 0x4004_54ca, Request);
    nix::ioctl_write_int_bad!(set_offload, 0x4004_54d0);

    pub(super) fn open(name: &str, offload: Offload) -> anyhow::Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        let header = match offload {
            Offload::None => 0,
            Offload::VnetHeader => IFF_VNET_HDR,
        };
        let mut request = Request {
            name: [0; 16],
            flags: IFF_TAP | IFF_NO_PI | header,
            rest: [0; 22],
        };
        // The last byte stays 0: the kernel reads a C string.
        let place = request
            .name
            .get_mut(..name.len())
            .filter(|place| place.len() < 16);
        place
            .context("an interface's name has at most 15 bytes")?
            .copy_from_slice(name.as_bytes());
        let fd = file.as_raw_fd();
        // SAFETY: the descriptor is open, and the request has the size and layout of `ifreq`.
        unsafe { set_interface(fd, &raw const request) }.context("TUNSETIFF")?;
        if offload == Offload::VnetHeader {
            // SAFETY: the descriptor is a tap's, the argument is a number.
            unsafe { set_offload(fd, OFFLOADS) }.context("TUNSETOFFLOAD")?;
        }
        Ok(file)
    }
}
