//! Programs that are given something, heard out, and ended when they hang.

use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Starts a program that [`talk`] is to talk to.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // So that what it starts can be ended with it.
        .process_group(0)
        .spawn()
}

/// Something that is done over and over while a child is waited for.
pub(crate) struct Meanwhile<'a> {
    pub(crate) every: Duration,
    pub(crate) act: &'a dyn Fn(),
}

/// Gives the child its input and takes what it writes; `None` if it was ended at the limit.
///
/// All at once: it may fill its own pipes before it has read everything.
pub(crate) fn talk(
    mut child: Child,
    input: Vec<u8>,
    limit: Duration,
    meanwhile: Option<&Meanwhile<'_>>,
) -> io::Result<Option<Output>> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        // Who refuses need not have read everything, so that what was not taken shows in the status.
        let writer = scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
        let errors = scope.spawn(|| read(stderr));
        let output = scope.spawn(move || {
            let output = read(stdout);
            // Nobody waits any more after the limit.
            let _late = done.send(());
            output
        });
        let in_time = is_in_time(&ended, limit, meanwhile);
        if !in_time {
            end(&child)?;
        }
        let status = child.wait()?;
        let joined = |read: thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| {
            read.join()
                .unwrap_or_else(|_| Err(io::Error::other("a reader ended early")))
        };
        let (stdout, stderr) = (joined(output), joined(errors));
        let written = writer.join();
        if !in_time {
            return Ok(None);
        }
        match written {
            Ok(Some(Err(error))) if status.success() => return Err(error),
            Ok(Some(_) | None) => {}
            Err(_panic) => return Err(io::Error::other("the writer ended early")),
        }
        Ok(Some(Output {
            status,
            stdout: stdout?,
            stderr: stderr?,
        }))
    })
}

/// Whether the child has ended within the limit.
fn is_in_time(
    ended: &mpsc::Receiver<()>,
    limit: Duration,
    meanwhile: Option<&Meanwhile<'_>>,
) -> bool {
    let began = Instant::now();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        let pause = meanwhile.map_or(left, |it| it.every.min(left));
        match ended.recv_timeout(pause) {
            Ok(()) => return true,
            Err(RecvTimeoutError::Timeout) if began.elapsed() < limit => {
                if let Some(Meanwhile { every: _, act }) = meanwhile {
                    act();
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        }
    }
}

fn read(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut all)?;
    }
    Ok(all)
}

/// Ends the child, which was not waited for yet, and what it has started.
fn end(child: &Child) -> io::Result<()> {
    let group = i32::try_from(child.id()).map_err(io::Error::other)?;
    match killpg(Pid::from_raw(group), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
