//! A booted Xen host: running commands in dom0, and reaching its files.

pub mod qemu;

use crate::image::{self, HostImage};
use crate::process::tail;
use crate::workspace;
use anyhow::{Context, Result, anyhow, bail};
use qemu::{Instance, Machine};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often files of a host are looked at while something is waited for.
const TICK: Duration = Duration::from_millis(10);

/// What a command in dom0 or in a guest left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status; 128 and more: died of that signal.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error (empty for guests: there it is part of `out`).
    pub err: String,
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    instance: Instance,
    stop_on_drop: bool,
    next: AtomicU32,
}

impl Host {
    /// Boots a host in `dir` and waits until dom0 answers.
    pub fn boot(dir: PathBuf, image: &HostImage, machine: &Machine, keep: bool) -> Result<Self> {
        let instance = Instance { dir };
        instance.start(image, machine, !keep)?;
        let host = Self {
            instance,
            stop_on_drop: !keep,
            next: AtomicU32::new(0),
        };
        if let Err(error) = host.wait_ready(Duration::from_secs(120)) {
            host.stop()?;
            return Err(error);
        }
        Ok(host)
    }

    /// A host that another process started.
    pub fn attach(dir: PathBuf) -> Result<Self> {
        let instance = Instance { dir };
        if instance.pid().is_none() {
            bail!("no host runs in {}", instance.dir.display());
        }
        Ok(Self {
            instance,
            stop_on_drop: false,
            next: AtomicU32::new(0),
        })
    }

    /// The folder of a named host that outlives the command which started it.
    pub fn named(name: &str) -> PathBuf {
        workspace::lab().join("hosts").join(name)
    }

    /// Its files.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Ends the host at once.
    pub fn stop(&self) -> Result<()> {
        self.instance.kill()
    }

    /// Runs a shell script in dom0. An error means that it could not be run or did not end in time,
    /// not that it failed.
    pub fn exec(&self, script: &str, limit: Duration) -> Result<Output> {
        let dir = self.instance.share().join("cmd");
        let id = format!(
            "{}-{}",
            std::process::id(),
            self.next.fetch_add(1, Ordering::Relaxed)
        );
        let file = |end: &str| dir.join(format!("{id}.{end}"));
        fs::write(file("sh"), script)?;
        let deadline = Instant::now() + limit;
        let late = |what: &str| anyhow!("dom0 {what} within {limit:?}: {}", first_line(script));

        let mut socket = UnixStream::connect(self.instance.command_socket())
            .context("the host's command channel is gone")?;
        writeln!(socket, "{id}")?;
        while !file("started").exists() {
            self.tick(deadline)
                .with_context(|| late("did not take up a command"))?;
        }
        drop(socket);
        while !file("rc").exists() {
            self.tick(deadline)
                .with_context(|| late("did not finish a command"))?;
        }
        let read = |end: &str| -> Result<String> {
            Ok(String::from_utf8_lossy(&fs::read(file(end))?).into_owned())
        };
        Ok(Output {
            status: read("rc")?.trim().parse()?,
            out: read("out")?,
            err: read("err")?,
        })
    }

    fn wait_ready(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        // QEMU writes its process number a moment after it is started.
        let born = Instant::now() + Duration::from_secs(5);
        while self.instance.pid().is_none() && Instant::now() < born {
            sleep(TICK);
        }
        while !self.instance.share().join("ready").exists() {
            self.tick(deadline).with_context(|| {
                let log = fs::read(self.instance.xen_log()).unwrap_or_default();
                format!(
                    "dom0 did not come up; the end of its log:\n{}",
                    tail(&String::from_utf8_lossy(&log), 20)
                )
            })?;
        }
        Ok(())
    }

    /// Waits a moment; an error when the time is over or the host is dead.
    fn tick(&self, deadline: Instant) -> Result<()> {
        if self.instance.pid().is_none() {
            let log = fs::read_to_string(self.instance.dir.join("qemu.log")).unwrap_or_default();
            bail!("the host's QEMU ended\n{}", tail(&log, 5));
        }
        if Instant::now() > deadline {
            bail!("time is over");
        }
        sleep(TICK);
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.stop_on_drop {
            let _ = self.instance.kill();
        }
    }
}

/// Boots a host with the image of a release.
pub fn boot_named(name: &str, release: image::release::Release, machine: &Machine) -> Result<Host> {
    let image = image::ensure(release, &|text| eprintln!("{text}"))?;
    Host::boot(Host::named(name), &image, machine, true)
}

fn first_line(script: &str) -> &str {
    script.trim().lines().next().unwrap_or_default()
}
