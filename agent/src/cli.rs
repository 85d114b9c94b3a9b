//! The commands of `gate25`, one module each.

pub mod check;
pub mod console;
pub mod diff;
pub mod doctor;
pub mod explain;
mod files;
pub mod guard;
pub mod list;
pub mod metrics;
pub mod pages;
pub mod prepare;
pub mod reload;
pub mod schema;
pub mod status;
pub mod teardown;
