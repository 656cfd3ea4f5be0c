//! Page flips: a frame changes its owner, with its content, and comes back.

use crate::channel::{Answering, Asking};
use crate::message::Message;
use crate::{Failure, pages};
use alloc::format;
use bulkhead_grant::{AcceptedTransfer, GrantTable, TransferEnd};
use bulkhead_xen::{
    DomId, Errno, FrameTransfer, GrantRef, GrantStatus, Hypervisor, TransferRequest,
};
use core::fmt;
use core::ptr::NonNull;

/// The directory in which the ring is named.
pub const NAME: &str = "flip";

/// The statuses of a request: the answering domain's frame has arrived; there was none yet; or all is over.
const ARRIVED: i32 = 1;
const FIRST: i32 = 0;
const LAST: i32 = -1;

/// The statuses of a response.
const GIVEN: i32 = 0;
const REFUSED: i32 = 1;

/// The outcome of the flips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flipped {
    /// Xen refused nothing to this domain.
    All {
        /// Frames that this domain accepted, each with the content that it was to have.
        came: u32,
        /// Frames that it gave away.
        went: u32,
    },
    /// Xen refused to give a frame of this domain away.
    Refused(Refusal),
    /// Xen refused it to the other domain.
    RefusedThere,
}

/// The reason why a frame could not be given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Xen does not support that for this domain. The page is there, with its content.
    Hypercall(Errno),
    /// The page is there, with its content, or it is gone.
    Frame {
        /// The status that Xen returned.
        status: GrantStatus,
        /// True if the page is there.
        kept: bool,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Hypercall(error) => write!(f, "{error}, the page was kept"),
            Refusal::Frame { status, kept: true } => write!(f, "{status}, the page was kept"),
            Refusal::Frame { status, .. } => write!(f, "{status}, the page is gone"),
        }
    }
}

/// A page of this domain that gives its frame away and gets another one.
struct Page<'d, M, H: Hypervisor> {
    memory: &'d M,
    table: &'d GrantTable<H>,
    other: DomId,
    page: NonNull<u8>,
}

impl<'d, M: FrameTransfer, H: Hypervisor> Page<'d, M, H> {
    /// Takes a page, with its frame.
    fn new(memory: &'d M, table: &'d GrantTable<H>, other: DomId) -> Result<Self, Failure> {
        let page = pages::allocate(memory, 1)?;
        Ok(Page {
            memory,
            table,
            other,
            page,
        })
    }

    /// Gives the frame back to Xen: one that comes needs the room.
    fn empty(&self) -> Result<(), Failure> {
        // SAFETY: this value's own page, which is not granted and not used until a frame comes.
        match unsafe { self.memory.release(self.page, 1) } {
            1 => Ok(()),
            _ => Err(Failure("a page cannot be released".into())),
        }
    }

    /// Accepts a frame.
    fn accept(&self) -> Result<AcceptedTransfer<H>, Failure> {
        let place = self.memory.page_frame(self.page);
        let place = place.ok_or_else(|| Failure("no page of this domain".into()))?;
        // SAFETY: there is nothing behind the page, and nothing comes but the frame.
        let accepted = unsafe { self.table.accept_transfer(self.other, place) };
        accepted.map_err(|error| Failure::of("accepting a frame", error))
    }

    /// Takes the frame that has arrived, and checks its content.
    fn take(&self, accepted: AcceptedTransfer<H>, content: u64) -> Result<(), Failure> {
        let TransferEnd::Transferred(_, frame) = accepted.end() else {
            return Err(Failure("no frame came".into()));
        };
        // SAFETY: the frame was transferred for this page, which is mapped from then on.
        let whole = unsafe {
            self.memory.adopt_frame(self.page, frame);
            pages::is_filled(self.page, content)
        };
        match whole {
            true => Ok(()),
            false => Err(Failure(format!("the frame does not hold {content}"))),
        }
    }

    /// Fills the frame and gives it away.
    fn give(&self, gref: GrantRef, content: u64) -> Result<Result<(), Refusal>, Failure> {
        let mut batch = [TransferRequest::new(self.page, self.other, gref)];
        // SAFETY: this value's own page, which is not granted; it is looked at again only if it was kept.
        let given = unsafe {
            pages::fill(self.page, content);
            self.memory.give_frames(&mut batch)
        };
        let TransferRequest { status, kept, .. } = batch[0];
        let refusal = match given {
            Ok(()) if status.is_okay() => return Ok(Ok(())),
            Ok(()) => Refusal::Frame { status, kept },
            Err(error) => Refusal::Hypercall(error),
        };
        // SAFETY: it was kept.
        if kept && !unsafe { pages::is_filled(self.page, content) } {
            return Err(Failure("a page that was kept has another content".into()));
        }
        Ok(Err(refusal))
    }
}

/// Returns the content of the frame on its way to the asking domain, and on its way back, in a round.
fn content(round: u32) -> (u64, u64) {
    (2 * u64::from(round) + 1, 2 * u64::from(round) + 2)
}

/// Accepts a frame of the other domain and gives it back, `rounds` times.
pub async fn ask<H: Hypervisor>(
    asking: &mut Asking<H>,
    memory: &impl FrameTransfer,
    table: &GrantTable<H>,
    other: DomId,
    rounds: u32,
) -> Result<Flipped, Failure> {
    let page = Page::new(memory, table, other)?;
    page.empty()?;
    let mut status = FIRST;
    let mut outcome = Flipped::All {
        came: rounds,
        went: rounds,
    };
    for round in 0..rounds {
        let accepted = page.accept()?;
        let subject = accepted.gref().0;
        let answer = asking.ask(Message { subject, status }).await?;
        if answer.status == REFUSED {
            outcome = Flipped::RefusedThere;
            break;
        }
        let (there, back) = content(round);
        page.take(accepted, there)?;
        if let Err(refusal) = page.give(GrantRef(answer.subject), back)? {
            outcome = Flipped::Refused(refusal);
            break;
        }
        status = ARRIVED;
    }
    let all = matches!(outcome, Flipped::All { .. });
    let last = Message {
        subject: u32::from(all),
        status: LAST,
    };
    asking.ask(last).await?;
    Ok(outcome)
}

/// Gives a frame to the other domain and accepts it back, until that domain reports that it is done.
pub async fn answer<H: Hypervisor>(
    answering: &mut Answering<H>,
    memory: &impl FrameTransfer,
    table: &GrantTable<H>,
    other: DomId,
) -> Result<Flipped, Failure> {
    let page = Page::new(memory, table, other)?;
    let mut coming: Option<AcceptedTransfer<H>> = None;
    let (mut round, mut went) = (0, 0);
    let mut outcome = None;
    loop {
        let request = answering.next().await?;
        let last = request.status == LAST;
        let arrived = request.status == ARRIVED || (last && request.subject == 1);
        if let Some(accepted) = coming.take().filter(|_| arrived) {
            page.take(accepted, content(round).1)?;
            round += 1;
        }
        if last {
            answering.answer(request)?;
            return Ok(outcome.unwrap_or(Flipped::All { came: round, went }));
        }
        let given = page.give(GrantRef(request.subject), content(round).0)?;
        let answer = match given {
            Ok(()) => {
                went += 1;
                let accepted = coming.insert(page.accept()?);
                Message {
                    subject: accepted.gref().0,
                    status: GIVEN,
                }
            }
            Err(refusal) => {
                outcome = Some(Flipped::Refused(refusal));
                Message {
                    subject: 0,
                    status: REFUSED,
                }
            }
        };
        answering.answer(answer)?;
    }
}
