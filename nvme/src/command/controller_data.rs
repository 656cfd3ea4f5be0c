//! The structures in which a controller describes itself (Identify, CNS 01h and 06h).

use super::PAGE;
use super::field::{u16_at, u32_at, u64_at};
use alloc::string::String;

/// The identify structure of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerData {
    /// Its serial number.
    pub serial: String,
    /// Its model.
    pub model: String,
    /// The version of its firmware.
    pub firmware: String,
    /// Its controller type.
    pub kind: ControllerKind,
    /// The most bytes of one command; `None` if there is no limit.
    pub most_bytes: Option<usize>,
    /// The most Abort commands that may be outstanding, less one (ACL).
    pub aborts: u8,
    /// The most asynchronous event requests that may be outstanding, less one (AERL).
    pub event_requests: u8,
    /// It reports changes of namespaces as events (OAES).
    pub tells_namespaces: bool,
    /// The most namespaces that it has.
    pub namespaces: u32,
    /// It has a write cache that loses its data when power fails (VWC): writes need a flush to be durable.
    pub volatile_cache: bool,
    /// It understands Dataset Management.
    pub deallocates: bool,
    /// It understands Write Zeroes.
    pub writes_zeroes: bool,
    /// The smallest and the largest entry of submission queues that it takes, as powers of two in bytes.
    pub submission_entry: (u8, u8),
    /// The same for completion queues.
    pub completion_entry: (u8, u8),
}

/// The kind of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// An I/O controller, or one that does not report its type.
    Io,
    /// A discovery or administrative controller (CNTRLTYPE 2 or 3), or a type that is reserved.
    Other(u8),
}

impl ControllerData {
    /// Reads the structure, of a controller whose smallest page (CAP.MPSMIN) is 4096 bytes.
    pub fn parse(bytes: &[u8; PAGE]) -> ControllerData {
        let commands = u16_at(bytes, 520);
        let nibbles = |byte: u8| (byte & 0xf, byte >> 4);
        ControllerData {
            serial: text(&bytes[4..24]),
            model: text(&bytes[24..64]),
            firmware: text(&bytes[64..72]),
            kind: match bytes[111] {
                0 | 1 => ControllerKind::Io,
                other => ControllerKind::Other(other),
            },
            most_bytes: match bytes[77] {
                0 => None,
                // A limit beyond the address space is none.
                power => PAGE
                    .checked_shl(power.into())
                    .filter(|bytes| *bytes >= PAGE),
            },
            aborts: bytes[258],
            event_requests: bytes[259],
            tells_namespaces: u32_at(bytes, 92) >> 8 & 1 == 1,
            namespaces: u32_at(bytes, 516),
            volatile_cache: bytes[525] & 1 == 1,
            deallocates: commands >> 2 & 1 == 1,
            writes_zeroes: commands >> 3 & 1 == 1,
            submission_entry: nibbles(bytes[512]),
            completion_entry: nibbles(bytes[513]),
        }
    }

    /// Returns whether queues can have entries of the usual sizes, 64 and 16 bytes.
    pub fn takes_usual_entries(&self) -> bool {
        let takes = |(least, most): (u8, u8), size: u8| least <= size && size <= most;
        takes(self.submission_entry, 6) && takes(self.completion_entry, 4)
    }
}

/// The most that one command may deallocate or clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeallocateLimits {
    /// The most logical blocks of a single range of Dataset Management.
    pub range: u64,
    /// The most bytes of a Write Zeroes.
    pub zeroes: u64,
}

impl DeallocateLimits {
    /// Returns the limits of a controller that reports none: Write Zeroes is limited like a write.
    pub fn untold(controller: &ControllerData) -> DeallocateLimits {
        DeallocateLimits {
            range: u64::MAX,
            zeroes: controller.most_bytes.map_or(u64::MAX, |bytes| bytes as u64),
        }
    }

    /// Reads the structure with the limits of the NVM command set: DMRSL and DMSL, in blocks, and WZSL, a power of two
    /// in pages of 4096 bytes. A field that is 0 reports no limit.
    pub fn parse(bytes: &[u8; PAGE], controller: &ControllerData) -> DeallocateLimits {
        let untold = Self::untold(controller);
        let ranges = [u32_at(bytes, 4).into(), u64_at(bytes, 8)];
        let told = ranges.into_iter().filter(|limit| *limit > 0);
        DeallocateLimits {
            range: told.min().unwrap_or(untold.range),
            zeroes: match bytes[1] {
                0 => untold.zeroes,
                power => (PAGE as u64)
                    .checked_shl(power.into())
                    .filter(|bytes| *bytes >= PAGE as u64)
                    .unwrap_or(u64::MAX),
            },
        }
    }
}

/// Returns a text field of the structure without its padding; a byte that is not printable ASCII becomes `?`.
fn text(bytes: &[u8]) -> String {
    let printable = |byte: &u8| match *byte {
        byte @ b' '..=b'~' => char::from(byte),
        _ => '?',
    };
    let end = bytes.iter().rposition(|byte| !matches!(byte, b' ' | 0));
    let start = bytes.iter().position(|byte| *byte != b' ').unwrap_or(0);
    let text = bytes.get(start..end.map_or(start, |end| end + 1));
    text.unwrap_or_default().iter().map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_lose_their_padding_and_what_cannot_be_printed() {
        assert_eq!(text(b"lab0                "), "lab0");
        assert_eq!(text(b"  a b \0\0"), "a b");
        assert_eq!(text(b"a\x1b[2J\xff"), "a?[2J?");
        assert_eq!(text(b"    "), "");
        assert_eq!(text(b"\0\0"), "");
    }

    #[test]
    fn the_largest_transfer_is_a_power_of_two_pages() {
        let mut bytes = [0; PAGE];
        let mut most = |power| {
            bytes[77] = power;
            ControllerData::parse(&bytes).most_bytes
        };
        assert_eq!(most(0), None);
        assert_eq!(most(1), Some(8192));
        assert_eq!(most(7), Some(512 << 10));
        assert_eq!(most(51), Some(1 << 63));
        assert_eq!(most(52), None);
        assert_eq!(most(255), None);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), PAGE)) {
            let bytes: [u8; PAGE] = bytes.try_into().expect("a page");
            let data = ControllerData::parse(&bytes);
            let printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            prop_assert!(printable(&data.serial) && data.serial.len() <= 20);
            prop_assert!(printable(&data.model) && data.model.len() <= 40);
            prop_assert!(data.most_bytes.is_none_or(|bytes| bytes >= PAGE));
        }
    }
}
