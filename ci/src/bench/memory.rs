//! A driver domain's memory in the steady state: with a disk attached, after its jobs.

use super::contestant::Contestant;
use super::server::Server;
use crate::host::Host;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt;

/// The memory of a driver domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// MiB that it has, as Xen counts them.
    pub held: u32,
    /// MiB of these that a Linux could do without, by its own account. Bulkhead gives none.
    pub available: Option<u32>,
}

impl Memory {
    /// Reads the memory of a contestant's driver domain.
    pub fn of(host: &Host, contestant: Contestant, server: &Server) -> Result<Self> {
        let available = match contestant.is_bulkhead() {
            true => None,
            false => Some(available(&server.ask_linux("cat /proc/meminfo")?)?),
        };
        Ok(Self {
            held: host.memory_of(&server.domain().name)?,
            available,
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.held)?;
        match self.available {
            Some(available) => write!(f, ", {available} of it available"),
            None => Ok(()),
        }
    }
}

/// Finds the MiB that are available in /proc/meminfo (see proc(5)).
fn available(text: &str) -> Result<u32> {
    let kib = text.lines().find_map(|line| {
        let value = line.strip_prefix("MemAvailable:")?;
        value.trim().strip_suffix("kB")?.trim().parse::<u32>().ok()
    });
    Ok(kib.with_context(|| format!("/proc/meminfo is {text:?}"))? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_says_what_it_could_do_without() {
        let text =
            "MemTotal:         128000 kB\nMemFree:    20000 kB\nMemAvailable:      40960 kB\n";
        assert_eq!(available(text).unwrap(), 40);
        assert!(available("MemTotal: 128000 kB\n").is_err());
        let memory = |available| Memory {
            held: 160,
            available,
        };
        assert_eq!(memory(Some(40)).to_string(), "160 MiB, 40 of it available");
        assert_eq!(memory(None).to_string(), "160 MiB");
    }
}
