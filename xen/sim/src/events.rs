//! Event channels as Xen keeps them: ports, their two ends, and the pending bits of each vCPU.
//!
//! The rules are those of Xen's `common/event_channel.c` and the two-level bitmaps:
//!
//! - Only the domain that a port was allocated for can bind it; all else is `EINVAL`.
//! - Binding sets the new local port pending, because notifications sent before may be lost.
//! - Sending sets the other end pending; while it is pending already, nothing more happens.
//! - Sending on a port whose other end was closed does nothing and is no error.
//! - Closing frees the port and drops its pending bit; the other end becomes unbound again.

use super::stats::Violation;
use super::world::World;
use bulkhead_xen::{DomId, Errno, Instant, Pirq, Port, VcpuId};

/// Ports of a domain with two-level event channels (`EVTCHN_2L_NR_CHANNELS`).
const PORTS: usize = 4096;
const WORDS: usize = PORTS / 64;

/// The other end of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum End {
    #[default]
    Free,
    /// May be bound by this domain.
    Unbound(DomId),
    Interdomain(DomId, Port),
    /// A physical interrupt.
    Pirq(Pirq),
}

#[derive(Clone, Copy, Default)]
struct Channel {
    end: End,
    vcpu: VcpuId,
    masked: bool,
    /// Notified while masked.
    held: bool,
}

impl Channel {
    fn new(end: End, vcpu: VcpuId) -> Channel {
        Channel {
            end,
            vcpu,
            ..Channel::default()
        }
    }
}

/// A domain's ports.
#[derive(Default)]
pub(super) struct Ports(Vec<Channel>);

/// A vCPU's view of its event channels, and the events that it waits for.
pub(super) struct Vcpu {
    pending: [u64; WORDS],
    /// Set while the vCPU is blocked: from `block` until its deadline, a notification or a wake-up.
    pub(super) blocked: Option<Blocked>,
    /// True if the vCPU was woken by another one since its last `block`.
    pub(super) woken: bool,
}

/// The events besides notifications for which a blocked vCPU waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked {
    pub(super) deadline: Option<Instant>,
}

impl Default for Vcpu {
    fn default() -> Self {
        Vcpu {
            pending: [0; WORDS],
            blocked: None,
            woken: false,
        }
    }
}

impl Ports {
    fn open(&self, port: Port) -> Option<Channel> {
        let channel = *self.0.get(port.0 as usize)?;
        (channel.end != End::Free).then_some(channel)
    }

    fn get_mut(&mut self, port: Port) -> &mut Channel {
        &mut self.0[port.0 as usize]
    }

    /// The lowest free port; port 0 is never one.
    fn allocate(&mut self, channel: Channel) -> Result<Port, Errno> {
        if self.0.is_empty() {
            self.0.push(Channel::default());
        }
        let free = self.0[1..].iter().position(|port| port.end == End::Free);
        let at = free.map_or(self.0.len(), |at| at + 1);
        if at >= PORTS {
            return Err(Errno::NOSPC);
        }
        if at == self.0.len() {
            self.0.push(channel);
        } else {
            self.0[at] = channel;
        }
        Ok(Port(at as u32))
    }

    pub(super) fn open_count(&self) -> usize {
        self.open_ports().count()
    }

    pub(super) fn open_ports(&self) -> impl Iterator<Item = Port> {
        let open = |(at, channel): (u32, &Channel)| (channel.end != End::Free).then_some(Port(at));
        (0..).zip(&self.0).filter_map(open)
    }
}

impl Vcpu {
    pub(super) fn any_pending(&self) -> bool {
        self.pending.iter().any(|word| *word != 0)
    }

    /// The lowest pending port from `from` on, taken.
    pub(super) fn take_pending(&mut self, from: Port) -> Option<Port> {
        let (start, shift) = (from.0 as usize / 64, from.0 % 64);
        for at in start..WORDS {
            let mut word = self.pending[at];
            if at == start {
                word &= u64::MAX << shift;
            }
            if word != 0 {
                let bit = word.trailing_zeros();
                self.pending[at] &= !(1 << bit);
                return Some(Port(at as u32 * 64 + bit));
            }
        }
        None
    }

    /// Sets a port pending; returns whether it was not.
    fn set_pending(&mut self, port: Port) -> bool {
        let (word, bit) = (&mut self.pending[port.0 as usize / 64], port.0 % 64);
        let was = *word & (1 << bit) != 0;
        *word |= 1 << bit;
        !was
    }

    /// Drops a port's pending bit; returns whether it was set.
    fn clear_pending(&mut self, port: Port) -> bool {
        let (word, bit) = (&mut self.pending[port.0 as usize / 64], port.0 % 64);
        let was = *word & (1 << bit) != 0;
        *word &= !(1 << bit);
        was
    }
}

impl World {
    /// `EVTCHNOP_alloc_unbound` in `local` for `remote`.
    pub(super) fn alloc_unbound(
        &mut self,
        local: DomId,
        vcpu: VcpuId,
        remote: DomId,
    ) -> Result<Port, Errno> {
        let remote = if remote == DomId::SELF { local } else { remote };
        let domain = self.alive_mut(local).ok_or(Errno::SRCH)?;
        domain
            .ports
            .allocate(Channel::new(End::Unbound(remote), vcpu))
    }

