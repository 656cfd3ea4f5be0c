//! The record of a queue that is served.

use crate::id::VbdId;
use bulkhead_ring::blkif::Abi;
use bulkhead_xen::{DomId, GrantRef, Port};
use bulkhead_xenbus::NodeMap;
use crc::{CRC_32_ISO_HDLC, Crc, NoTable};

/// "kept", in the order of the bytes in memory.
const MAGIC: u32 = u32::from_le_bytes(*b"kept");
/// The layout of [`QueueRecord`], of the responses and of the requests; another version is refused. It belongs to `bulkhead_upgrade::FORMAT`: both
/// change together.
const VERSION: u32 = 3;

/// Finds each change of up to 32 bits in a row; nobody forges what only this domain writes. A record is short and seldom
/// written: a table would be larger than what it saves.
static CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// What it takes to serve a queue again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRecord {
    /// The disk.
    pub disk: VbdId,
    /// The number of the queue, from 0.
    pub queue: u32,
    /// The number of the disk's queues.
    pub queues: u32,
    /// The page of the ring.
    pub ring: GrantRef,
    /// The frontend's event channel.
    pub event_channel: Port,
    /// The layout of the frontend's messages.
    pub abi: Abi,
    /// The frontend keeps its data pages granted.
    pub persistent: bool,
    /// The sectors of 512 bytes that the frontend was told when it connected; of a disk that has grown since, it was told
    /// more.
    pub sectors: u64,
    /// The sector size that the frontend was told, in bytes.
    pub sector_size: u32,
    /// The [mark](mark_of) of the nodes by which the toolstack described the disk, with bits changed by where its sectors lie
    /// (`BlockDevice::identity`).
    pub nodes: u32,
    /// Responses are put in any order: each request says whether it has one.
    pub any_order: bool,
}

/// The numbers of a record, and what tells whether they are one.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SealedRecord {
    magic: u32,
    version: u32,
    checksum: u32,
    numbers: [u32; 13],
}

impl QueueRecord {
    fn numbers(&self) -> [u32; 13] {
        [
            self.disk.frontend.0.into(),
            self.disk.device,
            self.queue,
            self.queues,
            self.ring.0,
            self.event_channel.0,
            match self.abi {
                Abi::X86_64 => 0,
                Abi::X86_32 => 1,
            },
            self.persistent.into(),
            self.sectors as u32,
            (self.sectors >> 32) as u32,
            self.sector_size,
            self.nodes,
            self.any_order.into(),
        ]
    }

    /// Reads the numbers; `None` if one of them is impossible.
    fn of(numbers: [u32; 13]) -> Option<QueueRecord> {
        let [
            frontend,
            device,
            queue,
            queues,
            ring,
            port,
            abi,
            persistent,
            low,
            high,
            size,
            nodes,
            any_order,
        ] = numbers;
        let frontend = DomId(u16::try_from(frontend).ok()?);
        if frontend >= DomId::FIRST_RESERVED || queue >= queues {
            return None;
        }
        Some(QueueRecord {
            disk: VbdId { frontend, device },
            queue,
            queues,
            ring: GrantRef(ring),
            event_channel: Port(port),
            abi: match abi {
                0 => Abi::X86_64,
                1 => Abi::X86_32,
                _ => return None,
            },
            persistent: flag(persistent)?,
            sectors: u64::from(high) << 32 | u64::from(low),
            sector_size: size,
            nodes,
            any_order: flag(any_order)?,
        })
    }
}

fn flag(number: u32) -> Option<bool> {
    match number {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

impl SealedRecord {
    /// Returns the record, if it is one.
    pub fn read(&self) -> Option<QueueRecord> {
        let valid =
            self.magic == MAGIC && self.version == VERSION && self.checksum == sum(&self.numbers);
        QueueRecord::of(self.numbers).filter(|_| valid)
    }

    /// Writes a record.
    pub fn seal(&mut self, record: &QueueRecord) {
        self.numbers = record.numbers();
        self.checksum = sum(&self.numbers);
        self.version = VERSION;
        self.magic = MAGIC;
    }

    /// Makes the record none.
    pub fn clear(&mut self) {
        self.magic = 0;
    }
}

fn sum(numbers: &[u32; 13]) -> u32 {
    let mut digest = CRC.digest();
    for number in numbers {
        digest.update(&number.to_le_bytes());
    }
    digest.finalize()
}

/// Returns what tells the nodes by which the toolstack described a disk from others.
pub fn mark_of(nodes: &NodeMap) -> u32 {
    let mut digest = CRC.digest();
    for (name, value) in nodes.iter() {
        for text in [name, value] {
            digest.update(text.as_bytes());
            digest.update(&[0]);
        }
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: QueueRecord = QueueRecord {
        disk: VbdId {
            frontend: DomId(7),
            device: 51712,
        },
        queue: 1,
        queues: 2,
        ring: GrantRef(8),
        event_channel: Port(15),
        abi: Abi::X86_32,
        persistent: true,
        sectors: 5 << 32 | 3,
        sector_size: 512,
        nodes: 0x1234_5678,
        any_order: true,
    };

    fn sealed(record: &QueueRecord) -> SealedRecord {
        let mut sealed = SealedRecord::default();
        assert_eq!(sealed.read(), None);
        sealed.seal(record);
        sealed
    }

    /// What version 0.2.0 leaves to the one that takes over: format 1. A later version has to read it; a change of the
    /// layout needs another format, and this test stays as it is.
    #[test]
    fn the_record_of_format_1_is_read() {
        let numbers = [
            0x7470656b, 0x3, 0xf814dafe, 0x7, 0xca00, 0x1, 0x2, 0x8, 0xf, 0x1, 0x1, 0x3, 0x5,
            0x200, 0x12345678, 0x1,
        ];
        let [magic, version, checksum, numbers @ ..] = numbers;
        let sealed = SealedRecord {
            magic,
            version,
            checksum,
            numbers,
        };
        assert_eq!(sealed.read(), Some(RECORD));
        assert_eq!(
            bulkhead_upgrade::FORMAT,
            1,
            "then a test of the next one is missing"
        );
        assert_eq!(size_of::<SealedRecord>(), 64, "that there is nothing else");
    }

    #[test]
    fn it_reads_as_it_was_written_until_it_is_cleared() {
        let mut sealed = sealed(&RECORD);
        assert_eq!(sealed.read(), Some(RECORD));
        sealed.clear();
        assert_eq!(sealed.read(), None);
    }

    #[test]
    fn each_number_that_changes_is_noticed() {
        let mut sealed = sealed(&RECORD);
        for place in 0..13 {
            for bit in 0..32 {
                sealed.numbers[place] ^= 1 << bit;
                assert_eq!(sealed.read(), None, "number {place}, bit {bit}");
                sealed.numbers[place] ^= 1 << bit;
            }
        }
        sealed.version += 1;
        assert_eq!(sealed.read(), None, "another version");
    }

    #[test]
    fn impossible_numbers_are_refused_with_a_good_checksum_too() {
        for (place, value) in [(0, 0x7ff0), (0, 0x1_0001), (2, 2), (6, 2), (7, 2), (12, 2)] {
            let mut sealed = sealed(&RECORD);
            sealed.numbers[place] = value;
            sealed.checksum = sum(&sealed.numbers);
            assert_eq!(sealed.read(), None, "number {place} as {value}");
        }
    }
}
