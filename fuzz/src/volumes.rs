//! Partition tables, volume groups and the names of volumes.

use crate::heap;
use bulkhead_images::{Access, BlockDevice, DeviceReader, SectorSize};
use bulkhead_volumes::gpt::{self, PartitionTable};
use bulkhead_volumes::lvm::VolumeGroup;
use bulkhead_volumes::testing::{
    Disk, NewPartition, NewPhysical, mend_gpt, mend_physical, now, write_gpt, write_physical,
};
use bulkhead_volumes::{Guid, Opening, VolumeName, Volumes};
use bulkhead_xen::VcpuId;
use std::sync::Arc;

/// The size of a disk in bytes.
const DISK: usize = 256 << 10;

/// The offset and size of a metadata area, in bytes. The text of a group is put there, after a header of 512 bytes.
const AREA: (usize, usize) = (4096, 128 << 10);

/// Fuzzes the readers of volumes. The first byte of the input says what the others are: the text of a volume group, a
/// disk with sectors of 512 or of 4096 bytes, or the name of a volume.
pub fn volumes(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    match first % 4 {
        0 => group(rest),
        1 => disk(rest, SectorSize::B512),
        2 => disk(rest, SectorSize::B4096),
        _ => name(rest),
    }
}

fn limit(bytes: &[u8]) -> heap::Limited {
    // The reader's pages, and the text of a metadata area.
    heap::limited((768 << 10) + 64 * bytes.len())
}

fn name(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let text = String::from_utf8_lossy(bytes);
    if let Ok(name) = text.parse::<VolumeName>() {
        assert!(text.starts_with(&name.disk) && !name.disk.is_empty());
        let shown = name.to_string();
        assert!(shown.is_ascii() || !name.disk.is_ascii(), "{shown}");
    }
}

/// Parses the text of a volume group, puts it on as many disks as it has physical volumes, up to three, and opens its
/// volumes.
fn group(text: &[u8]) {
    let limit_of_group = limit(text);
    let Ok(group) = now(VolumeGroup::parse(text)) else {
        return;
    };
    drop(limit_of_group);
    let fits = text.len() < AREA.1 - 512;
    let Some(text) = std::str::from_utf8(text).ok().filter(|_| fits) else {
        return;
    };
    let ids = group.physical.iter().take(3).map(|physical| physical.id);
    let disks: Vec<Disk> = ids
        .map(|id| {
            let disk = Disk::new(DISK, SectorSize::B512);
            let id: String = id.to_string().split('-').collect();
            let new = NewPhysical {
                start: 0,
                id: &id,
                area: AREA,
                text_start: 1000,
                text,
            };
            write_physical(&disk, &new);
            disk
        })
        .collect();
    open_all(&disks, text.as_bytes());
}

/// Opens the volumes of a disk that begins with the first half of the bytes and ends with the others, as it is, and
/// with the checksums corrected.
fn disk(bytes: &[u8], size: SectorSize) {
    let (start, end) = bytes.split_at((bytes.len() / 2).min(DISK / 2));
    let end = &end[..end.len().min(DISK / 2)];
    let disk = Disk::new(DISK, size);
    disk.write(0, start);
    disk.write(DISK - end.len(), end);
    open_all(std::slice::from_ref(&disk), bytes);
    mend_gpt(&disk);
    mend_physical(&disk, 0);
    if let Some(table) = table(&disk) {
        let mut partitions = table.partitions;
        partitions.retain(|partition| partition.fault.is_none());
        partitions.sort_by_key(|partition| partition.start);
        let mut free = 0;
        for partition in partitions {
            assert!(partition.start.0 >= free, "partitions overlap");
            assert_ne!(partition.sectors.0, 0);
            free = partition.start.0 + partition.sectors.0;
            assert!(free <= disk.geometry().sectors.0, "past the end");
            mend_physical(&disk, partition.start.0 as usize * 512);
        }
    }
    open_all(std::slice::from_ref(&disk), bytes);
}

fn table(disk: &Disk) -> Option<PartitionTable> {
    now(async {
        let reader = DeviceReader::open(disk, VcpuId(0)).await;
        let mut reader = reader.expect("a disk in memory can be opened");
        let table = gpt::read(&mut reader, &[]).await;
        reader.close().await;
        table.ok().flatten()
    })
}

