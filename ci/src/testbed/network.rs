//! A network of dom0's, as an operator makes one for a driver domain, and servers of disks on it.

use super::Testbed;
use crate::host::Host;
use crate::shared_object;
use anyhow::{Context, Result};
use std::fs;

/// The bridge, for `vif=`.
pub const BRIDGE: &str = "storage";

/// The address of dom0 on it.
pub const DOM0: &str = "10.0.0.2";
/// The IPv6 address of dom0 on it.
pub const DOM0_6: &str = "fd00::2";
/// The address of the driver domain on it, with its network.
pub const DRIVER_DOMAIN: &str = "10.0.0.7/24";
/// The IPv6 address of the driver domain on it, with its network.
pub const DRIVER_DOMAIN_6: &str = "fd00::7/64";

/// The words in a driver domain's log that say that it is on the network.
pub const CONNECTED: &str = "network vif0: connected to domain 0";

/// The name of dom0 on it.
pub const NAME: &str = "nas.example";
/// Another name of dom0 on it.
pub const ALIAS: &str = "disks.example";

/// Makes the bridge. It stays as long as the host, as it does with an operator.
const MAKE: &str = "set -e
modprobe bridge && modprobe xen-netback
ip link set lo up
if ! [ -e /sys/class/net/BRIDGE ]; then
    ip link add name BRIDGE type bridge stp_state 0 forward_delay 0
    ip address add DOM0/24 dev BRIDGE
    ip address add SIX/64 dev BRIDGE nodad
fi
ip link set BRIDGE up
mkdir -p /tmp/nbd";

/// Starts dnsmasq, which gives addresses that are to be renewed after ten seconds, and knows the names. It logs the
/// requests that it gets.
const ADDRESSES: &str = "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --no-ping --user=root --interface=BRIDGE \
    --except-interface=lo --bind-interfaces --dhcp-authoritative --dhcp-range=10.0.0.50,10.0.0.59,255.255.255.0,10m \
    --dhcp-option=option:T1,10 --dhcp-option=option:T2,300 --dhcp-leasefile=/tmp/nbd/leases \
    --host-record=NAME,DOM0 --cname=ALIAS,NAME --local=/example/ --log-queries --log-dhcp \
    --log-facility=/tmp/nbd/dnsmasq.log --pid-file=/tmp/nbd/dnsmasq.pid";

/// Makes the folder of files, if there is none.
const FILES: &str = "mkdir -p files && [ -e files/root-bob ] || truncate --size=16M files/root-bob";

/// A server in dom0, with one disk or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// nbdkit with an empty disk of that many MiB in its memory, for whatever export is named.
    Memory(u32),
    /// nbdkit with a folder of files, of which each is an export: `root-bob`, of 16 MiB.
    Files,
    /// nbdkit with an empty disk of 8 MiB in its memory, at dom0's address of IPv6.
    Six,
    /// qemu-nbd with a qcow2 image of 16 MiB as the export `qcow`.
    Qcow2,
    /// qemu-nbd with the same image, as its users start it: it takes a single connection at a time.
    Single,
    /// nbd-server with the same folder of files: `root-bob`.
    NbdServer,
}

/// The library that is loaded into nbd-server, and its name in the shared folder.
const NO_DH_PARAMETERS: &str = include_str!("../../plugin/no_dh_parameters.c");
const PRELOADED: &str = "no_dh_parameters";

impl Server {
    /// Returns its port.
    pub fn port(self) -> u16 {
        match self {
            Self::Memory(_) => 10809,
            Self::Files => 10810,
            Self::Qcow2 => 10811,
            Self::Six => 10812,
            Self::NbdServer => 10813,
            Self::Single => 10814,
        }
    }

    /// Returns the target that names an export of it.
    pub fn target(self, export: &str) -> String {
        self.target_at(self.address(), export)
    }

    /// Returns the target that names an export of it, at an address or a name.
    pub fn target_at(self, host: &str, export: &str) -> String {
        match host.contains(':') {
            true => format!("nbd:[{host}]:{}/{export}", self.port()),
            false => format!("nbd:{host}:{}/{export}", self.port()),
        }
    }

