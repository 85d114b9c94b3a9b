//! The commands of `gate25`, one module each.

pub mod check;
pub mod explain;
mod files;
pub mod metrics;
pub mod schema;
