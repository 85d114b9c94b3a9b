//! Everything that talks to the kernel.

pub mod filter;
pub mod links;
mod netlink;
pub(crate) mod readiness;
