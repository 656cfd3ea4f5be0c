//! TLS for the store `nbds:`: its random numbers, its time, and the files that it needs.

use crate::network::TlsOrReason;
use alloc::rc::Rc;
use alloc::string::ToString;
use bulkhead_images::Catalog;
use bulkhead_kernel::command_line::value;
use bulkhead_kernel::{Hypercalls, random};
use bulkhead_tls::{Clock, FileNames, NoRandomness, Random, TlsClient};
use core::time::Duration;

/// The keys on the command line.
pub const KEYS: [&str; 3] = FileNames::KEYS;

/// The processor's random numbers.
#[derive(Debug)]
struct Processor;

impl Random for Processor {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        random::random(bytes).map_err(|_| NoRandomness)
    }
}

/// The time of day, as Xen has it from dom0.
#[derive(Debug)]
struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Option<Duration> {
        Some(Hypercalls.wall_clock())
    }
}

/// Takes the files of TLS out of the ramdisk, whatever comes of it, and returns a client that they make. The reason why
/// there is none is logged, too.
pub fn tls(line: &'static str, catalog: &mut Catalog) -> TlsOrReason {
    let names = FileNames::parse(|key| value(line, key));
    let take = |name: &str| catalog.take_file(name);
    let client = TlsClient::from_files(&names, take, &Processor, WallClock);
    let client = match (catalog.damage(), random::start_random()) {
        (Some(damage), _) => Err(alloc::format!("the ramdisk cannot be read: {damage}")),
        (None, Err(fault)) => Err(fault.to_string()),
        (None, Ok(())) => client.map_err(|error| error.to_string()),
    };
    match client {
        Ok(client) => {
            let [authorities, ..] = names.all();
            let shows = match client.has_identity() {
                true => "shows its certificate to servers that ask for one",
                false => "has no certificate of its own",
            };
            log::info!(
                "TLS: servers of the CA in {authorities} are trusted; the driver domain {shows}"
            );
            Ok(Rc::new(client))
        }
        Err(reason) => {
            log::error!("TLS: nbds: cannot be served: {reason}");
            Err(reason)
        }
    }
}
