//! gate25's agent as a library: the binary and the tests call the same code.

pub mod chain;
pub mod cli;
pub mod clock;
pub mod compile;
pub mod control;
pub mod dataplane;
pub mod diagnostic;
pub mod explain;
pub mod figures;
pub mod guard;
pub mod http;
pub mod json;
pub mod kernel;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod policy;
pub mod reconcile;
pub mod run;
pub mod settings;
pub mod source;
pub mod state;
pub mod status;
pub mod watch;
pub mod workloads;
mod yaml;
