//! Lists what is on the disks whose images are named, as the driver domain would see it: to try before a disk is
//! passed to it.
//!
//!     cargo run -p bulkhead-volumes --features test-support --example list -- IMAGE...

use bulkhead_images::{Access, SectorSize};
use bulkhead_volumes::testing::{Disk, now};
use bulkhead_volumes::{Opening, Volumes};
use bulkhead_xen::VcpuId;

fn main() -> std::io::Result<()> {
    let volumes = Volumes::default();
    let images: Vec<String> = std::env::args().skip(1).collect();
    for image in &images {
        let disk = Disk::of(std::fs::read(image)?, SectorSize::B512);
        let name = image.rsplit('/').next().unwrap_or(image);
        volumes.add(name, move || Ok(std::sync::Arc::new(disk.clone())));
    }
    for disk in volumes.disks() {
        match now(volumes.rescan(VcpuId(0), &disk.name)) {
            Ok(rescan) => println!("{rescan}"),
            Err(error) => println!("{error}"),
        }
    }
    let opening = Opening {
        access: Access::ReadOnly,
        shared: false,
        owner: "list",
        administrator: true,
    };
    for disk in volumes.disks() {
        for (name, sectors) in disk.volumes {
            let parsed = name.parse().expect("a name that was listed");
            match now(volumes.open(VcpuId(0), &parsed, opening)) {
                Ok(device) => println!("{name}: {sectors} sectors, {:?}", device.geometry()),
                Err(error) => println!("{error}"),
            }
        }
    }
    Ok(())
}
