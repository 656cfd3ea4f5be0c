//! The machine that Bochs emulates, in the form of its configuration file (`bochsrc(5)`).

use anyhow::{Context, Result};
use std::fmt;
use std::fs;
use std::path::Path;

/// The file of the configuration, and that of the commands for Bochs's debugger, in which Debian's Bochs starts.
pub const CONFIGURATION: &str = "bochsrc";
pub const COMMANDS: &str = "commands";

/// The files into which the serial ports write.
pub const COM1: &str = "xen.log";
pub const COM2: &str = "output";

/// A PC with a CD and two disks, to which it writes.
pub struct Machine<'a> {
    /// The folder of all its files.
    pub dir: &'a Path,
    /// The CD from which it boots.
    pub cd: &'a Path,
    /// The disks, which are `sda` and `sdb` in Linux.
    pub disks: [&'a Path; 2],
}

impl Machine<'_> {
    /// Writes the files that Bochs reads when it starts.
    pub fn write(&self) -> Result<()> {
        fs::write(self.dir.join(CONFIGURATION), self.to_string())
            .and_then(|()| fs::write(self.dir.join(COMMANDS), "continue\n"))
            .with_context(|| format!("cannot write to {}", self.dir.display()))
    }
}

impl fmt::Display for Machine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Emulated time is counted in instructions, this many to a second: about what Bochs does. (With a
        // quarter of it, timers left dom0 so little that its RCU stalled.) While the processor is halted, time
        // jumps.
        writeln!(
            f,
            "cpu: model=corei7_haswell_4770, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1"
        )?;
        writeln!(f, "clock: sync=none, time0=local")?;
        writeln!(f, "memory: guest=2048, host=2048")?;
        writeln!(f, "romimage: file=/usr/share/bochs/BIOS-bochs-latest")?;
        writeln!(f, "vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest")?;
        writeln!(f, "display_library: term")?;
        writeln!(f, "pci: enabled=1, chipset=i440fx")?;
        writeln!(
            f,
            "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15"
        )?;
        for (place, disk) in ["master", "slave"].into_iter().zip(self.disks) {
            writeln!(
                f,
                "ata0-{place}: type=disk, mode=flat, path={}",
                disk.display()
            )?;
        }
        writeln!(
            f,
            "ata1-master: type=cdrom, status=inserted, path={}",
            self.cd.display()
        )?;
        writeln!(f, "boot: cdrom")?;
        for (port, file) in [("com1", COM1), ("com2", COM2)] {
            writeln!(
                f,
                "{port}: enabled=1, mode=file, dev={}/{file}",
                self.dir.display()
            )?;
        }
        writeln!(f, "log: {}/bochs.log", self.dir.display())?;
        // What a guest does that no processor allows is its own matter, and Xen's.
        writeln!(
            f,
            "panic: action=fatal\nerror: action=ignore\ninfo: action=ignore\ndebug: action=ignore"
        )
    }
}
