//! Where the other vCPUs of a PV domain wait for the next boot.
//!
//! A vCPU that was stopped goes on where it was when it is started again. So the one that reports the crash unmasks the
//! upcalls of each, notifies it, and starts it: the first that it does is then the upcall's handler, whose address Xen
//! has. While the parking is open, that handler needs no stack and nothing of the damaged state but constant addresses:
//! it stops its vCPU, again and again, until it finds a place to go to. Outside of a restart, upcalls end a sleep, as
//! ever (`cpu::upcall`).

use bulkhead_xen::VcpuId;
use bulkhead_xen::abi::sched::{VCPUOP_DOWN, VCPUOP_UP};
use bulkhead_xen::abi::shared_info::LEGACY_MAX_VCPUS;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Says that the parking is open: "park", so that hardly any damage does.
const OPEN: u32 = u32::from_le_bytes(*b"park");

/// Bytes of the code of each entry.
const ENTRY_BYTES: usize = 16;

/// The place of one vCPU.
#[repr(C)]
struct Place {
    /// Where it goes to next; 0 for nowhere.
    entry: AtomicU64,
    stack: AtomicU64,
    argument: AtomicU64,
    /// Whether it is here.
    parked: AtomicU64,
}

const _: () = assert!(size_of::<Place>() == 32);

global_asm!(
    r#"
    .text
    /* The upcall's handler of each vCPU. Upcalls end a function call, for which ecx is nothing to be kept. */
    .balign {entry_bytes}
    .globl parking_entries
parking_entries:
    .set parking_number, 0
    .rept {vcpus}
    .balign {entry_bytes}
    movl $parking_number, %ecx
    jmp parking_entry
    .set parking_number, parking_number + 1
    .endr

parking_entry:
    cmpl ${open}, parking_is_open(%rip)
    jne pv_upcall
    /* ecx: the vCPU's number. Hypercalls without the page for them, which uses the stack. */
parking_wait:
    movl %ecx, %r15d
    movl %ecx, %ebx
    shlq $5, %rbx
    leaq parking_places(%rip), %rax
    addq %rax, %rbx
1:  movq $1, 24(%rbx)
    movl $24, %eax                          /* vcpu_op */
    movl ${down}, %edi
    movl %r15d, %esi
    xorl %edx, %edx
    nopl 0x58656e(%rax)                     /* "Xen": see `ci/src/system_calls.rs` */
    syscall
    movq (%rbx), %rax
    testq %rax, %rax
    jz 1b
    movq 8(%rbx), %rsp
    movq 16(%rbx), %rdi
    movq $0, 24(%rbx)
    movq $0, (%rbx)
    jmp *%rax

    /* rdi: the calling vCPU's number. */
    .globl parking_hand_over
parking_hand_over:
    movl %edi, %r15d
    movl $24, %eax                          /* vcpu_op */
    movl ${up}, %edi
    xorl %esi, %esi
    xorl %edx, %edx
    nopl 0x58656e(%rax)                     /* "Xen": see `ci/src/system_calls.rs` */
    syscall
    movl %r15d, %ecx
    jmp parking_wait

    .section .survives, "aw", @nobits
    .balign 16
    .globl parking_places
parking_places:
    .skip 32 * {vcpus}
    .globl parking_is_open
parking_is_open:
    .skip 8
    .text
"#,
    vcpus = const LEGACY_MAX_VCPUS,
    entry_bytes = const ENTRY_BYTES,
    open = const OPEN,
    down = const VCPUOP_DOWN,
    up = const VCPUOP_UP,
    options(att_syntax),
);

unsafe extern "C" {
    static parking_entries: [u8; ENTRY_BYTES * LEGACY_MAX_VCPUS];
    static parking_places: [Place; LEGACY_MAX_VCPUS];
    static parking_is_open: AtomicU32;
    fn parking_hand_over(own: u64) -> !;
}

fn place(id: VcpuId) -> &'static Place {
    // SAFETY: memory set aside for it, which only atomics access.
    let places = unsafe { &parking_places };
    &places[id.0 as usize % places.len()]
}

/// The handler of a vCPU's upcalls.
pub fn upcall_entry(id: VcpuId) -> u64 {
    &raw const parking_entries as u64 + u64::from(id.0) * ENTRY_BYTES as u64
}

/// Has each vCPU that takes an upcall park from now on.
pub fn open() {
    for place in (0..LEGACY_MAX_VCPUS as u32).map(|id| place(VcpuId(id))) {
        place.entry.store(0, Ordering::Relaxed);
        place.parked.store(0, Ordering::Relaxed);
    }
    set_open(OPEN);
}

/// Has upcalls be upcalls again. Those that are parked stay.
pub fn close() {
    set_open(0);
}

fn set_open(value: u32) {
    // SAFETY: memory set aside for it, which only atomics and the assembly access.
    unsafe { &parking_is_open }.store(value, Ordering::SeqCst);
}

/// Returns whether a vCPU is parked.
pub fn has(id: VcpuId) -> bool {
    place(id).parked.load(Ordering::Acquire) == 1
}

/// Tells a parked vCPU where it goes to when it is started.
pub fn leave(id: VcpuId, entry: u64, stack: u64, argument: u64) {
    let place = place(id);
    place.stack.store(stack, Ordering::Relaxed);
    place.argument.store(argument, Ordering::Relaxed);
    place.entry.store(entry, Ordering::Release);
}

/// Returns whether a vCPU has gone where it was told.
pub fn is_taken(id: VcpuId) -> bool {
    place(id).entry.load(Ordering::Acquire) == 0
}

/// Starts the first vCPU, which is parked and was told where to go, and parks the calling one.
///
/// # Safety
/// Whatever the first vCPU does next, nothing else goes on.
pub unsafe fn hand_over(own: VcpuId) -> ! {
    // SAFETY: by the contract.
    unsafe { parking_hand_over(own.0.into()) }
}
