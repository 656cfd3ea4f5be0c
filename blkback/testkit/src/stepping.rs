//! Crashes after any instruction. From one of the calls into the simulated Xen on, the processor traps after each
//! instruction; once enough were executed, the driver domain never goes on. None of its destructors runs, as in a
//! domain that crashes.

use bulkhead_xen_sim::listen_to_calls;
use std::arch::{asm, global_asm};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Once;

global_asm!(
    r#"
    .text
/* rdi: where the stack is noted, rsi: function, rdx: its argument */
testkit_step_into:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rsp, (%rdi)
    movq %rdx, %rdi
    call *%rsi
    pushfq
    andq $0xfffffffffffffeff, (%rsp)        /* TF */
    popfq
    xorl %eax, %eax
1:  addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
/* rdi: the stack that was noted */
testkit_step_out:
    movq %rdi, %rsp
    movl $1, %eax
    jmp 1b
"#,
    options(att_syntax),
);

unsafe extern "C" {
    fn testkit_step_into(
        stack: *mut u64,
        run: extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> u64;
    fn testkit_step_out();
}

/// `TF` and `DF` of the flags.
const TRAP: i64 = 1 << 8;
const DIRECTION: i64 = 1 << 10;

thread_local! {
    /// The number of calls into Xen so far, and the number after which instructions are counted.
    static CALLS: Cell<(u64, u64)> = const { Cell::new((0, u64::MAX)) };
    /// The number of instructions executed since then, and the number after which the domain crashes.
    static COUNT: Cell<(u64, u64)> = const { Cell::new((0, u64::MAX)) };
    static STACK: Cell<u64> = const { Cell::new(0) };
    /// The depth of calls into code that is not the driver domain's, and cannot be left in the middle.
    static BUSY: Cell<u32> = const { Cell::new(0) };
    /// Returns whether all else is at rest, and the domain may crash.
    static IDLE: Cell<Option<*const dyn Fn() -> bool>> = const { Cell::new(None) };
}

/// Keeps the domain from crashing as long as there is one: the test's own machinery is at work, which does not restart.
pub struct Busy;

impl Busy {
    pub fn new() -> Busy {
        let _ = BUSY.try_with(|busy| busy.set(busy.get() + 1));
        Busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = BUSY.try_with(|busy| busy.set(busy.get() - 1));
    }
}

/// The end of a run under [`Crash::after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The run was left for good, that many instructions after the call.
    Crashed(u64),
    /// The run came to its end before that, after that many calls.
    Ended(u64),
}

impl Crash {
    /// Runs `act` until it has executed that many instructions after that many calls into Xen and `idle` says that it
    /// may be left, and then never goes on with it.
    pub fn after(
        (calls, instructions): (u64, u64),
        idle: &dyn Fn() -> bool,
        mut act: &mut dyn FnMut(),
    ) -> Crash {
        static HANDLER: Once = Once::new();
        // SAFETY: the handler touches the thread's own state alone.
        HANDLER.call_once(|| unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = trapped as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut()), 0);
        });
        CALLS.set((0, calls));
        COUNT.set((0, instructions));
        // SAFETY: it is forgotten below, before `idle` ends.
        let idle: &'static dyn Fn() -> bool = unsafe { std::mem::transmute(idle) };
        IDLE.set(Some(idle));
        listen_to_calls(Some(called));
        let argument: *mut &mut dyn FnMut() = &mut act;
        // SAFETY: `run` gets what it expects; the handler leaves `run` only to the place where this was called, with the
        // registers that a function keeps, and nothing of `run` is used after that.
        let crashed = unsafe { testkit_step_into(STACK.with(Cell::as_ptr), run, argument.cast()) };
        listen_to_calls(None);
        IDLE.set(None);
        match crashed {
            0 => Crash::Ended(CALLS.get().0),
            _ => Crash::Crashed(COUNT.get().0),
        }
    }
}

extern "C" fn run(argument: *mut c_void) {
    // SAFETY: what `Crash::after` has passed.
    let act = unsafe { &mut *argument.cast::<&mut dyn FnMut()>() };
    act();
}

/// Counts a call into Xen, which is about to be made.
fn called() {
    if BUSY.get() > 0 {
        // Another domain's.
        return;
    }
    let (calls, limit) = CALLS.get();
    CALLS.set((calls + 1, limit));
    if calls == limit {
        // SAFETY: the handler of the trap is there.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    }
}

/// Counts an instruction, which was just executed, and crashes after the last one.
extern "C" fn trapped(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    let (count, limit) = COUNT.get();
    COUNT.set((count + 1, limit));
    if count < limit || BUSY.get() > 0 {
        return;
    }
    // SAFETY: `Crash::after` has set it, and takes it back when it ends.
    let idle = IDLE.get().is_some_and(|idle| unsafe { (*idle)() });
    if !idle {
        return;
    }
    // SAFETY: the kernel passes the context that it goes on with.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    registers[libc::REG_RIP as usize] = testkit_step_out as *const () as i64;
    registers[libc::REG_RDI as usize] = STACK.get() as i64;
    registers[libc::REG_EFL as usize] &= !(TRAP | DIRECTION);
}
