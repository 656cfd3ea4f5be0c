//! Devices that are passed through to the driver domain.

use crate::config::Kind;
use crate::host::domain::Domain;
use crate::host::pci;
use crate::testbed::images::Image;
use crate::testbed::storage::disk;
use crate::testbed::{Part, Scenario, Testbed, write_verify};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "passed-through",
    about: "a PV driver domain has an NVMe controller passed through and serves a RAM image beside it; afterwards dom0 can give the device to another domain",
    part: Part::Suite,
    run: passed_through,
}];

fn passed_through(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let device = pci::NVME;
    let images = [Image::mib("img", 4)];
    let create = || {
        let storage = testbed.storage(Kind::Pv).images(&images)?.memory(24);
        storage.pci(&device).start()
    };
    let mut storage = create()?;
    expect_device(&storage, &device)?;
    let disks = [disk("storage", "xvda", "rw", "ram:img")];
    let mut guest = host.lean_guest("guest", Kind::Pvh, &disks)?;
    write_verify::verify(&guest, "xvda", 4)?;
    guest.destroy()?;

    testbed.step("another driver domain has the device after the first one");
    storage.shutdown()?;
    let mut storage = create()?;
    expect_device(&storage, &device)?;
    storage.destroy()
}

/// Checks that the toolstack and dom0's pciback have given a domain this device and no other.
fn expect_device(domain: &Domain, device: &pci::PciDevice) -> Result<()> {
    let (host, id) = (domain.host, domain.id);
    let frontend = format!("/local/domain/{id}/device/pci/0");
    let script = format!(
        "backend=$(xenstore-read {frontend}/backend) && \
         for node in num_devs dev-0 root_num; do xenstore-read $backend/$node; done"
    );
    let nodes = host.ok(&script)?;
    let expected = format!("1\n{device}\n1\n");
    ensure!(
        nodes == expected,
        "pciback's nodes are {nodes:?}, expected {expected:?}"
    );
    let list = host.ok(&format!("xl pci-list {}", domain.name))?;
    ensure!(
        list.lines().count() == 2 && list.contains(&device.to_string()),
        "xl pci-list shows {list:?}"
    );
    Ok(())
}
