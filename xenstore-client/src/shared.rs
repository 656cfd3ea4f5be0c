//! What a client's handles and its connection share: requests that wait, and watches.

use crate::error::{Breakdown, Error};
use crate::path::Path;
use crate::wire::{self, Event, Message, MessageType, Request, RequestId, Token, TransactionId};
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::Waker;

pub(crate) type Handle = Rc<RefCell<Shared>>;

/// The most transactions that are open at a time; more wait their turn. xenstored lets an
/// unprivileged domain have 10.
const OPEN_TRANSACTIONS: usize = 8;

/// The most events that wait for the owner of a watch. More are folded into one that says no more
/// than that something has changed.
pub(crate) const WAITING_EVENTS: usize = 256;

/// How far a request has come.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Sent or waiting to be sent.
    Asked(Option<Waker>),
    /// Answered, and not yet taken by its asker.
    Answered { refused: bool, payload: Vec<u8> },
    /// Nobody waits for the answer any more.
    Abandoned,
}

#[derive(Debug)]
pub(crate) struct Asked {
    message_type: MessageType,
    transaction: TransactionId,
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
    pub requests: BTreeMap<RequestId, Asked>,
    pub watches: BTreeMap<Token, Watching>,
    /// Why there will be no more answers.
    pub broken: Option<Breakdown>,
    /// Set when there is something new in `outgoing`.
    pub kicked: bool,
    /// The connection's task.
    pub driver: Option<Waker>,
    last_request: u32,
    last_token: u32,
    open_transactions: usize,
    transaction_waiters: Vec<Waker>,
}

impl Shared {
    /// Queues a request.
    pub fn ask(
        &mut self,
        request: &Request<'_>,
        transaction: TransactionId,
    ) -> Result<RequestId, Error> {
        if let Some(breakdown) = &self.broken {
            return Err(Error::Disconnected(breakdown.clone()));
        }
        let id = self.free_request_id();
        let bytes = request
            .emit(id, transaction)
            .map_err(|length| Error::TooLong {
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
                progress: Progress::Asked(None),
            },
        );
        self.kick();
        Ok(id)
    }

    /// Queues a request of which nobody wants to know the answer.
    pub fn tell(&mut self, request: &Request<'_>, transaction: TransactionId) {
        // It fails only if the connection is broken, and then there is nobody to tell.
        if let Ok(id) = self.ask(request, transaction) {
            self.abandon(id);
        }
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

    /// The asker is gone. What the request brings into being is undone.
    pub fn abandon(&mut self, id: RequestId) {
        let Some(asked) = self.requests.get_mut(&id) else {
            return;
        };
        match core::mem::replace(&mut asked.progress, Progress::Abandoned) {
            // The reply will still come, and must find its request.
            Progress::Asked(_) | Progress::Abandoned => {}
            Progress::Answered { refused, payload } => {
                let asked = self.requests.remove(&id).expect("it was just found");
                self.undo(asked.message_type, refused, &payload);
            }
        }
    }

    /// Ends a transaction whose opener is gone.
    fn undo(&mut self, message_type: MessageType, refused: bool, payload: &[u8]) {
        if message_type == MessageType::TRANSACTION_START
            && !refused
            && let Some(id) = wire::parse_transaction(payload)
        {
            self.tell(&Request::TransactionEnd(false), id);
        }
    }

    /// Hands a message to whom it concerns.
    pub fn deliver(&mut self, message: Message<'_>) -> Result<(), Breakdown> {
        if message.header.message_type == MessageType::WATCH_EVENT {
            let event = Event::parse(message.payload)
                .ok_or_else(|| Breakdown::BadEvent(message.excerpt()))?;
            // An event for a watch that was removed meanwhile is nobody's.
            if let Some(token) = event.token
                && let Some(watching) = self.watches.get_mut(&token)
            {
                watching.push(event.path);
            }
            return Ok(());
        }
        let stray = || Breakdown::StrayReply(message.excerpt());
        let id = message.header.request;
        let asked = self.requests.get_mut(&id).ok_or_else(stray)?;
        let refused = message.header.message_type == MessageType::ERROR;
        if message.header.transaction != asked.transaction
            || !refused && message.header.message_type != asked.message_type
            || matches!(asked.progress, Progress::Answered { .. })
        {
            return Err(stray());
        }
        let answer = Progress::Answered {
            refused,
            payload: message.payload.into(),
        };
        match core::mem::replace(&mut asked.progress, answer) {
            Progress::Asked(waiter) => {
                if let Some(waiter) = waiter {
                    waiter.wake();
                }
            }
            Progress::Abandoned | Progress::Answered { .. } => self.abandon(id),
        }
        Ok(())
    }

    /// The connection is of no use any more: everyone who waits is told.
    pub fn fail(&mut self, breakdown: Breakdown) {
        self.broken.get_or_insert(breakdown);
        for asked in self.requests.values_mut() {
            if let Progress::Asked(waiter) = &mut asked.progress
                && let Some(waiter) = waiter.take()
            {
                waiter.wake();
            }
        }
        for watching in self.watches.values_mut() {
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
            if let Entry::Vacant(free) = self.watches.entry(token) {
                free.insert(Watching {
                    path,
                    events: VecDeque::new(),
                    waiter: None,
                });
                return token;
            }
        }
    }

    /// Takes one of the places for open transactions; if there is none, `waiter` is woken when
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

impl Watching {
    fn push(&mut self, path: Path) {
        if self.events.contains(&path) {
            return;
        }
        if self.events.len() >= WAITING_EVENTS {
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
