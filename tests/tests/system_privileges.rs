//! What the agent may do and what it needs: as a user of its own, with nothing but what it is
//! granted, and as root.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "privileges/folders.rs"]
mod folders;
#[path = "privileges/needs.rs"]
mod needs;
#[path = "privileges/strangers.rs"]
mod strangers;
#[path = "privileges/writers.rs"]
mod writers;
