//! Control over the memory allocator.
#![allow(unsafe_code)]

/// Returns free memory between small blocks to the system, for use after many blocks were freed. Does nothing with an allocator
/// other than glibc's.
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function has only a number as parameter, and accesses only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
