//! The state that a client's handles and its connection share: requests that wait, and watches.

use crate::error::{ConnectionFault, Error, Fault, Unexpected};
use crate::path::Path;
use crate::wire::{self, Event, Message, MessageType, Request, RequestId, Token, TransactionId};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::Waker;
use litemap::LiteMap;

pub(crate) type Handle = Rc<RefCell<Shared>>;

/// The most transactions that are open at a time; more wait their turn. xenstored lets an
/// unprivileged domain have 10.
const OPEN_TRANSACTIONS: usize = 8;

/// The most bytes that the events take that wait for the owner of a watch. More are folded into one that says no
/// more than that something has changed: other domains decide how many there are, and how long their paths.
const WAITING_BYTES: usize = 8 << 10;

/// The bytes of a node's value that [`Request::ReadStart`] keeps, at most. What a frontend or a backend publishes is
/// a number, a word or a path of few of them; the owner of the node decides how long it is, up to 4 KiB.
pub(crate) const START: usize = 64;

/// The most unexpected messages that are logged; their sender may send them without end.
const MOST_LINES: u32 = 10;

/// The kind of answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The result that was asked for.
    Given,
    /// A refusal.
    Refused,
    /// A message that answers something else.
    Wrong,
}

/// The progress of a request.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Sent or waiting to be sent.
    Asked(Option<Waker>),
    /// Answered, and not yet taken by its asker.
    Answered { answer: Answer, payload: Vec<u8> },
    /// The asker has dropped the request.
    Abandoned,
}

#[derive(Debug)]
pub(crate) struct Asked {
    message_type: MessageType,
    transaction: TransactionId,
    /// The bytes of the answer's payload that are kept, at most.
    kept: usize,
    pub progress: Progress,
}

#[derive(Debug)]
pub(crate) struct Watching {
    path: Path,
    pub events: VecDeque<Path>,
    pub waiter: Option<Waker>,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Bytes that wait for room in the ring.
    pub outgoing: VecDeque<u8>,
    pub requests: LiteMap<RequestId, Asked>,
    pub watches: LiteMap<Token, Watching>,
    /// The reason why there will be no more answers.
    pub broken: Option<ConnectionFault>,
    /// Set when there is something new in `outgoing`.
    pub kicked: bool,
    /// The connection's task.
    pub driver: Option<Waker>,
    last_request: u32,
    last_token: u32,
    open_transactions: usize,
    transaction_waiters: Vec<Waker>,
    /// The number of unexpected messages.
    unexpected: u32,
}

impl Shared {
    /// Queues a request.
    pub fn ask(
        &mut self,
        request: &Request<'_>,
        transaction: TransactionId,
    ) -> Result<RequestId, Error> {
        if let Some(breakdown) = &self.broken {
            return Err(Fault::Disconnected(breakdown.clone()).into());
        }
        let id = self.free_request_id();
        let bytes = request
            .emit(id, transaction)
            .map_err(|length| Fault::TooLong {
                request: request.message_type(),
                subject: request.subject().into(),
                length,
            })?;
        self.outgoing.extend(bytes);
        self.requests.insert(
            id,
            Asked {
                message_type: request.message_type(),
                transaction,
                kept: match request {
                    Request::ReadStart(_) => START,
                    _ => usize::MAX,
                },
                progress: Progress::Asked(None),
            },
        );
        self.kick();
        Ok(id)
    }

    /// Queues a request whose answer is thrown away.
    pub fn tell(&mut self, request: &Request<'_>, transaction: TransactionId) {
        // It fails only if the connection is broken, and then nothing has to be sent.
        if let Ok(id) = self.ask(request, transaction) {
            self.abandon(id);
        }
    }

    /// Numbers the next request by `start` and one.
    pub fn number_from(&mut self, start: u32) {
        self.last_request = start;
    }

    fn free_request_id(&mut self) -> RequestId {
        loop {
            self.last_request = self.last_request.wrapping_add(1);
            let id = RequestId(self.last_request);
            // Zero is what events carry.
            if id != RequestId(0) && !self.requests.contains_key(&id) {
                return id;
            }
        }
    }

