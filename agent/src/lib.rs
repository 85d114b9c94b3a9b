//! gate25's agent as a library: the binary and the tests call the same code.

pub mod clock;
pub mod http;
pub mod kernel;
pub mod logging;
pub mod policy;
pub mod watch;
