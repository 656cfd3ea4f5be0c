//! Hypercalls about event channels, for the calling vCPU.

use crate::{hypercall, vcpu};
#[cfg(feature = "recover")]
use bulkhead_xen::DomId;
use bulkhead_xen::abi::event_channel;
#[cfg(feature = "recover")]
use bulkhead_xen::abi::shared_info::EVENT_WORDS;
use bulkhead_xen::{Errno, Port, VcpuId};

/// Makes an `event_channel_op` hypercall, with its argument in `request`.
pub fn operation<T>(command: u32, request: &mut T) -> Result<(), Errno> {
    // SAFETY: Xen reads and writes the request; event channels touch no other memory of ours.
    unsafe { hypercall::event_channel_op(command.into(), hypercall::pointer(request)) }.map(|_| ())
}

/// Delivers a new port to the calling vCPU, and unmasks it.
pub fn deliver_here(port: Port) -> Result<(), Errno> {
    // Ports are delivered to vCPU 0 until told otherwise (event_channel.h).
    match vcpu::current().id() {
        VcpuId(0) => listen_to(port),
        _ => move_here(port),
    }
}

/// Delivers a port to the calling vCPU, whichever it was delivered to before, and unmasks it.
pub fn move_here(port: Port) -> Result<(), Errno> {
    let mut request = event_channel::BindVcpu {
        port,
        vcpu: vcpu::current().id(),
    };
    operation(event_channel::BIND_VCPU, &mut request)?;
    listen_to(port)
}

/// Has the calling vCPU look for notifications of a port that is delivered to it, and unmasks the port.
fn listen_to(port: Port) -> Result<(), Errno> {
    vcpu::current().ports.insert(port);
    operation(event_channel::UNMASK, &mut event_channel::OnPort { port })
}

/// Returns the status of all ports of the domain, closed ones among them.
#[cfg(feature = "recover")]
pub fn all() -> impl Iterator<Item = event_channel::Status> {
    // Xen has room for ports up to the largest that was ever used, and a little beyond.
    (1..EVENT_WORDS as u32 * u64::BITS).map_while(|number| {
        let mut request = event_channel::Status {
            dom: DomId::SELF,
            port: Port(number),
            status: event_channel::STATUS_CLOSED,
            vcpu: VcpuId(0),
            other_end: [0; 2],
        };
        operation(event_channel::STATUS, &mut request).ok()?;
        Some(request)
    })
}

/// Notifies a port's other end.
pub fn notify(port: Port) -> Result<(), Errno> {
    operation(event_channel::SEND, &mut event_channel::OnPort { port })
}

/// Wakes a vCPU out of its sleep, if it runs.
pub fn wake(vcpu: VcpuId) {
    if let Some(port) = vcpu::of(vcpu).map(vcpu::Vcpu::ipi) {
        // A vCPU that is not there needs no waking.
        let _ = notify(port);
    }
}
