//! Requests of an operator to the running domain, by nodes that only the toolstack and the domain
//! may write, and by keys on its console:
//!
//! ```text
//!   xenstore-write /local/domain/<storage>/data/grow "NAME 128M"
//!   xenstore-read  /local/domain/<storage>/data/grow-answer
//!
//!   xenstore-write /local/domain/<storage>/data/rescan vbd:xvda
//!   xenstore-read -R /local/domain/<storage>/data/rescan-answer
//!
//!   xenstore-write /local/domain/<storage>/data/show all
//!   xenstore-read -R /local/domain/<storage>/data/show-answer
//!
//!   xenstore-write /local/domain/<storage>/backend/vbd/<guest>/<device>/statistics refresh
//!   xenstore-read  /local/domain/<storage>/backend/vbd/<guest>/<device>/statistics
//!
//!   xl console <storage>, then h
//! ```

use crate::services::Services;
use crate::statistics::as_line;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_executor::EventChannel;
use bulkhead_images::GrowRequest;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::retry::{persist, persist_write};
use bulkhead_xenbus::{CommandNode, excerpt};
use bulkhead_xenstore_client::Error;
use core::convert::Infallible;
use core::future::ready;
use core::pin::Pin;

/// The request that shows everything; any other shows the lines that contain it.
const ALL: &str = "all";

/// The most bytes of an answer: with them, the node stays within xenstored's default limit.
const LONGEST_ANSWER: usize = 1900;

/// The last line of an answer that does not fit.
const MORE: &str = "the log has more";

/// The kinds of requests, each with a node of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorCommand {
    /// Makes an image larger.
    Grow,
    /// Reads the tables of a disk again.
    Rescan,
    /// Shows the free memory, the images and own disks, and who uses what of them.
    Show,
}

/// The future that carries out a request. Returns the answer, or the reason why the request was not carried out.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<String, String>> + 'a>>;

impl OperatorCommand {
    /// All kinds of requests.
    pub const ALL: [OperatorCommand; 3] = [
        OperatorCommand::Grow,
        OperatorCommand::Rescan,
        OperatorCommand::Show,
    ];

    /// Returns the node for requests, and the one for the answer.
    fn nodes(self) -> (&'static str, &'static str) {
        match self {
            OperatorCommand::Grow => ("data/grow", "data/grow-answer"),
            OperatorCommand::Rescan => ("data/rescan", "data/rescan-answer"),
            OperatorCommand::Show => ("data/show", "data/show-answer"),
        }
    }

    fn carry_out<'a, H: Hypervisor>(
        self,
        services: &'a Services<H>,
        request: &'a str,
    ) -> Answer<'a> {
        match self {
            OperatorCommand::Grow => Box::pin(grow(services, request)),
            OperatorCommand::Rescan => Box::pin(async {
                let told = services.stores.rescan(request).await?;
                Ok(told.join("\n"))
            }),
            OperatorCommand::Show => Box::pin(ready(show(services, request))),
        }
    }
}

/// Answers the requests of one kind. Returns only if xenstore cannot be used any more.
pub async fn answer_requests<H: Hypervisor>(
    services: &Services<H>,
    command: OperatorCommand,
) -> Result<Infallible, Error> {
    let (node, _) = command.nodes();
    persist(&services.handle, node, async || {
        answer_each(services, command).await
    })
    .await
}

async fn answer_each<H: Hypervisor>(
    services: &Services<H>,
    command: OperatorCommand,
) -> Result<Infallible, Error> {
    let (store, (node, answer_node)) = (&services.store, command.nodes());
    let mut requests = CommandNode::watch(store, node).await?;
    loop {
        let request = requests.next().await?;
        let mut answer = match command.carry_out(services, &request).await {
            Ok(done) => {
                done.lines().for_each(|line| log::info!("{line}"));
                done
            }
            Err(refused) => {
                log::error!("{node}: {refused}");
                refused
            }
        };
        shorten(&mut answer);
        persist_write(&services.handle, store, answer_node, &answer).await?;
    }
}

fn show<H: Hypervisor>(services: &Services<H>, request: &str) -> Result<String, String> {
    // A search of the library's would be larger than all of this.
    let has = |line: &str| {
        let mut places = line.as_bytes().windows(request.len().max(1));
        places.any(|place| place == request.as_bytes())
    };
    let mut lines = lines(services);
    lines.retain(|line| request == ALL || has(line));
    match lines.is_empty() {
        true => Err(format!(
            "nothing is called {}; {ALL} shows everything",
            excerpt(request)
        )),
        false => Ok(lines.join("\n")),
    }
}

/// Returns a line about the domain's memory, and those of all stores.
fn lines<H: Hypervisor>(services: &Services<H>) -> Vec<String> {
    let free = services.admission.free_memory();
    let memory = free.map(|bytes| format!("memory, {bytes} bytes are free beside the reserve"));
    memory.into_iter().chain(services.stores.lines()).collect()
}

/// Cuts an answer so that its node has room for it, after a whole line where there are several.
fn shorten(answer: &mut String) {
    if answer.len() <= LONGEST_ANSWER {
        return;
    }
    let mut end = LONGEST_ANSWER - MORE.len();
    while !answer.is_char_boundary(end) {
        end -= 1;
    }
    let newline = answer.as_bytes()[..end]
        .iter()
        .rposition(|&byte| byte == b'\n');
    answer.truncate(newline.map_or(end, |newline| newline + 1));
    answer.push_str(MORE);
}

async fn grow<H: Hypervisor>(services: &Services<H>, request: &str) -> Result<String, String> {
    let request: GrowRequest = request.parse().map_err(|error| format!("{error}"))?;
    let GrowRequest { name, size } = &request;
    let mut resize = services
        .catalog()
        .grow(name, *size)
        .map_err(|error| format!("{error}"))?;
    let old = loop {
        if let Some(old) = resize.step() {
            break old;
        }
        // The disks have their requests meanwhile.
        services.handle.yield_now().await;
    };
    Ok(format!("image ram:{name} grew from {old} to {size} bytes"))
}

/// Serves the keys typed on the console, which `channel` announces and `read` takes.
pub async fn answer_keys<H: Hypervisor>(
    services: &Services<H>,
    channel: EventChannel<H>,
    read: impl Fn() -> Option<u8>,
) {
    loop {
        channel.notified().await;
        while let Some(key) = read() {
            answer_key(services, key);
        }
    }
}

fn answer_key<H: Hypervisor>(services: &Services<H>, key: u8) {
    match key {
        b's' => {
            let disks = services.statistics.disks();
            log::info!("{} connected disk(s)", disks.len());
            for id in disks {
                if let Some(counts) = services.statistics.of(id) {
                    log::info!("vbd {id}:{}", as_line(&counts));
                }
                let queues = services.statistics.queues_of(id);
                for (number, (vcpu, counts)) in queues.iter().enumerate() {
                    let (reads, writes) = (counts.reads, counts.writes);
                    log::info!(
                        "vbd {id} queue {number}: on vCPU {vcpu} reads={reads} writes={writes}"
                    );
                }
            }
        }
        b'i' => {
            for line in lines(services) {
                log::info!("{line}");
            }
        }
        b'h' | b'?' => {
            log::info!(
                "keys: s statistics of the connected disks, i images, own disks and who uses them, h this help"
            );
        }
        // Enter and the like.
        _ if key.is_ascii_control() => {}
        _ => log::info!("no such key; h tells which there are"),
    }
}
