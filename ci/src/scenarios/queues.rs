//! Several vCPUs and several queues.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::storage::{device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, fio};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "queues-pv",
        about: "PV driver domain of two vCPUs: each serves a queue of one disk, every byte verified",
        part: Part::ByName,
        run: |testbed| two_queues(testbed, Kind::Pv),
    },
    Scenario {
        name: "queues-pvh",
        about: "PVH driver domain of two vCPUs: each serves a queue of one disk, every byte verified",
        part: Part::Suite,
        run: |testbed| two_queues(testbed, Kind::Pvh),
    },
    Scenario {
        name: "disks-on-vcpus",
        about: "disks with a queue each are spread over the vCPUs of a PV driver domain",
        part: Part::Suite,
        run: |testbed| spread(testbed, Kind::Pv),
    },
    Scenario {
        name: "disks-on-vcpus-pvh",
        about: "the same with a PVH driver domain",
        part: Part::ByName,
        run: |testbed| spread(testbed, Kind::Pvh),
    },
];

fn two_queues(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("disk", 16)];
    let storage = testbed.storage(kind).images(&images)?.memory(64).vcpus(2);
    let mut storage = storage.start()?;
    let before = Holdings::by(testbed.host, storage.id)?;

    testbed.step("a guest of two vCPUs");
    let disks = [disk("storage", "xvda", "rw", "ram:disk")];
    let mut config = testbed.host.guest_config("guest", Kind::Pvh, &disks)?;
    config.vcpus = 2;
    let mut guest = Guest::wait(testbed.host.create(&config)?)?;
    let queues = guest.ok("ls /sys/block/xvda/mq | wc -l", MINUTE)?;
    ensure!(
        queues.trim() == "2",
        "the guest has {} queue(s)",
        queues.trim()
    );

    testbed.step("fio on both of its vCPUs, every block verified");
    let job = "fio --name=verify --filename=/dev/xvda --rw=randrw --bsrange=512-64k --direct=1 \
               --size=8M --offset_increment=8M --numjobs=2 --cpus_allowed=0,1 \
               --cpus_allowed_policy=split --ioengine=libaio --iodepth=16 --verify=crc32c \
               --verify_fatal=1 --group_reporting --output-format=json";
    fio::parse(&guest.ok(job, FIO_LIMIT)?)?;
    let counted = storage.statistics(&guest, device_number("xvda"))?;
    for queue in 0..2 {
        for what in ["reads", "writes"] {
            let count = counted.get(&format!("queue_{queue}_{what}"))?;
            ensure!(count > 0, "queue {queue} served no {what}: {counted:?}");
        }
    }
    ensure!(
        counted.get("queue_0_vcpu")? != counted.get("queue_1_vcpu")?,
        "both queues are served by one vCPU: {counted:?}"
    );

    guest.destroy()?;
    before.expect(testbed.host, storage.id, "after the guest's end")?;
    storage.shutdown()
}

fn spread(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images: Vec<Image> = (0..3).map(|n| Image::mib(&format!("disk{n}"), 4)).collect();
    let storage = testbed.storage(kind).images(&images)?.memory(64).vcpus(3);
    let mut storage = storage.start()?;
    let before = Holdings::by(testbed.host, storage.id)?;

    testbed.step("a guest with three disks, one queue each");
    let names = ["xvda", "xvdb", "xvdc"];
    let disks: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(number, name)| disk("storage", name, "rw", &format!("ram:disk{number}")))
        .collect();
    let mut guest = testbed.host.lean_guest("guest", Kind::Pvh, &disks)?;
    let mut vcpus = Vec::new();
    for (name, device) in names.iter().zip([51712, 51728, 51744]) {
        guest.ok(
            &format!("dd if=/dev/zero of=/dev/{name} bs=64k count=32 conv=fsync"),
            MINUTE,
        )?;
        let counted = storage.statistics(&guest, device)?;
        ensure!(counted.get("queue_0_writes")? > 0, "{name}: {counted:?}");
        vcpus.push(counted.get("queue_0_vcpu")?);
    }
    vcpus.sort_unstable();
    ensure!(
        vcpus == [0, 1, 2],
        "the disks are served by vCPUs {vcpus:?}"
    );

    testbed.step("detaching one that another vCPU serves, and attaching it again");
    let all = Holdings::by(testbed.host, storage.id)?;
    testbed.host.ok("xl block-detach guest xvda")?;
    let less = Holdings::by(testbed.host, storage.id)?;
    ensure!(
        less.ports == all.ports - 1 && less.grants < all.grants,
        "{} ports and {} grants without a disk, {} and {} with it",
        less.ports,
        less.grants,
        all.ports,
        all.grants
    );
    testbed.host.attach_disk(&guest, &disks[0], 51712)?;
    guest.ok("until [ -b /dev/xvda ]; do sleep 0.1; done", MINUTE)?;
    guest.ok("dd if=/dev/xvda of=/dev/null bs=64k", MINUTE)?;
    guest.destroy()?;
    before.expect(testbed.host, storage.id, "after the guest's end")?;
    storage.shutdown()
}
