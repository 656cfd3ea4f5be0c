//! QEMU's own monitor: commands about the emulated machine, from outside it.

use super::Host;
use super::pci::PciDevice;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The time of silence after which an answer is complete: the monitor keeps the connection.
const SILENCE: Duration = Duration::from_secs(2);

/// The words with which it asks for the next command.
const PROMPT: &str = "(qemu) ";

impl Host {
    /// Gives the monitor a command, and returns its answer.
    pub(super) fn monitor(&self, command: &str) -> std::io::Result<String> {
        let mut monitor = UnixStream::connect(self.instance().monitor_socket())?;
        monitor.set_read_timeout(Some(SILENCE))?;
        monitor.write_all(format!("{command}\n").as_bytes())?;
        let mut text = String::new();
        let mut part = [0; 4096];
        // It asks for a command at first, and again when this one is done.
        while text.matches(PROMPT).count() < 2
            && let Ok(count @ 1..) = monitor.read(&mut part)
        {
            text += &String::from_utf8_lossy(&part[..count]);
        }
        Ok(text)
    }

    /// Limits the operations of a device's media in a second, so that requests stay with the device for long; `None`
    /// sets no limit.
    pub fn limit_operations(&self, device: &PciDevice, limit: Option<u32>) -> Result<()> {
        for drive in device.drives() {
            let limit = limit.unwrap_or(0);
            let command = format!("block_set_io_throttle {drive} 0 0 0 {limit} 0 0");
            let said = self
                .monitor(&command)
                .context("QEMU's monitor does not answer")?;
            if said.contains("Error") || said.matches(PROMPT).count() < 2 {
                bail!("QEMU does not limit {drive}: {said}");
            }
        }
        Ok(())
    }
}
