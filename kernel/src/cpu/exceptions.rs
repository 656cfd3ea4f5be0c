//! CPU exceptions: their names, and the stack when one is reported.

/// Returns the name of an exception, by vector (Intel SDM volume 3, table 6-1).
pub fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating point",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating point",
        20 => "virtualization",
        21 => "control protection",
        _ => "unexpected vector",
    }
}

/// The stack as the entry code leaves it.
#[derive(Debug)]
#[repr(C)]
pub struct ExceptionFrame {
    /// r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rdx, rcx, rbx, rax.
    pub registers: [u64; 15],
    /// The number of the exception.
    pub vector: u64,
    /// The processor's error code, or 0.
    pub error_code: u64,
    /// The address of the instruction.
    pub rip: u64,
    /// The code segment.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The stack segment.
    pub ss: u64,
}

impl ExceptionFrame {
    /// The names of `registers`, in order.
    pub const NAMES: [&'static str; 15] = [
        "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rdi", "rsi", "rbp", "rdx", "rcx",
        "rbx", "rax",
    ];

    /// Returns the frame pointer, from which a backtrace starts.
    pub fn rbp(&self) -> u64 {
        self.registers[10]
    }
}

/// The number of vectors with an entry, from 0 on.
pub const VECTORS: usize = 32;
