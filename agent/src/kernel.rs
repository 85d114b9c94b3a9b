//! Everything that talks to the kernel.

pub mod bpf;
pub mod cgroups;
pub mod filter;
pub mod guard;
pub mod links;
pub mod namespaces;
mod netlink;
pub mod nft;
pub mod nftables;
pub(crate) mod peer;
pub(crate) mod readiness;
pub mod removal;
pub mod routes;
pub mod ruleset;
pub mod sockets;
pub(crate) mod tally;
