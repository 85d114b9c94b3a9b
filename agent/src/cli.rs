//! The commands of `gate25`, one module each.

pub mod bypass;
pub mod check;
pub mod console;
pub mod diff;
pub mod doctor;
pub mod enforcement;
pub mod exempt;
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
mod term;
pub mod trial;
