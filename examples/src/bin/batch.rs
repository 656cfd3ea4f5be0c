//! Hands batches of granted pages over, by an index and by xenstore nodes, and logs the cost on each side.
#![no_std]
#![no_main]

use bulkhead_examples::batch::{Granter, Handed, Mapper, all};
use bulkhead_examples::{Failure, Role, boot};
use bulkhead_kernel::{Machine, ShutdownReason};

bulkhead_kernel::entry!(main);

fn main(machine: Machine) -> ShutdownReason {
    boot::run(&machine, hand_over)
}

async fn hand_over(domain: boot::Domain) -> Result<(), Failure> {
    let boot::Domain {
        hypervisor,
        memory,
        table,
        region,
        peer,
        role,
        ..
    } = domain;
    match role {
        Role::Granter => {
            let mut granter = Granter::new(&hypervisor, &table, &peer, &memory).await?;
            for (method, count) in all() {
                match granter.hand_over(method, count).await? {
                    Handed::Over(work) => log::info!("{method:?} {count}: granted, {work}"),
                    Handed::Refused { nodes, reason } => {
                        log::info!("{method:?} {count}: refused after {nodes} nodes, {reason}");
                    }
                }
            }
            granter.finish().await?;
        }
        Role::Mapper => {
            let mut mapper = Mapper::new(&hypervisor, &region, &peer, &memory).await?;
            while let Some((method, count, work)) = mapper.take().await? {
                log::info!("{method:?} {count}: mapped, {work}");
            }
        }
    }
    log::info!("all batches are done");
    Ok(())
}
