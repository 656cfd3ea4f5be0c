//! Several guests and disks on one driver domain.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::storage::disk;
use crate::testbed::{Part, Scenario, Testbed, fio};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "two-guests",
    about: "a PVH and a PV guest with two disks each work at the same time, every byte verified",
    part: Part::ByName,
    run: two_guests,
}];

fn two_guests(testbed: &Testbed) -> Result<()> {
    let images: Vec<Image> = (0..4).map(|n| Image::mib(&format!("disk{n}"), 8)).collect();
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(64)
        .start()?;

    testbed.step("booting two guests with two disks each");
    let disks = |first: u32| {
        let second = first + 1;
        [
            disk("storage", "xvda", "rw", &format!("ram:disk{first}")),
            disk("storage", "xvdb", "rw", &format!("ram:disk{second}")),
        ]
    };
    let mut pvh = testbed.host.guest("guest-pvh", Kind::Pvh, &disks(0))?;
    let mut pv = testbed.host.guest("guest-pv", Kind::Pv, &disks(2))?;

    testbed.step("fio in both at once");
    let jobs = [
        (&pvh, "/dev/xvda"),
        (&pv, "/dev/xvda"),
        (&pvh, "/dev/xvdb"),
        (&pv, "/dev/xvdb"),
    ];
    for pair in jobs.chunks(2) {
        let started = pair
            .iter()
            .map(|(guest, device)| guest.start(&fio::verify_command(device)))
            .collect::<Result<Vec<_>>>()?;
        for ((guest, device), job) in pair.iter().zip(started) {
            let output = guest.finish(job, FIO_LIMIT)?;
            ensure!(
                output.status == 0,
                "fio failed in {} on {device}:\n{}",
                guest.name,
                output.out
            );
            fio::parse(&output.out)?;
        }
    }
    Guest::destroy_all([&mut pvh, &mut pv])?;
    storage.shutdown()
}
