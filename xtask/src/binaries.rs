//! Test binaries: which there are, and where cargo puts them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::cargo::{cargo, root};

/// A built test binary.
#[derive(Debug, Clone)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// Where cargo runs it.
    pub(crate) folder: PathBuf,
}

/// The test targets of the lab's package that start with a tier's prefix.
pub(crate) fn targets(prefix: &str) -> anyhow::Result<Vec<String>> {
    targets_in(&root().join("tests/tests"), prefix)
}

/// The targets whose files in `dir` start with a prefix.
pub(crate) fn targets_in(dir: &Path, prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("read {}", dir.display()))?
            .path();
        names.extend(target_name(&path).filter(|name| name.starts_with(prefix)));
    }
    names.sort();
    if names.is_empty() {
        bail!("no file {}/{prefix}*.rs", dir.display());
    }
    Ok(names)
}

fn target_name(path: &Path) -> Option<String> {
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    let stem = path.file_stem()?.to_str()?;
    is_rust.then(|| stem.to_owned())
}

/// Builds targets of the lab's package, with the agent's own tests against the kernel where asked for.
pub(crate) fn build(targets: &[String], agents_own: bool) -> anyhow::Result<Vec<Binary>> {
    let mut command = cargo("test");
    // Whatever they do themselves is emulated, too.
    command.args(["--release", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    command.args(["--package", "gate25-tests"]);
    for target in targets {
        command.args(["--test", target]);
    }
    if agents_own {
        command.args(["--package", "gate25", "--test", "root"]);
        command.args(["--features", "gate25-tests/root,gate25/root-tests"]);
    } else {
        command.args(["--features", "gate25-tests/root"]);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("cargo test --no-run: {}", output.status);
    }
    let mut built = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        built.extend(binary(line)?);
    }
    built.sort_by(|one, other| one.name.cmp(&other.name));
    if built.len() < targets.len() {
        bail!("cargo named {} binaries for {targets:?}", built.len());
    }
    Ok(built)
}

/// What cargo says, as far as it tells of test binaries.
#[derive(Debug, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The test binary that a line of cargo's tells of, if it does.
fn binary(line: &str) -> anyhow::Result<Option<Binary>> {
    let message: Message =
        serde_json::from_str(line).with_context(|| format!("read cargo's {line:?}"))?;
    let Message {
        target: Some(Target { name, kind }),
        executable: Some(file),
        manifest_path: Some(manifest),
    } = message
    else {
        return Ok(None);
    };
    let folder = manifest
        .parent()
        .with_context(|| format!("{} has no folder", manifest.display()))?
        .to_owned();
    Ok(kind
        .iter()
        .any(|kind| kind == "test")
        .then_some(Binary { name, file, folder }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_of_a_test_target_is_where_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/src/tests/Cargo.toml","target":{"kind":["test"],"name":"object"},"executable":"/src/target/debug/deps/object-1"}"#;
        let found = binary(line).unwrap().unwrap();
        assert_eq!(found.name, "object");
        assert_eq!(found.file, Path::new("/src/target/debug/deps/object-1"));
        assert_eq!(found.folder, Path::new("/src/tests"));
    }

    #[test]
    fn binary_of_other_messages_is_none() {
        for line in [
            r#"{"reason":"build-finished","success":true}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/m","target":{"kind":["lib"],"name":"l"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/m","target":{"kind":["bin"],"name":"b"},"executable":"/b"}"#,
        ] {
            assert!(binary(line).unwrap().is_none(), "{line}");
        }
        assert!(binary("Compiling").is_err());
    }
}
