//! A stock Debian guest, and running commands in it through its console.

use super::domain::Domain;
use super::guest_diagnosis::{self, Stage};
use super::pci::PciDevice;
use super::qemu::mitigations_option;
use super::{Host, Output};
use crate::config::{Config, Kind};
use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use sha2::{Digest, Sha256};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The option with which a guest's kernel looks for no PCI bus.
const PCI_OFF: &str = " pci=off";

/// The options with which a PVH guest's kernel takes its time from Xen's clock alone, and assumes a speed for short
/// delays. Otherwise it measures the processor's clock against an interval timer, which a PVH domain does not have, by a
/// hundred thousand reads of a port, each of which Xen answers with ones: half of the guest's boot.
const NO_TSC: &str = " clearcpuid=tsc lpj=1000000";

/// Time limit for a guest from its creation to its first command.
pub const BOOT: Duration = Duration::from_secs(180);

/// Time limit for a guest to see a disk's new size.
const RESIZE: Duration = Duration::from_secs(60);

/// A Linux guest whose init (`ci/scripts/console-commands.sh`) takes commands.
#[derive(Debug)]
pub struct Guest<'h> {
    domain: Domain<'h>,
    next: AtomicU32,
}

impl Host {
    /// Returns the configuration of a stock guest with these disks.
    pub fn guest_config(&self, name: &str, kind: Kind, disks: &[String]) -> Result<Config> {
        let mut config = Config::new(name, kind, "/guest/vmlinux");
        config.ramdisk = Some("/guest/initramfs".to_owned());
        config.memory = 192;
        // Probing for PCI, measuring the clock and testing its ciphers cost an emulated guest seconds.
        config.cmdline = format!(
            "console=hvc0 quiet sysrq_always_enabled sysctl.kernel.panic_on_unrecovered_nmi=1{PCI_OFF} \
             cryptomgr.notests tsc_early_khz={} {}",
            self.tsc_khz()?,
            mitigations_option(self.mitigations)
        );
        if kind == Kind::Pvh && !self.mitigations {
            config.cmdline += NO_TSC;
        }
        config.disks = disks.to_vec();
        Ok(config)
    }

    /// Returns the configuration of a PV guest that has a device passed through and no disk.
    pub fn guest_config_with(&self, name: &str, device: &PciDevice) -> Result<Config> {
        let mut config = self.guest_config(name, Kind::Pv, &[])?;
        config.pci.push(device.to_string());
        config.cmdline = config.cmdline.replace(PCI_OFF, "");
        Ok(config)
    }

    /// Returns the configuration of a lean guest, which has only busybox and the block frontend: it boots sooner, in less
    /// memory.
    pub fn lean_guest_config(&self, name: &str, kind: Kind, disks: &[String]) -> Result<Config> {
        let mut config = self.guest_config(name, kind, disks)?;
        config.ramdisk = Some("/guest/initramfs-lean".to_owned());
        config.memory = 128;
        Ok(config)
    }

    /// Returns the configuration of a lean HVM guest. QEMU in dom0 takes half a minute to load its kernel.
    pub fn hvm_guest_config(&self, name: &str, disks: &[String]) -> Result<Config> {
        let mut config = self.lean_guest_config(name, Kind::Hvm, disks)?;
        // Its firmware loads what PCs load. It finds Xen on its PCI bus.
        config.kernel = "/guest/vmlinuz".to_owned();
        // It would look for an AGP bridge twice, six seconds each: QEMU emulates what it looks at.
        config.cmdline = "console=hvc0 quiet pci=noearly cryptomgr.notests".to_owned();
        Ok(config)
    }

    /// Creates a lean guest and waits until it takes commands.
    pub fn lean_guest(&self, name: &str, kind: Kind, disks: &[String]) -> Result<Guest<'_>> {
        let config = self.lean_guest_config(name, kind, disks)?;
        Guest::wait(self.create(&config)?)
    }

    /// Creates a guest and waits until it takes commands.
    pub fn guest(&self, name: &str, kind: Kind, disks: &[String]) -> Result<Guest<'_>> {
        let config = self.guest_config(name, kind, disks)?;
        Guest::wait(self.create(&config)?)
    }
}

impl<'h> Guest<'h> {
    /// Waits until a guest that was just created takes commands.
    pub fn wait(domain: Domain<'h>) -> Result<Self> {
        Self::wait_within(domain, BOOT)
    }

