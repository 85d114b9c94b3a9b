//! The policy directory as it is in a git revision. git is run, without a shell and with a limit.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::child::{start, talk};
use crate::diagnostic::escape;
use crate::yaml::tree::MAX_BYTES;

const PROGRAM: &str = "git";
/// For each time that git is run.
const LIMIT: Duration = Duration::from_secs(30);
/// Most of what git has said that is told, in characters.
const MAX_SAID: usize = 500;
/// Files below a policy directory at most: links may lead to any of them.
const MAX_FILES: usize = 100_000;
/// Bytes of them at most.
const MAX_ALL: usize = 512 << 20;
const LINK: &str = "120000";
const BLOB: &str = "blob";

/// Why a revision's files are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("run {PROGRAM} to {action}")]
    Run {
        action: &'static str,
        source: io::Error,
    },
    #[error("{PROGRAM} did not {action} within {} s", LIMIT.as_secs())]
    Slow { action: &'static str },
    #[error("{PROGRAM} does not {action}: {said}")]
    Refused { action: &'static str, said: String },
    #[error("what {PROGRAM} says of the files is not understood")]
    Odd,
    #[error("there is no {} in {revision}", directory.display())]
    Nothing {
        directory: PathBuf,
        revision: String,
    },
    #[error("the directory holds more in that revision than a policy does")]
    TooMuch,
    #[error("copy the revision's files")]
    Copy(#[source] io::Error),
}

/// An entry of a revision's tree.
struct Entry {
    path: PathBuf,
    is_link: bool,
    object: String,
    bytes: usize,
}

/// Copies what is in `revision` of the policy directory `directory`, which lies in a git
/// repository, into a folder that goes with the value.
pub(crate) fn checkout(directory: &Path, revision: &str) -> Result<TempDir, GitError> {
    let git = Git { directory };
    let commit = format!("{revision}^{{commit}}");
    // Never taken for an option, whatever it begins with.
    let words = [
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        &commit,
    ];
    let commit = match git.run("find the revision", &words, Vec::new()) {
        Err(GitError::Refused { action, said }) if said.is_empty() => {
            let said = format!("there is no {}", escape(revision));
            return Err(GitError::Refused { action, said });
        }
        commit => commit?,
    };
    let commit = String::from_utf8_lossy(&commit).trim().to_owned();
    // Paths are relative to the directory, and what is outside is not listed.
    let listing = git.run(
        "list files",
        &["ls-tree", "-r", "-z", "-l", &commit],
        Vec::new(),
    )?;
    let mut entries = Vec::new();
    for record in listing.split(|byte| *byte == 0).filter(|it| !it.is_empty()) {
        entries.extend(entry(record)?);
    }
    if entries.is_empty() {
        return Err(GitError::Nothing {
            directory: directory.to_owned(),
            revision: revision.to_owned(),
        });
    }
    let wanted = entries.iter().filter(|entry| entry.bytes <= MAX_BYTES);
    if entries.len() > MAX_FILES || wanted.map(|entry| entry.bytes).sum::<usize>() > MAX_ALL {
        return Err(GitError::TooMuch);
    }
    let contents = git.contents(&entries)?;
    let folder = TempDir::with_prefix("gate25-").map_err(GitError::Copy)?;
    // Links last: nothing is written through one.
    entries.sort_by_key(|entry| entry.is_link);
    for entry in &entries {
        let bytes = contents.get(&entry.object).map_or(&[][..], Vec::as_slice);
        copy(folder.path(), entry, bytes).map_err(GitError::Copy)?;
    }
    Ok(folder)
}

/// A file or a link; `None` for others.
fn entry(record: &[u8]) -> Result<Option<Entry>, GitError> {
    let tab = record.iter().position(|byte| *byte == b'\t');
    let (head, path) = record.split_at(tab.ok_or(GitError::Odd)?);
    let path = Path::new(OsStr::from_bytes(path.get(1..).unwrap_or_default()));
    let head = std::str::from_utf8(head).ok().ok_or(GitError::Odd)?;
    let mut fields = head.split_ascii_whitespace();
    let (Some(mode), Some(kind), Some(object), Some(bytes)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(GitError::Odd);
    };
    let is_link = mode == LINK;
    let is_inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if kind != BLOB || !is_inside {
        return Ok(None);
    }
    Ok(Some(Entry {
        path: path.to_owned(),
        is_link,
        object: object.to_owned(),
        bytes: bytes.parse().ok().ok_or(GitError::Odd)?,
    }))
}

fn copy(folder: &Path, entry: &Entry, bytes: &[u8]) -> io::Result<()> {
    let path = folder.join(&entry.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    if entry.is_link {
        return symlink(OsStr::from_bytes(bytes), path);
    }
    let mut file = File::create_new(path)?;
    if entry.bytes > MAX_BYTES {
        // Its contents were not asked for: such a file is refused for its size.
        return file.set_len(entry.bytes as u64);
    }
    file.write_all(bytes)
}

struct Git<'d> {
    directory: &'d Path,
}

impl Git<'_> {
    /// What the entries hold, by their objects; not of those that are too large to be read.
    fn contents(&self, entries: &[Entry]) -> Result<BTreeMap<String, Vec<u8>>, GitError> {
        let wanted = entries.iter().filter(|entry| entry.bytes <= MAX_BYTES);
        let asked: String = wanted.map(|entry| format!("{}\n", entry.object)).collect();
        let answer = self.run("read files", &["cat-file", "--batch"], asked.into_bytes())?;
        let mut contents = BTreeMap::new();
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (head, after) = rest.split_at(end.ok_or(GitError::Odd)?);
            let head = std::str::from_utf8(head).ok().ok_or(GitError::Odd)?;
            let mut fields = head.split(' ');
            let (Some(object), Some(BLOB), Some(bytes)) =
                (fields.next(), fields.next(), fields.next())
            else {
                return Err(GitError::Odd);
            };
            let bytes: usize = bytes.parse().ok().ok_or(GitError::Odd)?;
            let body = after.get(1..=bytes).ok_or(GitError::Odd)?;
            contents.insert(object.to_owned(), body.to_vec());
            rest = after.get(bytes + 2..).ok_or(GitError::Odd)?;
        }
        Ok(contents)
    }

    fn run(
        &self,
        action: &'static str,
        words: &[&str],
        input: Vec<u8>,
    ) -> Result<Vec<u8>, GitError> {
        let failed = |source| GitError::Run { action, source };
        let mut command = Command::new(PROGRAM);
        command
            .arg("-C")
            .arg(self.directory)
            .args(words)
            .env("LC_ALL", "C")
            // It asks nobody, fetches nothing and writes nothing.
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0");
        let child = start(&mut command).map_err(failed)?;
        match talk(child, input, LIMIT, None).map_err(failed)? {
            None => Err(GitError::Slow { action }),
            Some(output) if output.status.success() => Ok(output.stdout),
            Some(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said: String = said.trim().chars().take(MAX_SAID).collect();
                let said = escape(&said);
                Err(GitError::Refused { action, said })
            }
        }
    }
}
