//! A booted kernel that takes lines of shell over a serial line.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{initramfs::Initramfs, kernel::Kernel};
use crate::{NetNs, Process, poll, process::tail};

const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");
const COMMANDS: &str = include_str!("commands.sh");
/// Around what is not a command's output.
const MARK: u8 = 1;
/// The kernel ends itself where it would hang; QEMU ends with it. It is not to find out how often the timer
/// ticks while QEMU waits for a processor: it would take that for a broken one. Nor does it compare the
/// processors' clock with another one, which it would stay with: that one is an emulated
/// device, slow to read.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 oops=panic softlockup_panic=1 quiet \
    watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60 sysctl.kernel.panic_on_rcu_stall=1 \
    sysctl.kernel.hung_task_panic=1 mitigations=off random.trust_cpu=on no_timer_check \
    tsc=reliable";
/// Processors that wait for each other are woken by the host otherwise, which takes longer.
const SEVERAL_PROCESSORS: &str = "idle=poll";
/// How often a silent machine's console is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What kind of machine is started.
#[derive(Debug)]
pub(super) struct Shape<'a> {
    pub(super) kernel: &'a Kernel,
    /// Modules that are loaded first, in this order.
    pub(super) modules: &'a [&'a str],
    /// Shell that sets it up.
    pub(super) setup: &'a str,
    /// A file at the top, for the setup.
    pub(super) file: Option<(&'a str, &'a str)>,
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    /// Further arguments of QEMU.
    pub(super) devices: &'a [String],
}

/// How long a command may take, and how long it may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In all.
    pub whole: Duration,
    /// Without a byte of output.
    pub silent: Duration,
}

impl Patience {
    /// One limit for both.
    pub(super) fn of(limit: Duration) -> Self {
        Self {
            whole: limit,
            silent: limit,
        }
    }
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Machine {
    process: Process,
    control: UnixStream,
    console: PathBuf,
    /// Read, but not yet taken.
    seen: Vec<u8>,
}

impl Machine {
    /// Starts QEMU inside a lab's namespace; the machine boots meanwhile.
    pub(super) fn launch(host: &NetNs, name: &str, shape: &Shape<'_>) -> anyhow::Result<Self> {
        let dir = host.dir();
        let initrd = dir.join(format!("{name}.initramfs"));
        fs::write(&initrd, initramfs(shape)?)
            .with_context(|| format!("write {}", initrd.display()))?;
        let console = dir.join(format!("{name}.console"));
        let socket = dir.join(format!("{name}.sock"));
        let mut command_line = COMMAND_LINE.to_owned();
        if shape.cpus > 1 {
            command_line = format!("{command_line} {SEVERAL_PROCESSORS}");
        }
        let mut command = host.command("qemu-system-x86_64");
        command
            // The fifth level of page tables is one more to walk.
            .args(["-accel", "tcg", "-cpu", "max,la57=off"])
            .args(["-m", &format!("{}M", shape.memory_mib)])
            .args(["-smp", &shape.cpus.to_string()])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(shape.kernel.image())
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &command_line])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-serial",
                &format!("unix:{},server=on,wait=off", socket.display()),
            ])
            .args(shape.devices);
        let mut process = host.spawn("qemu", command)?;
        let control = poll("QEMU's serial line", Duration::from_secs(20), || {
            if let Some(status) = process.status()? {
                bail!("QEMU ended: {status}; it wrote:\n{}", process.log());
            }
            Ok(UnixStream::connect(&socket).ok())
        })?;
        Ok(Self {
            process,
            control,
            console,
            seen: Vec::new(),
        })
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What the kernel has written to its console.
    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits until it takes commands.
    pub(super) fn wait_booted(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (_, mark) = self.read_to_mark(Patience::of(limit), &mut |_| {})?;
        if mark != "READY" {
            bail!("{mark:?} instead of READY after the boot");
        }
        Ok(())
    }

    /// Runs a line of shell: its exit code and output.
    pub(super) fn run(&mut self, line: &str, limit: Duration) -> anyhow::Result<(u8, String)> {
        self.follow(line, Patience::of(limit), &mut |_| {})
    }

    /// The same, and each line of its output is told as it comes.
    pub(super) fn follow(
        &mut self,
        line: &str,
        patience: Patience,
        each: &mut dyn FnMut(&str),
    ) -> anyhow::Result<(u8, String)> {
        if line.contains('\n') {
            bail!("more than one line: {line:?}");
        }
        self.control
            .write_all(format!("{line}\n").as_bytes())
            .context("write to the machine")?;
        let (output, code) = self
            .read_to_mark(patience, each)
            .with_context(|| format!("run {line:?}"))?;
        let code = code
            .parse()
            .with_context(|| format!("exit code {code:?}"))?;
        Ok((code, output))
    }

    /// Reads up to a mark: what came before it, and what it says.
    fn read_to_mark(
        &mut self,
        patience: Patience,
        each: &mut dyn FnMut(&str),
    ) -> anyhow::Result<(String, String)> {
        let end = Instant::now() + patience.whole;
        let mut heard = Instant::now();
        let mut told = 0;
        let mut buffer = [0; 4096];
        loop {
            let (output, mark) = split_at_mark(&self.seen);
            while let Some(length) = output[told..].iter().position(|byte| *byte == b'\n') {
                each(&String::from_utf8_lossy(&output[told..told + length]));
                told += length + 1;
            }
            if let Some((mark, rest)) = mark {
                if told < output.len() {
                    each(&String::from_utf8_lossy(&output[told..]));
                }
                let answer = (
                    String::from_utf8_lossy(output).into_owned(),
                    String::from_utf8_lossy(mark).into_owned(),
                );
                self.seen = rest.to_vec();
                return Ok(answer);
            }
            let now = Instant::now();
            if now >= end || now >= heard + patience.silent {
                let words = String::from_utf8_lossy(&self.seen).into_owned();
                let why = format!(
                    "no end within {:?}, the last output {:?} ago",
                    patience.whole,
                    now - heard
                );
                return Err(self.broken(&why).context(tail(&words)));
            }
            self.control
                .set_read_timeout(Some(LOOK))
                .context("set the read timeout")?;
            match self.control.read(&mut buffer) {
                Ok(0) => return Err(self.broken("the machine is gone")),
                Ok(count) => {
                    heard = Instant::now();
                    self.seen
                        .extend_from_slice(buffer.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.console().contains("Kernel panic") {
                        return Err(self.broken("the kernel panicked"));
                    }
                }
                // Without a signal, too, where this process was stopped meanwhile: signal(7).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read from the machine"),
            }
        }
    }

    /// Ends the machine, which is of no more use, and says what its console shows.
    fn broken(&mut self, why: &str) -> anyhow::Error {
        // All of it: a panic begins with why, and many lines of registers and calls follow.
        let console = self.console();
        match self.process.kill() {
            Ok(()) => anyhow::anyhow!("{why}; the console shows:\n{console}"),
            Err(error) => error.context(format!("{why}; the console shows:\n{console}")),
        }
    }
}

