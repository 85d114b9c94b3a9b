//! Builds of the agent that differ from this one as the next version may: for upgrades.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};

use crate::cargo::{self, LIMIT, cargo, root, target};

/// What the workspace is made of.
const SOURCES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "agent",
    "deploy",
    "ebpf",
    "tests",
    "xtask",
];

/// A text in a source, and what takes its place.
struct Change {
    file: &'static str,
    from: String,
    to: String,
}

/// Makes both builds and returns the folder that holds them: `programs`, whose programs are others,
/// and `tables`, which has another version of everything that the kernel holds, too.
pub(crate) fn make() -> anyhow::Result<PathBuf> {
    let dir = target().join("builds");
    one(&dir, "programs", &[programs()])?;
    with_other_tables()?;
    dir.canonicalize()
        .with_context(|| format!("find {}", dir.display()))
}

/// Makes the one whose programs and tables are others, and returns it.
pub(crate) fn with_other_tables() -> anyhow::Result<PathBuf> {
    let dir = target().join("builds");
    one(&dir, "tables", &[programs(), tables()?])?;
    Ok(dir.join("tables"))
}

/// A number that says nothing outside of its file.
fn programs() -> Change {
    Change {
        file: "ebpf/src/tc.rs",
        from: "const REDIRECT: i32 = REFUSE + 1;".to_owned(),
        to: "const REDIRECT: i32 = REFUSE + 2;".to_owned(),
    }
}

/// The next version of everything that the kernel holds.
fn tables() -> anyhow::Result<Change> {
    const FILE: &str = "ebpf/common/src/names.rs";
    const BEFORE: &str = "pub const ABI_VERSION: u32 = ";
    let path = root().join(FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let version = text.split_once(BEFORE).and_then(|(_, rest)| {
        let digits = rest.split(';').next()?;
        digits.parse::<u32>().ok()
    });
    let version = version.with_context(|| format!("no version in {FILE}"))?;
    Ok(Change {
        file: FILE,
        from: format!("{BEFORE}{version};"),
        to: format!("{BEFORE}{};", version + 1),
    })
}

/// Builds a changed copy of the sources. Without optimization: it is only started a few times.
fn one(dir: &Path, name: &str, changes: &[Change]) -> anyhow::Result<()> {
    let copy = dir.join(format!("{name}.source"));
    fs::create_dir_all(&copy).with_context(|| format!("create {}", copy.display()))?;
    let mut changed = 0;
    for part in SOURCES {
        changed += copy_changed(Path::new(part), &copy, changes)?;
    }
    if changed != changes.len() {
        bail!("{changed} of {} changes apply to {name}", changes.len());
    }
    let tools = copy.join(".cache");
    if !tools.exists() {
        symlink(root().join(".cache"), &tools).context("link the tools")?;
    }
    let mut command = cargo("build");
    command
        .args(["--package", "gate25", "--bin", "gate25"])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .stdin(Stdio::null());
    let mut child = command.spawn().context("start cargo")?;
    let status = cargo::wait(&mut child, LIMIT)?;
    if !status.success() {
        bail!("cargo build of {name}: {status}");
    }
    fs::copy(dir.join("target/debug/gate25"), dir.join(name))
        .map(drop)
        .with_context(|| format!("keep the build {name}"))
}

/// Copies a file, or a folder and all below, and makes the changes; how many were made. What is the
/// same stays as old as it is, so that cargo builds no more than has changed.
fn copy_changed(part: &Path, copy: &Path, changes: &[Change]) -> anyhow::Result<usize> {
    let (from, to) = (root().join(part), copy.join(part));
    let doing = || format!("copy {}", from.display());
    if from.is_dir() {
        fs::create_dir_all(&to).with_context(doing)?;
        let mut changed = 0;
        for entry in fs::read_dir(&from).with_context(doing)? {
            let name = entry.with_context(doing)?.file_name();
            changed += copy_changed(&part.join(name), copy, changes)?;
        }
        return Ok(changed);
    }
    let mut bytes = fs::read(&from).with_context(doing)?;
    let mut changed = 0;
    for change in changes
        .iter()
        .filter(|change| Path::new(change.file) == part)
    {
        let text = String::from_utf8(bytes).with_context(doing)?;
        if text.matches(&change.from).count() != 1 {
            bail!("{} does not hold this once: {}", change.file, change.from);
        }
        bytes = text.replace(&change.from, &change.to).into_bytes();
        changed += 1;
    }
    if fs::read(&to).ok().as_ref() != Some(&bytes) {
        fs::write(&to, bytes).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(changed)
}
