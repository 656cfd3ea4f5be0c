//! Disks in memory with tables that tests make, sound or not.

use crate::checksum::Checksum;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use bulkhead_images::{
    AsyncIo, AsyncQueue, BlockDevice, Caps, Geometry, IoError, Op, OpenQueue, QueueContext, Sector,
    SectorSize, not_opened, opened,
};
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use gpt_disk_types::{
    GptHeader, GptPartitionEntry, GptPartitionName, GptPartitionType, Guid, LbaLe, U32Le,
};
use spin::Mutex;

/// Polls a future that has nothing to wait for but its next turn.
///
/// # Panics
/// If it waits all the same.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => assert!(woken.0.swap(false, Ordering::Relaxed), "it waits"),
        }
    }
}

/// Whether a task was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A disk whose bytes a test sees and changes.
#[derive(Clone)]
pub struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    sector_size: SectorSize,
}

impl Disk {
    /// A disk of zeros.
    pub fn new(bytes: usize, sector_size: SectorSize) -> Disk {
        Disk::of(alloc::vec![0; bytes], sector_size)
    }

    /// A disk with that content.
    pub fn of(bytes: Vec<u8>, sector_size: SectorSize) -> Disk {
        Disk {
            bytes: Arc::new(Mutex::new(bytes)),
            sector_size,
        }
    }

    /// Changes its bytes.
    pub fn change<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        change(&mut self.bytes.lock())
    }

    /// Writes bytes somewhere.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.change(|all| all[at..at + bytes.len()].copy_from_slice(bytes));
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: Sector((self.bytes.lock().len() / Sector::SIZE) as u64),
            sector_size: self.sector_size,
            physical_sector_size: self.sector_size,
            read_only: false,
            flush: true,
            discard: None,
        }
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        let caps = Caps {
            depth: 4,
            segments: 16,
            ..Caps::UNLIMITED
        };
        let bytes = self.bytes.clone();
        match AsyncQueue::new(caps, context.depth, move |io| serve(bytes.clone(), io)) {
            Ok(queue) => opened(queue),
            Err(error) => not_opened(error),
        }
    }
}

async fn serve(bytes: Arc<Mutex<Vec<u8>>>, io: AsyncIo) -> Result<(), IoError> {
    let mut bytes = bytes.lock();
    let (Op::Read { sector } | Op::Write { sector, .. }) = io.op else {
        return Ok(());
    };
    let start = sector.0 as usize * Sector::SIZE;
    let range = bytes.get_mut(start..start + io.len());
    let range = range.ok_or(IoError::OutOfRange)?;
    match io.op {
        Op::Read { .. } => io.copy_from(0, range),
        _ => io.copy_to(0, range),
    }
    Ok(())
}

/// A partition for [`write_gpt`]: its label, its type, its identity, and its first and last block.
#[derive(Clone, Copy, Debug)]
pub struct NewPartition<'n> {
    /// Its name.
    pub label: &'n str,
    /// What it is for.
    pub kind: Guid,
    /// Its identity.
    pub id: Guid,
    /// Its first block.
    pub first: u64,
    /// Its last block.
    pub last: u64,
}

/// Writes a protective MBR and both copies of a partition table.
///
/// # Panics
/// If they do not fit.
pub fn write_gpt(disk: &Disk, partitions: &[NewPartition<'_>]) {
    let unit = disk.sector_size.bytes();
    disk.change(|bytes| {
        let blocks = (bytes.len() / unit) as u64;
        bytes[446 + 4] = 0xEE;
        bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
        let mut table = Vec::new();
        for partition in partitions {
            let mut name = GptPartitionName([0; 72]);
            for (place, unit) in name
                .0
                .chunks_exact_mut(2)
                .zip(partition.label.encode_utf16())
            {
                place.copy_from_slice(&unit.to_le_bytes());
            }
            let entry = GptPartitionEntry {
                partition_type_guid: GptPartitionType(partition.kind),
                unique_partition_guid: partition.id,
                starting_lba: LbaLe::from_u64(partition.first),
                ending_lba: LbaLe::from_u64(partition.last),
                name,
                ..GptPartitionEntry::default()
            };
            table.extend_from_slice(bytemuck::bytes_of(&entry));
        }
        table.resize(128 * 128, 0);
        let of_table = (table.len() / unit) as u64;
        for (own, other, start) in [(1, blocks - 1, 2), (blocks - 1, 1, blocks - 1 - of_table)] {
            let header = GptHeader {
                my_lba: LbaLe::from_u64(own),
                alternate_lba: LbaLe::from_u64(other),
                first_usable_lba: LbaLe::from_u64(2 + of_table),
                last_usable_lba: LbaLe::from_u64(blocks - 2 - of_table),
                partition_entry_lba: LbaLe::from_u64(start),
                number_of_partition_entries: U32Le::from_u32(128),
                ..GptHeader::default()
            };
            let place = own as usize * unit;
            bytes[place..place + 92].copy_from_slice(bytemuck::bytes_of(&header));
            let place = start as usize * unit;
            bytes[place..place + table.len()].copy_from_slice(&table);
        }
    });
    mend_gpt(disk);
}

/// Makes the checksums of both copies of a partition table right, as far as they are where they should be.
pub fn mend_gpt(disk: &Disk) {
    let unit = disk.sector_size.bytes();
    disk.change(|bytes| {
        let blocks = bytes.len() / unit;
        for block in [1, blocks.saturating_sub(1)] {
            mend_header(bytes, block, unit);
        }
    });
}

fn mend_header(bytes: &mut [u8], block: usize, unit: usize) -> Option<()> {
    let start = block * unit;
    let header = bytes.get(start..start + unit)?;
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
    let table = number(72) as usize * unit;
    let len = (number(80) as usize).checked_mul(number(84) as usize)?;
    let size = (number(12) as usize).min(unit);
    if let Some(table) = bytes.get(table..table.saturating_add(len)) {
        let mut checksum = Checksum::of_gpt();
        checksum.update(table);
        let value = checksum.value().to_le_bytes();
        bytes[start + 88..start + 92].copy_from_slice(&value);
    }
    let mut checksum = Checksum::of_gpt();
    let header = bytes[start..start + size].iter().enumerate();
    for (at, byte) in header {
        checksum.update(&[if (16..20).contains(&at) { 0 } else { *byte }]);
    }
    let value = checksum.value().to_le_bytes();
    bytes[start + 16..start + 20].copy_from_slice(&value);
    Some(())
}

/// A physical volume for [`write_physical`].
#[derive(Clone, Copy, Debug)]
pub struct NewPhysical<'n> {
    /// The byte of the disk that it begins with.
    pub start: usize,
    /// Its identity, 32 letters.
    pub id: &'n str,
    /// The first byte of its metadata area, counted from its start, and how many bytes that has.
    pub area: (usize, usize),
    /// Where the text begins in the area.
    pub text_start: usize,
    /// The text.
    pub text: &'n str,
}

