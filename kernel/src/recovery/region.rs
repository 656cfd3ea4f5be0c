//! The page that survives a restart, at a fixed place of the image: [`Sealed`], and numbers that binaries keep there.

use super::record::{Content, Record, Sealed};
use bulkhead_xen::PAGE_SIZE;
use core::arch::global_asm;
use core::sync::atomic::AtomicU32;

global_asm!(
    r#"
    .section .survives, "aw", @nobits
    .balign 4096
    .globl recovery_region
recovery_region:
    .skip 4096
    .text
"#,
    options(att_syntax),
);

unsafe extern "C" {
    static mut recovery_region: u8;
}

/// Numbers that a binary keeps in the region, from the end of its page backwards.
pub type Words = [AtomicU32; 4];

const WORDS_AT: usize = PAGE_SIZE - size_of::<Words>();

const _: () = assert!(size_of::<Sealed>() <= WORDS_AT);

fn sealed() -> *mut Sealed {
    (&raw mut recovery_region).cast()
}

/// Returns the numbers that binaries keep: zero when the domain was built, as they were after a restart. Whoever uses
/// them checks them first.
pub fn words() -> &'static Words {
    // SAFETY: within the region's page, aligned, and accessed as atomics alone.
    unsafe { &*(&raw const recovery_region).add(WORDS_AT).cast() }
}

/// Returns true if this boot is a restart.
pub(crate) fn is_restart() -> bool {
    !matches!(read(), Content::Empty)
}

/// Returns the record that the last crash has left, if it has left one.
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
    // reads them goes on.
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
