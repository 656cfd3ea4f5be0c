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
//!   xenstore-write /local/domain/<storage>/backend/vbd/<guest>/<device>/statistics refresh
//!   xenstore-read  /local/domain/<storage>/backend/vbd/<guest>/<device>/statistics
//!
//!   xl console <storage>, then h
//! ```

use crate::services::Services;
use crate::statistics::as_line;
use alloc::format;
use alloc::string::String;
use bulkhead_executor::EventChannel;
use bulkhead_images::GrowRequest;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::CommandNode;
use bulkhead_xenbus::retry::persist;
use bulkhead_xenstore_client::Error;
use core::convert::Infallible;

const GROW: &str = "data/grow";
const GROW_ANSWER: &str = "data/grow-answer";
const RESCAN: &str = "data/rescan";
const RESCAN_ANSWER: &str = "data/rescan-answer";

/// What fits into a node by xenstored's default limit; the log has all of it.
const LONGEST_ANSWER: usize = 1900;

/// Grows images on request. Returns only if xenstore cannot be used any more.
pub async fn grow_on_request<H: Hypervisor>(services: &Services<H>) -> Result<Infallible, Error> {
    persist(&services.handle, GROW, async || {
        grow_on_each(services).await
    })
    .await
}

async fn grow_on_each<H: Hypervisor>(services: &Services<H>) -> Result<Infallible, Error> {
    answer_each(services, (GROW, GROW_ANSWER), async |request| {
        grow(services, request).await
    })
    .await
}

/// Reads the tables of disks again on request. Returns only if xenstore cannot be used any more.
pub async fn rescan_on_request<H: Hypervisor>(services: &Services<H>) -> Result<Infallible, Error> {
    persist(&services.handle, RESCAN, async || {
        answer_each(services, (RESCAN, RESCAN_ANSWER), async |request| {
            let told = services.stores.rescan(request).await?;
            Ok(told.join("\n"))
        })
        .await
    })
    .await
}

/// Answers each request that is written to a node in another one.
async fn answer_each<H: Hypervisor>(
    services: &Services<H>,
    (node, answer_node): (&str, &str),
    carry_out: impl AsyncFn(&str) -> Result<String, String>,
) -> Result<Infallible, Error> {
    let store = &services.store;
    let mut requests = CommandNode::watch(store, node).await?;
    loop {
        let request = requests.next().await?;
        let mut answer = match carry_out(&request).await {
            Ok(done) => {
                done.lines().for_each(|line| log::info!("{line}"));
                done
            }
            Err(refused) => {
                log::error!("{node}: {refused}");
                refused
            }
        };
        if answer.len() > LONGEST_ANSWER {
            let mut end = LONGEST_ANSWER;
            while !answer.is_char_boundary(end) {
                end -= 1;
            }
            answer.truncate(end);
        }
        persist(&services.handle, answer_node, async || {
            store.write(answer_node, &answer).await
        })
        .await?;
    }
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
            for line in services.stores.lines() {
                log::info!("{line}");
            }
        }
        b'h' | b'?' => {
            log::info!(
                "keys: s statistics of the connected disks, i images and own disks, h this help"
            );
        }
        // Enter and the like.
        _ if key.is_ascii_control() => {}
        _ => log::info!("no such key; h tells which there are"),
    }
}
