//! The registers of devices ([`Mmio`]): machine frames without memory behind them, mapped uncached.

use crate::domain;
use crate::hypervisor::Hypercalls;
use crate::memory::device_space::DeviceSpace;
use crate::memory::{map, pv};
use bulkhead_xen::{Errno, Mfn, Mmio, PAGE_SIZE, Registers, is_register};
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use spin::Mutex;

static SPACE: Mutex<DeviceSpace> = Mutex::new(DeviceSpace::new());

/// The registers of a device. Dropping this unmaps them.
pub struct MappedRegisters {
    base: NonNull<u8>,
    pages: usize,
}

// SAFETY: registers are no memory: no reference points there, and the device orders accesses to them.
unsafe impl Send for MappedRegisters {}
// SAFETY: as above.
unsafe impl Sync for MappedRegisters {}

// SAFETY: own memory is refused; Xen refuses that of others, and frames of devices that are not ours. The
// addresses are taken out of those set aside for this.
unsafe impl Mmio for Hypercalls {
    type Registers = MappedRegisters;

    fn map_registers(&self, first: Mfn, pages: usize) -> Result<MappedRegisters, Errno> {
        if domain::is_pvh() {
            return Err(Errno::NOSYS);
        }
        let map = map::get();
        let frames = first.0..first.0.checked_add(pages as u64).ok_or(Errno::INVAL)?;
        if map.p2m.is_some_and(|p2m| p2m.has_any(&frames)) {
            return Err(Errno::INVAL);
        }
        let page = SPACE.lock().take(pages, map.space.device_pages as usize);
        let start = page.ok_or(Errno::NOMEM)? * PAGE_SIZE;
        let base = NonNull::new((map.space.devices + start as u64) as *mut u8);
        let mut mapped = MappedRegisters {
            base: base.ok_or(Errno::INVAL)?,
            pages: 0,
        };
        for frame in frames {
            let address = mapped.base.as_ptr().addr() + mapped.pages * PAGE_SIZE;
            // SAFETY: a page of the addresses taken above, where nothing is mapped.
            let writable = unsafe { pv::map_registers(address as u64, frame) }?;
            mapped.pages += 1;
            if !writable {
                return Err(Errno::ACCES);
            }
        }
        Ok(mapped)
    }
}

impl Drop for MappedRegisters {
    fn drop(&mut self) {
        let first = self.base.as_ptr().addr();
        for page in 0..self.pages {
            // SAFETY: mapped here, and nothing can reach it any more.
            unsafe { pv::unmap_registers((first + page * PAGE_SIZE) as u64) };
        }
        let start = first - map::get().space.devices as usize;
        SPACE.lock().give_back(start / PAGE_SIZE);
    }
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $type:ty;)*) => {
        $(
            #[inline]
            fn $read(&self, offset: usize) -> $type {
                if !is_register(offset, size_of::<$type>(), self.len()) {
                    return <$type>::MAX;
                }
                // SAFETY: inside, as just checked, mapped as long as this value lives, and aligned.
                let value = unsafe { self.base.add(offset).cast::<$type>().read_volatile() };
                fence(Ordering::Acquire);
                value
            }

            #[inline]
            fn $write(&self, offset: usize, value: $type) {
                if is_register(offset, size_of::<$type>(), self.len()) {
                    fence(Ordering::Release);
                    // SAFETY: as for reading.
                    unsafe { self.base.add(offset).cast::<$type>().write_volatile(value) };
                }
            }
        )*
    };
}

// The processor makes an uncached access where it stands. The fences, which are no instructions on x86, keep the
// compiler from moving accesses to memory across it.
impl Registers for MappedRegisters {
    fn len(&self) -> usize {
        self.pages * PAGE_SIZE
    }

    accesses! {
        read8, write8, u8;
        read16, write16, u16;
        read32, write32, u32;
    }
}
