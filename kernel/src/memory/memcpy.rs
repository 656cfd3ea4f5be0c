//! Copying, filling and comparing bytes, 16 at a time.
//!
//! The compiler calls these functions `memcpy`, `memmove`, `memset`, `memcmp` and `bcmp`; in the unikernel they have
//! those names. They are assembly, so that no compiler turns their loops into calls of themselves. Emulated processors
//! run `rep movsb` a byte at a time, and real ones copy pages about as fast this way.

use core::arch::global_asm;

// Copies of up to 64 bytes load everything before they store anything; longer ones save the far
// end first. So both are right for any overlap, and memcpy can be memmove.
global_asm!(
    r#"
    .text
    .balign 16
    .globl bulkhead_memmove
bulkhead_memmove:                           /* rdi: to, rsi: from, rdx: count */
    movq %rdi, %rax
    cmpq $16, %rdx
    jb 5f
    cmpq $32, %rdx
    ja 1f
    movups (%rsi), %xmm0
    movups -16(%rsi,%rdx), %xmm1
    movups %xmm0, (%rdi)
    movups %xmm1, -16(%rdi,%rdx)
    ret
1:  cmpq $64, %rdx
    ja 2f
    movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups -32(%rsi,%rdx), %xmm2
    movups -16(%rsi,%rdx), %xmm3
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, -32(%rdi,%rdx)
    movups %xmm3, -16(%rdi,%rdx)
    ret
2:  movq %rdi, %rcx
    subq %rsi, %rcx
    cmpq %rdx, %rcx
    jb 4f                                   /* from < to < from + count */

    /* Upwards. The last 64 bytes are saved: storing may reach them early. */
    movups -64(%rsi,%rdx), %xmm4
    movups -48(%rsi,%rdx), %xmm5
    movups -32(%rsi,%rdx), %xmm6
    movups -16(%rsi,%rdx), %xmm7
    leaq -64(%rdi,%rdx), %r8
    .balign 16
3:  movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups 32(%rsi), %xmm2
    movups 48(%rsi), %xmm3
    addq $64, %rsi
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, 32(%rdi)
    movups %xmm3, 48(%rdi)
    addq $64, %rdi
    cmpq %r8, %rdi
    jb 3b
    movups %xmm4, (%r8)
    movups %xmm5, 16(%r8)
    movups %xmm6, 32(%r8)
    movups %xmm7, 48(%r8)
    ret

    /* Downwards, the first 64 bytes saved. */
4:  movups (%rsi), %xmm4
    movups 16(%rsi), %xmm5
    movups 32(%rsi), %xmm6
    movups 48(%rsi), %xmm7
    leaq 64(%rdi), %r8
    addq %rdx, %rsi
    addq %rdx, %rdi
    .balign 16
3:  movups -16(%rsi), %xmm0
    movups -32(%rsi), %xmm1
    movups -48(%rsi), %xmm2
    movups -64(%rsi), %xmm3
    subq $64, %rsi
    movups %xmm0, -16(%rdi)
    movups %xmm1, -32(%rdi)
    movups %xmm2, -48(%rdi)
    movups %xmm3, -64(%rdi)
    subq $64, %rdi
    cmpq %r8, %rdi
    ja 3b
    movups %xmm4, (%rax)
    movups %xmm5, 16(%rax)
    movups %xmm6, 32(%rax)
    movups %xmm7, 48(%rax)
    ret

5:  cmpl $8, %edx
    jb 6f
    movq (%rsi), %rcx
    movq -8(%rsi,%rdx), %r8
    movq %rcx, (%rdi)
    movq %r8, -8(%rdi,%rdx)
    ret
6:  cmpl $4, %edx
    jb 7f
    movl (%rsi), %ecx
    movl -4(%rsi,%rdx), %r8d
    movl %ecx, (%rdi)
    movl %r8d, -4(%rdi,%rdx)
    ret
7:  testl %edx, %edx
    je 8f
    /* One to three bytes: the first, the middle and the last. */
    movzbl (%rsi), %ecx
    movzbl -1(%rsi,%rdx), %r8d
    movl %edx, %r10d
    shrl $1, %r10d
    movzbl (%rsi,%r10), %r9d
    movb %cl, (%rdi)
    movb %r9b, (%rdi,%r10)
    movb %r8b, -1(%rdi,%rdx)
8:  ret

    .balign 16
    .globl bulkhead_memset
bulkhead_memset:                            /* rdi: to, esi: byte, rdx: count */
    movq %rdi, %rax
    movzbl %sil, %esi
    movabsq $0x0101010101010101, %rcx
    imulq %rcx, %rsi
    cmpq $16, %rdx
    jb 3f
    movq %rsi, %xmm0
    punpcklqdq %xmm0, %xmm0
    cmpq $64, %rdx
    ja 1f
    cmpq $32, %rdx
    jbe 2f
    movups %xmm0, 16(%rdi)
    movups %xmm0, -32(%rdi,%rdx)
2:  movups %xmm0, (%rdi)
    movups %xmm0, -16(%rdi,%rdx)
    ret
1:  leaq -64(%rdi,%rdx), %r8
    .balign 16
2:  movups %xmm0, (%rdi)
    movups %xmm0, 16(%rdi)
    movups %xmm0, 32(%rdi)
    movups %xmm0, 48(%rdi)
    addq $64, %rdi
    cmpq %r8, %rdi
    jb 2b
    movups %xmm0, (%r8)
    movups %xmm0, 16(%r8)
    movups %xmm0, 32(%r8)
    movups %xmm0, 48(%r8)
    ret
3:  cmpl $8, %edx
    jb 4f
    movq %rsi, (%rdi)
    movq %rsi, -8(%rdi,%rdx)
    ret
4:  cmpl $4, %edx
    jb 5f
    movl %esi, (%rdi)
    movl %esi, -4(%rdi,%rdx)
    ret
5:  testl %edx, %edx
    je 6f
    movb %sil, (%rdi)
    movb %sil, -1(%rdi,%rdx)
    shrl $1, %edx
    movb %sil, (%rdi,%rdx)
6:  ret

    .balign 16
    .globl bulkhead_memcmp
bulkhead_memcmp:                            /* rdi, rsi: what, rdx: count */
    cmpq $8, %rdx
    jb 3f
    leaq -8(%rdx), %r8
    xorl %ecx, %ecx
1:  movq (%rdi,%rcx), %rax
    movq (%rsi,%rcx), %r9
    cmpq %r9, %rax
    jne 2f
    addq $8, %rcx
    cmpq %r8, %rcx
    jbe 1b
    /* The last eight bytes, of which some are known to be equal. */
    movq (%rdi,%r8), %rax
    movq (%rsi,%r8), %r9
    cmpq %r9, %rax
    jne 2f
    xorl %eax, %eax
    ret
2:  bswapq %rax                             /* the first byte decides */
    bswapq %r9
    cmpq %r9, %rax
    sbbl %eax, %eax
    orl $1, %eax
    ret
3:  xorl %ecx, %ecx
    xorl %eax, %eax
4:  cmpq %rdx, %rcx
    je 5f
    movzbl (%rdi,%rcx), %eax
    movzbl (%rsi,%rcx), %r9d
    incq %rcx
    subl %r9d, %eax
    je 4b
5:  ret
"#,
    options(att_syntax),
);

