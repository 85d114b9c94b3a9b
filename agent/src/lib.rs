//! gate25's agent as a library: the binary and the tests call the same code.

pub mod cli;
pub mod diagnostic;
pub mod policy;
pub mod settings;
mod yaml;
