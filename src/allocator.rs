//! Control over the memory allocator.
#![allow(unsafe_code)]

/// Returns unused memory of the heap to the system. Call it after many small blocks were freed: the allocator does not return
/// free memory between blocks in use by itself. Does nothing with an allocator other than glibc's.
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function has only a number as parameter, and accesses only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
