//! gate25's developer commands.
fn main() {}
