//! The device's PCI function: its capabilities, and its registers.

use crate::device::{Config, Device};
use bulkhead_xen_sim::Sim;
use bulkhead_xen_sim::pci::{BarConfig, DeviceModel, FunctionConfig, MsixConfig, SimFunction};
use std::sync::{Arc, Mutex, PoisonError};

/// The name of the device's PCI function.
pub const NAME: &str = "0000:04:00.0";

/// The BAR with the structures, and the places of the structures there: as QEMU has them.
const BAR: u8 = 4;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;

/// The bytes from one queue's register to the next one's.
pub const MULTIPLIER: u32 = 4;

/// Returns the function that has such a device.
pub fn function(config: &Config) -> FunctionConfig {
    FunctionConfig {
        name: NAME.to_string(),
        id: (0x1af4, config.id),
        class: 0x01_00_00,
        bars: vec![
            BarConfig {
                number: 1,
                size: 0x1000,
                wide: false,
            },
            BarConfig {
                number: BAR,
                size: 0x4000,
                wide: true,
            },
        ],
        msix: config.messages.map(|entries| MsixConfig {
            entries,
            bar: 1,
            table: 0,
            pending: 0x800,
        }),
        msi: false,
        line: config.line,
        prepared: true,
    }
}

pub fn add(sim: &Sim, config: Config) -> (Arc<Mutex<Device>>, SimFunction) {
    let described = function(&config);
    let is_modern = config.is_modern;
    let mut made = None;
    let added = sim.add_function(&described, |function| {
        let device = Arc::new(Mutex::new(Device::new(function.clone(), config)));
        made = Some(device.clone());
        Model(device)
    });
    if is_modern {
        add_capabilities(&added);
    }
    (made.expect("it was made"), added)
}

/// Puts the capabilities before those that the function has already.
fn add_capabilities(function: &SimFunction) {
    let structures = [
        (0x70, 1, COMMON, 0x1000),
        (0x80, 3, ISR, 0x1000),
        (0x90, 4, DEVICE, 0x1000),
        (0xa0, 2, NOTIFY, 0x1000),
    ];
    let others = function.config(0x34) & 0xff;
    for (index, (at, kind, offset, len)) in structures.into_iter().enumerate() {
        let next = structures
            .get(index + 1)
            .map_or(others, |next| next.0.into());
        let bytes: u32 = if kind == 2 { 20 } else { 16 };
        function.set_config(at, 0x09 | next << 8 | bytes << 16 | kind << 24);
        function.set_config(at + 4, BAR.into());
        function.set_config(at + 8, offset as u32);
        function.set_config(at + 12, len);
        if kind == 2 {
            function.set_config(at + 16, MULTIPLIER);
        }
    }
    function.set_config(0x34, structures[0].0.into());
    function.set_config(0x04, function.config(0x04) | 1 << 20);
}

/// What is behind the registers.
struct Model(Arc<Mutex<Device>>);

impl DeviceModel for Model {
    fn read(&mut self, bar: u8, offset: u64, width: usize) -> u64 {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if device.vanished || bar != BAR {
            return u64::MAX;
        }
        let at = offset & 0xfff;
        match offset & !0xfff {
            COMMON => device.read_common(at),
            ISR => std::mem::take(&mut device.isr).into(),
            DEVICE => {
                let bytes = device.config.describe();
                let read = (0..width as u64).map(|byte| {
                    let value = bytes.get((at + byte) as usize).copied().unwrap_or(0);
                    u64::from(value) << (8 * byte)
                });
                read.sum()
            }
            _ => 0,
        }
    }

    fn write(&mut self, bar: u8, offset: u64, width: usize, value: u64) {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if device.vanished || bar != BAR {
            return;
        }
        match offset & !0xfff {
            COMMON => device.write_common(offset, width, value),
            NOTIFY => {
                assert_eq!(width, 2);
                let queue = ((offset - NOTIFY) / u64::from(MULTIPLIER)) as u16;
                assert_eq!(u64::from(queue), value, "the queue's own register");
                device.notified(queue);
            }
            _ => {}
        }
    }
}
