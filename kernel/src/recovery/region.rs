//! The memory that survives a restart or an upgrade, at a fixed place of the image: a page with [`Sealed`] and numbers
//! that the binary keeps there, and further pages for the binary.

use super::record::{Content, HandOver, Phase, Record, Sealed};
use bulkhead_upgrade::{OLDEST_FORMAT, WITH_DEVICES};
use bulkhead_xen::{KeptPorts, PAGE_SIZE};
use core::arch::global_asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Bytes of the pages that binaries have in the region.
pub const PAGES_BYTES: usize = 34 * PAGE_SIZE;

/// True once these pages were [taken](take_pages).
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Bytes of the whole region.
pub(crate) const REGION_BYTES: usize = PAGE_SIZE + PAGES_BYTES;

// The notes by which the version that runs knows how this one takes over, in any domain and in a PV domain: see
// `bulkhead_upgrade::candidate`.
global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 9, 32, 1
    .asciz "Bulkhead"
    .balign 4
    .globl recovery_version
recovery_version:
"#,
    concat!(
        ".long ",
        env!("CARGO_PKG_VERSION_MAJOR"),
        ", ",
        env!("CARGO_PKG_VERSION_MINOR"),
        ", ",
        env!("CARGO_PKG_VERSION_PATCH"),
    ),
    r#"
    .long {oldest}, {newest}, recovery_region, {region}, __image_end
    .long 9, 8, 2
    .asciz "Bulkhead"
    .balign 4
    .long pv_start, hypercall_page
    .text
"#,
    oldest = const OLDEST_FORMAT,
    newest = const WITH_DEVICES,
    region = const REGION_BYTES,
    options(att_syntax),
);

global_asm!(
    r#"
    .section .survives, "aw", @nobits
    .balign 4096
    .globl recovery_region
recovery_region:
    .skip 4096
    .globl recovery_pages
recovery_pages:
    .skip {pages}
    .text
"#,
    pages = const PAGES_BYTES,
    options(att_syntax),
);

unsafe extern "C" {
    static recovery_version: [u32; 3];
    static mut recovery_region: u8;
    static mut recovery_pages: u8;
}

/// Numbers that a binary keeps in the region, from the end of its page backwards.
pub type Words = [AtomicU32; 4];

const WORDS_AT: usize = PAGE_SIZE - size_of::<Words>();

/// Before them, the port that a restart leaves open beside those of the toolstack; 0 for none.
const KEPT_PORT_AT: usize = WORDS_AT - size_of::<AtomicU32>();

/// Before that, a number that a binary keeps, zero where the version before did not know it.
const NUMBER_AT: usize = KEPT_PORT_AT - size_of::<AtomicU32>();

/// Before that, the ports that a restart leaves open besides, zero where the version before did not know them.
const KEPT_PORTS_AT: usize = NUMBER_AT - size_of::<[AtomicU32; KEPT_PORTS]>();

/// The largest number of such ports.
const KEPT_PORTS: usize = 32;

const _: () = assert!(size_of::<Sealed>() <= KEPT_PORTS_AT);

// Part of the format `bulkhead_upgrade::WITH_DEVICES`: each version looks for it there.
const _: () = assert!(KEPT_PORT_AT == PAGE_SIZE - 20);

fn sealed() -> *mut Sealed {
    (&raw mut recovery_region).cast()
}

/// Returns the numbers that the binary keeps: 0 when the domain was built, unchanged after a restart. A crash may have
/// damaged them, so the caller checks them before use.
pub fn words() -> &'static Words {
    // SAFETY: within the region's page, aligned, and accessed as atomics alone.
    unsafe { &*(&raw const recovery_region).add(WORDS_AT).cast() }
}

/// Returns one more such number.
pub fn number() -> &'static AtomicU32 {
    // SAFETY: as above.
    unsafe { &*(&raw const recovery_region).add(NUMBER_AT).cast() }
}

