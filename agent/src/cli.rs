//! The commands of `gate25`, one module each.

pub mod check;
mod files;
pub mod schema;
