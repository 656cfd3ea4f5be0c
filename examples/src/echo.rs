//! The classic echo between two domains: each request is answered with its status plus one.

use crate::Failure;
use crate::channel::{Answering, Asking};
use crate::message::Message;
use alloc::format;
use bulkhead_xen::Hypervisor;

/// The directory in which the ring is named.
pub const NAME: &str = "echo";

/// The subject of the last request.
const LAST: u32 = u32::MAX;

/// Asks `rounds` times, each time with the last answer's status, and tells the other domain when it is done. Returns
/// the last status.
pub async fn ask<H: Hypervisor>(asking: &mut Asking<H>, rounds: u32) -> Result<i32, Failure> {
    let mut status = 0;
    for subject in (0..rounds).chain([LAST]) {
        let answer = asking.ask(Message { subject, status }).await?;
        let expected = Message {
            subject,
            status: status + 1,
        };
        if answer != expected {
            return Err(Failure(format!("{answer:?} instead of {expected:?}")));
        }
        status = answer.status;
    }
    Ok(status)
}

/// Answers until the other domain reports that it is done. Returns the number of requests that were answered.
pub async fn answer<H: Hypervisor>(answering: &mut Answering<H>) -> Result<u32, Failure> {
    let mut answered = 0;
    loop {
        let Message { subject, status } = answering.next().await?;
        answering.answer(Message {
            subject,
            status: status.wrapping_add(1),
        })?;
        answered += 1;
        if subject == LAST {
            return Ok(answered);
        }
    }
}
