//! What the allocator keeps of memory that was freed.
#![allow(unsafe_code)]

/// Has the system get back what lies free between small blocks, for when many were freed and something else comes next. Does
/// nothing where the allocator is not glibc's.
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and touches nothing but free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
