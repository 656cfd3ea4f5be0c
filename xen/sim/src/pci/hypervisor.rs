//! The interrupts of functions, as Xen keeps them for the domains.

use super::super::vcpu::SimVcpu;
use super::super::world::{DomainKind, World};
use super::config::Enabled;
use bulkhead_xen::{DomId, Errno, Interrupts, Pirq, Port};

/// An interrupt that dom0 has mapped for a domain.
struct Mapped {
    domain: DomId,
    pirq: Pirq,
    /// True if Xen raises it again only after an EOI.
    needs_eoi: bool,
    port: Option<Port>,
    /// True if it was raised, and needs an EOI; and if it was raised again meanwhile.
    in_service: bool,
    again: bool,
}

/// The interrupts of all domains.
#[derive(Default)]
pub(crate) struct Pirqs(Vec<Mapped>);

impl Pirqs {
    fn get(&mut self, domain: DomId, pirq: Pirq) -> Option<&mut Mapped> {
        let mut all = self.0.iter_mut();
        all.find(|one| one.domain == domain && one.pirq == pirq)
    }

    /// `PHYSDEVOP_map_pirq` by dom0, for a domain.
    pub(super) fn map(&mut self, domain: DomId, pirq: Pirq, needs_eoi: bool) {
        if self.get(domain, pirq).is_none() {
            self.0.push(Mapped {
                domain,
                pirq,
                needs_eoi,
                port: None,
                in_service: false,
                again: false,
            });
        }
    }

    /// A number that none of the domain's interrupts has.
    pub(super) fn unused(&self) -> Pirq {
        let next = self.0.iter().map(|one| one.pirq.0 + 1).max();
        Pirq(next.unwrap_or(0).max(64))
    }

    /// `PHYSDEVOP_unmap_pirq`.
    pub(super) fn unmap(&mut self, domain: DomId, pirq: Pirq) {
        self.0
            .retain(|one| one.domain != domain || one.pirq != pirq);
    }

    pub(super) fn release(&mut self, domain: DomId) {
        self.0.retain(|one| one.domain != domain);
    }

    /// The port of an interrupt was closed.
    pub(crate) fn unbind(&mut self, domain: DomId, pirq: Pirq) {
        if let Some(one) = self.get(domain, pirq) {
            (one.port, one.in_service, one.again) = (None, false, false);
        }
    }
}

impl World {
    /// A function raises an interrupt.
    pub(super) fn raise(&mut self, index: usize, entry: u16) {
        let function = self.function(index);
        let Some(owner) = function.owner else {
            return;
        };
        // A message is a write to memory, which needs bus mastering.
        let master = function.config.is_master();
        let pirq = match &function.config.enabled {
            Enabled::Nothing => function.config.line,
            Enabled::Msi(pirq) => Some(*pirq).filter(|_| master),
            Enabled::Msix(pirqs) => pirqs.get(usize::from(entry)).copied().filter(|_| master),
        };
        if let Some(pirq) = pirq {
            self.raise_pirq(owner, pirq);
        }
    }

    fn raise_pirq(&mut self, owner: DomId, pirq: Pirq) {
        let Some(one) = self.pirqs.get(owner, pirq) else {
            return;
        };
        let Some(port) = one.port else {
            return;
        };
        if one.in_service {
            one.again = true;
            return;
        }
        one.in_service = one.needs_eoi;
        self.set_pending(owner, port);
    }
}

impl Interrupts for SimVcpu {
    fn bind_pirq(&self, pirq: Pirq, _shared: bool) -> Result<Port, Errno> {
        let mut world = self.world.lock();
        let domain = world.alive_mut(self.domain).ok_or(Errno::SRCH)?;
        if domain.kind != DomainKind::Pv {
            return Err(Errno::NOSYS);
        }
        domain.stats.bind_calls += 1;
        let mapped = world.pirqs.get(self.domain, pirq).ok_or(Errno::PERM)?;
        if mapped.port.is_some() {
            return Err(Errno::EXIST);
        }
        let port = world.bind_pirq(self.domain, self.vcpu, pirq)?;
        let mapped = world.pirqs.get(self.domain, pirq).ok_or(Errno::PERM)?;
        mapped.port = Some(port);
        Ok(port)
    }

    fn needs_eoi(&self, pirq: Pirq) -> bool {
        let mut world = self.world.lock();
        let mapped = world.pirqs.get(self.domain, pirq);
        mapped.is_none_or(|one| one.needs_eoi)
    }

    fn eoi(&self, pirq: Pirq) -> Result<(), Errno> {
        let mut world = self.world.lock();
        let domain = world.alive_mut(self.domain).ok_or(Errno::SRCH)?;
        domain.stats.eoi_calls += 1;
        let mapped = world.pirqs.get(self.domain, pirq).ok_or(Errno::INVAL)?;
        mapped.in_service = false;
        if std::mem::take(&mut mapped.again) {
            world.raise_pirq(self.domain, pirq);
        }
        Ok(())
    }
}
