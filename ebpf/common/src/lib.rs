//! What gate25's kernel programs and its agent share: the tables' types and names, the packet
//! parser, and the decision itself. The kernel, `gate25 explain` and the tests call the same code.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

#[cfg(feature = "testing")]
extern crate std;

pub mod abi;
pub mod address;
pub mod counters;
pub mod decide;
pub mod filter;
pub mod names;
pub mod packet;
#[cfg(feature = "user")]
mod pod;
pub mod redirect;
pub mod returns;
#[cfg(feature = "testing")]
pub mod testing;
