//! The server on the network whose export the contestants serve, and the connections of each to it.

use super::contestant::{Contestant, Family};
use super::server::appeared;
use super::{DATA, Plan};
use crate::config::{Config, Kind};
use crate::host::Host;
use crate::host::guest::Guest;
use crate::image::nbd_server_domain::MEMORY_PLUGIN;
use crate::testbed::network::{self, BRIDGE};
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use std::time::Duration;

/// The domain in which the server runs: nbdkit, with the data in its memory, the same one for all contestants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerDomain {
    /// dom0. Its own backends reach the server without leaving it.
    #[default]
    Dom0,
    /// A Linux domain that does nothing else, with a processor of its own, on the same bridge: all contestants have dom0
    /// between themselves and the server, as with a server on another machine.
    Domain,
}

impl ServerDomain {
    /// Returns the number of processors that the emulated host has to have.
    pub fn processors(self) -> u32 {
        match self {
            Self::Dom0 => 3,
            Self::Domain => 4,
        }
    }
}

/// The server's address, whatever domain has it, and its port.
const ADDRESS: &str = "10.0.0.3";
const PORT: u16 = 10809;

/// The name of the server's own domain, its memory in MiB, and the host's processor for it alone.
const NAME: &str = "nbd-server";
const MEMORY: u32 = 256;
const PROCESSOR: &str = "3";

/// Its ramdisk, in the folder that dom0 sees as `/lab`.
pub const RAMDISK: &str = "nbd-server-initramfs";

/// Time limit for the server's domain to begin to listen.
const START: Duration = Duration::from_secs(60);

/// The file with the server's process number.
const PID_FILE: &str = "/tmp/nbd/server.pid";

/// The name of the disk that the kernel's client makes of the export, in dom0 and in a Linux driver domain.
pub const CLIENT_DISK: &str = "nbd0";

/// Returns the target that Bulkhead serves.
pub fn target() -> String {
    format!("nbd:{ADDRESS}:{PORT}/")
}

/// Returns the address of a driver domain, with its network.
pub fn address(contestant: Contestant) -> String {
    let host = match contestant {
        Contestant::Linux(Family::Pvh) => 12,
        Contestant::Linux(Family::Pv) => 13,
        Contestant::Bulkhead(Family::Pv) => 11,
        _ => 10,
    };
    format!("10.0.0.{host}/24")
}

/// Returns a script that has the kernel's client connect, as an operator would.
fn connect() -> String {
    format!(
        "nbd-client {ADDRESS} {PORT} /dev/{CLIENT_DISK} >/tmp/nbd-client.log 2>&1 || {{ cat /tmp/nbd-client.log; exit 1; }}"
    )
}

/// Makes the network, starts the server, and has dom0 connect to it for its own backends. Returns the server's domain, if
/// it has one of its own.
pub fn prepare<'h>(host: &'h Host, plan: &Plan) -> Result<Option<Guest<'h>>> {
    network::make(host)?;
    let domain = match plan.server {
        ServerDomain::Dom0 => {
            let address = format!("ip address add {ADDRESS}/24 dev {BRIDGE}");
            let start = format!("{address}\n{}", serve("memory"));
            network::start_listener(host, ADDRESS, PORT, PID_FILE, &start)?;
            None
        }
        ServerDomain::Domain => Some(boot(host)?),
    };
    let there = appeared(CLIENT_DISK, DATA);
    host.ok(&format!("modprobe nbd && {{ {}; }} && {there}", connect()))?;
    Ok(domain)
}

/// Returns a command that starts the server in the background; it listens when the command ends.
fn serve(plugin: &str) -> String {
    format!("nbdkit --ipaddr {ADDRESS} --port {PORT} --pidfile {PID_FILE} {plugin} {DATA}M")
}

/// Boots the server's domain, and waits until dom0 reaches the server.
fn boot(host: &Host) -> Result<Guest<'_>> {
    let mut config = Config::new(NAME, Kind::Pvh, "/guest/vmlinux");
    config.ramdisk = Some(format!("/lab/{RAMDISK}"));
    config.memory = MEMORY;
    config.cmdline = format!(
        "console=hvc0 quiet pci=off cryptomgr.notests tsc_early_khz={}",
        host.tsc_khz()?
    );
    config.cpus = PROCESSOR;
    config.vifs.push(format!("bridge={BRIDGE}"));
    let domain = Guest::wait(host.create(&config)?)?;
    let network = format!("ip address add {ADDRESS}/24 dev eth0 && ip link set eth0 up");
    let start = format!("mkdir -p /tmp/nbd && {network} && {}", serve(MEMORY_PLUGIN));
    domain.ok(&start, START)?;
    let answers = format!("(: </dev/tcp/{ADDRESS}/{PORT}) 2>/dev/null");
    host.ok(&format!("until {answers}; do sleep 0.1; done"))?;
    Ok(domain)
}

/// Returns a script that has a Linux driver domain connect.
pub fn connect_linux(contestant: Contestant) -> String {
    format!(
        "ip address add {} dev eth0 && ip link set eth0 up || exit; {}",
        address(contestant),
        connect()
    )
}
