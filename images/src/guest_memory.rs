//! The one routine that moves bytes to and from guests' memory.
//!
//! That memory may change under us at any time, so no Rust reference to it ever exists and no
//! ordinary load or store touches it: the wide part is assembly, the rest is volatile. Sixteen
//! bytes at a time are as fast as `rep movsb` for page-sized copies on real processors, and many
//! times faster under an emulator that does the latter byte by byte.
//!
//! ```
//! use bulkhead_images::guest_memory;
//!
//! let from = [7_u8; 100];
//! let mut to = [0_u8; 100];
//! // SAFETY: two arrays of that length.
//! unsafe { guest_memory::copy(from.as_ptr(), to.as_mut_ptr(), 100) };
//! assert_eq!(from, to);
//! ```

/// Copies `len` bytes. If either range changes meanwhile, each byte has a value that it had at some moment.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes; the ranges do not overlap. What Rust
/// believes to be unchanging does not lie in `to`.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: as the caller promises.
    let done = unsafe { copy_wide(from, to, len) };
    // SAFETY: the rest of the same ranges.
    unsafe { copy_words(from.add(done), to.add(done), len - done) }
}

/// Fills `len` bytes with zeros.
///
/// # Safety
/// `to` is writable for `len` bytes, and nothing that Rust believes to be unchanging lies there.
pub unsafe fn zero(to: *mut u8, len: usize) {
    // SAFETY: as the caller promises.
    let mut done = unsafe { zero_wide(to, len) };
    while len - done >= 8 {
        // SAFETY: within the range; the pointer type needs no alignment.
        unsafe {
            to.add(done)
                .cast::<Unaligned>()
                .write_volatile(Unaligned(0))
        };
        done += 8;
    }
    while done < len {
        // SAFETY: within the range.
        unsafe { to.add(done).write_volatile(0) };
        done += 1;
    }
}

/// Eight bytes at any address: one ordinary move on x86.
#[repr(C, packed)]
struct Unaligned(u64);

/// Instructions that copy 64 bytes, so many bytes behind the current ones.
#[cfg(target_arch = "x86_64")]
macro_rules! copy_64_bytes {
    ($a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            "movups {a}, [{from} + {at} + ",
            $a,
            "]\n",
            "movups {b}, [{from} + {at} + ",
            $b,
            "]\n",
            "movups {c}, [{from} + {at} + ",
            $c,
            "]\n",
            "movups {d}, [{from} + {at} + ",
            $d,
            "]\n",
            "movups [{to} + {at} + ",
            $a,
            "], {a}\n",
            "movups [{to} + {at} + ",
            $b,
            "], {b}\n",
            "movups [{to} + {at} + ",
            $c,
            "], {c}\n",
            "movups [{to} + {at} + ",
            $d,
            "], {d}",
        )
    };
}

/// Copies as many whole blocks of 64 bytes as there are, and returns the number of their bytes. Four of them have one
/// turn of the loop, which saves a quarter of the instructions for a page.
///
/// # Safety
/// As for [`copy`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn copy_wide(from: *const u8, to: *mut u8, len: usize) -> usize {
    let (wide, widest) = (len & !63, len & !255);
    // SAFETY: reads and writes `wide` bytes, no more than the caller promised; the registers it
    // changes are named, the stack and the flags' direction bit are not touched.
    unsafe {
        core::arch::asm!(
            "cmp {at}, {widest}",
            "je 3f",
            "2:",
            copy_64_bytes!("0" "16" "32" "48"),
            copy_64_bytes!("64" "80" "96" "112"),
            copy_64_bytes!("128" "144" "160" "176"),
            copy_64_bytes!("192" "208" "224" "240"),
            "add {at}, 256",
            "cmp {at}, {widest}",
            "jne 2b",
            "3:",
            "cmp {at}, {wide}",
            "je 5f",
            "4:",
            copy_64_bytes!("0" "16" "32" "48"),
            "add {at}, 64",
            "cmp {at}, {wide}",
            "jne 4b",
            "5:",
            from = in(reg) from,
            to = in(reg) to,
            wide = in(reg) wide,
            widest = in(reg) widest,
            at = inout(reg) 0_usize => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
    wide
}

/// Zeroes as many whole blocks of 64 bytes as there are, and returns the number of their bytes.
///
/// # Safety
/// As for [`zero`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn zero_wide(to: *mut u8, len: usize) -> usize {
    let wide = len & !63;
    if wide == 0 {
        return 0;
    }
    // SAFETY: writes `wide` bytes, no more than the caller promised; the registers it changes are
    // named, the stack and the flags' direction bit are not touched.
    unsafe {
        core::arch::asm!(
            "xorps {zero}, {zero}",
            "2:",
            "movups [{to}], {zero}",
            "movups [{to} + 16], {zero}",
            "movups [{to} + 32], {zero}",
            "movups [{to} + 48], {zero}",
            "add {to}, 64",
            "sub {left}, 64",
            "jnz 2b",
            to = inout(reg) to => _,
            left = inout(reg) wide => _,
            zero = out(xmm_reg) _,
            options(nostack),
        );
    }
    wide
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn zero_wide(_to: *mut u8, _len: usize) -> usize {
    0
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_wide(_from: *const u8, _to: *mut u8, _len: usize) -> usize {
    0
}

/// Copies eight bytes at a time, then single ones.
///
/// # Safety
/// As for [`copy`].
#[inline]
unsafe fn copy_words(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    while len - done >= 8 {
        // SAFETY: within both ranges; the pointer type needs no alignment.
        unsafe {
            let word = from.add(done).cast::<Unaligned>().read_volatile();
            to.add(done).cast::<Unaligned>().write_volatile(word);
        }
        done += 8;
    }
    while done < len {
        // SAFETY: within both ranges.
        unsafe { to.add(done).write_volatile(from.add(done).read_volatile()) };
        done += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{copy, zero};
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn copies_every_length_at_every_alignment_and_nothing_else() {
        let from: Vec<u8> = (0..4200_u32).map(|n| (n * 7 + n / 251) as u8).collect();
        for len in (0..850).chain(4094..4100) {
            for (skip_from, skip_to) in [(0, 0), (1, 0), (0, 3), (7, 9)] {
                let mut to = vec![0xEE_u8; len + 200];
                // SAFETY: both vectors are long enough.
                unsafe {
                    copy(
                        from.as_ptr().add(skip_from),
                        to.as_mut_ptr().add(skip_to),
                        len,
                    )
                };
                assert_eq!(to[skip_to..skip_to + len], from[skip_from..skip_from + len]);
                assert!(to[..skip_to].iter().all(|&byte| byte == 0xEE));
                assert!(to[skip_to + len..].iter().all(|&byte| byte == 0xEE));
            }
        }
    }

    #[test]
    fn zeroes_every_length_and_nothing_else() {
        for len in 0..300 {
            let mut to = vec![0xEE_u8; 310];
            // SAFETY: long enough.
            unsafe { zero(to.as_mut_ptr().add(5), len) };
            assert!(to[5..5 + len].iter().all(|&byte| byte == 0));
            assert!(to[..5].iter().all(|&byte| byte == 0xEE));
            assert!(to[5 + len..].iter().all(|&byte| byte == 0xEE));
        }
    }
}
