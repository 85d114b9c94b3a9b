//! What has passed on a kernel already, with the very same binaries: a run of hours that something
//! interrupts goes on where it was.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{
    binaries::Binary,
    cargo::{Count, target},
};

/// What a test binary came to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) count: Count,
    /// Tests that it noted as skipped, a line each.
    pub(super) skips: String,
    /// What it tried against the promise, in the ledger's lines.
    pub(super) tried: String,
}

/// What has passed with one agent.
#[derive(Debug)]
pub(super) struct Passed {
    agent: Vec<u8>,
}

impl Passed {
    pub(super) fn with(agent: &Path) -> anyhow::Result<Self> {
        let agent = read(agent)?;
        Ok(Self { agent })
    }

    /// What this binary came to when it passed on this kernel.
    pub(super) fn find(&self, release: &str, binary: &Binary) -> anyhow::Result<Option<Outcome>> {
        let file = self.file(release, binary)?;
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("read {}", file.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    pub(super) fn keep(
        &self,
        release: &str,
        binary: &Binary,
        outcome: &Outcome,
    ) -> anyhow::Result<()> {
        let file = self.file(release, binary)?;
        fs::create_dir_all(folder()).context("create a folder for what has passed")?;
        let text = serde_json::to_vec(outcome).context("write what has passed")?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    /// Named after everything that the outcome depends on.
    fn file(&self, release: &str, binary: &Binary) -> anyhow::Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        self.agent.hash(&mut hasher);
        read(&binary.file)?.hash(&mut hasher);
        let name = format!("{release}.{}.{:016x}", binary.name, hasher.finish());
        Ok(folder().join(name))
    }
}

fn folder() -> PathBuf {
    target().join("matrix")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
