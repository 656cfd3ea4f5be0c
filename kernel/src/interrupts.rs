//! The interrupts of devices ([`Interrupts`]).

use crate::hypervisor::{Hypercalls, deliver_or_close};
use crate::memory::map;
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

/// The page for these bits, which is Xen's to write from the first registration until the domain ends, whatever becomes of
/// this boot.
#[repr(C, align(4096))]
struct Bits([AtomicU64; WORDS]);

#[cfg(not(feature = "recover"))]
static BITS: Bits = Bits([const { AtomicU64::new(0) }; WORDS]);

#[cfg(not(feature = "recover"))]
fn bits() -> &'static Bits {
    &BITS
}

// Beside the region: at the same place in the boot after a crash, and not cleared before.
#[cfg(feature = "recover")]
core::arch::global_asm!(
    r#"
    .section .survives, "aw", @nobits
    .balign 4096
    .globl interrupts_that_need_eoi
interrupts_that_need_eoi:
    .skip 4096
    .text
"#,
    options(att_syntax),
);

#[cfg(feature = "recover")]
fn bits() -> &'static Bits {
    unsafe extern "C" {
        static interrupts_that_need_eoi: Bits;
    }
    // SAFETY: a page of numbers, aligned, zero when the domain is built, and accessed as atomics alone by Xen and here.
    unsafe { &interrupts_that_need_eoi }
}

/// Gives Xen the page of bits.
fn register() -> Option<&'static [AtomicU64; WORDS]> {
    let page = bits();
    let gmfn = map::frame_of((&raw const *page).cast())?.0;
    match physdev_op(
        physdev::PIRQ_EOI_GMFN_V2,
        &mut physdev::PirqEoiGmfn { gmfn },
    ) {
        Ok(()) => Some(&page.0),
        // Xen has it from the boot before.
        Err(Errno::BUSY) => Some(&page.0),
        Err(error) => {
            log::debug!("Xen does not tell which interrupts need an EOI: {error}");
            None
        }
    }
}

fn physdev_op<T>(command: u32, request: &mut T) -> Result<(), Errno> {
    // SAFETY: Xen reads the request; the page that one of them names is Xen's to write from then on.
    unsafe { hypercall::physdev_op(command.into(), hypercall::pointer(request)) }.map(|_| ())
}
