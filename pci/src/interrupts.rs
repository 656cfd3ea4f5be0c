//! A function's interrupts, each of which is bound to an event channel on the vCPU that handles it.

use crate::PciHost;
use crate::holders::Holder;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_xen::{Errno, Pirq, Port};
use core::fmt;
use core::task::{Context, Poll};

/// The way in which a function interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// MSI-X: one interrupt for each entry of its table that was enabled.
    Msix,
    /// MSI: one interrupt.
    Msi,
    /// INTx: a line, which other functions may share.
    Line,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::Msix => "MSI-X",
            Delivery::Msi => "MSI",
            Delivery::Line => "an interrupt line",
        })
    }
}

/// The interrupts of a function that were enabled.
pub struct Vectors {
    delivery: Delivery,
    all: Vec<Vector>,
}

impl Vectors {
    pub(crate) fn new(delivery: Delivery, pirqs: &[Pirq], holder: &Arc<Holder>) -> Self {
        let shared = delivery == Delivery::Line;
        let vector = |&pirq| Vector {
            pirq,
            shared,
            holder: holder.clone(),
        };
        let all = pirqs.iter().map(vector).collect();
        Vectors { delivery, all }
    }

    /// Returns the way in which the function interrupts.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Returns their number, at least 1.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Returns one of them, by the number of its entry in the function's table. It may be sent to another vCPU, and is
    /// bound on the vCPU that handles it. A number beyond the last one wraps around: where there are fewer interrupts
    /// than vCPUs, several vCPUs get the same one, and only one of them may bind it.
    pub fn get(&self, number: usize) -> &Vector {
        &self.all[number % self.all.len()]
    }
}

/// An interrupt that is not bound yet.
#[derive(Clone)]
pub struct Vector {
    pirq: Pirq,
    shared: bool,
    holder: Arc<Holder>,
}

impl Vector {
    /// Returns the number of the physical interrupt (pirq) by which Xen knows it in this domain.
    pub fn pirq(&self) -> Pirq {
        self.pirq
    }

    /// Binds it to a new port of the vCPU that calls this. It is bound once at a time; closing the port unbinds it.
    pub fn bind_port(&self, hypervisor: &impl PciHost) -> Result<Port, Errno> {
        hypervisor.bind_pirq(self.pirq, self.shared)
    }

    /// Binds it to the vCPU of an executor, which is the one that calls this. It is bound once at a time.
    pub fn bind<H: PciHost>(&self, handle: &Handle<H>) -> Result<Interrupt<H>, Errno> {
        let hypervisor = handle.hypervisor();
        let port = self.bind_port(hypervisor)?;
        Ok(Interrupt {
            channel: handle.event_channel(port),
            needs_end: hypervisor.needs_eoi(self.pirq),
            hypervisor: hypervisor.clone(),
            pirq: self.pirq,
            _holder: self.holder.clone(),
        })
    }
}

/// An interrupt of a function, bound to a vCPU. Dropping it unbinds it.
pub struct Interrupt<H: PciHost> {
    channel: EventChannel<H>,
    needs_end: bool,
    hypervisor: H,
    pirq: Pirq,
    _holder: Arc<Holder>,
}

impl<H: PciHost> Interrupt<H> {
    /// Returns its port.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    /// Waits until it was raised since the last one that was waited for.
    pub async fn raised(&self) {
        self.channel.notified().await;
    }

    /// Returns ready if it was raised, as [`raised`](Self::raised) does. Otherwise the next one wakes the task.
    #[inline]
    pub fn poll_raised(&self, context: &mut Context<'_>) -> Poll<()> {
        self.channel.poll_notified(context)
    }

    /// Tells Xen that it was handled (`PHYSDEVOP_eoi`), if Xen asks for that: Xen raises it again only then. The driver
    /// has first made the function deassert it. No hypercall for MSI-X.
    #[inline]
    pub fn handled(&self) {
        if self.needs_end
            && let Err(error) = self.hypervisor.eoi(self.pirq)
        {
            log::error!(
                "Xen does not take the end of interrupt {}: {error}",
                self.pirq
            );
        }
    }

    /// Masks its event channel until [`unmask`](Self::unmask): meanwhile it wakes no task.
    pub fn mask(&self) {
        self.channel.mask();
    }

    /// Unmasks it. If it was raised meanwhile, it wakes the waiting task now.
    pub fn unmask(&self) {
        self.channel.unmask();
    }
}
