//! The server on the network whose export the contestants serve, and the connections of each to it.

use super::DATA;
use super::contestant::{Contestant, Family};
use super::server::appeared;
use crate::host::Host;
use crate::testbed::network::{self, DOM0, Server};
use anyhow::Result;

/// The server: nbdkit in dom0, with the data in its memory.
const SERVER: Server = Server::Memory(DATA);

/// The name of the disk that the kernel's client makes of the export, in dom0 and in a Linux driver domain.
pub const CLIENT_DISK: &str = "nbd0";

/// Returns the target that Bulkhead serves.
pub fn target() -> String {
    SERVER.target("")
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
    let port = SERVER.port();
    format!(
        "nbd-client {DOM0} {port} /dev/{CLIENT_DISK} >/tmp/nbd-client.log 2>&1 || {{ cat /tmp/nbd-client.log; exit 1; }}"
    )
}

/// Makes the network, starts the server, and has dom0 connect to it for its own backends.
pub fn prepare(host: &Host) -> Result<()> {
    network::make(host)?;
    network::start(host, SERVER)?;
    let there = appeared(CLIENT_DISK, DATA);
    host.ok(&format!("modprobe nbd && {{ {}; }} && {there}", connect()))
        .map(drop)
}

/// Returns a script that has a Linux driver domain connect.
pub fn connect_linux(contestant: Contestant) -> String {
    format!(
        "ip address add {} dev eth0 && ip link set eth0 up || exit; {}",
        address(contestant),
        connect()
    )
}
