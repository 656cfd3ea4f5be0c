//! A Xen host that Bochs emulates: the second of the lab's two emulators, slow but exact.
//!
//! Bochs interprets one instruction after the other, ten times as slowly as QEMU, and shows Xen an Intel
//! processor with VMX and extended page tables where QEMU's has AMD's SVM. It runs what QEMU emulates wrongly
//! (`docs/emulator-faults.md`). It has no folder to share with dom0: dom0 finds a disk with
//! one script and the files that this needs, and prints what the script prints to a serial port.

pub mod boot_cd;
mod machine;

use crate::host::xenstored::Xenstored;
use crate::image::{HostImage, ext2};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The script that dom0 runs, in the folder that it sees as `/lab`.
const SCRIPT: &str = "once.sh";

/// The mark that dom0's init prints after the script's output, before its exit status.
const END: &str = "@@once ";

/// The interval at which the output is checked.
const TICK: Duration = Duration::from_millis(500);

/// A host with its folder. It ends when this value is dropped.
#[derive(Debug)]
pub struct Bochs {
    dir: PathBuf,
    process: Child,
}

impl Bochs {
    /// Boots a host whose dom0 sees the folder `files` as `/lab` and runs `script` there.
    pub fn boot(
        dir: &Path,
        image: &HostImage,
        xenstored: Xenstored,
        files: &Path,
        script: &str,
    ) -> Result<Self> {
        fs::write(files.join(SCRIPT), script)?;
        let cd = dir.join("boot.iso");
        boot_cd::write(&cd, image, xenstored)
            .context("cannot make the CD that Bochs boots from")?;
        // (Bochs can keep what is written apart from a disk's image. Linux could not mount one again then.)
        let root = dir.join("root.ext2");
        process::run_logged(
            Command::new("cp")
                .arg("--sparse=always")
                .args([&image.disk, &root]),
            &dir.join("root.log"),
        )?;
        let lab = dir.join("lab.ext2");
        write_disk(&lab, files).context("cannot make dom0's disk")?;
        machine::Machine {
            dir,
            cd: &cd,
            disks: [&root, &lab],
        }
        .write()?;
        let log = File::create(dir.join("bochs.out"))?;
        // It takes longest of all that runs beside it, and has one thread. (Where `nice` may not, it says so
        // and starts it all the same.)
        let process = Command::new("nice")
            .args(["-n", "-10", "setpriv", "--pdeathsig", "KILL", "--"])
            .args(["bochs", "-q"])
            .args(["-f", machine::CONFIGURATION, "-rc", machine::COMMANDS])
            .current_dir(dir)
            // Its screen is a terminal that is not shown.
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start bochs")?;
        Ok(Self {
            dir: dir.to_path_buf(),
            process,
        })
    }

    /// Waits until the script has ended, and returns its output. Calls `say` with each line that begins with `step: `.
    pub fn finish(&mut self, limit: Duration, say: &dyn Fn(&str)) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut said = 0;
        loop {
            let output = self.output();
            let (whole, _) = output.rsplit_once('\n').unwrap_or_default();
            let steps: Vec<&str> = whole
                .lines()
                .filter_map(|line| line.strip_prefix("step: "))
                .collect();
            for step in steps.iter().skip(said) {
                say(step);
            }
            said = steps.len();
            if let Some((text, status)) = end(&output) {
                ensure!(
                    status == 0,
                    "the script in dom0 failed ({status}):\n{}",
                    process::tail(text, 30)
                );
                return Ok(text.to_owned());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!(
                    "Bochs ended ({status}):\n{}",
                    process::tail(&read(&self.dir.join("bochs.out")), 15)
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the script in dom0 has not ended within {} s, of which Bochs has run {}; it printed:\n{}\nXen and dom0:\n{}",
                    limit.as_secs(),
                    processor_time(self.process.id()).map_or_else(
                        || "unknown".to_owned(),
                        |time| format!("{} s", time.as_secs())
                    ),
                    process::tail(&output, 30),
                    process::tail(&self.xen_log(), 15)
                );
            }
            std::thread::sleep(TICK);
        }
    }

    /// Returns the script's output so far.
    fn output(&self) -> String {
        read(&self.dir.join(machine::COM2))
    }

    /// Returns the output of Xen and dom0's kernel.
    fn xen_log(&self) -> String {
        read(&self.dir.join(machine::COM1))
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The logs are kept; these can be made again, and are large. Bochs leaves a lock of each disk.
        for made in ["boot.iso", "root.ext2", "lab.ext2"] {
            let _ = fs::remove_file(self.dir.join(made));
            let _ = fs::remove_file(self.dir.join(format!("{made}.lock")));
        }
    }
}

/// Returns the processor time of a process's first thread; Bochs has only one. It distinguishes a host that makes no
/// progress from one that got no processor.
fn processor_time(pid: u32) -> Option<Duration> {
    let times = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let run = times.split_whitespace().next()?;
    run.parse().ok().map(Duration::from_nanos)
}

/// Returns the output and the exit status, once all of it has come.
fn end(output: &str) -> Option<(&str, i32)> {
    let (text, rest) = output.split_once(END)?;
    let (status, _) = rest.split_once('\n')?;
    Some((text, status.trim().parse().ok()?))
}

/// Returns the content of a serial port's file; the file may not be there yet.
fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// Makes a file system of a folder's files, with some room for what dom0 writes there.
fn write_disk(disk: &Path, files: &Path) -> Result<()> {
    const FREE: u64 = 64 << 20;
    const FILES: u64 = 1024;
    let mut bytes = FREE;
    for entry in fs::read_dir(files)? {
        bytes += entry?.metadata()?.len().next_multiple_of(ext2::BLOCK);
    }
    ext2::write(disk, ext2::Source::Folder(files), bytes, FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_run_for_some_time() {
        let mut child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while processor_time(child.id()).unwrap() < Duration::from_millis(20) {
            assert!(Instant::now() < deadline, "it does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(processor_time(child.id()), None);
    }

    #[test]
    fn the_end_is_known_when_its_line_is_whole() {
        assert_eq!(end("step: one\nresult\n"), None);
        assert_eq!(end("step: one\n@@once 1"), None);
        assert_eq!(end("result\n@@once 12\n"), Some(("result\n", 12)));
    }
}
