//! A network of dom0's, as an operator makes one for a driver domain, and servers of disks on it.

use super::Testbed;
use anyhow::Result;

/// The bridge, for `vif=`.
pub const BRIDGE: &str = "storage";

/// The address of dom0 on it.
pub const DOM0: &str = "10.0.0.2";
/// The address of the driver domain on it, with its network.
pub const DRIVER_DOMAIN: &str = "10.0.0.7/24";

/// Makes the bridge. It stays as long as the host, as it does with an operator.
const MAKE: &str = "set -e
modprobe bridge && modprobe xen-netback
ip link set lo up
if ! [ -e /sys/class/net/BRIDGE ]; then
    ip link add name BRIDGE type bridge stp_state 0 forward_delay 0
    ip address add DOM0/24 dev BRIDGE
fi
ip link set BRIDGE up
mkdir -p /tmp/nbd";

/// A server in dom0, with one disk or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// nbdkit with an empty disk of that many MiB in its memory, for whatever export is named.
    Memory(u32),
    /// nbdkit with a folder of files, of which each is an export: `root-bob`, of 16 MiB.
    Files,
    /// qemu-nbd with a qcow2 image of 16 MiB as the export `qcow`.
    Qcow2,
}

impl Server {
    /// Returns its port.
    pub fn port(self) -> u16 {
        match self {
            Self::Memory(_) => 10809,
            Self::Files => 10810,
            Self::Qcow2 => 10811,
        }
    }

    /// Returns the target that names an export of it.
    pub fn target(self, export: &str) -> String {
        format!("nbd:{DOM0}:{}/{export}", self.port())
    }

    /// What its files are called.
    fn name(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Files => "files",
            Self::Qcow2 => "qcow2",
        }
    }

    /// A shell command that starts it in the background, with what it has kept.
    fn script(self) -> String {
        let (port, pid) = (self.port(), self.pid_file());
        match self {
            Self::Memory(mib) => {
                format!("nbdkit --ipaddr {DOM0} --port {port} --pidfile {pid} memory {mib}M")
            }
            Self::Files => format!(
                "mkdir -p files && [ -e files/root-bob ] || truncate --size=16M files/root-bob
nbdkit --ipaddr {DOM0} --port {port} --pidfile {pid} file dir=/tmp/nbd/files"
            ),
            Self::Qcow2 => format!(
                "[ -e disk.qcow2 ] || qemu-img create -q -f qcow2 disk.qcow2 16M
qemu-nbd --fork --persistent --shared=4 --pid-file={pid} --bind={DOM0} --port={port} --export-name=qcow \
    --format=qcow2 --discard=unmap disk.qcow2"
            ),
        }
    }

    fn pid_file(self) -> String {
        format!("/tmp/nbd/{}.pid", self.name())
    }
}

impl Testbed<'_> {
    /// Makes the network, if the host has none yet.
    pub fn network(&self) -> Result<()> {
        let script = MAKE.replace("BRIDGE", BRIDGE).replace("DOM0", DOM0);
        self.host.ok(&script).map(drop)
    }

    /// Starts a server, and waits until it listens.
    pub fn start_server(&self, server: Server) -> Result<()> {
        let listening = format!(
            "(: </dev/tcp/{DOM0}/{}) 2>/dev/null && [ -s {} ]",
            server.port(),
            server.pid_file()
        );
        let script = format!(
            "set -e; cd /tmp/nbd; rm -f {}
{}
until {listening}; do sleep 0.1; done",
            server.pid_file(),
            server.script()
        );
        self.host.ok(&script).map(drop)
    }

    /// Kills a server, as a crash would end it, and waits until it is gone.
    pub fn kill_server(&self, server: Server) -> Result<()> {
        let pid = server.pid_file();
        let script = format!(
            "pid=$(cat {pid}) && kill -KILL $pid && while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
        );
        self.host.ok(&script).map(drop)
    }
}
