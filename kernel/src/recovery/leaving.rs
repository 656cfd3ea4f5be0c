//! The end of a boot in a domain that goes on: Xen's state that belongs to this boot (mappings, timers, ports) is
//! removed.

use super::{mappings, others, pristine, region};
use crate::cpu::tick;
use crate::memory::pv_tables::Unmapped;
use crate::{domain, event_channels, hypercall, logger, memory};
use bulkhead_xen::Port;
use bulkhead_xen::abi::event_channel;
use bulkhead_xen::abi::pv::PvStartInfo;
use bulkhead_xen::abi::sched;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// xenstore's port, which stays open.
static STORE_PORT: AtomicU32 = AtomicU32::new(0);
/// Numbers of Xen's watchdog timers (`NR_DOMAIN_WATCHDOG_TIMERS` in Xen is 2).
const WATCHDOG_TIMERS: [u32; 2] = [1, 2];

/// Notes xenstore's port, which a restart leaves open.
pub(crate) fn keep_store_port(port: Port) {
    STORE_PORT.store(port.0, Ordering::Relaxed);
}

/// Notes a port that a restart leaves open from now on, beside xenstore's and the console's. `None` ends that.
pub fn keep_port(port: Option<Port>) {
    region::kept_port().store(port.map_or(0, |port| port.0), Ordering::Relaxed);
}

/// Removes what Xen has of this boot: mappings, timers, ports, notifications; on PV, parks the other vCPUs. Returns
/// false, with the reason in the log, if the next boot could not use the domain.
///
/// # Safety
/// Nothing goes on that uses any of it, or depends on pages that are not mapped.
pub(super) unsafe fn let_go(why: fmt::Arguments<'_>) -> bool {
    tick::stop();
    if domain::is_pvh() {
        // The handles of mappings are in memory whose page tables may be damaged.
        // SAFETY: by the contract.
        unsafe { memory::pvh::repair() }
    } else if let Err(error) = map_guards() {
        say(format_args!("no restart: {error}\n"));
        return false;
    }
    // SAFETY: by the contract.
    let (unmapped, stuck) = unsafe { mappings::unmap_all() };
    stop_timers();
    if !domain::is_pvh()
        && let Err(why) = others::park()
    {
        say(format_args!("no restart: {why}\n"));
        return false;
    }
    let closed = close_ports();
    say(format_args!(
        "{why}: {closed} ports closed, {unmapped} pages unmapped, {stuck} not\n"
    ));
    // Addresses that stay mapped cannot be used again.
    if stuck > 0 {
        return false;
    }
    domain::forget_events();
    true
}

/// Maps the pages again that are below the stacks of other vCPUs, which have stopped (PV).
fn map_guards() -> Result<(), Unmapped> {
    // SAFETY: the start info is where the builder has left it. Only the calling vCPU runs.
    unsafe { memory::pv::map_guards(pristine::start() as *const PvStartInfo) }
}

pub(super) fn say(text: fmt::Arguments<'_>) {
    logger::emergency(text);
    logger::drain();
}

/// Turns Xen's watchdog off: the next boot has timers of its own.
fn stop_timers() {
    for id in WATCHDOG_TIMERS {
        let mut request = sched::Watchdog { id, timeout: 0 };
        // SAFETY: Xen reads the request. It refuses a timer that is not set.
        let _ = unsafe {
            hypercall::sched_op(sched::WATCHDOG.into(), hypercall::pointer(&mut request))
        };
    }
}

/// Closes all ports but those that the toolstack has made, and those that are kept; returns their number.
fn close_ports() -> u32 {
    let kept = [
        Some(Port(STORE_PORT.load(Ordering::Relaxed))),
        logger::port(),
        Some(Port(region::kept_port().load(Ordering::Relaxed))),
    ];
    let mut closed = 0;
    for event_channel::Status { port, status, .. } in event_channels::all() {
        let stays =
            kept.contains(&Some(port)) || region::kept_ports().iter().any(|one| one == port);
        if status != event_channel::STATUS_CLOSED && !stays {
            let mut request = event_channel::OnPort { port };
            if event_channels::operation(event_channel::CLOSE, &mut request).is_ok() {
                closed += 1;
            }
        }
    }
    closed
}
