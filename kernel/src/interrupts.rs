//! The interrupts of devices ([`Interrupts`]).

use crate::hypervisor::{Hypercalls, deliver_or_close};
use crate::memory::{map, pages};
use crate::{domain, event_channels, hypercall};
use bulkhead_xen::abi::{event_channel, physdev};
use bulkhead_xen::{Errno, Interrupts, PAGE_SIZE, Pirq, Port};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;

/// Words of a page of bits.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// The page in which Xen sets a bit for each interrupt that needs `PHYSDEVOP_eoi`; `None` if Xen takes none.
static NEEDS_EOI: Once<Option<&'static [AtomicU64; WORDS]>> = Once::new();

impl Interrupts for Hypercalls {
    fn bind_pirq(&self, pirq: Pirq, shared: bool) -> Result<Port, Errno> {
        if domain::is_pvh() {
            return Err(Errno::NOSYS);
        }
        // Before the first is bound: Xen writes there when one is.
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

/// Gives Xen the page of bits.
fn register() -> Option<&'static [AtomicU64; WORDS]> {
    let page = pages::allocate_pages(1)?;
    // SAFETY: a page that is this function's from here on.
    unsafe { page.write_bytes(0, PAGE_SIZE) };
    let gmfn = map::frame_of(page.as_ptr())?.0;
    if let Err(error) = physdev_op(
        physdev::PIRQ_EOI_GMFN_V2,
        &mut physdev::PirqEoiGmfn { gmfn },
    ) {
        log::debug!("Xen does not tell which interrupts need an EOI: {error}");
        // SAFETY: taken above, and Xen did not take it.
        unsafe { pages::free_pages(page, 1) };
        return None;
    }
    // SAFETY: zeroed memory, which is never given back, and is accessed atomically by Xen and here.
    Some(unsafe { page.cast().as_ref() })
}

fn physdev_op<T>(command: u32, request: &mut T) -> Result<(), Errno> {
    // SAFETY: Xen reads the request; the page that one of them names is Xen's to write from then on.
    unsafe { hypercall::physdev_op(command.into(), hypercall::pointer(request)) }.map(|_| ())
}
