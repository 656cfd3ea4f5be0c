//! Where the other vCPUs of a PV domain wait for the next boot.
//!
//! A vCPU that was stopped goes on where it was when it is started again. So the one that reports the crash unmasks the
//! upcalls of each, notifies it, and starts it: it then begins with the upcall's handler, whose address Xen has. While
//! the parking is open, that handler uses no stack and nothing of the damaged state, only constant addresses. It stops
//! its vCPU, again and again, until its slot has an address to go to. Outside of a restart, an upcall ends a sleep
//! (`cpu::upcall`).
//!
//! If another version takes over, its image goes where this code is. So a copy of the code that waits lies in the stage
//! (`upgrade`), with places of its own: vCPUs that are parked go there, and the next boot finds them there.

use bulkhead_xen::abi::sched::{VCPUOP_DOWN, VCPUOP_UP};
use bulkhead_xen::abi::shared_info::LEGACY_MAX_VCPUS;
use bulkhead_xen::{PAGE_SIZE, VcpuId};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The value that says that the parking is open: "park", which damaged memory is unlikely to hold.
const OPEN: u32 = u32::from_le_bytes(*b"park");

/// Bytes of the code of each entry.
const ENTRY_BYTES: usize = 16;

/// The offsets of the code that waits, and of its places, in a stage.
pub(super) const CODE_IN_STAGE: usize = 256;
pub(super) const PLACES_IN_STAGE: usize = 3072;

/// Bytes of all places.
pub(super) const PLACES_BYTES: usize = size_of::<ParkingSlots>();

const _: () = assert!(PLACES_IN_STAGE + PLACES_BYTES <= PAGE_SIZE);

/// The stage in which vCPUs wait for this boot; 0 if there is none.
static STAGE: AtomicU64 = AtomicU64::new(0);

/// The slot of one vCPU.
#[repr(C)]
pub struct ParkingSlot {
    /// The address at which it goes on; 0 for none yet.
    entry: AtomicU64,
    stack: AtomicU64,
    argument: AtomicU64,
    /// 1 while it is parked here.
    parked: AtomicU64,
}

type ParkingSlots = [ParkingSlot; LEGACY_MAX_VCPUS];

const _: () = assert!(size_of::<ParkingSlot>() == 32);

impl ParkingSlot {
    /// Returns whether the vCPU is here.
    pub fn has(&self) -> bool {
        self.parked.load(Ordering::Acquire) == 1
    }

    /// Tells the vCPU where it goes to when it is started.
    pub fn leave(&self, entry: u64, stack: u64, argument: u64) {
        self.stack.store(stack, Ordering::Relaxed);
        self.argument.store(argument, Ordering::Relaxed);
        self.entry.store(entry, Ordering::Release);
    }

    /// Returns whether the vCPU has gone where it was told.
    pub fn is_taken(&self) -> bool {
        self.entry.load(Ordering::Acquire) == 0
    }
}

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
    movl %ecx, %edi
    leaq parking_places(%rip), %rsi
    jmp parking_wait

    /* From here to the end, code that runs wherever it is put. rdi: the vCPU's number, rsp: all places. */
    .balign 8
    .globl parking_code
parking_code:
    movq %rsp, %rsi
    /* rdi: the vCPU's number, rsi: all places. Hypercalls without the page for them, which uses the stack. */
parking_wait:
    movl %edi, %r15d
    movl %edi, %ebx
    shlq $5, %rbx
    addq %rsi, %rbx
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

    /* rdi: the calling vCPU's number, rsi: all places. */
    .globl parking_hand_over
parking_hand_over:
    movl %edi, %r15d
    movq %rsi, %r14
    movl $24, %eax                          /* vcpu_op */
    movl ${up}, %edi
    xorl %esi, %esi
    xorl %edx, %edx
    nopl 0x58656e(%rax)                     /* "Xen": see `ci/src/system_calls.rs` */
    syscall
    movl %r15d, %edi
    movq %r14, %rsi
    jmp parking_wait
    .globl parking_code_end
parking_code_end:

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
    static parking_places: ParkingSlots;
    static parking_is_open: AtomicU32;
    static parking_code: u8;
    static parking_hand_over: u8;
    static parking_code_end: u8;
}

/// Returns the place of a vCPU in this image.
pub fn place(id: VcpuId) -> &'static ParkingSlot {
    // SAFETY: memory set aside for it, which only atomics access.
    let places = unsafe { &parking_places };
    &places[id.0 as usize % places.len()]
}

