//! `cargo lab shell`: an interactive shell in dom0, with a driver domain and a guest running.

use crate::config::Kind;
use crate::host::{Host, qemu::Machine, xenstored::Xenstored};
use crate::image::{self, packages, release::Release};
use crate::testbed::Testbed;
use crate::testbed::images::Image;
use crate::testbed::progress::Progress;
use crate::testbed::storage::disk;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// The key that leaves the shell.
const LEAVE: u8 = 0x1d;

/// Boots everything and connects the terminal to dom0. The host ends with the shell.
pub fn run(release: Release, xenstored: Xenstored) -> Result<()> {
    let progress = Progress::default();
    packages::ensure()?;
    progress.step("shell", "building the unikernel");
    let unikernel = super::build::build()?;
    let image = image::ensure(release, &|text| progress.step("shell", text))?;
    progress.step("shell", "booting Xen");
    let dir = workspace::lab()
        .join("hosts")
        .join(format!("shell-{}", std::process::id()));
    let machine = Machine {
        xenstored,
        ..Machine::default()
    };
    let host = Host::boot(dir, &image, &machine, false)?;
    fs::copy(&unikernel, host.instance().share().join("bulkhead"))?;

    let testbed = Testbed::new(&host, &image, "shell", &progress);
    let images = [Image::mib("root.img", 64)];
    let _storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(80)
        .start()?;
    testbed.step("booting a guest");
    let disks = [disk("storage", "xvda", "rw", "ram:root.img")];
    let _guest = host.guest("guest", Kind::Pvh, &disks)?;
    progress.finish();
    println!(
        "dom0 of Xen {release}; `storage` serves /dev/xvda of `guest`. Files: {}\n\
         Try: xl list; xl console storage; xl block-list guest. Ctrl-] leaves and ends the host.",
        host.instance().dir.display()
    );
    let raw = RawTerminal::enter()?;
    let result = connect(&host);
    drop(raw);
    println!();
    result
}

/// Copies bytes both ways until the user leaves or the host ends.
fn connect(host: &Host) -> Result<()> {
    let mut socket =
        UnixStream::connect(host.instance().shell_socket()).context("cannot reach dom0's shell")?;
    let mut output = socket.try_clone()?;
    // It ends with the process; blocked in a read of the socket there is no better moment.
    std::thread::spawn(move || {
        let mut stdout = std::io::stdout();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            if stdout
                .write_all(&buffer[..count])
                .and_then(|()| stdout.flush())
                .is_err()
            {
                break;
            }
        }
    });
    socket.write_all(b"\n")?;
    let mut stdin = std::io::stdin().lock();
    let mut buffer = [0; 1024];
    loop {
        let count = stdin.read(&mut buffer)?;
        let typed = &buffer[..count];
        if count == 0 || typed.contains(&LEAVE) {
            return Ok(());
        }
        if socket.write_all(typed).is_err() {
            bail!("the host ended");
        }
    }
}

/// The terminal without line editing and echo, as long as this value lives.
struct RawTerminal {
    saved: Option<String>,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let saved = stty(&["--save"]).ok();
        if saved.is_some() {
            stty(&["raw", "-echo"])?;
        }
        Ok(Self { saved })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // Nothing is left to do for a terminal that is gone.
            let _ = stty(&[saved.trim()]);
        }
    }
}

fn stty(args: &[&str]) -> Result<String> {
    let output = Command::new("stty")
        .args(args)
        .stdin(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("stty {args:?} failed");
    }
    Ok(String::from_utf8(output.stdout)?)
}