    /// `EVTCHNOP_bind_interdomain`.
    pub(super) fn bind_interdomain(
        &mut self,
        local: DomId,
        vcpu: VcpuId,
        remote: DomId,
        remote_port: Port,
    ) -> Result<Port, Errno> {
        let remote = if remote == DomId::SELF { local } else { remote };
        let theirs = self.domain(remote).ok_or(Errno::SRCH)?;
        let channel = theirs.ports.open(remote_port).ok_or(Errno::INVAL)?;
        if channel.end != End::Unbound(local) {
            return Err(Errno::INVAL);
        }
        let ours = self.alive_mut(local).ok_or(Errno::SRCH)?;
        let end = End::Interdomain(remote, remote_port);
        let port = ours.ports.allocate(Channel::new(end, vcpu))?;
        let theirs = self.domain_mut(remote).expect("looked up above");
        theirs.ports.get_mut(remote_port).end = End::Interdomain(local, port);
        self.set_pending(local, port);
        Ok(port)
    }

    /// `EVTCHNOP_bind_pirq` for an interrupt that the domain has.
    pub(super) fn bind_pirq(
        &mut self,
        local: DomId,
        vcpu: VcpuId,
        pirq: Pirq,
    ) -> Result<Port, Errno> {
        let domain = self.alive_mut(local).ok_or(Errno::SRCH)?;
        domain.ports.allocate(Channel::new(End::Pirq(pirq), vcpu))
    }

    /// `EVTCHNOP_close`.
    pub(super) fn close_port(&mut self, local: DomId, port: Port) -> Result<(), Errno> {
        let domain = self.domain_mut(local).ok_or(Errno::SRCH)?;
        let Some(channel) = domain.ports.open(port) else {
            let domain = local;
            self.violations.push(Violation::ClosedPort { domain, port });
            return Err(Errno::INVAL);
        };
        *domain.ports.get_mut(port) = Channel::default();
        domain.vcpus[channel.vcpu.0 as usize].clear_pending(port);
        if let End::Pirq(pirq) = channel.end {
            self.pirqs.unbind(local, pirq);
        }
        if let End::Interdomain(remote, remote_port) = channel.end
            && let Some(remote) = self.domain_mut(remote)
        {
            let end = &mut remote.ports.get_mut(remote_port).end;
            // A channel of a domain to itself has just been closed at this end.
            if *end == End::Interdomain(local, port) {
                *end = End::Unbound(local);
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_status`, whether it is `EVTCHNSTAT_interdomain`.
    pub(super) fn is_connected(&self, local: DomId, port: Port) -> Result<bool, Errno> {
        let domain = self.domain(local).ok_or(Errno::SRCH)?;
        let end = domain.ports.open(port).map(|channel| channel.end);
        Ok(matches!(end, Some(End::Interdomain(..))))
    }

    /// Closes what a dying domain leaves open (`evtchn_destroy`).
    pub(super) fn close_all_ports(&mut self, id: DomId) {
        let domain = self.domain(id).expect("the domain is dying, not gone");
        let open: Vec<Port> = domain.ports.open_ports().collect();
        for port in open {
            self.close_port(id, port).expect("the port is open");
        }
    }

    /// `EVTCHNOP_send`.
    pub(super) fn notify(&mut self, local: DomId, port: Port) -> Result<(), Errno> {
        let domain = self.alive_mut(local).ok_or(Errno::SRCH)?;
        match domain.ports.open(port).map(|channel| channel.end) {
            Some(End::Interdomain(remote, remote_port)) => self.set_pending(remote, remote_port),
            Some(End::Unbound(_)) => {}
            Some(End::Free | End::Pirq(_)) | None => {
                let domain = local;
                self.violations.push(Violation::ClosedPort { domain, port });
                return Err(Errno::INVAL);
            }
        }
        Ok(())
    }

    pub(super) fn set_pending(&mut self, id: DomId, port: Port) {
        let Some(domain) = self.domain_mut(id) else {
            return;
        };
        let channel = domain.ports.get_mut(port);
        if channel.masked {
            channel.held = true;
            return;
        }
        let vcpu = &mut domain.vcpus[channel.vcpu.0 as usize];
        if vcpu.set_pending(port) {
            domain.stats.notifications_received += 1;
            vcpu.blocked = None;
        }
    }

    /// Unmasks a port that an earlier boot has left open, and delivers it to a vCPU from now on.
    pub(super) fn take_up_port(
        &mut self,
        id: DomId,
        vcpu: VcpuId,
        port: Port,
    ) -> Result<(), Errno> {
        let domain = self.alive_mut(id).ok_or(Errno::SRCH)?;
        domain.ports.open(port).ok_or(Errno::INVAL)?;
        let channel = domain.ports.get_mut(port);
        (channel.vcpu, channel.masked) = (vcpu, false);
        if std::mem::take(&mut channel.held) {
            self.set_pending(id, port);
        }
        Ok(())
    }

    /// Masks a port that a domain leaves open when it restarts in place, and drops a notification that was held back.
    pub(super) fn leave_port(&mut self, id: DomId, port: Port) {
        if let Some(domain) = self.domain_mut(id) {
            let channel = domain.ports.get_mut(port);
            (channel.masked, channel.held) = (true, false);
        }
    }

    /// Holds back the notifications of a port, or lets them through again.
    pub(super) fn mask_port(&mut self, id: DomId, port: Port, masked: bool) {
        let domain = self.alive_mut(id).expect("a masked port's domain lives");
        assert!(domain.ports.open(port).is_some(), "port {port} is not open");
        let channel = domain.ports.get_mut(port);
        channel.masked = masked;
        if masked {
            channel.held |= domain.vcpus[channel.vcpu.0 as usize].clear_pending(port);
        } else if std::mem::take(&mut channel.held) {
            self.set_pending(id, port);
        }
    }

    pub(super) fn forget_notification(&mut self, id: DomId, port: Port) -> bool {
        let domain = self.alive_mut(id).expect("a masked port's domain lives");
        let channel = domain.ports.get_mut(port);
        assert!(channel.masked, "port {port} is not masked");
        std::mem::take(&mut channel.held)
    }
}
