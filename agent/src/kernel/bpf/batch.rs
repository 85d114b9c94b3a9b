//! Tables read many entries at a time (kernel 5.6), which aya does not do: thousands of customers take
//! milliseconds, and one call for each would take tens.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::Pod;

use super::link::bpf;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries of one call. One bucket of a table, the least that the kernel gives, has far fewer.
const AT_A_TIME: usize = 1024;

/// `struct { ... } batch` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct BatchAttr {
    /// Where to go on; 0 for the beginning.
    after: u64,
    /// Filled with where to go on.
    reached: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// Hands every entry of a hash table with a value for each of `cpus` CPUs to `each`. What comes or goes
/// meanwhile may be left out.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn per_cpu<K: Pod + Default, V: Pod>(
    map: BorrowedFd<'_>,
    cpus: usize,
    zero: V,
    mut each: impl FnMut(K, &[V]),
) -> io::Result<()> {
    // The kernel puts values at multiples of eight bytes.
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut keys = vec![K::default(); AT_A_TIME];
    let mut values = vec![zero; AT_A_TIME * cpus];
    // The number of a bucket.
    let (mut after, mut reached) = (0u32, 0u32);
    let mut is_first = true;
    loop {
        let mut attr = BatchAttr {
            after: if is_first {
                0
            } else {
                address(&raw const after)
            },
            reached: address(&raw mut reached),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: AT_A_TIME as u32,
            map: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let is_last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = attr.count as usize;
        for (key, values) in keys.iter().zip(values.chunks_exact(cpus)).take(count) {
            each(*key, values);
        }
        if is_last {
            return Ok(());
        }
        (after, is_first) = (reached, false);
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}
