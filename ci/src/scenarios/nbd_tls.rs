//! Exports of NBD servers in dom0 that want TLS.

use super::operator::other;
use super::refusal::refuse;
use crate::commands::build;
use crate::config::Kind;
use crate::testbed::network::{CONNECTED, DRIVER_DOMAIN};
use crate::testbed::storage::{Running, disk};
use crate::testbed::tls_servers::{ClientFiles, TlsServer};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use crate::testbed::{fio, write_verify};
use anyhow::{Result, ensure};
use std::fs;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nbds-disks",
        about: "a PVH driver domain with TLS serves exports of nbdkit and of qemu-nbd (qcow2), which both want its certificate: fio verified, ext4 with fsync; servers with a certificate of another CA, of another name, or from the past are refused with the reason, and so is all of TLS by the ELF without it",
        part: Part::Suite,
        run: disks,
    },
    Scenario {
        name: "nbds-life",
        about: "a PV driver domain with TLS and without a certificate of its own is refused by servers that want one; a server that does not is killed in mid-write, comes back with an expired certificate, and then with a good one: the guest waits, and all is verified",
        part: Part::ByName,
        run: life,
    },
];

/// Puts the ELF with TLS into the shared folder, and returns its name there.
pub(super) fn shared_elf(testbed: &Testbed) -> Result<&'static str> {
    const ELF: &str = "bulkhead-tls";
    let (here, _) = testbed.shared_file(ELF);
    fs::copy(build::build_tls()?, here)?;
    Ok(ELF)
}

/// How much of each disk fio verifies.
const FIO: &str = "--size=4M";

/// Makes a file system, writes files that are flushed, and compares what is read after it was mounted anew.
const FILES: &str = "mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /mnt && \
    for i in 1 2 3 4; do \
        dd if=/dev/urandom of=/mnt/file$i bs=$((i * 37))k count=3 conv=fsync 2>/dev/null || exit 1; \
    done && (cd /mnt && sha256sum file1 file2 file3 file4 >/tmp/sums) && umount /mnt && \
    e2fsck -fn /dev/xvdb >&2 && mount -t ext4 /dev/xvdb /mnt && \
    (cd /mnt && sha256sum -c /tmp/sums) && umount /mnt";

/// A driver domain with TLS, with the memory for so many disks, and these files in its ramdisk.
fn storage<'h>(
    testbed: &Testbed<'h>,
    kind: Kind,
    disks: u32,
    files: &ClientFiles,
    knows_itself: bool,
) -> Result<Running<'h>> {
    let mut ramdisk = vec![files.authority.clone()];
    if knows_itself {
        ramdisk.extend(files.identity.clone());
    }
    let elf = shared_elf(testbed)?;
    let storage = testbed.storage(kind).elf(elf).images(&ramdisk)?;
    let storage = storage.memory(16 + 4 * disks);
    let storage = storage.on_network(&format!("ip={DRIVER_DOMAIN}")).start()?;
    storage.wait_console("TLS: servers of the CA in ca-cert.pem are trusted", MINUTE)?;
    storage.wait_console(CONNECTED, MINUTE)?;
    Ok(storage)
}

