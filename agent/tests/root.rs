//! Interfaces, tc filters, control groups, sockets and file systems against the real kernel:
//! `cargo test -p gate25 --features root-tests` as root. Every test has a network or mount
//! namespace of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "root/cgroup.rs"]
mod cgroup;
#[path = "root/cgroups.rs"]
mod cgroups;
#[path = "root/control.rs"]
mod control;
#[path = "root/filter.rs"]
mod filter;
#[path = "root/hierarchy.rs"]
mod hierarchy;
#[path = "root/leftover.rs"]
mod leftover;
#[path = "root/links.rs"]
mod links;
#[path = "root/namespaces.rs"]
mod namespaces;
#[path = "root/netns.rs"]
mod netns;
#[path = "root/nft.rs"]
mod nft;
#[path = "root/nftables.rs"]
mod nftables;
#[path = "root/routes.rs"]
mod routes;
#[path = "root/sockets.rs"]
mod sockets;
#[path = "root/state.rs"]
mod state;