    /// Waits until a guest that was just created takes commands, which has much to do before. One that is late is
    /// examined, which it may not survive.
    pub fn wait_within(domain: Domain<'h>, limit: Duration) -> Result<Self> {
        let guest = Self {
            domain,
            next: AtomicU32::new(0),
        };
        let deadline = Instant::now() + limit;
        let ready = guest.wait_console("@@ready", limit);
        if ready.is_err() && Instant::now() > deadline {
            guest.diagnose(Stage::Boot);
        }
        ready.map(|()| guest)
    }

    /// Runs a shell command; an error means that it could not be run or did not end in time.
    pub fn exec(&self, command: &str, limit: Duration) -> Result<Output> {
        self.finish(self.start(command)?, limit)
            .with_context(|| format!("in {}: {command}", self.name))
    }

    /// Runs a shell command that has to succeed, and returns its output.
    pub fn ok(&self, command: &str, limit: Duration) -> Result<String> {
        let output = self.exec(command, limit)?;
        if output.status != 0 {
            bail!(
                "in {}: {command}: status {}\n{}",
                self.name,
                output.status,
                output.out
            );
        }
        Ok(output.out)
    }

    /// Starts a shell command and does not wait for it.
    pub fn start(&self, command: &str) -> Result<Started> {
        let (started, script) = self.starting(command);
        self.host.ok(&script)?;
        Ok(started)
    }

    /// Starts the same command in all of these guests, with as little work for dom0 as it takes.
    pub fn start_in_each(guests: &[Guest], command: &str) -> Result<Vec<Started>> {
        let all = guests.iter().map(|guest| guest.starting(command));
        let (started, scripts): (Vec<_>, Vec<_>) = all.unzip();
        if let Some(guest) = guests.first() {
            guest.host.ok(&scripts.join(" && "))?;
        }
        Ok(started)
    }

    /// Returns the command to wait for, and the script for dom0 that starts it.
    fn starting(&self, command: &str) -> (Started, String) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let started = Started {
            id,
            console: self.console_length(),
        };
        let line = format!("run {id} {}", BASE64_STANDARD.encode(command));
        (started, self.typing(&line))
    }

    /// Waits for a started command. A guest that does not answer in time is examined, which it may not
    /// survive.
    pub fn finish(&self, started: Started, limit: Duration) -> Result<Output> {
        if let Some(output) = self.finish_within(&started, limit)? {
            return Ok(output);
        }
        let end = crate::process::tail(&self.console(), 8);
        self.diagnose(Stage::Ready);
        bail!("no answer within {limit:?}; the end of its console:\n{end}")
    }

    fn diagnose(&self, stage: Stage) {
        if self.host.seen().diagnosis.is_some() {
            return;
        }
        let guest_diagnosis::Finding { fault, report } =
            guest_diagnosis::diagnose(self.host, self, stage);
        let mut seen = self.host.seen();
        seen.emulator_faults.extend(fault);
        seen.diagnosis = Some(format!("{} did not answer\n{report}", self.name));
    }

    /// Waits for a started command. Returns `None` if it takes longer.
    pub fn finish_within(&self, started: &Started, limit: Duration) -> Result<Option<Output>> {
        let deadline = Instant::now() + limit;
        let mut repeated = 0;
        while Instant::now() < deadline {
            match parse_answer(&self.console_from(started.console), started.id) {
                Answer::Whole(output) => return Ok(Some(output)),
                Answer::Absent => {}
                // A line was lost or mixed with a kernel message: ask again.
                Answer::Damaged(count) if count > repeated => {
                    repeated = count;
                    if repeated > 3 {
                        bail!("the answer was damaged {repeated} times");
                    }
                    self.type_line(&format!("get {}", started.id))?;
                }
                Answer::Damaged(_) => {}
            }
            self.host.wait_tick()?;
        }
        Ok(None)
    }

    /// Waits until the guest sees this size of a disk, in units of 512 bytes.
    pub fn wait_for_sectors(&self, device: &str, sectors: u64) -> Result<()> {
        let size = format!("/sys/block/{device}/size");
        let wait = format!(
            "for n in $(seq 100); do [ $(cat {size}) = {sectors} ] && break; usleep 50000; done; cat {size}"
        );
        let seen = self.ok(&wait, RESIZE)?;
        match seen.trim() == sectors.to_string() {
            true => Ok(()),
            false => bail!(
                "{} sees {} sectors of {device}, expected {sectors}",
                self.name,
                seen.trim()
            ),
        }
    }

    /// Reboots the guest at once, without an orderly shutdown, and waits until the domain that the toolstack creates in
    /// its place takes commands.
    pub fn reboot(&mut self) -> Result<()> {
        let seen = self.console_length();
        self.start("reboot -f")?;
        self.wait_remade(BOOT)?;
        self.wait_console_from(seen, "@@ready", BOOT).map(drop)
    }

    /// Destroys guests at the same time: the toolstack waits for each until its disks' directories are gone, which
    /// takes a driver domain seconds.
    pub fn destroy_all<'g>(guests: impl IntoIterator<Item = &'g mut Self>) -> Result<()>
    where
        'h: 'g,
    {
        Domain::destroy_all(guests.into_iter().map(|guest| &mut guest.domain))
    }

    fn type_line(&self, line: &str) -> Result<()> {
        self.host.ok(&self.typing(line)).map(drop)
    }

    /// Returns the script for dom0 that types a line on the guest's console.
    fn typing(&self, line: &str) -> String {
        format!(
            "echo '{line}' >$(xenstore-read /local/domain/{}/console/tty)",
            self.id
        )
    }
}

