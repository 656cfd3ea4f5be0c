//! Opening volumes, and telling where they lie by what is written to them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use bulkhead_images::testing::OpenNow;
use bulkhead_images::{Access, BlockDevice, Io, IoSegment, Op, Sector, Submitted, Tag};
use bulkhead_volumes::testing::{Disk, NewPartition, NewPhysical, now};
use bulkhead_volumes::{Guid, Opening, VolumeError, Volumes};
use bulkhead_xen::VcpuId;
use std::ptr::NonNull;
use std::sync::Arc;

pub const VG0: &str = include_str!("../fixtures/vg0.txt");
pub const PV0: &str = "QiELpNRG9ZraIZgFafuBocUo6OeC6FmL";
pub const PV1: &str = "0DmZTbgQnqu4UPA7eFsUmXAvigE5hosB";

/// The type of ordinary Linux partitions, and that of physical volumes.
pub const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
pub const LVM: &str = "e6d6d379-f507-44c2-a23c-238f2a3df928";

pub const MIB: usize = 1 << 20;

pub fn guid(text: &str) -> Guid {
    text.parse().expect("a GUID")
}

pub fn partition<'n>(label: &'n str, number: u8, blocks: (u64, u64)) -> NewPartition<'n> {
    NewPartition {
        label,
        kind: guid(LINUX),
        id: Guid::from_bytes([number; 16]),
        first: blocks.0,
        last: blocks.1,
    }
}

/// A physical volume at the start of a disk, as `pvcreate` makes it.
pub fn physical<'n>(id: &'n str, text: &'n str) -> NewPhysical<'n> {
    NewPhysical {
        start: 0,
        id,
        area: (4096, MIB - 4096),
        text_start: 512,
        text,
    }
}

pub fn add(volumes: &Volumes, name: &str, disk: &Disk) -> bool {
    let disk = disk.clone();
    volumes.add(name, move || Ok(Arc::new(disk.clone())))
}

pub fn try_open(
    volumes: &Volumes,
    name: &str,
    access: Access,
) -> Result<Arc<dyn BlockDevice>, VolumeError> {
    open_for(volumes, name, access, false, "domain 5, xvda")
}

/// Opens it for that owner, who is the operator if it is called `dom0`.
pub fn open_for(
    volumes: &Volumes,
    name: &str,
    access: Access,
    shared: bool,
    owner: &str,
) -> Result<Arc<dyn BlockDevice>, VolumeError> {
    let name = name.parse().expect("a name");
    let opening = Opening {
        access,
        shared,
        owner,
        administrator: owner == "dom0",
    };
    now(volumes.open(VcpuId(0), &name, opening))
}

pub fn open(volumes: &Volumes, name: &str) -> Arc<dyn BlockDevice> {
    try_open(volumes, name, Access::ReadWrite).expect("it can be opened")
}

pub fn refusal(volumes: &Volumes, name: &str) -> String {
    match try_open(volumes, name, Access::ReadWrite) {
        Ok(_) => panic!("{name} is opened"),
        Err(error) => error.to_string(),
    }
}

pub fn rescan(volumes: &Volumes, disk: &str) -> Vec<String> {
    let rescan = now(volumes.rescan(VcpuId(0), disk)).expect("it is read");
    rescan.changes.iter().map(ToString::to_string).collect()
}

/// Writes a mark to a sector of a volume, and returns the byte of the disk that has it.
pub fn find(device: &dyn BlockDevice, sector: u64, disks: &[&Disk]) -> Option<(usize, usize)> {
    let mark = *b"here it is, and nowhere else ...";
    let mut bytes = mark.repeat(device.geometry().sector_size.bytes() / mark.len());
    let address = NonNull::from(&mut bytes[..]).cast();
    // SAFETY: the bytes stay until the request is done, which is before this returns.
    let segment = unsafe { IoSegment::new(address, bytes.len(), None) };
    let io = Io {
        op: Op::write(Sector(sector)),
        segments: &[segment],
    };
    let submitted = device.queue().submit(Tag(1), io);
    assert_eq!(submitted, Submitted::Done(Ok(())));
    disks.iter().enumerate().find_map(|(number, disk)| {
        disk.change(|all| {
            let mut places = (0..all.len()).step_by(512);
            let at = places.find(|at| all[*at..].starts_with(&bytes))?;
            all[at..at + bytes.len()].fill(0);
            Some((number, at))
        })
    })
}
