//! What the outcome of a test depends on, and which commit it is of.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::{binaries::Binary, cargo::root};

/// What the agent, its programs and the lab are built of.
const ALL_BINARIES: [&str; 8] = [
    "Cargo.lock",
    "Cargo.toml",
    "agent/Cargo.toml",
    "agent/build.rs",
    "agent/src",
    "ebpf",
    "tests/Cargo.toml",
    "tests/src",
];

/// Sets up the machine, as this program does: no test's outcome is another by how that is written.
const MACHINE: &str = "tests/src/vm";

/// A hash of the sources of the agent, of the lab and of this test binary.
pub(super) fn hash(binary: &Binary) -> anyhow::Result<String> {
    let root = root();
    let mut files = Vec::new();
    for path in ALL_BINARIES {
        collect(&root.join(path), &mut files)?;
    }
    let machine = root.join(MACHINE);
    files.retain(|file| !file.starts_with(&machine));
    files.extend(own(binary)?);
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(&root).unwrap_or(&file);
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let digest: [u8; 32] = hash.finalize().into();
    Ok(digest.map(|byte| format!("{byte:02x}")).concat())
}

/// All files of a folder, or the file.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        collect(&entry.path(), files)?;
    }
    Ok(())
}

/// The sources of a test binary itself, which the compiler has listed beside it.
fn own(binary: &Binary) -> anyhow::Result<Vec<PathBuf>> {
    let list = binary.file.with_extension("d");
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let files: Vec<_> = listed(&text).map(|file| root().join(file)).collect();
    if files.is_empty() {
        bail!("{} lists no source", list.display());
    }
    Ok(files)
}

/// In a file of dependencies each source has a line of its own, as a target without any.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_suffix(':'))
}

/// The last commit that has changed what the agent and the lab are built of.
pub(super) fn commit() -> anyhow::Result<String> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(arguments).arg("--").args(ALL_BINARIES);
        command.arg(format!(":!{MACHINE}"));
        let output = command.current_dir(root()).output().context("start git")?;
        if !output.status.success() {
            bail!(
                "git {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain"])?;
    let commit = git(&["log", "-1", "--format=%h"])?;
    Ok(if changed.is_empty() {
        format!("commit {commit}")
    } else {
        format!("commit {commit} and changes since that are in none")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_sources_are_those_with_a_line_of_their_own() {
        let text = "deps/one.d: tests/one.rs tests/one/part.rs\n\n\
                    deps/one: tests/one.rs tests/one/part.rs\n\n\
                    tests/one.rs:\ntests/one/part.rs:\n";
        let found: Vec<_> = listed(text).collect();
        assert_eq!(found, ["tests/one.rs", "tests/one/part.rs"]);
    }

    #[test]
    fn all_that_binaries_are_built_of_is_there() {
        for path in ALL_BINARIES.into_iter().chain([MACHINE]) {
            assert!(root().join(path).exists(), "{path}");
        }
    }
}
