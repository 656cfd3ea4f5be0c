//! The processor's generator of random numbers, without any test. The module `random` (feature `random`) tests it and
//! mixes its words.

/// Returns a word of RDRAND; `None` if there is none at the moment, or the processor has no such instruction.
pub fn rdrand() -> Option<u64> {
    has_rdrand().then(rdrand_step)?
}

/// Returns whether the processor has the instruction (CPUID leaf 1, bit 30 of ECX), and the domain may use it.
pub fn has_rdrand() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 30 != 0
}

fn rdrand_step() -> Option<u64> {
    #[target_feature(enable = "rdrand")]
    fn step() -> Option<u64> {
        let mut word = 0;
        (core::arch::x86_64::_rdrand64_step(&mut word) == 1).then_some(word)
    }
    // SAFETY: the caller has looked whether the processor has the instruction.
    unsafe { step() }
}
