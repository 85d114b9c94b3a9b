//! The commands of `gate25`, one module each.

pub mod check;
pub mod schema;
