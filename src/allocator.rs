//! What the allocator keeps of memory that was freed. Where that is not glibc's, these do nothing.
#![allow(unsafe_code)]

/// Has the system get back what is freed in large blocks, for a program to call before it starts any thread.
///
/// Left to itself, glibc comes to keep blocks of up to 32 MiB, each thread its own.
pub fn give_large_blocks_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
    }
}

/// Bytes of a block that is large.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: i32 = 1 << 20;

/// Has the system get back what lies free between small blocks, for when many were freed and something else comes next.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and touches nothing but free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
