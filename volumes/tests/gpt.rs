//! GUID partition tables: both copies, both sizes of sectors, and what cannot be.

mod support;

use bulkhead_images::{Access, DeviceReader, Sector, SectorSize};
use bulkhead_volumes::gpt::{self, GptError, Note, PartitionFault, PartitionTable};
use bulkhead_volumes::testing::{Disk, NewPartition, mend_gpt, now, write_gpt};
use bulkhead_volumes::{Guid, Volumes};
use bulkhead_xen::VcpuId;
use support::{MIB, find, guid, open, partition, refusal, try_open};

fn disk(size: SectorSize, partitions: &[NewPartition<'_>]) -> Disk {
    let disk = Disk::new(4 * MIB, size);
    write_gpt(&disk, partitions);
    disk
}

fn read(disk: &Disk) -> Result<Option<PartitionTable>, GptError> {
    now(async {
        let mut reader = DeviceReader::open(disk, VcpuId(0)).await.expect("opened");
        let table = gpt::read(&mut reader, &[]).await;
        reader.close().await;
        table
    })
}

fn table(disk: &Disk) -> PartitionTable {
    read(disk).expect("it is sound").expect("there is one")
}

fn volumes(disk: &Disk) -> Volumes {
    let volumes = Volumes::default();
    assert!(support::add(&volumes, "vbd:xvda", disk));
    volumes
}

#[test]
fn partitions_are_found_by_label_and_by_guid() {
    for (size, blocks) in [(SectorSize::B512, (64, 127)), (SectorSize::B4096, (16, 31))] {
        let unit = size.bytes();
        let disk = disk(
            size,
            &[
                partition("root-alice", 1, blocks),
                partition("größe", 2, (200, 200)),
                partition("", 3, (201, 210)),
            ],
        );
        assert_eq!(table(&disk).note, None);
        let volumes = volumes(&disk);
        let alice = open(&volumes, "vbd:xvda/root-alice");
        let sectors = (blocks.1 - blocks.0 + 1) * unit as u64 / 512;
        assert_eq!(alice.geometry().sectors, Sector(sectors));
        assert_eq!(alice.geometry().sector_size, size);
        let first = find(&*alice, 0, &[&disk]).expect("it is written");
        assert_eq!(first, (0, blocks.0 as usize * unit));
        let last = find(&*alice, sectors - unit as u64 / 512, &[&disk]);
        assert_eq!(last, Some((0, blocks.1 as usize * unit)));
        let other = open(&volumes, "vbd:xvda/größe");
        assert_eq!(find(&*other, 0, &[&disk]), Some((0, 200 * unit)));
        let unnamed = open(&volumes, &format!("vbd:xvda/{}", Guid::from_bytes([3; 16])));
        assert_eq!(find(&*unnamed, 0, &[&disk]), Some((0, 201 * unit)));
    }
}

#[test]
fn what_is_not_there_and_what_has_a_namesake_is_refused_in_a_sentence() {
    let disk = disk(
        SectorSize::B512,
        &[
            partition("root", 1, (64, 127)),
            partition("twin", 2, (128, 255)),
            partition("twin", 3, (256, 511)),
        ],
    );
    let volumes = volumes(&disk);
    assert_eq!(
        refusal(&volumes, "vbd:xvda/boot"),
        "there is no vbd:xvda/boot, there are: root, twin, twin"
    );
    assert_eq!(
        refusal(&volumes, "vbd:xvdb/root"),
        "there is no disk vbd:xvdb, there are: vbd:xvda"
    );
    let ids = [2, 3].map(|number| Guid::from_bytes([number; 16]).to_string());
    assert_eq!(
        refusal(&volumes, "vbd:xvda/twin"),
        format!(
            "vbd:xvda/twin names several partitions, name one by its GUID: {}, {}",
            ids[0], ids[1]
        )
    );
    let second = open(&volumes, &format!("vbd:xvda/{}", ids[1].to_uppercase()));
    assert_eq!(find(&*second, 0, &[&disk]), Some((0, 256 * 512)));
    assert_eq!(
        refusal(&volumes, "vbd:xvda/vg0/alice"),
        "there is no vbd:xvda/vg0/alice, there are: none"
    );
}

/// The last block of a disk that has shrunk is one of a guest's partition, who has put a table there.
#[test]
fn a_guest_makes_no_table_of_a_disk_that_has_shrunk() {
    let partitions = [
        partition("root-alice", 1, (64, 127)),
        partition("mallory", 2, (4096, 8100)),
    ];
    let disk = disk(SectorSize::B512, &partitions);
    let forged = Disk::new(3 * MIB, SectorSize::B512);
    write_gpt(&forged, &[partition("root-alice", 1, (200, 300))]);
    let end = forged.change(|all| all[3 * MIB - 33 * 512..].to_vec());
    let volumes = volumes(&disk);
    let mallory = open(&volumes, "vbd:xvda/mallory");
    disk.write(3 * MIB - 33 * 512, &end);
    drop(mallory);
    disk.change(|all| all.truncate(3 * MIB));
    let refused = refusal(&volumes, "vbd:xvda/root-alice");
    assert!(
        refused.contains("both partition tables are damaged")
            && refused.contains("past the end of the disk, at its end a guest could write"),
        "{refused}"
    );
}

#[test]
fn the_copy_at_the_end_is_used_when_the_first_is_damaged() {
    let last = 4 * MIB - 512;
    // The header's checksum, its signature, the entries; then the other copy's.
    for (at, backup) in [
        (512 + 16, true),
        (512, true),
        (1024 + 20, true),
        (last + 60, false),
        (last - 16384, false),
    ] {
        let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
        disk.change(|bytes| bytes[at] ^= 1);
        let table = table(&disk);
        assert_eq!(table.partitions[0].label, "root");
        let note = table.note.expect("it is told");
        match backup {
            true => assert!(matches!(note, Note::BackupUsed(_)), "{note}"),
            false => assert!(matches!(note, Note::BackupDamaged(_)), "{note}"),
        }
        open(&volumes(&disk), "vbd:xvda/root");
    }
    let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
    disk.change(|bytes| (bytes[512 + 16], bytes[last - 16384]) = (0, 0xFF));
    let refusal = refusal(&volumes(&disk), "vbd:xvda/root");
    assert_eq!(
        refusal,
        "what is on disk vbd:xvda is not known: both partition tables are damaged: at its start the checksum of \
         its header is wrong, at its end the checksum of its entries is wrong"
    );
}

#[test]
fn copies_that_differ_are_told() {
    let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
    let other = support::partition("old", 2, (64, 127));
    let backup = Disk::new(4 * MIB, SectorSize::B512);
    write_gpt(&backup, &[other]);
    let end = 4 * MIB - 33 * 512;
    let bytes = backup.change(|bytes| bytes[end..].to_vec());
    disk.write(end, &bytes);
    let table = table(&disk);
    assert_eq!(table.note, Some(Note::Different));
    assert_eq!(table.partitions[0].label, "root");
}

#[test]
fn a_disk_that_has_grown_keeps_its_partitions() {
    let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
    disk.change(|bytes| bytes.resize(8 * MIB, 0));
    assert_eq!(
        table(&disk).note,
        None,
        "the first header says where the other is"
    );
}

#[test]
fn a_disk_without_a_protective_record_has_no_such_table() {
    let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
    disk.change(|bytes| bytes[450] = 0x83);
    assert_eq!(read(&disk), Ok(None));
    let refusal = refusal(&volumes(&disk), "vbd:xvda/root");
    assert!(refusal.ends_with("no GUID partition table"), "{refusal}");
    assert_eq!(read(&Disk::new(5 * 512, SectorSize::B512)), Ok(None));
    assert_eq!(read(&Disk::new(0, SectorSize::B512)), Ok(None));
}

#[test]
fn partitions_that_cannot_be_are_refused_and_the_others_served() {
    let disk = disk(
        SectorSize::B512,
        &[
            partition("sound", 1, (64, 127)),
            partition("backwards", 2, (300, 200)),
            partition("outside", 3, (8000, u64::MAX)),
            partition("in-the-table", 4, (2, 40)),
            partition("large", 5, (1000, 1999)),
            partition("inner", 6, (1100, 1199)),
            partition("edge", 7, (1999, 2010)),
            partition("beside", 8, (2011, 2020)),
        ],
    );
    let faults: Vec<_> = table(&disk)
        .partitions
        .iter()
        .map(|partition| partition.fault)
        .collect();
    let outside = Some(PartitionFault::Outside);
    let overlaps = |number| Some(PartitionFault::Overlaps(number));
    assert_eq!(
        faults,
        [
            None,
            outside,
            outside,
            outside,
            overlaps(7),
            overlaps(5),
            overlaps(5),
            None
        ]
    );
    let volumes = volumes(&disk);
    open(&volumes, "vbd:xvda/sound");
    open(&volumes, "vbd:xvda/beside");
    assert_eq!(
        refusal(&volumes, "vbd:xvda/inner"),
        "vbd:xvda/inner cannot be used: it overlaps partition 5"
    );
    assert_eq!(
        refusal(&volumes, "vbd:xvda/outside"),
        "vbd:xvda/outside cannot be used: it lies outside of where partitions may be"
    );
}

#[test]
fn headers_that_cannot_be_are_not_used() {
    let number32 = |at: usize, value: u32| (at, value.to_le_bytes().to_vec());
    let number64 = |at: usize, value: u64| (at, value.to_le_bytes().to_vec());
    let cases = [
        ("version", number32(8, 0x0002_0000)),
        ("a short header", number32(12, 91)),
        ("a long header", number32(12, 513)),
        ("another place", number64(24, 2)),
        ("partitions past the end", number64(48, 8192)),
        ("no room for partitions", number64(40, 8160)),
        ("entries in the record", number64(72, 0)),
        ("entries in the header", number64(72, 1)),
        ("entries among partitions", number64(72, 100)),
        ("entries past the end", number64(72, 8190)),
        ("entries nowhere", number64(72, u64::MAX)),
        ("many entries", number32(80, 8193)),
        ("very many entries", number32(80, u32::MAX)),
        ("small entries", number32(84, 64)),
        ("odd entries", number32(84, 192)),
        ("large entries", number32(84, 8192)),
        ("no entries' size", number32(84, 0)),
    ];
    for (case, (at, value)) in cases {
        let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
        disk.write(512 + at, &value);
        mend_gpt(&disk);
        let table = table(&disk);
        let note = table.note.unwrap_or_else(|| panic!("{case}: used"));
        assert!(matches!(note, Note::BackupUsed(_)), "{case}: {note}");
        assert_eq!(table.partitions.len(), 1);
    }
}

#[test]
fn a_table_whose_partitions_could_have_its_headers_is_not_used() {
    // The first and the last block of partitions, and the other header's. The entries lie behind all of them.
    for (first, last, other) in [
        (0, 4000, 8191),
        (1, 4000, 8191),
        (34, 8191, 8191),
        (34, 4000, 3000),
    ] {
        let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
        disk.change(|bytes| {
            let table = if last == 8191 { 2 } else { 5000 };
            bytes.copy_within(1024..34 * 512, table * 512);
            for (at, value) in [(32, other), (40, first), (48, last), (72, table as u64)] {
                bytes[512 + at..][..8].copy_from_slice(&value.to_le_bytes());
            }
        });
        mend_gpt(&disk);
        let case = format!("{first} to {last}, {other}");
        let note = table(&disk).note.unwrap_or_else(|| panic!("{case}: used"));
        let told = "its partitions could have the sectors of its headers";
        assert!(note.to_string().contains(told), "{case}: {note}");
        assert!(matches!(note, Note::BackupUsed(_)), "{case}: {note}");
    }
}

#[test]
fn larger_headers_and_entries_are_read_as_the_specification_says() {
    let disk = disk(SectorSize::B512, &[partition("root", 1, (200, 220))]);
    disk.change(|bytes| {
        for header in [512, 4 * MIB - 512] {
            bytes[header + 12] = 200;
            // 64 entries of 256 bytes: every second one of the others.
            bytes[header + 80..header + 88].copy_from_slice(&[64, 0, 0, 0, 0, 1, 0, 0]);
            bytes[header + 150] = 7;
        }
    });
    mend_gpt(&disk);
    let table = table(&disk);
    assert_eq!(table.note, None);
    assert_eq!(table.partitions[0].label, "root");
}

#[test]
fn a_partition_that_is_read_only_is_not_written_to() {
    let disk = disk(SectorSize::B512, &[partition("root", 1, (64, 127))]);
    disk.change(|bytes| {
        for table in [1024, 4 * MIB - 33 * 512] {
            bytes[table + 48 + 7] = 0x10;
        }
    });
    mend_gpt(&disk);
    let volumes = volumes(&disk);
    assert_eq!(
        refusal(&volumes, "vbd:xvda/root"),
        "vbd:xvda/root is read-only, expected access=ro"
    );
    let device = try_open(&volumes, "vbd:xvda/root", Access::ReadOnly).expect("to read");
    assert!(device.geometry().read_only);
}

#[test]
fn a_label_may_be_no_text() {
    let disk = disk(SectorSize::B512, &[partition("xy", 1, (64, 127))]);
    disk.change(|bytes| {
        for table in [1024, 4 * MIB - 33 * 512] {
            bytes[table + 56..table + 60].copy_from_slice(&[0x00, 0xD8, b'\n', 0]);
        }
    });
    mend_gpt(&disk);
    assert_eq!(table(&disk).partitions[0].label, "\u{FFFD}\n");
    let refusal = refusal(&volumes(&disk), "vbd:xvda/other");
    assert!(refusal.ends_with("there are: \\u{fffd}\\n"), "{refusal}");
    assert_eq!(guid(support::LVM).to_string(), support::LVM);
}
