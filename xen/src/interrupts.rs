//! The interrupts of devices that were given to this domain.

use crate::{Errno, Pirq, Port};

/// Interrupts of devices, which are delivered as event channels.
///
/// Only PV domains have devices on x86: in others, these calls fail with [`Errno::NOSYS`].
pub trait Interrupts {
    /// Binds a physical interrupt to a new port (`EVTCHNOP_bind_pirq`), which is delivered to the calling vCPU,
    /// unmasked. `shared` says that other domains may have it, too, as is possible with an interrupt line (INTx).
    ///
    /// Fails with [`Errno::PERM`] if the interrupt is not this domain's, and with [`Errno::EXIST`] if it is bound
    /// already. Closing the port unbinds it.
    fn bind_pirq(&self, pirq: Pirq, shared: bool) -> Result<Port, Errno>;

    /// Returns whether Xen raises the interrupt again only after [`eoi`](Self::eoi). Known once it is bound: lines
    /// need it, message-signalled interrupts that can be masked (all of MSI-X) do not.
    fn needs_eoi(&self, pirq: Pirq) -> bool;

    /// Tells Xen that the interrupt was handled (`PHYSDEVOP_eoi`): the device does not assert it any more.
    fn eoi(&self, pirq: Pirq) -> Result<(), Errno>;
}
