//! What is shipped beside the agent: alerts, dashboards, pages of the manual, units. Each says only what is
//! so of the agent.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "deploy/alerts.rs"]
mod alerts;
#[path = "deploy/dashboards.rs"]
mod dashboards;
#[path = "deploy/manual.rs"]
mod manual;
#[path = "deploy/query.rs"]
mod query;
#[path = "deploy/units.rs"]
mod units;

use std::fs;
use std::path::{Path, PathBuf};

/// A file or folder of what is shipped.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

#[track_caller]
fn text(path: &str) -> String {
    let path = deploy(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