#[cfg(feature = "unikernel")]
global_asm!(
    r#"
    .globl memcpy, memmove, memset, memcmp, bcmp
    .set memcpy, bulkhead_memmove
    .set memmove, bulkhead_memmove
    .set memset, bulkhead_memset
    .set memcmp, bulkhead_memcmp
    .set bcmp, bulkhead_memcmp
"#
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    unsafe extern "C" {
        fn bulkhead_memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
        fn bulkhead_memset(to: *mut u8, byte: i32, count: usize) -> *mut u8;
        fn bulkhead_memcmp(left: *const u8, right: *const u8, count: usize) -> i32;
    }

    const ROOM: usize = 400;

    fn pattern() -> Vec<u8> {
        (0..ROOM).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// Every length up to a few loops, at every distance in both directions.
    #[test]
    fn copies_are_right_for_all_overlaps() {
        let pattern = pattern();
        for count in 0..=200 {
            for from in 90..=110 {
                for to in [
                    0, 1, 15, 16, 63, 64, 85, 90, 95, 99, 100, 101, 116, 127, 163, 164, 190,
                ] {
                    let mut expected = pattern.clone();
                    expected.copy_within(from..from + count, to);
                    let mut actual = pattern.clone();
                    let start = actual.as_mut_ptr();
                    // SAFETY: both runs lie within the vector.
                    let result = unsafe { bulkhead_memmove(start.add(to), start.add(from), count) };
                    // SAFETY: within the vector.
                    assert_eq!(result, unsafe { start.add(to) });
                    assert!(actual == expected, "count {count}, {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn fills_stay_within_their_bounds() {
        for count in 0..=300 {
            for to in 0..=17 {
                let mut expected = pattern();
                expected[to..to + count].fill(0xa5);
                let mut actual = pattern();
                // SAFETY: the run lies within the vector. The byte is the low one of the argument.
                unsafe { bulkhead_memset(actual.as_mut_ptr().add(to), 0x7fa5, count) };
                assert!(actual == expected, "count {count} at {to}");
            }
        }
    }

    proptest! {
        #[test]
        fn copies_agree_with_the_standard_library(
            mut bytes in prop::collection::vec(any::<u8>(), 1..20_000),
            a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(),
            c in any::<prop::sample::Index>(),
        ) {
            let (from, to) = (a.index(bytes.len()), b.index(bytes.len()));
            let count = c.index(bytes.len() - from.max(to) + 1);
            let mut expected = bytes.clone();
            expected.copy_within(from..from + count, to);
            let start = bytes.as_mut_ptr();
            // SAFETY: both runs lie within the vector.
            unsafe { bulkhead_memmove(start.add(to), start.add(from), count) };
            prop_assert!(bytes == expected);
        }

        #[test]
        fn comparisons_agree_with_the_standard_library(
            left in prop::collection::vec(0u8..4, 0..100),
            right in prop::collection::vec(0u8..4, 0..100),
            equal in 0usize..100,
        ) {
            let count = left.len().min(right.len());
            let mut right = right;
            let equal = equal.min(count);
            right[..equal].copy_from_slice(&left[..equal]);
            // SAFETY: both have at least `count` bytes.
            let order = unsafe { bulkhead_memcmp(left.as_ptr(), right.as_ptr(), count) };
            prop_assert_eq!(order.cmp(&0), left[..count].cmp(&right[..count]));
        }
    }
}
