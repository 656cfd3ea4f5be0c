//! The report of a failure, with its place and a backtrace, and the end of the domain, or its restart.

use crate::cpu::exceptions::{self, ExceptionFrame};
#[cfg(feature = "recover")]
use crate::cpu::tick;
use crate::cpu::upcall;
use crate::memory::{image, map};
#[cfg(feature = "recover")]
use crate::recovery::restart;
use crate::{devices, domain, logger, reporter, vcpu};
use bulkhead_xen::VcpuId;
use bulkhead_xen::abi::sched::ShutdownReason;
use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use core::time::Duration;

/// The return addresses on the stack, found by the chain of frame pointers. The stack may be damaged, so only mapped,
/// aligned addresses are read, and the chain is followed only upwards.
struct Backtrace(u64);

/// Number of callers that a backtrace names.
const DEPTH: usize = 32;

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frame = self.0;
        for _ in 0..DEPTH {
            if !frame.is_multiple_of(8) || !map::is_memory(frame, 16) {
                break;
            }
            // SAFETY: memory of ours, mapped, aligned.
            let [next, back] = unsafe { (frame as *const [u64; 2]).read_volatile() };
            if !image::is_code(back) {
                break;
            }
            write!(f, " {back:#x}")?;
            if next <= frame {
                break;
            }
            frame = next;
        }
        Ok(())
    }
}

/// Makes the calling vCPU the one that reports, and stops all others. If it fails while it reports, it ends the domain
/// at once.
fn begin() {
    #[cfg(feature = "recover")]
    tick::stop();
    let own = vcpu::current().id();
    while let Err(reporting) = reporter::begin() {
        if reporting == own {
            end(ShutdownReason::Crash);
        }
        // Another vCPU reports, and stops this one. If it cancels its report, this one reports.
        reporter::pause();
    }
    vcpu::all()
        .map(vcpu::Vcpu::id)
        .filter(|&other| other != own)
        .for_each(reporter::stop);
    #[cfg(feature = "recover")]
    restart::begin_report();
}

/// Adds to the report of a failure: to the console, Xen's log and, with recovery, the record for the next boot.
fn say(message: fmt::Arguments<'_>) {
    logger::emergency(message);
    #[cfg(feature = "recover")]
    restart::note(message);
}

/// Ends the domain after a failure that was reported. With recovery it starts again instead, if it can.
fn fail(reason: ShutdownReason) -> ! {
    #[cfg(feature = "recover")]
    if devices::stop() == 0 {
        restart::restart();
    }
    end(reason)
}

/// Stops the devices, so that they write to no other domain's memory any more, and ends the domain. If a driver panics
/// in here, this is called again, and goes on with the next device.
fn end(reason: ShutdownReason) -> ! {
    devices::stop();
    domain::shutdown_now(reason)
}

/// Called by the exception entries.
pub extern "C" fn exception(frame: &ExceptionFrame) -> ! {
    if upcall::interrupted_itself(frame.rip) {
        interrupted_twice(frame);
    }
    begin();
    say(format_args!(
        "\nCPU exception {}: {} on vCPU {}\n  rip {:#x}, error code {:#x}",
        frame.vector,
        exceptions::name(frame.vector),
        vcpu::current().id(),
        frame.rip,
        frame.error_code,
    ));
    if frame.vector == 14 {
        say(format_args!(", address {:#x}", fault_address()));
    }
    say(format_args!(
        "\n  rsp {:#x}, rflags {:#x}, cs {:#x}",
        frame.rsp,
        frame.rflags,
        // Xen keeps a PV vCPU's upcall mask in the upper half (arch-x86/xen-x86_64.h).
        frame.cs as u16
    ));
    for (number, (name, value)) in ExceptionFrame::NAMES
        .iter()
        .zip(frame.registers)
        .enumerate()
    {
        let lead = if number % 5 == 0 { "\n  " } else { ", " };
        say(format_args!("{lead}{name} {value:#x}"));
    }
    say(format_args!(
        "\n  backtrace: {:#x}{}\n",
        frame.rip,
        Backtrace(frame.rbp())
    ));
    if stack_overflowed(frame) {
        say(format_args!("  the stack has overflowed\n"));
    }
    logger::drain();
    fail(ShutdownReason::Crash)
}

/// Ends the domain because another vCPU hangs.
pub fn hung(vcpu: VcpuId, limit: Duration) -> ! {
    begin();
    say_hung(vcpu, limit);
    logger::drain();
    fail(ShutdownReason::Watchdog)
}

fn say_hung(vcpu: VcpuId, limit: Duration) {
    say(format_args!(
        "\nwatchdog: vCPU {vcpu} has run for {} s without coming back to its work\n",
        limit.as_secs()
    ));
}

/// Ends the domain because the calling vCPU hangs, in what was interrupted.
#[cfg(feature = "recover")]
pub fn hangs(frame: &ExceptionFrame, limit: Duration) -> ! {
    begin();
    say_hung(vcpu::current().id(), limit);
    end_interrupted(frame)
}

/// Ends the domain because an interrupt was delivered within its own handler, which no processor does.
pub fn interrupted_twice(frame: &ExceptionFrame) -> ! {
    begin();
    // The lab looks for these words (`ci/src/fault.rs`).
    say(format_args!(
        "\nan interrupt was delivered twice, and what it interrupted is lost\n"
    ));
    end_interrupted(frame)
}

fn end_interrupted(frame: &ExceptionFrame) -> ! {
    say(format_args!(
        "  backtrace: {:#x}{}\n",
        frame.rip,
        Backtrace(frame.rbp())
    ));
    logger::drain();
    fail(ShutdownReason::Watchdog)
}

fn stack_overflowed(frame: &ExceptionFrame) -> bool {
    let guard = vcpu::current().guard();
    guard.contains(&frame.rsp) || guard.contains(&fault_address())
}

/// Returns the address of the last page fault.
fn fault_address() -> u64 {
    if domain::is_pvh() {
        let address;
        // SAFETY: reading cr2 in ring 0 has no effect.
        unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
        return address;
    }
    let info = vcpu::current().info();
    if info.is_null() {
        return 0;
    }
    // SAFETY: this vCPU's part of the shared page.
    unsafe { (&raw const (*info).cr2).read_volatile() }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    say(format_args!(
        "\npanic on vCPU {}: {info}\n  backtrace:{}\n",
        vcpu::current().id(),
        Backtrace(frame)
    ));
    logger::drain();
    fail(ShutdownReason::Crash)
}

/// Ends the domain in order: waits until the console's reader has all output, stops the other vCPUs, so that none
/// starts a device again, and stops the devices.
pub fn shutdown(reason: ShutdownReason) -> ! {
    logger::drain();
    begin();
    end(reason)
}

// The prebuilt core library refers to these; with `panic = "abort"` neither is ever called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    end(ShutdownReason::Crash)
}
