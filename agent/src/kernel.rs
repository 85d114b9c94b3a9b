//! Everything that talks to the kernel.

pub mod bpf;
pub mod cgroups;
mod counters;
pub mod filter;
pub mod functions;
pub mod guard;
pub mod links;
pub mod machines;
pub mod memory;
pub mod namespaces;
pub mod netfilter;
mod netlink;
pub mod nft;
pub mod nftables;
pub(crate) mod peer;
pub mod privileges;
pub(crate) mod readiness;
pub mod removal;
pub mod routes;
pub mod ruleset;
pub mod services;
pub mod sockets;
pub mod surroundings;
pub(crate) mod tally;
