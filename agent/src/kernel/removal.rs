//! Taking away what agents have left in the kernel.

/// Whether something is removed or only named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is removed.
    Real,
    /// It is named.
    DryRun,
}
