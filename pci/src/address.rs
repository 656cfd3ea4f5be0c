//! The two names of a function: by dom0's buses, as the user knows it, and by the bus that pciback shows.

use core::fmt;

/// A function's place among dom0's buses: `03:00.0`, or `0001:03:00.0` in another PCI domain than the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionName(Slot);

/// A function's place by which pciback is asked to act on it: domain, bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The PCI domain.
    pub domain: u16,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, below 32.
    pub device: u8,
    /// The function of the device, below 8.
    pub function: u8,
}

impl Slot {
    /// Reads `DDDD:BB:dd.f`, all hexadecimal, as libxl (`dev-N`) and pciback (`vdev-N`) write it. pciback writes two
    /// digits for the function. `None` if the text has another form, or a number is out of range.
    pub fn parse(text: &str) -> Option<Slot> {
        let mut parts = text.trim().splitn(3, ':');
        let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (device, function) = rest.split_once('.')?;
        let number = |text: &str, most: u16| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = digits.then(|| u16::from_str_radix(text, 16).ok()).flatten();
            number.filter(|number| *number <= most)
        };
        Some(Slot {
            domain: number(domain, u16::MAX)?,
            bus: number(bus, 0xff)? as u8,
            device: number(device, 31)? as u8,
            function: number(function, 7)? as u8,
        })
    }

    /// Returns device and function in one number, as operations name them (`devfn` in `io/pciif.h`).
    pub fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }
}

impl FunctionName {
    /// Reads a name as libxl writes it, or as the user does, without the PCI domain, which is 0 then. `None` if it is
    /// not such a name.
    pub fn parse(text: &str) -> Option<FunctionName> {
        let text = text.trim();
        match text.matches(':').count() {
            1 => Slot::parse(&alloc::format!("0:{text}")),
            _ => Slot::parse(text),
        }
        .map(FunctionName)
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slot {
            domain,
            bus,
            device,
            function,
        } = self.0;
        if domain != 0 {
            write!(f, "{domain:04x}:")?;
        }
        write!(f, "{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_function_is_named_as_its_user_does_it() {
        for (text, name) in [
            ("0000:03:00.0", "03:00.0"),
            ("03:00.0", "03:00.0"),
            ("0000:3a:1f.07", "3a:1f.7"),
            ("0001:00:02.1", "0001:00:02.1"),
            (" 0:0:0.0\n", "00:00.0"),
        ] {
            let parsed = FunctionName::parse(text).map(|name| name.to_string());
            assert_eq!(parsed.as_deref(), Some(name), "{text}");
        }
    }

    #[test]
    fn what_is_no_function_is_none() {
        for text in [
            "",
            ":",
            "0000:03:00",
            "0000:03:20.0",
            "0000:03:00.8",
            "0000:100:00.0",
            "10000:03:00.0",
            "0000:03:00.+1",
            "0000:03:-1.0",
            "0000:03:00.0.0",
            "0000:00:03:00.0",
            "zz:03:00.0",
            "ffffffffffffffffffff:03:00.0",
        ] {
            assert_eq!(FunctionName::parse(text), None, "{text}");
        }
        assert_eq!(Slot::parse("03:00.0"), None);
    }

    #[test]
    fn pciback_is_asked_by_number() {
        let slot = Slot::parse("0000:00:02.01").expect("a slot");
        assert_eq!((slot.domain, slot.bus, slot.devfn()), (0, 0, 0x11));
    }
}
