//! The places of a modern virtio device's structures, which vendor-specific capabilities of its function give (virtio
//! 1.2, section 4.1.4).

use crate::error::StartError;
use alloc::sync::Arc;
use bulkhead_pci::{Capability, ConfigSpace, Function, PciHost, VENDOR_SPECIFIC};
use bulkhead_xen::Registers;

/// The kinds of structures (`VIRTIO_PCI_CAP_*`).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// The least size of a capability, and of the one for notifications, in bytes.
const CAPABILITY: u8 = 16;
const NOTIFY_CAPABILITY: u8 = 20;

/// The number of BARs of a function.
const BARS: u8 = 6;

/// The least size of the common structure, up to the addresses of a queue, and of a disk's configuration with nothing
/// but its capacity, in bytes.
const LEAST_COMMON: u32 = 0x38;
const LEAST_DEVICE: u32 = 8;

/// The most bytes that are mapped of a structure, and of the one for notifications.
const MOST: u32 = 4 << 10;
const MOST_NOTIFY: u32 = 256 << 10;

/// The place of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StructureLocation {
    bar: u8,
    offset: u32,
    len: u32,
}

/// The places of all structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructureLocations {
    common: StructureLocation,
    notify: StructureLocation,
    /// The number of bytes by which a queue's notification offset is multiplied (`notify_off_multiplier`).
    multiplier: u32,
    isr: Option<StructureLocation>,
    device: StructureLocation,
}

/// The structures that were found so far. If a kind is there several times, the device prefers the first one.
#[derive(Default)]
struct Found {
    common: Option<StructureLocation>,
    notify: Option<(StructureLocation, u32)>,
    isr: Option<StructureLocation>,
    device: Option<StructureLocation>,
}

impl Found {
    fn add(&mut self, kind: u8, place: StructureLocation, multiplier: Option<u32>) {
        match kind {
            COMMON => _ = self.common.get_or_insert(place),
            NOTIFY => {
                if let Some(multiplier) = multiplier {
                    self.notify.get_or_insert((place, multiplier));
                }
            }
            ISR => _ = self.isr.get_or_insert(place),
            DEVICE => _ = self.device.get_or_insert(place),
            _ => {}
        }
    }

    fn complete(self) -> Result<StructureLocations, StartError> {
        let common = self.common.filter(|place| place.len >= LEAST_COMMON);
        let device = self.device.filter(|place| place.len >= LEAST_DEVICE);
        let (Some(common), Some((notify, multiplier)), Some(device)) =
            (common, self.notify, device)
        else {
            return Err(StartError::NotModern);
        };
        let shortened = |place: StructureLocation, most: u32| StructureLocation {
            len: place.len.min(most),
            ..place
        };
        Ok(StructureLocations {
            common: shortened(common, MOST),
            notify: shortened(notify, MOST_NOTIFY),
            multiplier,
            isr: self.isr.map(|place| shortened(place, MOST)),
            device: shortened(device, MOST),
        })
    }
}

/// Reads where the structures of a function are. Fails if one that is needed is missing or too short.
pub async fn find<H: PciHost>(function: &Function<H>) -> Result<StructureLocations, StartError> {
    let mut found = Found::default();
    for capability in function.capabilities().await? {
        let [len, kind] = capability.head.to_le_bytes();
        if capability.id != VENDOR_SPECIFIC || !(COMMON..=DEVICE).contains(&kind) {
            continue;
        }
        let Some((place, multiplier)) = read(function.config(), capability, len, kind).await?
        else {
            continue;
        };
        found.add(kind, place, multiplier);
    }
    found.complete()
}

/// Reads one capability. `None` if it is too short, or names a place that a function cannot have.
async fn read<H: PciHost>(
    config: &ConfigSpace<H>,
    capability: Capability,
    len: u8,
    kind: u8,
) -> Result<Option<(StructureLocation, Option<u32>)>, StartError> {
    let at = u16::from(capability.offset);
    if len < CAPABILITY || at + u16::from(len) > 256 {
        return Ok(None);
    }
    let place = StructureLocation {
        bar: config.read8(at + 4).await?,
        offset: config.read32(at + 8).await?,
        len: config.read32(at + 12).await?,
    };
    let aligned = place.offset.is_multiple_of(4) || kind == ISR;
    if place.bar >= BARS || place.len == 0 || !aligned {
        return Ok(None);
    }
    let multiplier = match kind == NOTIFY && len >= NOTIFY_CAPABILITY {
        true => Some(config.read32(at + 16).await?),
        false => None,
    };
    Ok(Some((place, multiplier)))
}

/// The structures, mapped.
pub struct Structures {
    /// The common configuration (`virtio_pci_common_cfg`).
    pub common: Arc<dyn Registers>,
    /// The registers by which the device is notified of queues.
    pub notify: Arc<dyn Registers>,
    /// The number of bytes by which a queue's notification offset is multiplied (`notify_off_multiplier`).
    pub multiplier: usize,
    /// The interrupt status, for an interrupt line.
    pub isr: Option<Arc<dyn Registers>>,
    /// The configuration of a disk (`virtio_blk_config`).
    pub device: Arc<dyn Registers>,
}

impl Structures {
    /// Maps the structures of a function.
    pub async fn open<H: PciHost>(function: &Function<H>) -> Result<Structures, StartError> {
        let places = find(function).await?;
        let open = async |place: StructureLocation| {
            let start = u64::from(place.offset);
            let offsets = start..start + u64::from(place.len);
            function.open_registers(place.bar, offsets).await
        };
        Ok(Structures {
            common: open(places.common).await?,
            notify: open(places.notify).await?,
            multiplier: places.multiplier as usize,
            isr: match places.isr {
                Some(place) => Some(open(place).await?),
                None => None,
            },
            device: open(places.device).await?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(bar: u8, len: u32) -> StructureLocation {
        StructureLocation {
            bar,
            offset: 0,
            len,
        }
    }

    #[test]
    fn the_first_structure_of_a_kind_is_taken() {
        let mut found = Found::default();
        found.add(COMMON, place(4, 0x1000), None);
        found.add(COMMON, place(5, 0x1000), None);
        found.add(NOTIFY, place(3, 0x1000), None);
        found.add(NOTIFY, place(4, 1 << 20), Some(4));
        found.add(DEVICE, place(4, 8), None);
        let places = found.complete().expect("all that is needed");
        assert_eq!((places.common.bar, places.notify.bar), (4, 4));
        assert_eq!((places.multiplier, places.notify.len), (4, MOST_NOTIFY));
        assert_eq!(places.isr, None);
    }

    #[test]
    fn without_a_structure_the_device_is_not_modern() {
        for missing in [COMMON, NOTIFY, DEVICE] {
            let mut found = Found::default();
            for kind in [COMMON, NOTIFY, ISR, DEVICE]
                .into_iter()
                .filter(|kind| *kind != missing)
            {
                found.add(kind, place(0, 64), Some(4));
            }
            assert_eq!(found.complete(), Err(StartError::NotModern), "{missing}");
        }
        let mut short = Found::default();
        short.add(COMMON, place(0, LEAST_COMMON - 1), None);
        short.add(NOTIFY, place(0, 4), Some(4));
        short.add(DEVICE, place(0, 8), None);
        assert_eq!(short.complete(), Err(StartError::NotModern));
    }
}
