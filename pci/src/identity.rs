//! The registers that identify a function (PCI Local Bus Specification 3.0, section 6.2.1).

use core::fmt;

/// A class code: base class, subclass and programming interface, in bits 23 to 16, 15 to 8 and 7 to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u32);

/// The vendor, device and class of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its vendor.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// Its class.
    pub class: Class,
}

impl Identity {
    /// Reads the registers at offsets 0 and 8. `None` if no function answers, which reads as vendor 0xffff.
    pub fn new(id: u32, class: u32) -> Option<Identity> {
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        (vendor != 0xffff).then_some(Identity {
            vendor,
            device,
            class: Class(class >> 8),
        })
    }
}

impl Class {
    /// Returns the name of a class that storage controllers have.
    fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0x01_08_02 => "NVMe controller",
            0x01_06_01 => "AHCI controller",
            class if class >> 8 == 0x01_00 => "SCSI controller",
            class if class >> 8 == 0x01_04 => "RAID controller",
            class if class >> 16 == 0x01 => "storage controller",
            class if class >> 16 == 0x02 => "network controller",
            _ => return None,
        })
    }
}

/// As `lspci -n` shows it, and the class by name.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            vendor,
            device,
            class,
        } = self;
        write!(f, "{vendor:04x}:{device:04x}, class {:06x}", class.0)?;
        match class.name() {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_function_says_what_it_is() {
        let nvme = Identity::new(0x0010_1b36, 0x0108_0202).expect("a function");
        assert_eq!(
            nvme.to_string(),
            "1b36:0010, class 010802 (NVMe controller)"
        );
        let virtio = Identity::new(0x1042_1af4, 0x0100_0001).expect("a function");
        assert_eq!(
            virtio.to_string(),
            "1af4:1042, class 010000 (SCSI controller)"
        );
        let bridge = Identity::new(0x1237_8086, 0x0600_0002).expect("a function");
        assert_eq!(bridge.to_string(), "8086:1237, class 060000");
        assert_eq!(Identity::new(u32::MAX, u32::MAX), None);
    }
}
