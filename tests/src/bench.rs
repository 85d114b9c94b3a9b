//! Instruments for `xtask bench`: programs run and timed on their own, packets injected into an
//! interface's receive path, and programs put together by hand.

mod instructions;
mod program;
mod table;

pub use instructions::{Instructions, Label, Register, Size, helper};
pub use program::{Attached, Context, Kind, Program, Ran, is_watched};
pub use table::Table;