fn disks(testbed: &Testbed) -> Result<()> {
    testbed.network()?;
    testbed.step("certificates are made, and five servers start in dom0");
    let files = testbed.make_certificates()?;
    let good = [TlsServer::Memory, TlsServer::Qcow2];
    let bad = [
        (
            TlsServer::Expired,
            "the server's certificate expired on 2021-12-31",
        ),
        (
            TlsServer::OtherName,
            "the server's certificate is not for 10.0.0.2, but for other names: 10.0.0.9",
        ),
        (
            TlsServer::OtherAuthority,
            "the server's certificate is not signed by the CA given",
        ),
    ];
    let all = good.into_iter().chain(bad.map(|(server, _)| server));
    for server in all.clone() {
        testbed.start_tls_server(server)?;
    }
    let kind = Kind::Pvh;
    let mut storage = storage(testbed, kind, 2, &files, true)?;
    let disks = [
        disk("storage", "xvda", "rw", &TlsServer::Memory.target("")),
        disk("storage", "xvdb", "rw", &TlsServer::Qcow2.target("qcow")),
    ];
    let mut guest = testbed.host.guest("guest", other(kind), &disks)?;
    testbed.step("fio verifies a disk in nbdkit's memory and one that is qemu-nbd's qcow2 at once");
    let both = ["/dev/xvda", "/dev/xvdb"].map(|device| {
        let command = fio::verify_command_with(device, FIO);
        guest.start(&command)
    });
    for started in both {
        fio::finish(&guest, started?, 5 * MINUTE)?;
    }
    testbed.step("files on a disk that is qemu-nbd's qcow2");
    guest.ok(FILES, 2 * MINUTE)?;
    let shown = storage.ask("show", "nbds:")?;
    for server in good {
        let target = server.target("");
        let line = shown.lines().find(|line| line.contains(&target));
        ensure!(
            line.is_some_and(|line| line.contains(": connected, ") && line.contains(" 0 failed")),
            "{target} is not shown as connected:\n{shown}"
        );
    }
    guest.destroy()?;
    for (server, reason) in bad {
        testbed.step(format!("a server whose certificate is bad: {server:?}"));
        refuse(testbed, &storage, &server.target(""), reason)?;
    }
    testbed.step("a server that wants TLS, without TLS");
    let plain = TlsServer::Memory.plain_target("");
    refuse(testbed, &storage, &plain, "the server wants TLS")?;
    storage.shutdown()?;
    testbed.step("the ELF without TLS");
    let without = testbed.storage(Kind::Pv);
    let mut without = without.on_network(&format!("ip={DRIVER_DOMAIN}")).start()?;
    let target = TlsServer::Memory.target("");
    refuse(testbed, &without, &target, "/usr/lib/bulkhead/bulkhead-tls")?;
    without.shutdown()?;
    for server in all {
        testbed.kill_tls_server(server)?;
    }
    testbed.host.ok("rm -r /tmp/nbd").map(drop)
}

fn life(testbed: &Testbed) -> Result<()> {
    testbed.network()?;
    let files = testbed.make_certificates()?;
    for server in [TlsServer::Files, TlsServer::Memory, TlsServer::Qcow2] {
        testbed.start_tls_server(server)?;
    }
    let mut storage = storage(testbed, Kind::Pv, 1, &files, false)?;
    for (server, export) in [(TlsServer::Memory, ""), (TlsServer::Qcow2, "qcow")] {
        testbed.step(format!("a server that wants a certificate: {server:?}"));
        refuse(
            testbed,
            &storage,
            &server.target(export),
            "client's certificate",
        )?;
    }
    let target = TlsServer::Files.target("");
    let disks = [disk("storage", "xvda", "rw", &target)];
    let mut guest = testbed.host.lean_guest("writer", Kind::Pvh, &disks)?;
    let keeping = guest.start(&write_verify::keep_at_it("xvda", 1))?;
    write_verify::wait_for_passes(&guest, 1)?;

    testbed.step("the server is killed in mid-write, and comes back with an expired certificate");
    let start = storage.console_length();
    testbed.kill_tls_server(TlsServer::Files)?;
    storage.wait_console_from(start, "its requests wait", MINUTE)?;
    testbed.start_tls_server(TlsServer::FilesExpired)?;
    storage.wait_console_from(start, "expired on 2021-12-31", MINUTE)?;
    let passes = write_verify::passes(&guest)?;
    testbed.step("it comes back with a good one");
    testbed.kill_tls_server(TlsServer::FilesExpired)?;
    testbed.start_tls_server(TlsServer::Files)?;
    storage.wait_console_from(start, "it is connected again", MINUTE)?;
    write_verify::wait_for_passes(&guest, passes + 2)?;
    write_verify::stop(&guest, keeping)?;
    guest.destroy()?;
    storage.shutdown()?;
    for server in [TlsServer::Files, TlsServer::Memory, TlsServer::Qcow2] {
        testbed.kill_tls_server(server)?;
    }
    testbed.host.ok("rm -r /tmp/nbd").map(drop)
}
