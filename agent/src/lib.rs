//! gate25's agent as a library: the binary and the tests call the same code.

pub mod cli;
pub mod clock;
pub mod compile;
pub mod dataplane;
pub mod diagnostic;
pub mod http;
pub mod kernel;
pub mod logging;
pub mod policy;
pub mod settings;
pub mod watch;
mod yaml;
