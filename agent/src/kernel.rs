//! Everything that talks to the kernel.

pub mod bpf;
pub mod filter;
pub mod links;
mod netlink;
pub(crate) mod peer;
pub(crate) mod readiness;