/// Returns the place of a vCPU in a stage.
pub(super) fn place_in(stage: u64, id: VcpuId) -> &'static ParkingSlot {
    let places = (stage as usize + PLACES_IN_STAGE) as *const ParkingSlots;
    // SAFETY: the stage is kept for as long as a vCPU may wait there; only atomics access what is there.
    let places = unsafe { &*places };
    &places[id.0 as usize % places.len()]
}

/// Returns the place in which a vCPU waits for this boot to start it.
pub fn place_before(id: VcpuId) -> &'static ParkingSlot {
    stage().map_or_else(|| place(id), |stage| place_in(stage, id))
}

/// Returns the code that waits, which runs from wherever it is put.
pub(super) fn code() -> &'static [u8] {
    // SAFETY: code, which is read.
    unsafe {
        let (start, end) = (&raw const parking_code, &raw const parking_code_end);
        core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// Notes that vCPUs wait for this boot in a stage, if any does.
pub(super) fn find_in(stage: u64) {
    if ids().any(|id| place_in(stage, id).has()) {
        STAGE.store(stage, Ordering::Relaxed);
    }
}

fn ids() -> impl Iterator<Item = VcpuId> {
    (0..LEGACY_MAX_VCPUS as u32).map(VcpuId)
}

/// Returns the stage in which vCPUs wait, if there is one: its first page has to be executed.
pub fn stage() -> Option<u64> {
    Some(STAGE.load(Ordering::Relaxed)).filter(|stage| *stage != 0)
}

/// Ends the use of the stage: from now on, vCPUs are parked in this image. Returns the stage, if there is one, and
/// whether a vCPU still waits there.
pub(super) fn leave_stage() -> Option<(u64, bool)> {
    let waits = ids().any(waits_in_stage);
    let stage = stage();
    STAGE.store(0, Ordering::Relaxed);
    stage.map(|stage| (stage, waits))
}

/// The handler of a vCPU's upcalls.
pub fn upcall_entry(id: VcpuId) -> u64 {
    &raw const parking_entries as u64 + u64::from(id.0) * ENTRY_BYTES as u64
}

/// Makes each vCPU that takes an upcall park from now on.
pub fn open() {
    for place in ids().map(place) {
        place.entry.store(0, Ordering::Relaxed);
        place.parked.store(0, Ordering::Relaxed);
    }
    set_open(OPEN);
}

/// Makes upcalls end a sleep again. vCPUs that are parked stay.
pub fn close() {
    set_open(0);
}

fn set_open(value: u32) {
    // SAFETY: memory set aside for it, which only atomics and the assembly access.
    unsafe { &parking_is_open }.store(value, Ordering::SeqCst);
}

/// Returns whether a vCPU waits in the stage for this boot to start it.
pub fn waits_in_stage(id: VcpuId) -> bool {
    stage().is_some_and(|stage| place_in(stage, id).has())
}

/// Tells the first vCPU, which is parked here, where to go, starts it, and parks the calling one.
///
/// # Safety
/// Whatever the first vCPU does next, nothing else goes on.
pub unsafe fn hand_over(own: VcpuId, entry: u64, stack: u64, argument: u64) -> ! {
    place(VcpuId(0)).leave(entry, stack, argument);
    // SAFETY: by the contract.
    unsafe {
        go_on_at(
            &raw const parking_hand_over as u64,
            &raw const parking_places as u64,
            own,
        )
    }
}

/// Does the same where the first vCPU is parked in a stage.
///
/// # Safety
/// As above; the stage has the code and the places, and the code can be executed.
pub(super) unsafe fn hand_over_in(
    stage: u64,
    own: VcpuId,
    entry: u64,
    stack: u64,
    argument: u64,
) -> ! {
    place_in(stage, VcpuId(0)).leave(entry, stack, argument);
    // The calling vCPU is about to park there, and the next boot has to find it.
    place_in(stage, own).parked.store(1, Ordering::Release);
    let offset = &raw const parking_hand_over as u64 - &raw const parking_code as u64;
    let code = stage + CODE_IN_STAGE as u64 + offset;
    // SAFETY: by the contract.
    unsafe { go_on_at(code, stage + PLACES_IN_STAGE as u64, own) }
}

/// Goes on at `code`, which hands over by what is at `places`.
///
/// # Safety
/// That is what is there.
unsafe fn go_on_at(code: u64, places: u64, own: VcpuId) -> ! {
    // SAFETY: by the contract.
    unsafe {
        asm!("jmp {code}", code = in(reg) code, in("rdi") u64::from(own.0), in("rsi") places,
             options(noreturn))
    }
}
