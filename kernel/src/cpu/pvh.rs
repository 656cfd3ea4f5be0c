//! The processor's own tables on PVH: GDT, TSS with interrupt stacks, IDT.

use super::exceptions::{self, VECTORS};
use super::upcall::{UPCALL_VECTOR, pvh_upcall};
use core::arch::asm;
use core::cell::UnsafeCell;

const CODE: u16 = 0x08;
const TSS: u16 = 0x18;

// Interrupt stacks, by their number in the TSS: an exception may come from a full stack, and an
// upcall must not touch the bytes below the interrupted one.
const IST_EXCEPTION: u8 = 1;
const IST_DOUBLE_FAULT: u8 = 2;
const IST_UPCALL: u8 = 3;

const EXCEPTION_STACK: usize = 16 * 1024;
const UPCALL_STACK: usize = 256;

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

    /// A 64-bit interrupt gate: present, privilege 0.
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

#[repr(C, align(16))]
struct Tables {
    exception_stack: [u8; EXCEPTION_STACK],
    double_fault_stack: [u8; EXCEPTION_STACK],
    upcall_stack: [u8; UPCALL_STACK],
    gdt: [u64; 5],
    tss: TaskState,
}

/// One vCPU's tables.
pub struct CpuTables(UnsafeCell<Tables>);

// SAFETY: written once by `load`, then only used by the processor it belongs to.
unsafe impl Sync for CpuTables {}

struct Idt(UnsafeCell<[Gate; 256]>);

// SAFETY: written by `fill_idt` before any other vCPU runs, only read by processors after that.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([Gate::NONE; 256]));

/// The first vCPU's tables.
pub static BOOT_TABLES: CpuTables = CpuTables::new();

impl CpuTables {
    /// Empty tables.
    const fn new() -> Self {
        CpuTables(UnsafeCell::new(Tables {
            exception_stack: [0; EXCEPTION_STACK],
            double_fault_stack: [0; EXCEPTION_STACK],
            upcall_stack: [0; UPCALL_STACK],
            // All zero, so that it takes no room in the ELF.
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
        }))
    }

    /// Makes the calling vCPU use these tables.
    ///
    /// # Safety
    /// Called once per vCPU, on PVH, with tables that no other vCPU uses and an IDT already
    /// filled.
    pub unsafe fn load(&'static self) {
        // SAFETY: by the contract, this is the only access so far.
        let tables = unsafe { &mut *self.0.get() };
        let top = |stack: &[u8]| (stack.as_ptr_range().end as u64) & !15;
        let stacks = [
            (IST_EXCEPTION, top(&tables.exception_stack)),
            (IST_DOUBLE_FAULT, top(&tables.double_fault_stack)),
            (IST_UPCALL, top(&tables.upcall_stack)),
        ];
        let mut ist = [0; 7];
        for (number, top) in stacks {
            ist[usize::from(number) - 1] = top;
        }
        tables.tss.ist = ist;
        tables.tss.io_map = size_of::<TaskState>() as u16;
        tables.gdt[1] = 0x00af_9b00_0000_ffff;
        tables.gdt[2] = 0x00cf_9300_0000_ffff;
        let tss = &raw const tables.tss as u64;
        let limit = size_of::<TaskState>() as u64 - 1;
        // A 64-bit available TSS descriptor (Intel SDM volume 3, figure 8-4).
        tables.gdt[3] = limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        tables.gdt[4] = tss >> 32;
        let gdt = TablePointer {
            limit: size_of_val(&tables.gdt) as u16 - 1,
            base: tables.gdt.as_ptr() as u64,
        };
        let idt = TablePointer {
            limit: size_of::<[Gate; 256]>() as u16 - 1,
            base: IDT.0.get() as u64,
        };
        // SAFETY: the tables live for ever and describe the flat segments already in use, with
        // the same selectors; the task register names the descriptor just written.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "ltr {tss:x}",
                "lidt [{idt}]",
                gdt = in(reg) &raw const gdt,
                idt = in(reg) &raw const idt,
                tss = in(reg) TSS,
            );
        }
    }
}

/// Points every vector at its handler.
///
/// # Safety
/// Called once, on PVH, before any `load`.
pub unsafe fn fill_idt() {
    // SAFETY: by the contract, nothing else accesses it yet.
    let idt = unsafe { &mut *IDT.0.get() };
    for (vector, gate) in idt.iter_mut().enumerate().take(VECTORS) {
        let ist = if vector == 8 {
            IST_DOUBLE_FAULT
        } else {
            IST_EXCEPTION
        };
        *gate = Gate::interrupt(exceptions::pvh_entry(vector), ist);
    }
    let upcall = pvh_upcall as unsafe extern "C" fn();
    idt[usize::from(UPCALL_VECTOR)] = Gate::interrupt(upcall as usize as u64, IST_UPCALL);
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