/// Opens the volumes, up to 64, and checks that together they have no more sectors than the disks: none can be open
/// twice, and no two may overlap.
fn open_all(disks: &[Disk], bytes: &[u8]) {
    let _heap = limit(bytes);
    let volumes = Volumes::default();
    let mut room = 0;
    for (number, disk) in disks.iter().enumerate() {
        room += disk.geometry().sectors.0;
        let disk = disk.clone();
        volumes.add(&format!("xvd{number}"), move || Ok(Arc::new(disk.clone())));
    }
    let opening = Opening {
        access: Access::ReadWrite,
        shared: false,
        owner: "a fuzzer",
        administrator: true,
    };
    let mut open = Vec::new();
    for disk in volumes.disks() {
        let Ok(rescan) = now(volumes.rescan(VcpuId(0), &disk.name)) else {
            continue;
        };
        assert_eq!(rescan.changes, [], "nothing has changed");
    }
    for (name, sectors) in volumes.disks().into_iter().flat_map(|disk| disk.volumes) {
        let Ok(name) = name.parse::<VolumeName>() else {
            continue;
        };
        match now(volumes.open(VcpuId(0), &name, opening)) {
            Ok(device) => {
                assert_eq!(device.geometry().sectors, sectors);
                open.push(device);
            }
            Err(error) => assert!(error.to_string().len() < 8192, "{error}"),
        }
        if open.len() == 64 {
            break;
        }
    }
    let all: u64 = open.iter().map(|device| device.geometry().sectors.0).sum();
    assert!(all <= room, "{all} sectors on disks with {room}");
}

/// Returns disks with a volume group and with a partition table, each with both sizes of sectors.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const TEXT: &str = "vg0 { id = \"mmJOHT-ehWI-0Gl5-gFbO-Fn9K-31dL-nIUNlL\" seqno = 1 format = \"lvm2\" status = []
        extent_size = 8 physical_volumes { pv0 { id = \"QiELpN-RG9Z-raIZ-gFaf-uBoc-Uo6O-eC6FmL\" pe_start = 16
        pe_count = 9 } } logical_volumes { a { id = \"A6R2Mf-0B1x-Ej5e-tmvn-Xp8r-Au6C-eweDIz\"
        status = [\"VISIBLE\", \"WRITE\"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4
        type = \"striped\" stripe_count = 2 stripe_size = 8 stripes = [\"pv0\", 0, \"pv0\", 4] } } } }
        contents = \"Text Format Volume Group\" version = 1";
    let mut seeds = Vec::new();
    for (kind, size) in [(1, SectorSize::B512), (2, SectorSize::B4096)] {
        let unit = size.bytes();
        let physical = |start| NewPhysical {
            start,
            id: "QiELpNRG9ZraIZgFafuBocUo6OeC6FmL",
            area: (1024, 4096),
            text_start: 3000,
            text: TEXT,
        };
        let whole = Disk::new(DISK, size);
        write_physical(&whole, &physical(0));
        let parts = Disk::new(DISK, size);
        let first = (2 * unit + 16384).div_ceil(unit) as u64;
        let new = |label, number, kind: &str, first, last| NewPartition {
            label,
            kind: kind.parse().unwrap_or(Guid::ZERO),
            id: Guid::from_bytes([number; 16]),
            first,
            last,
        };
        let lvm = "e6d6d379-f507-44c2-a23c-238f2a3df928";
        let linux = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        let blocks = (DISK / unit) as u64;
        let middle = first + (48 << 10) / unit as u64;
        write_gpt(
            &parts,
            &[
                new("pv", 1, lvm, first, middle - 1),
                new("root", 2, linux, middle, middle + 3),
                new("twin", 3, linux, middle + 4, blocks / 2 + middle / 2),
            ],
        );
        write_physical(&parts, &physical(first as usize * unit));
        for (disk, front) in [(whole, 6 << 10), (parts, 28 << 10)] {
            let seed =
                disk.change(|bytes| [&[kind], &bytes[..front], &bytes[DISK - front..]].concat());
            seeds.push(seed);
        }
    }
    seeds
}