/// Writes the label and the metadata of a physical volume.
///
/// # Panics
/// If they do not fit.
pub fn write_physical(disk: &Disk, new: &NewPhysical<'_>) {
    let (area, len) = new.area;
    disk.change(|bytes| {
        let label = &mut bytes[new.start + 512..new.start + 1024];
        label[..8].copy_from_slice(b"LABELONE");
        label[8] = 1;
        label[20] = 32;
        label[24..32].copy_from_slice(b"LVM2 001");
        label[32..64].copy_from_slice(new.id.as_bytes());
        // The size; a data area from 1 MiB on; no more of them; the metadata area.
        label[64..72].copy_from_slice(&(8_u64 << 20).to_le_bytes());
        label[72..80].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        label[104..112].copy_from_slice(&(area as u64).to_le_bytes());
        label[112..120].copy_from_slice(&(len as u64).to_le_bytes());
        label[120..].fill(0);
        let area_bytes = &mut bytes[new.start + area..new.start + area + len];
        area_bytes[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
        area_bytes[20..24].copy_from_slice(&1_u32.to_le_bytes());
        area_bytes[24..32].copy_from_slice(&(area as u64).to_le_bytes());
        area_bytes[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        area_bytes[40..48].copy_from_slice(&(new.text_start as u64).to_le_bytes());
        // With the zero at its end.
        area_bytes[48..56].copy_from_slice(&(new.text.len() as u64 + 1).to_le_bytes());
        let text = new.text.bytes().chain([0]).enumerate();
        for (number, byte) in text {
            let place = new.text_start - 512 + number;
            area_bytes[512 + place % (len - 512)] = byte;
        }
    });
    mend_physical(disk, new.start);
}

/// Makes the checksums of a physical volume's label and of its metadata right, as far as they are where they should be.
pub fn mend_physical(disk: &Disk, start: usize) {
    disk.change(|bytes| {
        for sector in 0..4 {
            mend_label(bytes, start, start + sector * 512);
        }
    });
}

fn mend_label(bytes: &mut [u8], base: usize, start: usize) -> Option<()> {
    let label = bytes.get(start..start + 512)?;
    if !label.starts_with(b"LABELONE") {
        return None;
    }
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    let area = number(label, 104).zip(number(label, 112));
    let mut checksum = Checksum::of_lvm();
    checksum.update(&label[20..]);
    let value = checksum.value().to_le_bytes();
    bytes[start + 16..start + 20].copy_from_slice(&value);
    let (area, len) = area?;
    let area = base.checked_add(area)?;
    let bytes = bytes.get_mut(area..area.checked_add(len)?)?;
    let (text, text_len) = (number(bytes, 40)?, number(bytes, 48)?);
    if len > 512 && text >= 512 && text < len && text_len <= len - 512 {
        let mut checksum = Checksum::of_lvm();
        for number in 0..text_len {
            checksum.update(&[bytes[512 + (text - 512 + number) % (len - 512)]]);
        }
        let value = checksum.value().to_le_bytes();
        bytes[56..60].copy_from_slice(&value);
    }
    let mut checksum = Checksum::of_lvm();
    checksum.update(bytes.get(4..512)?);
    let value = checksum.value().to_le_bytes();
    bytes[..4].copy_from_slice(&value);
    Some(())
}
