//! `event_channel.h`: allocating, binding, masking and notifying ports.

use crate::{DomId, Pirq, Port, VcpuId};

/// `EVTCHNOP_bind_interdomain`.
pub const BIND_INTERDOMAIN: u32 = 0;
/// `EVTCHNOP_bind_virq`.
pub const BIND_VIRQ: u32 = 1;
/// `EVTCHNOP_bind_pirq`.
pub const BIND_PIRQ: u32 = 2;
/// `EVTCHNOP_close`.
pub const CLOSE: u32 = 3;
/// `EVTCHNOP_send`.
pub const SEND: u32 = 4;
/// `EVTCHNOP_status`.
pub const STATUS: u32 = 5;
/// `EVTCHNOP_alloc_unbound`.
pub const ALLOC_UNBOUND: u32 = 6;
/// `EVTCHNOP_bind_ipi`.
pub const BIND_IPI: u32 = 7;
/// `EVTCHNOP_bind_vcpu`.
pub const BIND_VCPU: u32 = 8;
/// `EVTCHNOP_unmask`.
pub const UNMASK: u32 = 9;

/// `EVTCHNSTAT_closed`.
pub const STATUS_CLOSED: u32 = 0;
/// `EVTCHNSTAT_ipi`: the port is bound to an inter-processor interrupt of this domain.
pub const STATUS_IPI: u32 = 5;
/// `EVTCHNSTAT_interdomain`: the other end is open.
pub const STATUS_INTERDOMAIN: u32 = 2;

/// `VIRQ_TIMER` (xen.h): the vCPU's timer.
pub const VIRQ_TIMER: u32 = 0;

/// `struct evtchn_bind_interdomain`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindInterdomain {
    /// In: the domain at the other end.
    pub remote_dom: DomId,
    /// In: the port that it allocated for us.
    pub remote_port: Port,
    /// Out: our port.
    pub local_port: Port,
}

/// `struct evtchn_alloc_unbound`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AllocUnbound {
    /// In: the domain that the port is for, [`DomId::SELF`].
    pub dom: DomId,
    /// In: the domain that may bind to it.
    pub remote_dom: DomId,
    /// Out: the port.
    pub port: Port,
}

/// `struct evtchn_bind_virq`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindVirq {
    /// In: `VIRQ_*`.
    pub virq: u32,
    /// In: the vCPU that it is delivered to.
    pub vcpu: VcpuId,
    /// Out: the port.
    pub port: Port,
}

/// `BIND_PIRQ__WILL_SHARE`: other domains may have the interrupt, too.
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

/// `struct evtchn_bind_pirq`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindPirq {
    /// In: the interrupt.
    pub pirq: Pirq,
    /// In: `BIND_PIRQ__*`.
    pub flags: u32,
    /// Out: the port.
    pub port: Port,
}

/// `struct evtchn_bind_ipi`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindIpi {
    /// In: the vCPU that it is delivered to.
    pub vcpu: VcpuId,
    /// Out: the port.
    pub port: Port,
}

/// `struct evtchn_bind_vcpu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindVcpu {
    /// In: the port.
    pub port: Port,
    /// In: the vCPU that it is delivered to from now on.
    pub vcpu: VcpuId,
}

/// `struct evtchn_status`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Status {
    /// In: the domain that has the port, [`DomId::SELF`].
    pub dom: DomId,
    /// In: the port.
    pub port: Port,
    /// Out: `EVTCHNSTAT_*`.
    pub status: u32,
    /// Out: the vCPU that it is delivered to.
    pub vcpu: VcpuId,
    /// Out: the other end, in a form that depends on the status.
    pub other_end: [u32; 2],
}

/// `struct evtchn_close`, `evtchn_send` and `evtchn_unmask`, which have the same layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OnPort {
    /// In: the port.
    pub port: Port,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(BindInterdomain, remote_port) == 4);
    assert!(size_of::<BindInterdomain>() == 12);
    assert!(offset_of!(AllocUnbound, port) == 4);
    assert!(size_of::<AllocUnbound>() == 8);
    assert!(offset_of!(Status, status) == 8);
    assert!(size_of::<Status>() == 24);
    assert!(size_of::<BindVirq>() == 12);
    assert!(offset_of!(BindPirq, port) == 8);
    assert!(size_of::<BindPirq>() == 12);
    assert!(size_of::<BindIpi>() == 8);
};
