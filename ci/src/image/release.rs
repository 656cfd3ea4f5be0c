//! The Debian releases, and with them the Xen versions, of which a host can be made.

use std::fmt;

/// A Xen version together with the Debian release that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Release {
    /// Xen 4.17 and Linux 6.1, Debian bookworm.
    #[default]
    Xen417,
    /// Xen 4.20 and Linux 6.12, Debian trixie.
    Xen420,
}

impl Release {
    /// All releases, the default one first.
    pub const ALL: [Self; 2] = [Self::Xen417, Self::Xen420];

    /// Returns Xen's version as Debian writes it in package names.
    pub fn xen(self) -> &'static str {
        match self {
            Self::Xen417 => "4.17",
            Self::Xen420 => "4.20",
        }
    }

    /// Returns the Debian suite.
    pub fn suite(self) -> &'static str {
        match self {
            Self::Xen417 => "bookworm",
            Self::Xen420 => "trixie",
        }
    }

    /// Returns the packages of dom0 beside Debian's minimal base.
    pub fn packages(self) -> Vec<String> {
        let xen = self.xen();
        let mut packages = vec![
            format!("xen-hypervisor-{xen}-amd64"),
            format!("xen-utils-{xen}"),
        ];
        packages.extend(
            [
                "linux-image-amd64",
                "kmod",
                "busybox-static",
                "e2fsprogs",
                "fio",
                // GRUB as kernels of PV and PVH domains.
                "grub-xen-host",
                "kexec-tools",
                // Partition tables and logical volumes, as users make them.
                "gdisk",
                "lvm2",
                // Bridges between domains' networks, which the tool stack's script joins with ip(8).
                "iproute2",
                // The server of addresses and names on such a bridge.
                "dnsmasq-base",
                // Servers of disks over the network.
                "nbdkit",
                "nbd-server",
                "qemu-utils",
                // The kernel's client of such servers, which the bench measures beside ours.
                "nbd-client",
                // The devices of HVM guests; and a block backend that the bench measures beside ours.
                "qemu-system-xen",
            ]
            .map(str::to_owned),
        );
        packages
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.xen())
    }
}

impl std::str::FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|release| release.xen() == text)
            .ok_or_else(|| format!("no Xen {text} here; known: 4.17, 4.20"))
    }
}
