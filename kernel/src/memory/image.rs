//! The image as the linker script laid it out: its parts, and the first vCPU's stack.

use super::page_table::{Image, TABLES};
use crate::cpu::pvh::{self, BOOT_TABLES};
use bulkhead_xen::PAGE_SIZE;
use core::arch::x86_64::__cpuid;
use core::ops::Range;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static __room_end: u8;
    static boot_stack_guard: u8;
    static boot_stack_top: u8;
    static boot_pml4: [u64; 512];
    static boot_tables_end: u8;
}

#[cfg(feature = "recover")]
unsafe extern "C" {
    static __data_start: u8;
    static __data_end: u8;
    static __bss_start: u8;
    static __bss_end: u8;
    static __pristine: u8;
    static __pristine_end: u8;
}

/// Returns the addresses of the initialised data.
#[cfg(feature = "recover")]
pub fn data() -> Range<u64> {
    &raw const __data_start as u64..&raw const __data_end as u64
}

/// Returns the whole pages for a copy of the initialised data.
#[cfg(feature = "recover")]
pub fn pristine() -> Range<u64> {
    &raw const __pristine as u64..&raw const __pristine_end as u64
}

/// Calls a function for each part of `.bss` that can be written on PV: all but the tables and the page below the stack.
#[cfg(feature = "recover")]
pub fn writable_bss(mut each: impl FnMut(Range<u64>)) {
    let mut at = &raw const __bss_start as u64;
    let end = &raw const __bss_end as u64;
    while at < end {
        let holes = tables().into_iter().chain([stack_guard()]);
        let behind = holes.filter(|hole| hole.end > at && hole.start < end);
        let next = behind.min_by_key(|hole| hole.start).unwrap_or(end..end);
        if next.start > at {
            each(at..next.start);
        }
        at = next.end;
    }
}

/// Returns the addresses of the image.
pub fn image() -> Range<u64> {
    &raw const __image_start as u64..&raw const __image_end as u64
}

/// Returns the addresses of the image, and of the room behind it for later versions.
#[cfg(feature = "recover")]
pub fn room() -> Range<u64> {
    &raw const __image_start as u64..room_end()
}

/// Returns the end of the room that the image keeps for later versions: the image's own end, if it keeps none. The
/// domain's builder puts nothing before it.
pub fn room_end() -> u64 {
    &raw const __room_end as u64
}

/// Returns the parts of the image, and whether the processor can forbid executing some of them.
pub fn image_parts() -> Image {
    let all = image();
    let (code_end, constants_end) = (&raw const __text_end as u64, &raw const __rodata_end as u64);
    Image {
        code: all.start..code_end,
        constants: code_end..constants_end,
        tables: tables(),
        guard: stack_guard(),
        all,
        // AMD64 Architecture Programmer's Manual volume 3, CPUID function 8000_0001h.
        no_execute: __cpuid(0x8000_0001).edx & 1 << 20 != 0,
    }
}

/// Returns the pages that the processor itself reads: the interrupt table, the first vCPU's descriptors, the page
/// tables at boot. With recovery, also those with the copy of the data.
fn tables() -> [Range<u64>; TABLES] {
    let descriptors = BOOT_TABLES.constant_page();
    [
        pvh::idt_page(),
        descriptors..descriptors + PAGE_SIZE as u64,
        &raw const boot_pml4 as u64..&raw const boot_tables_end as u64,
        #[cfg(feature = "recover")]
        pristine(),
    ]
}

/// Returns whether `address` is in our code.
pub fn is_code(address: u64) -> bool {
    (&raw const __image_start as u64..&raw const __text_end as u64).contains(&address)
}

/// Returns the page below the first vCPU's stack.
pub fn stack_guard() -> Range<u64> {
    let guard = &raw const boot_stack_guard as u64;
    guard..guard + PAGE_SIZE as u64
}

/// Returns the addresses of the first vCPU's stack.
pub fn boot_stack() -> Range<u64> {
    stack_guard().end..&raw const boot_stack_top as u64
}
