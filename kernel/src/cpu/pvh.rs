//! The processor's own tables on PVH: GDT, TSS with interrupt stacks, IDT.
//!
//! They have pages of their own, which boot makes read-only like the page tables. A stray write then ends in a report,
//! and not in a triple fault, which leaves no report.

use super::exceptions::VECTORS;
use super::nmi::{self, pvh_nmi};
use super::upcall::{UPCALL_VECTOR, pvh_upcall};
use bulkhead_xen::PAGE_SIZE;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ops::Range;

const CODE: u16 = 0x08;
const TSS: u16 = 0x18;

// Interrupt stacks, by their number in the TSS: an exception may come from a full stack; an upcall and
// an NMI must not touch the bytes below the interrupted one, and an NMI may interrupt an upcall.
const IST_EXCEPTION: u8 = 1;
const IST_DOUBLE_FAULT: u8 = 2;
const IST_UPCALL: u8 = 3;
const IST_NMI: u8 = 4;

const EXCEPTION_STACK: usize = 16 * 1024;
const UPCALL_STACK: usize = 256;
const NMI_STACK: usize = 256;

#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

const _: () = assert!(size_of::<TaskState>() == 104);

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    const NONE: Gate = Gate { low: 0, high: 0 };

    /// Returns a 64-bit interrupt gate: present, privilege 0.
    fn interrupt(address: u64, ist: u8) -> Gate {
        Gate {
            low: (address & 0xffff)
                | u64::from(CODE) << 16
                | u64::from(ist) << 32
                | 0x8e00 << 32
                | (address >> 16 & 0xffff) << 48,
            high: address >> 32,
        }
    }
}

#[repr(C, packed(2))]
struct TablePointer {
    limit: u16,
    base: u64,
}

#[repr(C, align(4096))]
struct Descriptors {
    gdt: [u64; 5],
    tss: TaskState,
}

#[repr(C, align(4096))]
struct Stacks {
    exception: [u8; EXCEPTION_STACK],
    double_fault: [u8; EXCEPTION_STACK],
    upcall: [u8; UPCALL_STACK],
    nmi: [u8; NMI_STACK],
}

#[repr(C)]
struct Tables {
    descriptors: Descriptors,
    stacks: Stacks,
}

const _: () = assert!(size_of::<Descriptors>() == PAGE_SIZE);

/// The tables of a vCPU.
pub struct CpuTables(UnsafeCell<Tables>);

// SAFETY: written once by `fill`, then only used by the processor it belongs to.
unsafe impl Sync for CpuTables {}

#[repr(align(4096))]
struct Idt(UnsafeCell<[Gate; 256]>);

// SAFETY: written by `fill_idt` before any other vCPU runs, only read by processors after that.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([Gate::NONE; 256]));

/// The first vCPU's tables.
pub static BOOT_TABLES: CpuTables = CpuTables::new();

impl CpuTables {
    /// Returns empty tables.
    const fn new() -> Self {
        CpuTables(UnsafeCell::new(Tables {
            // All zero, so that it takes no room in the ELF.
            descriptors: Descriptors {
                gdt: [0; 5],
                tss: TaskState {
                    reserved0: 0,
                    rsp: [0; 3],
                    reserved1: 0,
                    ist: [0; 7],
                    reserved2: 0,
                    reserved3: 0,
                    io_map: 0,
                },
            },
            stacks: Stacks {
                exception: [0; EXCEPTION_STACK],
                double_fault: [0; EXCEPTION_STACK],
                upcall: [0; UPCALL_STACK],
                nmi: [0; NMI_STACK],
            },
        }))
    }

    /// Returns the page to which nothing is written once the tables are filled.
    pub fn constant_page(&self) -> u64 {
        self.0.get() as u64
    }

    /// Writes the tables that a vCPU is to use.
    ///
    /// # Safety
    /// Called once, before `load`.
    pub unsafe fn fill(&'static self) {
        // SAFETY: by the contract, this is the only access so far.
        let Tables {
            descriptors,
            stacks,
        } = unsafe { &mut *self.0.get() };
        let top = |stack: &[u8]| (stack.as_ptr_range().end as u64) & !15;
        let stacks = [
            (IST_EXCEPTION, top(&stacks.exception)),
            (IST_DOUBLE_FAULT, top(&stacks.double_fault)),
            (IST_UPCALL, top(&stacks.upcall)),
            (IST_NMI, top(&stacks.nmi)),
        ];
        let mut ist = [0; 7];
        for (number, top) in stacks {
            ist[usize::from(number) - 1] = top;
        }
        descriptors.tss.ist = ist;
        descriptors.tss.io_map = size_of::<TaskState>() as u16;
        descriptors.gdt[1] = 0x00af_9b00_0000_ffff;
        descriptors.gdt[2] = 0x00cf_9300_0000_ffff;
        let tss = &raw const descriptors.tss as u64;
        let limit = size_of::<TaskState>() as u64 - 1;
        // A 64-bit available TSS descriptor (Intel SDM volume 3, figure 8-4).
        descriptors.gdt[3] =
            limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        descriptors.gdt[4] = tss >> 32;
    }

