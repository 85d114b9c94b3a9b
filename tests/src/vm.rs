//! Virtual machines: Debian's kernels under QEMU's emulation, without KVM.

mod debian;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod testbed;

pub use debian::Debian;
pub use guest::Vm;
pub use kernel::Kernel;
pub use machine::Patience;
pub use testbed::{Files, Testbed, inside};
