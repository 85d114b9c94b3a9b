//! What the allocator keeps of memory that nobody uses any more.
//!
//! glibc gives each thread a heap of its own and returns little of it: reading a policy of ten thousand
//! customers leaves more behind than the agent needs afterwards.

/// One heap serves all threads: there is little that they would contend for.
const HEAPS: libc::c_int = 1;
/// Bytes from which on a piece of memory is mapped by itself, and gone once it is freed. Said once, the
/// limit no longer grows with what is freed.
const MAPPED: libc::c_int = 128 << 10;

/// Has the allocator keep little. Before there is a second thread.
pub fn keep_little() {
    for (parameter, value) in [(libc::M_ARENA_MAX, HEAPS), (libc::M_MMAP_THRESHOLD, MAPPED)] {
        // SAFETY: changes the allocator's own settings; a value that it refuses leaves them as they are,
        // which costs memory and nothing else.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Returns to the kernel what is free.
pub fn give_back() {
    // SAFETY: works on the allocator's own lists, under its locks.
    unsafe { libc::malloc_trim(0) };
}
