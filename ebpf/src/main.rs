//! gate25's programs for the kernel.
fn main() {}
