//! Interfaces, tc filters and file systems against the real kernel: `cargo test -p gate25 --features
//! root-tests` as root. Every test has a network or mount namespace of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "root/control.rs"]
mod control;
#[path = "root/filter.rs"]
mod filter;
#[path = "root/leftover.rs"]
mod leftover;
#[path = "root/links.rs"]
mod links;
#[path = "root/netns.rs"]
mod netns;
#[path = "root/state.rs"]
mod state;
