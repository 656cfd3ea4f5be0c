//! Tables that are made to cost as much as they can.

mod support;

use bulkhead_images::{DeviceReader, Sector, SectorSize};
use bulkhead_volumes::lvm::{GroupFault, VolumeGroup};
use bulkhead_volumes::testing::{Disk, NewPartition, NewPhysical, now, write_gpt, write_physical};
use bulkhead_volumes::{Content, Volumes};
use bulkhead_xen::VcpuId;
use std::fmt::Write;
use std::pin::pin;
use std::task::{Context, Waker};
use support::{LVM, MIB, PV0, guid, partition, physical, refusal};

/// Returns the text of a group with these physical and logical volumes.
fn text(seqno: usize, physical: &str, logical: &str) -> String {
    format!(
        "vg0{{id=\"mmJOHTehWI0Gl5gFbOFn9K31dLnIUNlL\"seqno={seqno} format=\"lvm2\"extent_size=8 \
         physical_volumes{{a{{id=\"{PV0}\"pe_start=2048 pe_count=100000}}{physical}}}\
         logical_volumes{{{logical}}}}}contents=\"Text Format Volume Group\"version=1"
    )
}

/// Returns a description of that many physical volumes.
fn physical_volumes(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        write!(
            text,
            "p{number}{{id=\"{number:032}\"pe_start=0 pe_count=1}}"
        )
        .expect("a text");
        text
    })
}

/// Returns a logical volume whose segments lie in 128 stripes each, on the physical volume that `place` says.
fn striped(name: &str, segments: usize, place: impl Fn(usize) -> (String, usize)) -> String {
    let mut volume = format!(
        "{name}{{id=\"A6R2Mf0B1xEj5etmvnXp8rAu6CeweDIz\"status=[\"VISIBLE\",\"WRITE\"]segment_count={segments} "
    );
    for segment in 0..segments {
        let first = segment * 128;
        write!(
            volume,
            "s{segment}{{start_extent={first} extent_count=128 type=\"striped\"stripe_count=128 stripe_size=8 \
             stripes=["
        )
        .expect("a text");
        for stripe in first..first + 128 {
            let (name, extent) = place(stripe);
            write!(volume, "\"{name}\",{extent},").expect("a text");
        }
        volume.pop();
        volume.push_str("]}");
    }
    volume + "}"
}

#[test]
fn a_large_volume_in_a_large_group_is_found() {
    // A comparison of each physical volume with each stripe would take a hundred times as long as the text itself.
    let volume = striped("large", 200, |stripe| ("a".to_string(), stripe));
    let text = text(1, &physical_volumes(8000), &volume);
    assert!(text.len() < MIB - 4096 - 512, "{} bytes", text.len());
    let disk = Disk::new(256 * MIB, SectorSize::B512);
    write_physical(&disk, &physical(PV0, &text));
    let volumes = Volumes::default();
    assert!(support::add(&volumes, "xvda", &disk));
    let large = support::open(&volumes, "xvda/vg0/large");
    assert_eq!(large.geometry().sectors, Sector(200 * 128 * 8));
}

#[test]
fn a_long_text_is_read_in_many_turns() {
    let volume = striped("large", 200, |stripe| ("a".to_string(), stripe));
    let text = text(1, &physical_volumes(8000), &volume);
    let mut reading = pin!(VolumeGroup::parse(text.as_bytes()));
    let mut turns = 1;
    while reading
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        turns += 1;
    }
    // Between two turns there is at most one walk through the text.
    assert!(turns > 100, "{turns} turns");
}

#[test]
fn of_many_missing_physical_volumes_some_are_named() {
    let volume = striped("big", 16, |stripe| (format!("p{stripe}"), 0));
    let text = text(1, &physical_volumes(16 * 128), &volume);
    let disk = Disk::new(64 * MIB, SectorSize::B512);
    write_physical(&disk, &physical(PV0, &text));
    let volumes = Volumes::default();
    assert!(support::add(&volumes, "xvda", &disk));
    let refused = refusal(&volumes, "xvda/vg0/big");
    assert!(refused.contains("its physical volume p0 "), "{refused}");
    assert!(refused.ends_with(", 2028 more"), "{refused}");
    assert!(refused.len() < 2048, "{} bytes", refused.len());
}

#[test]
fn what_is_kept_of_a_disk_has_a_limit() {
    // Each of these is much longer in memory than in the text.
    let logical = |count: usize| {
        (0..count).fold(String::new(), |mut text, number| {
            write!(text, "v{number}{{id=\"{number:032}\"}}").expect("a text");
            text
        })
    };
    let large = text(1, "", &logical(20_000));
    assert_eq!(
        now(VolumeGroup::parse(large.as_bytes())),
        Err(GroupFault::TooLarge)
    );
    // Many that are not, each other than the ones before.
    let disk = Disk::new(20 * MIB, SectorSize::B512);
    let (count, each) = (70_usize, MIB / 4 / 512);
    let parts: Vec<NewPartition<'_>> = (0..count)
        .map(|number| {
            let first = (2048 + number * each) as u64;
            NewPartition {
                kind: guid(LVM),
                ..partition("pv", number as u8 + 1, (first, first + each as u64 - 1))
            }
        })
        .collect();
    write_gpt(&disk, &parts);
    for (number, part) in parts.iter().enumerate() {
        let text = text(number, "", &logical(500));
        let new = NewPhysical {
            start: part.first as usize * 512,
            id: &format!("{number:032}"),
            area: (4096, MIB / 4 - 4096),
            ..physical(PV0, &text)
        };
        write_physical(&disk, &new);
    }
    let content = now(async {
        let mut reader = DeviceReader::open(&disk, VcpuId(0)).await.expect("opened");
        let content = Content::read(&mut reader, &[]).await;
        reader.close().await;
        content
    });
    let content = content.expect("a disk with many physical volumes");
    assert!(content.physical.len() <= 64, "{}", content.physical.len());
    let kept: usize = content
        .physical
        .iter()
        .filter_map(|found| found.group.as_ref())
        .map(|group| group.logical.len())
        .sum();
    assert!((2000..20_000).contains(&kept), "{kept} volumes are kept");
    let told = content.notes.join("\n");
    assert!(told.contains("more than is kept of a disk"), "{told}");
    assert!(told.contains("more than 64 partitions"), "{told}");
}
