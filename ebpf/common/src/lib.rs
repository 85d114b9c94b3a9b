//! What gate25's kernel programs and its agent share.
#![no_std]

pub mod abi;
