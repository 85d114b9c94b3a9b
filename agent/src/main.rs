//! The gate25 command.
fn main() {}
