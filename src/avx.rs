//! What ISA-L leaves behind in the processor.
#![allow(unsafe_code)]

/// Clears the upper halves of the vector registers, as every function that used them should.
///
/// ISA-L does not, and as long as they hold something, SHA-1 and SHA-256 run at three quarters of their speed.
pub(crate) fn clear_upper_halves() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has the instruction.
        unsafe { zero_upper() };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn zero_upper() {
    std::arch::x86_64::_mm256_zeroupper();
}
