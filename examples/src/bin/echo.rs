//! Two domains in conversation: one asks, the other answers each request with its status plus one.
#![no_std]
#![no_main]

use bulkhead_examples::channel::{Answering, Asking};
use bulkhead_examples::{Failure, Role, boot, echo};
use bulkhead_kernel::{Machine, ShutdownReason, command_line};

bulkhead_kernel::entry!(main);

/// Round trips, unless `rounds=` on the command line says otherwise.
const ROUNDS: u32 = 1000;

fn main(machine: Machine) -> ShutdownReason {
    boot::run(&machine, converse)
}

async fn converse(domain: boot::Domain) -> Result<(), Failure> {
    let boot::Domain {
        handle,
        hypervisor,
        memory,
        table,
        region,
        peer,
        role,
        command_line,
    } = domain;
    match role {
        Role::Granter => {
            let rounds = command_line::value(command_line, "rounds");
            let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
            let mut asking = Asking::offer(&handle, &memory, &table, &peer, echo::NAME).await?;
            // The other domain may still be on its way: the first answer says that it is there.
            echo::ask(&mut asking, 0).await?;
            let before = hypervisor.counts();
            let status = echo::ask(&mut asking, rounds).await?;
            let made = hypervisor.counts() - before;
            log::info!(
                "conversation: {status} round trips, {} notifications, {} sleeps, {} xenstore writes",
                made.notifications,
                made.blocks,
                peer.counts().writes
            );
            let refused = asking.close().await;
            log::info!("grant ended, after {refused} refusals while it was in use");
        }
        Role::Mapper => {
            let mut answering = Answering::connect(&handle, &region, &peer, echo::NAME).await?;
            echo::answer(&mut answering).await?;
            let before = hypervisor.counts();
            let answered = echo::answer(&mut answering).await?;
            let made = hypervisor.counts() - before;
            log::info!(
                "conversation: {answered} answers, {} notifications, {} sleeps, {} xenstore writes",
                made.notifications,
                made.blocks,
                peer.counts().writes
            );
        }
    }
    Ok(())
}