impl<'h> Deref for Guest<'h> {
    type Target = Domain<'h>;

    fn deref(&self) -> &Domain<'h> {
        &self.domain
    }
}

impl<'h> DerefMut for Guest<'h> {
    fn deref_mut(&mut self) -> &mut Domain<'h> {
        &mut self.domain
    }
}

/// A command that runs in a guest.
#[derive(Debug)]
pub struct Started {
    id: u32,
    console: usize,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Absent,
    /// This number of answers arrived, and none of them was complete.
    Damaged(usize),
    Whole(Output),
}

/// Finds the answer to command `id`: `@@begin ID`, the output, `@@end ID STATUS SHA256`.
fn parse_answer(console: &str, id: u32) -> Answer {
    let text = console.replace('\r', "");
    let begin = format!("@@begin {id}\n");
    let end = format!("\n@@end {id} ");
    let mut damaged = 0;
    for (at, _) in text.match_indices(&end) {
        let Some((line, _)) = text[at + end.len()..].split_once('\n') else {
            break;
        };
        damaged += 1;
        let Some(start) = text[..=at].rfind(&begin) else {
            continue;
        };
        let out = text.get(start + begin.len()..at).unwrap_or_default();
        let (Some(status), Some(sum)) = split_status(line) else {
            continue;
        };
        if sum == sha256(out.as_bytes()) {
            let out = out.to_owned();
            return Answer::Whole(Output {
                status,
                out,
                err: String::new(),
            });
        }
    }
    if damaged == 0 {
        Answer::Absent
    } else {
        Answer::Damaged(damaged)
    }
}

fn split_status(line: &str) -> (Option<i32>, Option<&str>) {
    let mut words = line.split_whitespace();
    (
        words.next().and_then(|word| word.parse().ok()),
        words.next(),
    )
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u32, out: &str) -> String {
        format!(
            "@@begin {id}\r\n{out}\n@@end {id} 3 {}\r\n",
            sha256(out.as_bytes())
        )
    }

    #[test]
    fn a_whole_answer_is_found() {
        for out in ["", "hello\n", "no newline", "\n\n"] {
            let text = format!("noise\r\n{}", answer(7, out));
            let expected = Output {
                status: 3,
                out: out.to_owned(),
                err: String::new(),
            };
            assert_eq!(parse_answer(&text, 7), Answer::Whole(expected));
            assert_eq!(parse_answer(&text, 8), Answer::Absent);
            assert_eq!(parse_answer(&text[..text.len() - 2], 7), Answer::Absent);
        }
    }

    #[test]
    fn an_answer_mixed_with_a_kernel_message_is_damaged_until_repeated() {
        let bad = answer(7, "hello\n").replace("hel", "hel[ 12.3] BUG\n");
        assert_eq!(parse_answer(&bad, 7), Answer::Damaged(1));
        let text = format!("{bad}{}", answer(7, "hello\n"));
        assert!(matches!(parse_answer(&text, 7), Answer::Whole(_)));
    }
}
