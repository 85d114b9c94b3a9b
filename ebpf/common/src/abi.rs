//! Types of the kernel's tables.

/// Exemptions of one customer that the kernel holds at the same time.
pub const MAX_EXEMPTIONS: usize = 16;
