//! The handler of the timer that interrupts the only vCPU ([`tick`](super::tick)).

use super::exception_entries::push_registers;
use super::tick::{ASLEEP, EOI, INITIAL_COUNT, ROUNDS, ROUNDS_SEEN, TICK, TICK_VECTOR};
use core::arch::global_asm;

global_asm!(
    r#"
    .text
    .globl pvh_tick
    .globl pvh_tick_begin
pvh_tick:
pvh_tick_begin:
    pushq %rax
    pushq %rcx
    pushq %rdx
    movl ${eoi}, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    cmpq $pvh_block_sleep, 24(%rsp)         /* rip */
    jb 1f
    cmpq $pvh_block_return, 24(%rsp)
    jae 1f
    movb $1, {asleep}(%rip)
    jmp 3f
1:  movl {rounds}(%rip), %eax
    cmpl {seen}(%rip), %eax
    je 4f
    movl %eax, {seen}(%rip)
2:  movl ${initial_count}, %ecx
    movl ${tick}, %eax
    xorl %edx, %edx
    wrmsr
3:  popq %rdx
    popq %rcx
    popq %rax
    iretq
    /* As an exception without an error code. */
4:  popq %rdx
    popq %rcx
    popq %rax
    pushq $0
    pushq ${vector}
"#,
    push_registers!(),
    r#"
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    subq $512, %rsp
    andq $-16, %rsp
    fxsave64 (%rsp)
    xorl %ebp, %ebp
    call {silent}
    fxrstor64 (%rsp)
    movq %rbx, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    pushq %rax
    pushq %rcx
    pushq %rdx
    jmp 2b
    .globl pvh_tick_end
pvh_tick_end:
"#,
    eoi = const EOI,
    initial_count = const INITIAL_COUNT,
    tick = const TICK,
    vector = const TICK_VECTOR as u32,
    asleep = sym ASLEEP,
    rounds = sym ROUNDS,
    seen = sym ROUNDS_SEEN,
    silent = sym crate::watchdog::silent,
    options(att_syntax),
);

unsafe extern "C" {
    /// The handler; never called.
    fn pvh_tick();
}

/// Returns the handler's address.
pub fn address() -> u64 {
    pvh_tick as unsafe extern "C" fn() as usize as u64
}
