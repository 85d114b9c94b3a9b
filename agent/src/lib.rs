//! gate25's agent as a library: the binary and the tests call the same code.

pub mod compile;
pub mod dataplane;
pub mod kernel;
pub mod policy;
