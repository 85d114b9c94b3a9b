//! What the tests of several crates share: frames made by hand, and tables in memory. Written
//! from the RFCs and the design, without the parser's or the decision's code.

pub mod frames;
pub mod tables;
