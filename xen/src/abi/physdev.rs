//! `physdev.h`: interrupts of devices that the domain was given.

use crate::Pirq;

/// `PHYSDEVOP_eoi`: an interrupt was handled. Takes an [`Eoi`].
pub const EOI: u32 = 12;

/// `PHYSDEVOP_pirq_eoi_gmfn_v2`: registers a page with a bit for each interrupt, by its number. Xen sets the bits of
/// the interrupts that need [`EOI`]. Takes a [`PirqEoiGmfn`].
pub const PIRQ_EOI_GMFN_V2: u32 = 28;

/// `struct physdev_eoi`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Eoi {
    /// In: the interrupt.
    pub irq: Pirq,
}

/// `struct physdev_pirq_eoi_gmfn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PirqEoiGmfn {
    /// In: the page, a machine frame in a PV domain.
    pub gmfn: u64,
}

const _: () = {
    assert!(size_of::<Eoi>() == 4);
    assert!(size_of::<PirqEoiGmfn>() == 8);
};