    fn kick(&mut self) {
        self.kicked = true;
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Notes that the caller has dropped the request. A watch or transaction that the request creates is
    /// undone.
    pub fn abandon(&mut self, id: RequestId) {
        let Some(asked) = self.requests.get_mut(&id) else {
            return;
        };
        match core::mem::replace(&mut asked.progress, Progress::Abandoned) {
            // The reply will still come, and must find its request.
            Progress::Asked(_) | Progress::Abandoned => {}
            Progress::Answered { answer, payload } => {
                let asked = self.requests.remove(&id).expect("it was just found");
                self.undo(asked.message_type, answer, &payload);
            }
        }
    }

    /// Ends a transaction whose opener is gone.
    fn undo(&mut self, message_type: MessageType, answer: Answer, payload: &[u8]) {
        if message_type == MessageType::TRANSACTION_START
            && answer == Answer::Given
            && let Some(id) = wire::parse_transaction(payload)
        {
            self.tell(&Request::TransactionEnd(false), id);
        }
    }

    /// Hands a message to the request or the watch that it is for. An unexpected one is logged, and affects
    /// only the request that it names.
    pub fn deliver(&mut self, message: Message<'_>) {
        let header = message.header;
        if header.message_type == MessageType::WATCH_EVENT {
            return self.deliver_event(message);
        }
        if header.message_type.name().is_none() {
            return self.log_unexpected(Unexpected::Kind(message.excerpt()));
        }
        let waits = |asked: &&mut Asked| !matches!(asked.progress, Progress::Answered { .. });
        let Some(asked) = self.requests.get_mut(&header.request).filter(waits) else {
            return self.log_unexpected(Unexpected::Reply(message.excerpt()));
        };
        let answer = if header.transaction != asked.transaction {
            Answer::Wrong
        } else if header.message_type == MessageType::ERROR {
            Answer::Refused
        } else if header.message_type == asked.message_type {
            Answer::Given
        } else {
            Answer::Wrong
        };
        let answered = Progress::Answered {
            answer,
            payload: start_of(message.payload, asked.kept).into(),
        };
        match core::mem::replace(&mut asked.progress, answered) {
            Progress::Asked(waiter) => {
                if let Some(waiter) = waiter {
                    waiter.wake();
                }
            }
            Progress::Abandoned | Progress::Answered { .. } => self.abandon(header.request),
        }
        if answer == Answer::Wrong {
            self.log_unexpected(Unexpected::Reply(message.excerpt()));
        }
    }

    fn deliver_event(&mut self, message: Message<'_>) {
        let Some(event) = Event::parse(message.payload) else {
            self.log_unexpected(Unexpected::Event(message.excerpt()));
            // Something has changed, and it is not known what: each watch has an event.
            for (_, watching) in self.watches.iter_mut() {
                watching.push(watching.path.clone());
            }
            return;
        };
        // An event for a watch that was removed meanwhile is dropped.
        if let Some(token) = event.token
            && let Some(watching) = self.watches.get_mut(&token)
        {
            watching.push(event.path);
        }
    }

    fn log_unexpected(&mut self, unexpected: Unexpected) {
        self.unexpected = self.unexpected.saturating_add(1);
        if self.unexpected <= MOST_LINES {
            log::warn!("xenstore: {unexpected}; skipped");
        }
        if self.unexpected == MOST_LINES {
            log::warn!("xenstore: further messages of this kind are not logged");
        }
    }

    /// Marks the connection as broken and wakes all tasks that wait.
    pub fn fail(&mut self, breakdown: ConnectionFault) {
        self.broken.get_or_insert(breakdown);
        for (_, asked) in self.requests.iter_mut() {
            if let Progress::Asked(waiter) = &mut asked.progress
                && let Some(waiter) = waiter.take()
            {
                waiter.wake();
            }
        }
        for (_, watching) in self.watches.iter_mut() {
            if let Some(waiter) = watching.waiter.take() {
                waiter.wake();
            }
        }
        self.wake_transaction_waiters();
    }

    /// Registers a watch under a token of its own.
    pub fn add_watch(&mut self, path: Path) -> Token {
        loop {
            self.last_token = self.last_token.wrapping_add(1);
            let token = Token(self.last_token);
            if !self.watches.contains_key(&token) {
                let watching = Watching {
                    path,
                    events: VecDeque::new(),
                    waiter: None,
                };
                self.watches.insert(token, watching);
                return token;
            }
        }
    }

    /// Takes one of the places for open transactions. If there is none, returns false and wakes `waiter` when
    /// one may be free.
    pub fn take_transaction_place(&mut self, waiter: &Waker) -> bool {
        if self.open_transactions < OPEN_TRANSACTIONS || self.broken.is_some() {
            self.open_transactions += 1;
            return true;
        }
        if !self.transaction_waiters.iter().any(|w| w.will_wake(waiter)) {
            self.transaction_waiters.push(waiter.clone());
        }
        false
    }

    /// Gives a place for an open transaction back.
    pub fn free_transaction_place(&mut self) {
        self.open_transactions -= 1;
        self.wake_transaction_waiters();
    }

    fn wake_transaction_waiters(&mut self) {
        for waiter in self.transaction_waiters.drain(..) {
            waiter.wake();
        }
    }
}

/// Returns the start of a text, of at most `most` bytes and in whole characters.
fn start_of(payload: &[u8], most: usize) -> &[u8] {
    if payload.len() <= most {
        return payload;
    }
    let is_boundary = |at: &usize| payload[*at] & 0xc0 != 0x80;
    let end = (0..=most).rev().find(is_boundary).unwrap_or(0);
    &payload[..end]
}

impl Watching {
    fn push(&mut self, path: Path) {
        if self.events.contains(&path) {
            return;
        }
        let bytes = |path: &Path| size_of::<Path>() + path.as_str().len();
        if self.events.iter().map(bytes).sum::<usize>() + bytes(&path) > WAITING_BYTES {
            self.events.clear();
            self.events.push_back(self.path.clone());
        } else {
            self.events.push_back(path);
        }
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }
}
