//! The interrupts of devices ([`Interrupts`]).

use crate::hypervisor::{Hypercalls, deliver_or_close};
use crate::memory::map;
use crate::{domain, event_channels, hypercall};
use bulkhead_xen::abi::{event_channel, physdev};
use bulkhead_xen::{Errno, Interrupts, PAGE_SIZE, Pirq, Port};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;

/// The number of words in the page of bits.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// The page in which Xen sets a bit for each interrupt that needs `PHYSDEVOP_eoi`; `None` if Xen refuses it.
static NEEDS_EOI: Once<Option<&'static [AtomicU64; WORDS]>> = Once::new();

impl Interrupts for Hypercalls {
    fn bind_pirq(&self, pirq: Pirq, shared: bool) -> Result<Port, Errno> {
        if domain::is_pvh() {
            return Err(Errno::NOSYS);
        }
        // Before the first interrupt is bound: that is when Xen writes its bit.
        NEEDS_EOI.call_once(register);
        let mut request = event_channel::BindPirq {
            pirq,
            flags: match shared {
                true => event_channel::BIND_PIRQ_WILL_SHARE,
                false => 0,
            },
            port: Port(0),
        };
        event_channels::operation(event_channel::BIND_PIRQ, &mut request)?;
        deliver_or_close(request.port)
    }

    fn needs_eoi(&self, pirq: Pirq) -> bool {
        let Some(bits) = NEEDS_EOI.get().copied().flatten() else {
            return true;
        };
        let (word, bit) = (pirq.0 as usize / 64, pirq.0 % 64);
        bits.get(word)
            .is_none_or(|word| word.load(Ordering::Acquire) & (1 << bit) != 0)
    }

    fn eoi(&self, pirq: Pirq) -> Result<(), Errno> {
        physdev_op(physdev::EOI, &mut physdev::Eoi { irq: pirq })
    }
}

/// The frame of the page for these bits. Xen writes there from the first registration until the domain ends, also after
/// a restart or an upgrade. So it lies below the image, where each version finds it, and never becomes free memory
/// (`boot::pv`). It is part of the format `bulkhead_upgrade::WITH_DEVICES`.
pub(crate) const BITS: u64 = 0xff;

fn bits() -> &'static [AtomicU64; WORDS] {
    // SAFETY: a page of memory on PV, mapped at its own address, that nothing else uses and Xen and this module access as
    // atomics alone.
    unsafe { &*((BITS * PAGE_SIZE as u64) as *const [AtomicU64; WORDS]) }
}

/// Registers the page of bits with Xen. Its content does not matter: Xen sets or clears the bit of an interrupt when
/// that is bound.
fn register() -> Option<&'static [AtomicU64; WORDS]> {
    let page = bits();
    let gmfn = map::frame_of((&raw const *page).cast())?.0;
    match physdev_op(
        physdev::PIRQ_EOI_GMFN_V2,
        &mut physdev::PirqEoiGmfn { gmfn },
    ) {
        Ok(()) => Some(page),
        // Xen has it from a boot before.
        Err(Errno::BUSY) => Some(page),
        Err(error) => {
            log::debug!("Xen does not report which interrupts need an EOI: {error}");
            None
        }
    }
}

fn physdev_op<T>(command: u32, request: &mut T) -> Result<(), Errno> {
    // SAFETY: Xen reads the request; the page that one of them names is Xen's to write from then on.
    unsafe { hypercall::physdev_op(command.into(), hypercall::pointer(request)) }.map(|_| ())
}
