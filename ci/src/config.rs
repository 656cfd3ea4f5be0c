//! Configurations of domains, in the form that `xl create` reads.

use std::fmt;

/// The kind of a domain's virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Hardware-assisted, without device emulation.
    Pvh,
    /// Classic paravirtualized.
    Pv,
    /// Hardware-assisted, with devices that QEMU emulates in dom0. For guests only.
    Hvm,
}

impl Kind {
    /// The kinds that Bulkhead may be, PVH first.
    pub const ALL: [Self; 2] = [Self::Pvh, Self::Pv];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "pvh",
            Self::Pv => "pv",
            Self::Hvm => "hvm",
        })
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("no kind of domain is called {text}; known: pvh, pv"))
    }
}

/// A domain's configuration. Paths are dom0's.
#[derive(Clone, Debug)]
pub struct Config {
    /// The domain's name.
    pub name: String,
    /// The kind of its virtualization.
    pub kind: Kind,
    /// The kernel.
    pub kernel: String,
    /// The ramdisk, if any.
    pub ramdisk: Option<String>,
    /// Memory in MiB.
    pub memory: u32,
    /// The memory in MiB that it may have later, if that is more.
    pub maxmem: Option<u32>,
    /// The kernel's command line.
    pub cmdline: String,
    /// True for a driver domain.
    pub driver_domain: bool,
    /// Processors.
    pub vcpus: u32,
    /// The most processors that it may be given later; `vcpus` if this is less.
    pub maxvcpus: u32,
    /// The host's processors that it may use, as `xl` writes them. The first one is unsafe for domains that
    /// use the processor's virtualization: see `docs/emulator-faults.md`.
    pub cpus: &'static str,
    /// Number of frames that Xen keeps to track the domain's mappings; Xen's default if `None`.
    pub max_maptrack_frames: Option<u32>,
    /// Its disks, each in `xl`'s form.
    pub disks: Vec<String>,
    /// Its network interfaces, each in `xl`'s form.
    pub vifs: Vec<String>,
    /// The devices that are passed through to it, each in `xl`'s form.
    pub pci: Vec<String>,
    /// The action when it crashes: by default it is kept, so that the crash can be examined.
    pub on_crash: &'static str,
    /// The action when it asks for a reboot.
    pub on_reboot: &'static str,
}

impl Config {
    /// Returns a domain without disks and ramdisk, with 128 MiB and one processor.
    pub fn new(name: &str, kind: Kind, kernel: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            kernel: kernel.to_owned(),
            ramdisk: None,
            memory: 128,
            maxmem: None,
            cmdline: String::new(),
            driver_domain: false,
            vcpus: 1,
            maxvcpus: 1,
            cpus: match kind {
                Kind::Pv => "all",
                Kind::Pvh | Kind::Hvm => "all,^0",
            },
            max_maptrack_frames: None,
            disks: Vec::new(),
            vifs: Vec::new(),
            pci: Vec::new(),
            on_crash: "destroy",
            on_reboot: "restart",
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |f: &mut fmt::Formatter<'_>, name: &str, value: &str| {
            writeln!(
                f,
                "{name} = \"{}\"",
                value.replace('\\', "\\\\").replace('"', "\\\"")
            )
        };
        text(f, "name", &self.name)?;
        text(f, "type", &self.kind.to_string())?;
        text(f, "kernel", &self.kernel)?;
        if let Some(ramdisk) = &self.ramdisk {
            text(f, "ramdisk", ramdisk)?;
        }
        if !self.cmdline.is_empty() {
            text(f, "cmdline", &self.cmdline)?;
        }
        writeln!(f, "memory = {}", self.memory)?;
        if let Some(maxmem) = self.maxmem {
            writeln!(f, "maxmem = {maxmem}")?;
        }
        writeln!(f, "vcpus = {}", self.vcpus)?;
        if self.maxvcpus > self.vcpus {
            writeln!(f, "maxvcpus = {}", self.maxvcpus)?;
        }
        text(f, "cpus", self.cpus)?;
        if self.driver_domain {
            writeln!(f, "driver_domain = 1")?;
        }
        if let Some(frames) = self.max_maptrack_frames {
            writeln!(f, "max_maptrack_frames = {frames}")?;
        }
        for (name, list) in [
            ("disk", &self.disks),
            ("vif", &self.vifs),
            ("pci", &self.pci),
        ] {
            if !list.is_empty() {
                writeln!(f, "{name} = [ '{}' ]", list.join("', '"))?;
            }
        }
        text(f, "on_crash", self.on_crash)?;
        text(f, "on_reboot", self.on_reboot)?;
        // An emulated RDTSC costs an instruction's emulation.
        writeln!(f, "tsc_mode = \"native\"")?;
        if self.kind == Kind::Hvm {
            // Its console is that of the other kinds.
            writeln!(f, "vga = \"none\"\nnographic = 1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_domain_reads_as_a_user_would_write_it() {
        let mut config = Config::new("storage", Kind::Pvh, "bulkhead");
        config.ramdisk = Some("images.tar".to_owned());
        config.memory = 80;
        config.driver_domain = true;
        config.cmdline = "log=\"debug\"".to_owned();
        assert_eq!(
            config.to_string(),
            "name = \"storage\"\ntype = \"pvh\"\nkernel = \"bulkhead\"\nramdisk = \"images.tar\"\n\
             cmdline = \"log=\\\"debug\\\"\"\nmemory = 80\nvcpus = 1\ncpus = \"all,^0\"\n\
             driver_domain = 1\n\
             on_crash = \"destroy\"\non_reboot = \"restart\"\ntsc_mode = \"native\"\n"
        );
    }
}