/// A whole mark, and what is behind its line.
type Marked<'a> = (&'a [u8], &'a [u8]);

/// What is in front of a mark, and the mark if it is whole.
fn split_at_mark(seen: &[u8]) -> (&[u8], Option<Marked<'_>>) {
    let Some(start) = seen.iter().position(|byte| *byte == MARK) else {
        return (seen, None);
    };
    let (output, rest) = seen.split_at(start);
    let Some(length) = rest[1..].iter().position(|byte| *byte == MARK) else {
        return (output, None);
    };
    let mark = &rest[1..=length];
    match rest[length + 2..].split_first() {
        Some((_, behind)) => (output, Some((mark, behind))),
        None => (output, None), // its line is not there yet
    }
}

fn initramfs(shape: &Shape<'_>) -> anyhow::Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for dir in ["bin", "dev", "proc", "sys", "modules", "root"] {
        archive.directory(dir);
    }
    let busybox = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    archive.program("bin/busybox", &busybox);
    archive.link("bin/sh", "busybox");
    let mut loading = String::new();
    for (name, module) in shape.kernel.modules(shape.modules)? {
        archive.program(&format!("modules/{name}.ko"), &module);
        loading.push_str(&format!("insmod /modules/{name}.ko\n"));
    }
    let init = INIT
        .replace("@MODULES@\n", &loading)
        .replace("@SETUP@\n", shape.setup);
    archive.program("init", init.as_bytes());
    archive.program("commands.sh", COMMANDS.as_bytes());
    if let Some((name, text)) = shape.file {
        archive.program(name, text.as_bytes());
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_at_mark_before_the_marks_line_has_ended_finds_none() {
        assert_eq!(split_at_mark(b"one\ntw"), (&b"one\ntw"[..], None));
        assert_eq!(split_at_mark(b"one\n\x010"), (&b"one\n"[..], None));
        assert_eq!(split_at_mark(b"one\n\x010\x01"), (&b"one\n"[..], None));
    }

    #[test]
    fn split_at_mark_takes_the_exit_code_and_leaves_what_is_behind() {
        let expected = (&b"one"[..], Some((&b"12"[..], &b"two"[..])));
        assert_eq!(split_at_mark(b"one\x0112\x01\ntwo"), expected);
        let nothing = (&b""[..], Some((&b"0"[..], &b""[..])));
        assert_eq!(split_at_mark(b"\x010\x01\n"), nothing);
    }
}
