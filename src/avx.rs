//! Resets the processor's vector registers after calls of ISA-L.
#![allow(unsafe_code)]

/// Clears the upper halves of the vector registers. A function that uses vector registers should clear them before it returns.
///
/// ISA-L does not, and until they are cleared, SHA-1 and SHA-256 run at three quarters of their speed.
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
