//! Where the built kernel objects are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Which of the two objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The one that runs by default.
    Plain,
    /// The one with debug lines.
    Log,
}

impl Object {
    /// The object's file, as the agent's build left it.
    ///
    /// # Errors
    /// When the agent has not been built.
    pub fn path(self) -> anyhow::Result<PathBuf> {
        let dir = match self {
            Self::Plain => "plain",
            Self::Log => "log",
        };
        let base = env::var_os("GATE25_OBJECTS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf"),
            PathBuf::from,
        );
        let path = base
            .join(dir)
            .join("bpfel-unknown-none/release/gate25-ebpf");
        path.canonicalize()
            .with_context(|| format!("no object at {}: run `./xtask/x build`", path.display()))
    }
}