    /// Makes the calling vCPU use these tables.
    ///
    /// # Safety
    /// Called once per vCPU, on PVH, with tables that are filled and that no other vCPU uses, and an
    /// IDT already filled.
    pub unsafe fn load(&'static self) {
        // SAFETY: filled before, and only read since.
        let gdt = unsafe { &raw const (*self.0.get()).descriptors.gdt };
        let gdt = TablePointer {
            limit: size_of::<[u64; 5]>() as u16 - 1,
            base: gdt as u64,
        };
        let idt = TablePointer {
            limit: size_of::<[Gate; 256]>() as u16 - 1,
            base: IDT.0.get() as u64,
        };
        // SAFETY: the tables live for ever and describe the flat segments already in use, with
        // the same selectors; the task register names the descriptor that `fill` has written. The
        // processor marks that one as busy, on a page that may be read-only already.
        unsafe {
            let protection = lift_write_protection();
            asm!(
                "lgdt [{gdt}]",
                "ltr {tss:x}",
                "lidt [{idt}]",
                gdt = in(reg) &raw const gdt,
                idt = in(reg) &raw const idt,
                tss = in(reg) TSS,
            );
            restore_write_protection(protection);
        }
    }
}

/// Returns the interrupt table's page, to which nothing is written once it is filled.
pub fn idt_page() -> Range<u64> {
    let start = IDT.0.get() as u64;
    start..start + PAGE_SIZE as u64
}

const CR0_WRITE_PROTECT: u64 = 1 << 16;

/// Allows the calling vCPU to write to read-only pages. Returns the argument for [`restore_write_protection`].
///
/// # Safety
/// On PVH. Until the protection is restored, only pages of the caller's choice are written.
pub unsafe fn lift_write_protection() -> u64 {
    let cr0: u64;
    // SAFETY: by the contract; the other bits stay.
    unsafe {
        asm!("mov {}, cr0", out(reg) cr0, options(nostack));
        asm!("mov cr0, {}", in(reg) cr0 & !CR0_WRITE_PROTECT, options(nostack));
    }
    cr0
}

/// Forbids writing to read-only pages again.
///
/// # Safety
/// `cr0` is what [`lift_write_protection`] has returned on this vCPU.
pub unsafe fn restore_write_protection(cr0: u64) {
    // SAFETY: by the contract, what the register was before.
    unsafe { asm!("mov cr0, {}", in(reg) cr0, options(nostack)) };
}

/// Points every vector at its handler; `exception` returns the address of an exception's.
///
/// # Safety
/// Called once, on PVH, before any `load`. The entry points are code that handles exceptions.
pub unsafe fn fill_idt(exception: fn(usize) -> u64) {
    // SAFETY: by the contract, nothing else accesses it yet.
    let idt = unsafe { &mut *IDT.0.get() };
    for (vector, gate) in idt.iter_mut().enumerate().take(VECTORS) {
        let ist = if vector == 8 {
            IST_DOUBLE_FAULT
        } else {
            IST_EXCEPTION
        };
        *gate = Gate::interrupt(exception(vector), ist);
    }
    let upcall = pvh_upcall as unsafe extern "C" fn();
    idt[usize::from(UPCALL_VECTOR)] = Gate::interrupt(upcall as usize as u64, IST_UPCALL);
    let nmi = pvh_nmi as unsafe extern "C" fn();
    idt[nmi::VECTOR] = Gate::interrupt(nmi as usize as u64, IST_NMI);
}

/// Points a vector at a handler that uses the stack of exceptions: these end the domain, or restart it, and are not
/// interrupted.
///
/// # Safety
/// Called after [`fill_idt`], before any `load`. The address is that of code that handles the vector.
#[cfg(feature = "recover")]
pub unsafe fn set_handler(vector: u8, address: u64) {
    // SAFETY: by the contract, nothing else accesses it yet.
    let idt = unsafe { &mut *IDT.0.get() };
    idt[usize::from(vector)] = Gate::interrupt(address, IST_EXCEPTION);
}

/// Resets all vCPUs but the calling one: an INIT, by which Xen forgets that they were ever initialised
/// (`vlapic_init_sipi_one`). The calling vCPU goes on when that is done. It needs no page table: in x2APIC mode, the
/// registers of the local APIC are model-specific ones (Intel SDM volume 3, chapter 12).
///
/// # Safety
/// On PVH, where Xen offers the x2APIC; nothing that these vCPUs did matters any more.
#[cfg(feature = "recover")]
pub unsafe fn reset_other_vcpus() {
    const APIC_BASE: u32 = 0x1b;
    const ENABLED: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 10;
    const INTERRUPT_COMMAND: u32 = 0x830;
    const ALL_BUT_SELF: u64 = 3 << 18;
    const ASSERT: u64 = 1 << 14;
    const INIT: u64 = 5 << 8;
    // SAFETY: by the contract. Nothing else uses the local APIC.
    unsafe {
        write_msr(APIC_BASE, read_msr(APIC_BASE) | ENABLED | X2APIC);
        write_msr(INTERRUPT_COMMAND, ALL_BUT_SELF | ASSERT | INIT);
    }
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists, and the value changes nothing that Rust code relies on.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: by the contract.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32,
             in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The register exists.
pub unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the contract.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
             options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}
