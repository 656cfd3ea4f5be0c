//! Output of text: `log` records go to the console ring or, before there is one, to Xen's own log (PVH). Reports of a
//! failure go to both.

use crate::console::{Console, Lines, OnFull};
use crate::{domain, event_channels, hypercall, vcpu};
use bulkhead_xen::abi::console::ConsoleRing;
use bulkhead_xen::abi::sched;
use bulkhead_xen::{Instant, Port, VcpuId};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use spin::Mutex;

static CONSOLE: Mutex<Console> = Mutex::new(Console::detached());
static PORT: AtomicU32 = AtomicU32::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);
static CLOCK: AtomicBool = AtomicBool::new(false);
static SERVING: AtomicBool = AtomicBool::new(false);

/// The longest time for which a line waits for room in the ring, before [`never_wait`] is called.
const TIMEOUT: Duration = Duration::from_millis(20);
/// The number of attempts to take the console's lock from a vCPU that is about to stop: some milliseconds.
const STOPPING: u32 = 1_000_000;
/// The longest time for which a message of a failing domain waits for the reader, and for which a shutdown does.
const CRASH_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends output to this ring from now on.
///
/// # Safety
/// See [`Console::attach`].
pub unsafe fn use_ring(ring: NonNull<ConsoleRing>, port: Port) {
    PORT.store(port.0, Ordering::Relaxed);
    // SAFETY: by the contract.
    unsafe { CONSOLE.lock().attach(ring) };
}

/// Makes log lines no longer wait for the console's reader, because the vCPU may be serving a guest.
pub fn never_wait() {
    SERVING.store(true, Ordering::Relaxed);
}

/// Returns the console's port, which is notified when something was typed, or when output was read.
pub fn port() -> Option<Port> {
    Some(Port(PORT.load(Ordering::Relaxed))).filter(|port| port.0 != 0)
}

/// Begins to put the time since `started` into lines, and to wait for the reader.
pub fn use_clock(started: Instant) {
    STARTED.store(started.0, Ordering::Relaxed);
    CLOCK.store(true, Ordering::Release);
}

fn uptime() -> Duration {
    if CLOCK.load(Ordering::Acquire) {
        vcpu::now().since(Instant(STARTED.load(Ordering::Relaxed)))
    } else {
        Duration::ZERO
    }
}

fn notify() {
    // An error means that there is no reader to notify.
    let _ = event_channels::notify(Port(PORT.load(Ordering::Relaxed)));
}

/// Sleeps until the console's other end sends a notification, or until `until`. Returns false once that is reached.
fn wait_for_reader(until: Instant) -> bool {
    if !CLOCK.load(Ordering::Acquire) || vcpu::now() >= until {
        return false;
    }
    let ports = [Port(PORT.load(Ordering::Relaxed))];
    domain::bitmaps().clear(ports[0]);
    notify();
    let mut poll = sched::Poll {
        ports: ports.as_ptr(),
        nr_ports: 1,
        timeout: until.0,
    };
    // SAFETY: `poll` and what it points at live across the call.
    let _ = unsafe { hypercall::sched_op(sched::POLL.into(), hypercall::pointer(&mut poll)) };
    true
}

/// Writes to port 0xE9, which Xen puts into its own log line by line (PVH only).
fn debug_port(text: &str) {
    if domain::is_pvh() {
        for byte in text.bytes() {
            // SAFETY: Xen takes the byte and changes nothing of ours.
            unsafe {
                core::arch::asm!("out 0xe9, al", in("al") byte, options(nomem, nostack));
            }
        }
    }
}

/// Writes a message. Waits for the console's reader for `timeout` at most, or not at all.
fn emit(console: &mut Console, message: fmt::Arguments<'_>, timeout: Option<Duration>) {
    if !console.is_attached() {
        let _ = Lines(debug_port).write_fmt(message);
        return;
    }
    // A message arrives in pieces, which share the time for which it may wait.
    let until = timeout.map(uptime_end);
    let mut waited = false;
    let _ = Lines(|text: &str| match until {
        None => console.write(text, OnFull::Keep),
        Some(until) => {
            let mut wait = || {
                waited = true;
                wait_for_reader(until)
            };
            console.write(text, OnFull::Wait(&mut wait));
        }
    })
    .write_fmt(message);
    if waited && console.has_input() {
        raise();
    }
    notify();
}

/// Repeats the notification of typed input: waiting for the reader has consumed it.
fn raise() {
    // The toolstack's ports are delivered to the first vCPU.
    if let Some(first) = vcpu::of(VcpuId(0)) {
        let port = Port(PORT.load(Ordering::Relaxed));
        // SAFETY: its part of the shared page.
        unsafe { domain::bitmaps().raise(first.info(), port) };
        if vcpu::current().id() != first.id() {
            event_channels::wake(first.id());
        }
    }
}

fn uptime_end(timeout: Duration) -> Instant {
    if CLOCK.load(Ordering::Acquire) {
        vcpu::now() + timeout
    } else {
        Instant(0)
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let uptime = uptime();
        let target = record.target();
        let target = target.split(':').next().unwrap_or(target);
        let target = target.strip_prefix("bulkhead_").unwrap_or(target);
        let timeout = (!SERVING.load(Ordering::Relaxed)).then_some(TIMEOUT);
        emit(
            &mut CONSOLE.lock(),
            format_args!(
                "[{:5}.{:06}] {:5} {}: {}\n",
                uptime.as_secs(),
                uptime.subsec_micros(),
                record.level(),
                target,
                record.args()
            ),
            timeout,
        );
    }

    fn flush(&self) {}
}

/// Makes the console the output of `log`.
pub fn start_logging(level: log::LevelFilter) {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
}

/// Returns one byte of console input, if there is any. The caller calls this whenever the console's port is notified,
/// of input or of room for output: it passes on the output that waits for room.
pub fn read() -> Option<u8> {
    let mut console = CONSOLE.lock();
    if !console.is_attached() {
        return None;
    }
    if console.flush() {
        notify();
    }
    console.read()
}

/// Writes a message although the domain is about to crash: to the console, even if its lock was
/// held when that happened, and to Xen's log. Other vCPUs have been told to stop.
pub fn emergency(message: fmt::Arguments<'_>) {
    let _ = Lines(debug_port).write_fmt(message);
    // Another vCPU may take a moment to stop, and may be writing.
    let mut tries = (0..STOPPING).map(|_| core::hint::spin_loop());
    let free = tries.find_map(|()| CONSOLE.try_lock());
    // SAFETY: the code that held the lock never continues.
    let mut console = free.unwrap_or_else(|| unsafe {
        CONSOLE.force_unlock();
        CONSOLE.lock()
    });
    if console.is_attached() {
        emit(&mut console, message, Some(CRASH_TIMEOUT));
    }
}

/// Waits until the console has read everything that was written, for 500 ms at most.
pub fn drain() {
    let until = uptime_end(CRASH_TIMEOUT);
    loop {
        let Some(mut console) = CONSOLE.try_lock() else {
            return;
        };
        if !console.is_attached() {
            return;
        }
        console.flush();
        if console.is_drained() {
            break;
        }
        drop(console);
        if !wait_for_reader(until) {
            break;
        }
    }
    // Writes the note about lost output, if there is any.
    if let Some(mut console) = CONSOLE.try_lock() {
        console.write("", OnFull::Keep);
        notify();
    }
}
