//! The Debian package, as a user of a Xen host installs and uses it.

use super::volume_disks::IN_FOLDER;
use crate::commands::build;
use crate::config::{Config, Kind};
use crate::host::guest::Guest;
use crate::image::packages;
use crate::package::{self, EXAMPLES};
use crate::testbed::images::Image;
use crate::testbed::network::CONNECTED;
use crate::testbed::storage::{BOOT, READY};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, bail, ensure};
use std::fs;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "package",
    about: "the Debian package is installed in dom0, the README's commands work as they stand there, and the examples boot from where the package put them",
    part: Part::Suite,
    run: package,
}];

/// The README, whose first commands dom0 runs as they are.
const README: &str = include_str!("../../../README.md");

/// Prepares the host for these commands and the examples: a volume group, images, files of TLS, and a guest's kernel.
const PREPARE: &str = "
mkdir -p /var/lib/bulkhead /var/lib/images
cp /lab/root.img /var/lib/images/
tar -C /lab -cf /var/lib/bulkhead/tls.tar ca-cert.pem client-cert.pem client-key.pem
ln -sf /guest/vmlinux /boot/vmlinuz
ln -sf /guest/initramfs-lean /boot/initrd.img
truncate --size=48G group.img
group=$(losetup --find --show group.img)
pvcreate $group
vgcreate vg0 $group
";

const REMOVE: &str = "
vgchange --activate n vg0
losetup --detach $(losetup --noheadings --output NAME --associated group.img)
rm -r /tmp/volumes /var/lib/bulkhead /var/lib/images /boot/vmlinuz /boot/initrd.img
dpkg --purge bulkhead
! ls /usr/lib/bulkhead /usr/share/doc/bulkhead
";

/// Returns the commands of the README's section for users, block by block, without those that boot domains.
fn commands() -> Result<Vec<String>> {
    let (_, section) = README
        .split_once("\n## Use it on a Xen host\n")
        .context("README.md has no such section")?;
    let (section, _) = section.split_once("\n### ").context("it does not end")?;
    let blocks = section.split("\n```sh\n").skip(1);
    let commands = blocks.map(|block| {
        let block = block.split("```").next().unwrap_or_default();
        let others = block.lines().filter(|line| !line.starts_with("xl create "));
        others.map(|line| format!("{line}\n")).collect()
    });
    Ok(commands
        .filter(|block: &String| !block.is_empty())
        .collect())
}

fn package(testbed: &Testbed) -> Result<()> {
    testbed.step("making and installing the package");
    packages::ensure_for_packaging()?;
    package::check_manual()?;
    let (elf, _) = testbed.shared_file("bulkhead");
    let share = elf.parent().context("it is in the shared folder")?;
    let tls = build::build_tls()?;
    fs::copy(&tls, share.join("bulkhead-tls"))?;
    let package = package::build(&elf, &tls, share)?;
    let file = package.file_name().unwrap_or_default().to_string_lossy();
    // dom0 was made without documents; these are wanted.
    testbed.host.ok(&format!(
        "dpkg --path-include='/usr/share/*/bulkhead/*' --path-include='/usr/share/man/*' --install /lab/{file}"
    ))?;
    testbed.host.ok(
        "for elf in bulkhead bulkhead-tls; do cmp /lab/$elf /usr/lib/bulkhead/$elf || exit 1; done && \
            ls /usr/share/man/man7/bulkhead.7.gz",
    )?;

    testbed.step("running the README's commands");
    let commands = commands()?;
    let [disk, archive] = &commands[..] else {
        bail!("the README has other commands: {commands:?}");
    };
    let image = Image::noise("root.img", 1);
    testbed.network()?;
    let files = testbed.make_certificates()?;
    for file in files.identity.iter().chain([&files.authority, &image]) {
        file.write_to(&testbed.shared_file(file.name()).0)?;
    }
    let in_folder = |script: &str| testbed.host.ok(&format!("{IN_FOLDER}{script}"));
    in_folder(&format!("{PREPARE}{disk}{archive}"))?;
    let example = |file: &str, config: &Config| {
        testbed.step(format!("booting {file}"));
        let path = format!("{EXAMPLES}/{file}");
        testbed.host.create_paused_from(&path, config)
    };
    let plain = "/usr/lib/bulkhead/bulkhead";
    let mut pvh = example("storage.cfg", &Config::new("storage", Kind::Pvh, plain))?;
    pvh.unpause_until(READY, BOOT)?;
    let guest = testbed.host.lean_guest_config("guest", Kind::Pvh, &[])?;
    let guest = example("guest.cfg", &guest)?;
    guest.unpause()?;
    let mut guest = Guest::wait(guest)?;
    let sum = guest.ok("head -c 1048576 /dev/xvda | sha256sum", MINUTE)?;
    ensure!(
        sum.starts_with(&image.sha256()?),
        "the guest reads an image whose sum is {sum}"
    );
    guest.wait_for_sectors("xvda", 10 << 21)?;
    guest.destroy()?;
    pvh.shutdown()?;

    let with_tls = format!("{plain}-tls");
    let trusted = "TLS: servers of the CA in ca-cert.pem are trusted";
    for (file, kind, elf, shown) in [
        (
            "storage-pv.cfg",
            Kind::Pv,
            plain,
            &["disk xvda: connected to domain 0"][..],
        ),
        (
            "storage-ram.cfg",
            Kind::Pvh,
            plain,
            &["image ram:root.img, 1048576 bytes"],
        ),
        (
            "storage-tls.cfg",
            Kind::Pvh,
            &with_tls,
            &[trusted, CONNECTED],
        ),
    ] {
        let mut storage = example(file, &Config::new("storage", kind, elf))?;
        storage.unpause_until(READY, BOOT)?;
        for words in shown {
            storage.wait_console(words, MINUTE)?;
        }
        storage.shutdown()?;
    }
    in_folder(REMOVE).map(drop)
}