    fn address(self) -> &'static str {
        match self {
            Self::Six => DOM0_6,
            Self::Memory(_) | Self::Files | Self::Qcow2 | Self::Single | Self::NbdServer => DOM0,
        }
    }

    /// Returns the name of its files.
    fn name(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Files => "files",
            Self::Qcow2 => "qcow2",
            Self::Single => "single",
            Self::Six => "six",
            Self::NbdServer => "nbd-server",
        }
    }

    /// Returns a shell command that starts it in the background, with its data from before.
    fn script(self) -> String {
        let (port, pid) = (self.port(), self.pid_file());
        match self {
            Self::Memory(mib) => {
                format!("nbdkit --ipaddr {DOM0} --port {port} --pidfile {pid} memory {mib}M")
            }
            Self::Six => {
                format!("nbdkit --ipaddr {DOM0_6} --port {port} --pidfile {pid} memory 8M")
            }
            Self::NbdServer => format!(
                "{FILES}
cat >nbd-server.conf <<END
[generic]
listenaddr = {DOM0}
port = {port}
allowlist = true
[root-bob]
exportname = /tmp/nbd/files/root-bob
flush = true
fua = true
trim = true
END
cp /lab/{PRELOADED}.so . && LD_PRELOAD=/tmp/nbd/{PRELOADED}.so nbd-server -C /tmp/nbd/nbd-server.conf -p {pid}"
            ),
            Self::Files => format!(
                "{FILES}
nbdkit --ipaddr {DOM0} --port {port} --pidfile {pid} file dir=/tmp/nbd/files"
            ),
            Self::Qcow2 | Self::Single => {
                let (file, shared) = match self {
                    Self::Single => ("single.qcow2", ""),
                    _ => ("disk.qcow2", "--shared=4"),
                };
                format!(
                    "[ -e {file} ] || qemu-img create -q -f qcow2 {file} 16M
qemu-nbd --fork --persistent {shared} --pid-file={pid} --bind={DOM0} --port={port} --export-name=qcow \
    --format=qcow2 --discard=unmap {file}"
                )
            }
        }
    }

    fn pid_file(self) -> String {
        format!("/tmp/nbd/{}.pid", self.name())
    }
}

/// Makes the network, if a host has none yet.
pub fn make(host: &Host) -> Result<()> {
    let script = MAKE.replace("BRIDGE", BRIDGE).replace("DOM0", DOM0);
    host.ok(&script.replace("SIX", DOM0_6)).map(drop)
}

/// Runs a script in `/tmp/nbd` that starts a server in the background, and waits until the server listens and has
/// written its PID file.
pub fn start_listener(
    host: &Host,
    address: &str,
    port: u16,
    pid_file: &str,
    start: &str,
) -> Result<()> {
    let listening = format!("(: </dev/tcp/{address}/{port}) 2>/dev/null && [ -s {pid_file} ]");
    let script = format!(
        "set -e; cd /tmp/nbd; rm -f {pid_file}
{start}
until {listening}; do sleep 0.1; done"
    );
    host.ok(&script).map(drop)
}

/// Starts a server on a host, and waits until it listens.
pub fn start(host: &Host, server: Server) -> Result<()> {
    if server == Server::NbdServer {
        let library = shared_object::build(PRELOADED, NO_DH_PARAMETERS)?;
        let file = host.instance().share().join(format!("{PRELOADED}.so"));
        fs::copy(library, file).context("cannot share what nbd-server loads")?;
    }
    let (address, port) = (server.address(), server.port());
    start_listener(host, address, port, &server.pid_file(), &server.script())
}

impl Testbed<'_> {
    /// Makes the network, if the host has none yet.
    pub fn network(&self) -> Result<()> {
        make(self.host)
    }

    /// Starts the server of addresses and names.
    pub fn start_dnsmasq(&self) -> Result<()> {
        let command = ADDRESSES.replace("BRIDGE", BRIDGE).replace("DOM0", DOM0);
        let command = command.replace("NAME", NAME).replace("ALIAS", ALIAS);
        self.host.ok(&command).map(drop)
    }

    /// Ends the server of addresses and names, and returns the requests that it got.
    pub fn stop_dnsmasq(&self) -> Result<String> {
        let script = "kill $(cat /tmp/nbd/dnsmasq.pid) && cat /tmp/nbd/dnsmasq.log";
        self.host.ok(script)
    }

    /// Starts a server, and waits until it listens.
    pub fn start_server(&self, server: Server) -> Result<()> {
        start(self.host, server)
    }

    /// Has a server hang: its connections stay, and it does nothing.
    pub fn stop_server(&self, server: Server) -> Result<()> {
        self.signal(server, "STOP")
    }

    /// Has a server that hangs go on.
    pub fn continue_server(&self, server: Server) -> Result<()> {
        self.signal(server, "CONT")
    }

    fn signal(&self, server: Server, signal: &str) -> Result<()> {
        let script = format!("kill -{signal} $(cat {})", server.pid_file());
        self.host.ok(&script).map(drop)
    }

    /// Kills a server, as a crash would end it, and waits until it is gone.
    pub fn kill_server(&self, server: Server) -> Result<()> {
        self.kill_listener(&server.pid_file())
    }

    /// Kills the server whose process number is in that file, and the processes that it has for its clients.
    pub fn kill_listener(&self, pid_file: &str) -> Result<()> {
        let script = format!(
            "pid=$(cat {pid_file}) && kill -KILL $pid $(cat /proc/$pid/task/$pid/children) && \
             while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
        );
        self.host.ok(&script).map(drop)
    }
}
