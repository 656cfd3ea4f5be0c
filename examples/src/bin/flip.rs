//! Flips pages between two domains: a frame goes over with its content, and comes back.
#![no_std]
#![no_main]

use bulkhead_examples::channel::{Answering, Asking};
use bulkhead_examples::flip::Flipped;
use bulkhead_examples::{Failure, Role, boot, flip};
use bulkhead_kernel::{Machine, ShutdownReason, memory};

bulkhead_kernel::entry!(main);

/// The number of flips to and fro.
const ROUNDS: u32 = 100;

fn main(machine: Machine) -> ShutdownReason {
    boot::run(&machine, flip)
}

async fn flip(domain: boot::Domain) -> Result<(), Failure> {
    let boot::Domain {
        handle,
        memory,
        table,
        region,
        peer,
        role,
        ..
    } = domain;
    let outcome = match role {
        Role::Granter => {
            let mut asking = Asking::offer(&handle, &memory, &table, &peer, flip::NAME).await?;
            let flipped = flip::ask(&mut asking, &memory, &table, peer.domain(), ROUNDS).await?;
            asking.close().await;
            flipped
        }
        Role::Mapper => {
            let mut answering = Answering::connect(&handle, &region, &peer, flip::NAME).await?;
            flip::answer(&mut answering, &memory, &table, peer.domain()).await?
        }
    };
    match outcome {
        Flipped::All { came, went } => {
            log::info!("flips: {came} frames came with their content, {went} went")
        }
        Flipped::Refused(refusal) => log::info!("flips: giving was refused: {refusal}"),
        Flipped::RefusedThere => log::info!("flips: giving was refused to the other domain"),
    }
    log::info!("{:?}", memory::statistics());
    Ok(())
}
