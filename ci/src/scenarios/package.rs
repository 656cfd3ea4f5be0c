//! The Debian package, as a user of a Xen host installs and uses it.

use crate::config::{Config, Kind};
use crate::host::guest::Guest;
use crate::image::packages;
use crate::package::{self, EXAMPLES};
use crate::testbed::images::{self, Image};
use crate::testbed::storage::{BOOT, READY};
use crate::testbed::{MINUTE, Scenario, Testbed};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "package",
    about: "the Debian package is installed in dom0, and its examples boot from where it put them",
    demo: false,
    run: package,
}];

/// Makes the files that the examples expect on the host: images, and a guest's kernel.
const PREPARE: &str = "mkdir -p /var/lib/bulkhead && cp /lab/images.tar /var/lib/bulkhead/ && \
    ln -sf /guest/vmlinux /boot/vmlinuz && ln -sf /guest/initramfs-lean /boot/initrd.img";

const REMOVE: &str = "rm -r /var/lib/bulkhead /boot/vmlinuz /boot/initrd.img && dpkg --purge bulkhead && \
    ! ls /usr/lib/bulkhead /usr/share/doc/bulkhead";

fn package(testbed: &Testbed) -> Result<()> {
    testbed.step("making and installing the package");
    packages::ensure_for_packaging()?;
    package::check_manual()?;
    let (elf, _) = testbed.shared_file("bulkhead");
    let share = elf.parent().context("it is in the shared folder")?;
    let package = package::build(&elf, share)?;
    let file = package.file_name().unwrap_or_default().to_string_lossy();
    // dom0 was made without documents; these are wanted.
    testbed.host.ok(&format!(
        "dpkg --path-include='/usr/share/*/bulkhead/*' --path-include='/usr/share/man/*' --install /lab/{file}"
    ))?;
    testbed.host.ok(
        "cmp /lab/bulkhead /usr/lib/bulkhead/bulkhead && ls /usr/share/man/man7/bulkhead.7.gz",
    )?;

    let image = Image::noise("root.img", 1);
    let (archive, _) = testbed.shared_file("images.tar");
    images::write_archive(&archive, std::slice::from_ref(&image))?;
    testbed.host.ok(PREPARE)?;
    let example = |file: &str, config: &Config| {
        testbed.step(format!("booting {file}"));
        let path = format!("{EXAMPLES}/{file}");
        testbed.host.create_paused_from(&path, config)
    };
    let storage = |kind| Config::new("storage", kind, "/usr/lib/bulkhead/bulkhead");
    let mut pvh = example("storage.cfg", &storage(Kind::Pvh))?;
    pvh.unpause_until(READY, BOOT)?;
    let guest = testbed.host.lean_guest_config("guest", Kind::Pvh, &[])?;
    let guest = example("guest.cfg", &guest)?;
    guest.unpause()?;
    let mut guest = Guest::wait(guest)?;
    let sum = guest.ok("sha256sum </dev/xvda", MINUTE)?;
    ensure!(
        sum.starts_with(&image.sha256()?),
        "the guest reads an image whose sum is {sum}"
    );
    guest.destroy()?;
    pvh.shutdown()?;

    let mut pv = example("storage-pv.cfg", &storage(Kind::Pv))?;
    pv.unpause_until(READY, BOOT)?;
    pv.shutdown()?;
    testbed.host.ok(REMOVE).map(drop)
}