/// Returns the word with the number of a port that a restart leaves open; it stays set for the restart after that. If a
/// crash has damaged it, a wrong port may stay open, which does no harm.
pub(crate) fn kept_port() -> &'static AtomicU32 {
    // SAFETY: within the region's page, aligned, and accessed as an atomic alone.
    unsafe { &*(&raw const recovery_region).add(KEPT_PORT_AT).cast() }
}

/// Returns the ports of disks of the domain's own, which a restart leaves open.
pub fn kept_ports() -> KeptPorts {
    // SAFETY: as above.
    let notes: &'static [AtomicU32; KEPT_PORTS] =
        unsafe { &*(&raw const recovery_region).add(KEPT_PORTS_AT).cast() };
    KeptPorts::new(notes)
}

/// Returns the address of the pages that survive, [`PAGES_BYTES`] bytes that nothing else uses: zeros when the domain
/// was built, unchanged after a restart. `None` from the second call on.
pub fn take_pages() -> Option<NonNull<u8>> {
    let taken = TAKEN.swap(true, Ordering::Relaxed);
    NonNull::new(&raw mut recovery_pages).filter(|_| !taken)
}

/// Returns whether this boot follows another one in the same domain: after a crash, or in an upgrade. Also true if the
/// record is damaged.
pub(crate) fn is_restart() -> bool {
    !matches!(read(), Content::Empty)
}

/// Returns whether the image was loaded for this boot, by the toolstack or in an upgrade: its data is as it was linked.
pub(crate) fn is_fresh() -> bool {
    match read() {
        Content::Empty => true,
        Content::Found(record) => record.phase() != Phase::Settled,
        Content::Damaged(_) => false,
    }
}

/// Returns the upgrade that this boot belongs to, if there is one, and whether this is the version on trial.
pub(crate) fn hand_over() -> Option<(HandOver, bool)> {
    let Content::Found(record) = read() else {
        return None;
    };
    let over = *record.hand_over();
    match record.phase() {
        Phase::Settled => None,
        Phase::Trying => Some((over, true)),
        Phase::Back => Some((over, false)),
    }
}

/// Returns the version that the note names: major, minor, patch.
pub(crate) fn version() -> [u32; 3] {
    // SAFETY: the note's first numbers, which are constant.
    unsafe { (&raw const recovery_version).read() }
}

/// Returns the address of the region.
pub(crate) fn address() -> u64 {
    &raw const recovery_region as u64
}

/// Copies the region's first bytes, as many as `bytes` and the region have.
///
/// # Safety
/// There is room for that many bytes, which nothing else uses.
pub(crate) unsafe fn copy_to(to: *mut u8, bytes: usize) {
    let bytes = bytes.min(REGION_BYTES);
    // SAFETY: the region's own bytes, to which nothing writes meanwhile; the rest by the contract.
    unsafe { to.copy_from_nonoverlapping(&raw const recovery_region, bytes) };
}

/// Returns the record that the boot before this one has left; `None` in the first boot.
///
/// # Panics
/// If the region is damaged.
pub(crate) fn record() -> Option<&'static Record> {
    match read() {
        Content::Empty => None,
        Content::Found(record) => Some(record),
        Content::Damaged(what) => panic!("what the last crash left cannot be used: {what}"),
    }
}

fn read() -> Content<'static> {
    // SAFETY: numbers, for all of which any value is valid. Only a crash changes them, after which nothing that
    // reads them goes on, and the end of an upgrade, which nothing reads meanwhile.
    unsafe { (*sealed()).read() }
}

/// Changes the record, on the vCPU that reports the crash.
///
/// # Safety
/// Nothing that has read the record goes on.
pub(crate) unsafe fn change<T>(with: impl FnOnce(&mut Sealed) -> T) -> T {
    // SAFETY: by the contract.
    with(unsafe { &mut *sealed() })
}
