//! A request that was asked and waits for its answer.

use crate::error::{Error, Excerpt, Fault};
use crate::shared::{Answer, Handle, Progress};
use crate::wire::{self, MessageType, Request, RequestId, TransactionId};
use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// A future of the answer's payload. If it is dropped early, the answer is thrown away when it comes.
pub(crate) struct Pending {
    shared: Handle,
    /// `None` once the answer has been taken.
    id: Option<RequestId>,
    request: MessageType,
    subject: String,
}

impl Pending {
    /// Queues a request.
    pub fn ask(
        shared: &Handle,
        request: Request<'_>,
        transaction: TransactionId,
    ) -> Result<Pending, Error> {
        let id = shared.borrow_mut().ask(&request, transaction)?;
        Ok(Pending {
            shared: shared.clone(),
            id: Some(id),
            request: request.message_type(),
            subject: request.subject().into(),
        })
    }

    fn malformed(&self, payload: &[u8]) -> Error {
        Fault::Malformed {
            request: self.request,
            subject: self.subject.clone(),
            answer: Excerpt::of(payload),
        }
        .into()
    }

    /// Waits for the answer, and reads it.
    pub async fn parsed<T>(self, parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, Error> {
        let mut pending = self;
        let payload = (&mut pending).await?;
        parse(&payload).ok_or_else(|| pending.malformed(&payload))
    }
}

impl Future for Pending {
    type Output = Result<Vec<u8>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id.expect("not polled again after the answer");
        let shared = self.shared.clone();
        let mut shared = shared.borrow_mut();
        let broken = shared.broken.clone();
        let asked = shared
            .requests
            .get_mut(&id)
            .expect("a request stays until its answer is taken");
        if let Progress::Asked(waiter) = &mut asked.progress {
            let Some(breakdown) = broken else {
                *waiter = Some(context.waker().clone());
                return Poll::Pending;
            };
            shared.requests.remove(&id);
            self.id = None;
            return Poll::Ready(Err(Fault::Disconnected(breakdown).into()));
        }
        let asked = shared.requests.remove(&id).expect("it was just found");
        self.id = None;
        let Progress::Answered { answer, payload } = asked.progress else {
            unreachable!("only dropping this abandons the request");
        };
        let refusal = match answer {
            Answer::Given => return Poll::Ready(Ok(payload)),
            Answer::Refused => wire::parse_refusal(&payload),
            Answer::Wrong => None,
        };
        Poll::Ready(Err(match refusal {
            Some(refusal) => Fault::Refused {
                request: self.request,
                subject: self.subject.clone(),
                refusal,
            }
            .into(),
            None => self.malformed(&payload),
        }))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.borrow_mut().abandon(id);
        }
    }
}
