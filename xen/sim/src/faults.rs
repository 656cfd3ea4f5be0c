//! Operations that the simulated Xen refuses because a test asked for it.

use bulkhead_xen::{DomId, Errno, GrantRef, GrantStatus};

/// A kind of hypercall that can be made to fail as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// `GNTTABOP_map_grant_ref`
    MapGrants,
    /// `GNTTABOP_unmap_grant_ref`
    UnmapGrants,
    /// `GNTTABOP_copy`
    CopyGrants,
    /// `EVTCHNOP_bind_interdomain`
    BindInterdomain,
    /// `EVTCHNOP_alloc_unbound`
    AllocUnbound,
    /// `EVTCHNOP_bind_vcpu`, by which a port is taken up that a boot before has left open
    BindVcpu,
    /// `EVTCHNOP_close`
    ClosePort,
    /// `EVTCHNOP_send`
    Notify,
    /// `XENMEM_decrease_reservation`
    ReleasePages,
    /// `XENMEM_populate_physmap`
    PopulatePages,
    /// `GNTTABOP_transfer`
    TransferFrames,
}

/// An operation on a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantUse {
    /// Mapping it.
    Map,
    /// Unmapping it.
    Unmap,
    /// Copying from or to it.
    Copy,
}

struct GrantFault {
    usage: GrantUse,
    owner: DomId,
    gref: GrantRef,
    status: GrantStatus,
    left: u32,
}

struct CallFault {
    call: Hypercall,
    caller: DomId,
    errno: Errno,
    left: u32,
}

/// The failures that are still to happen.
#[derive(Default)]
pub(super) struct Faults {
    grants: Vec<GrantFault>,
    calls: Vec<CallFault>,
}

impl Faults {
    pub(super) fn fail_grant(
        &mut self,
        usage: GrantUse,
        (owner, gref): (DomId, GrantRef),
        status: GrantStatus,
        times: u32,
    ) {
        self.grants.push(GrantFault {
            usage,
            owner,
            gref,
            status,
            left: times,
        });
    }

    pub(super) fn fail_call(&mut self, call: Hypercall, caller: DomId, errno: Errno, times: u32) {
        self.calls.push(CallFault {
            call,
            caller,
            errno,
            left: times,
        });
    }

    /// The status with which this use of a grant is to fail, if it is; uses it up once.
    pub(super) fn take_grant(
        &mut self,
        usage: GrantUse,
        owner: DomId,
        gref: GrantRef,
    ) -> Option<GrantStatus> {
        let fault = self.grants.iter_mut().find(|fault| {
            fault.left > 0 && (fault.usage, fault.owner, fault.gref) == (usage, owner, gref)
        })?;
        fault.left -= 1;
        Some(fault.status)
    }

    /// The error with which this hypercall is to fail, if it is; uses it up once.
    pub(super) fn take_call(&mut self, call: Hypercall, caller: DomId) -> Option<Errno> {
        let fault = self
            .calls
            .iter_mut()
            .find(|fault| fault.left > 0 && (fault.call, fault.caller) == (call, caller))?;
        fault.left -= 1;
        Some(fault.errno)
    }
}
