//! The requests of a line: those that wait to be sent, and those that the server has.
//!
//! The table does not know where the connection is: the line's task passes it the stream.

use crate::client::LineClient;
use crate::entry::{Entry, EntryState, Work};
use crate::fault::Fault;
use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::wire::CommandKind;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{Flushes, IoError, IoSegment, Submitted, Tag};
use bulkhead_stream::Stream;
use core::task::{Context, Poll};

/// The bytes that are moved at a time, before other tasks have their turn.
const AT_ONCE: usize = 256 << 10;

/// The state of a line, as its queues see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineState {
    /// There is no connection: requests wait for one.
    Down,
    /// There is a connection.
    Up,
    /// There has been no connection for too long: requests fail.
    Expired,
    /// The export was given up: requests fail.
    Dead,
}

/// The place of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub client: u16,
    pub entry: u16,
}

impl Slot {
    /// Returns the cookie of a command for this request.
    #[inline]
    pub fn cookie(self, generation: u32) -> u64 {
        u64::from(self.client) << 48 | u64::from(self.entry) << 32 | u64::from(generation)
    }

    /// Returns the place and the number of the command that a cookie stands for.
    #[inline]
    pub fn of_cookie(cookie: u64) -> (Slot, u32) {
        let slot = Slot {
            client: (cookie >> 48) as u16,
            entry: (cookie >> 32) as u16,
        };
        (slot, cookie as u32)
    }
}

/// The requests of a line.
pub struct RequestTable {
    state: LineState,
    clients: Vec<LineClient>,
    pub(crate) unsent: VecDeque<Slot>,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// True if replies to reads are structured.
    pub(crate) structured: bool,
    /// The number of the last command.
    pub(crate) commands: u32,
    /// The number of requests that were ever submitted.
    orders: u64,
    /// The number of requests that the server has, at least in part.
    outstanding: usize,
    /// The flushes of the export, and the number of the last one that had begun when a write was last acknowledged.
    flushes: Arc<Flushes>,
    written: Option<u64>,
    /// The number of bytes that have ever come, and of those that were sent while the server had nothing to answer.
    progress: u64,
    /// The numbers of replies that ever came, of replies to requests that failed, and of commands that were sent.
    answers: u64,
    failed: u64,
    sent: u64,
}

impl RequestTable {
    /// Returns the table of a line without queues and without a connection.
    pub fn new(flushes: Arc<Flushes>) -> RequestTable {
        RequestTable {
            state: LineState::Down,
            clients: Vec::new(),
            unsent: VecDeque::new(),
            sender: Sender::IDLE,
            receiver: Receiver::IDLE,
            structured: false,
            commands: 0,
            orders: 0,
            outstanding: 0,
            flushes,
            written: None,
            progress: 0,
            answers: 0,
            failed: 0,
            sent: 0,
        }
    }

    /// Adds a queue for up to `depth` requests at a time, and returns its number.
    pub fn open(&mut self, depth: usize) -> Result<u16, OutOfMemory> {
        let number = match self.clients.iter().position(LineClient::is_unused) {
            Some(unused) => {
                self.clients[unused].reopen(depth)?;
                unused
            }
            None => {
                let client = LineClient::new(depth)?;
                let bytes = size_of::<LineClient>();
                let reserved = self.clients.try_reserve(1);
                reserved.map_err(|_| OutOfMemory { bytes })?;
                self.clients.push(client);
                self.clients.len() - 1
            }
        };
        let most: usize = self.clients.iter().map(|it| it.entries.len()).sum();
        let more = most.saturating_sub(self.unsent.len());
        let bytes = more * size_of::<Slot>();
        if self.unsent.try_reserve(more).is_err() {
            self.release(number as u16);
            return Err(OutOfMemory { bytes });
        }
        Ok(number as u16)
    }

    #[inline]
    pub(crate) fn entry(&mut self, slot: Slot) -> &mut Entry {
        &mut self.clients[usize::from(slot.client)].entries[usize::from(slot.entry)]
    }

    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry> {
        let client = self.clients.get(usize::from(slot.client))?;
        client.entries.get(usize::from(slot.entry))
    }

    /// Returns a queue.
    #[inline]
    pub fn client(&mut self, number: u16) -> &mut LineClient {
        &mut self.clients[usize::from(number)]
    }

    /// Takes a request, to be sent.
    #[inline]
    pub fn submit(
        &mut self,
        number: u16,
        tag: Tag,
        work: Work,
        segments: &[IoSegment],
    ) -> Submitted {
        if matches!(self.state, LineState::Expired | LineState::Dead) {
            return Submitted::Done(Err(IoError::Medium));
        }
        let Some(entry) = self.client(number).take() else {
            return Submitted::Busy;
        };
        let slot = Slot {
            client: number,
            entry,
        };
        self.orders += 1;
        let order = self.orders;
        let flush = match work.kind {
            CommandKind::Flush => self.flushes.begin(),
            _ => 0,
        };
        let entry = self.entry(slot);
        entry.begin(tag, work, order, flush);
        if !entry.segments.keep(segments) {
            // The caller keeps to the capabilities.
            self.client(number).forget(slot.entry);
            return Submitted::Done(Err(IoError::NotSupported));
        }
        self.unsent.push_back(slot);
        Submitted::Pending
    }

    /// Receives and sends until there is nothing to receive, and nothing to send or no room for it. Returns whether
    /// there may be more.
    pub fn work(&mut self, stream: &mut dyn Stream) -> Result<bool, Fault> {
        let mut moved = 0;
        let outcome = loop {
            match self.work_once(stream) {
                Ok(0) => break Ok(false),
                Ok(bytes) => moved += bytes,
                Err(fault) => break Err(fault),
            }
            if moved >= AT_ONCE {
                break Ok(true);
            }
        };
        if moved > 0 {
            stream.push();
        }
        outcome
    }

    #[inline]
    fn work_once(&mut self, stream: &mut dyn Stream) -> Result<usize, Fault> {
        let mut fault = Ok(());
        let received = stream.receive(&mut |bytes| self.take(bytes, &mut fault))?;
        fault?;
        self.progress += received as u64;
        let mut sent = 0;
        if !self.unsent.is_empty() || !self.sender.is_idle() {
            // What is being sent is not the server's to answer yet.
            let owes = self.outstanding > usize::from(!self.sender.is_idle());
            sent = stream.send(&mut |room| self.fill(room))?;
            if !owes {
                self.progress += sent as u64;
            }
        }
        Ok(received + sent)
    }

    #[inline]
    pub(crate) fn note_sent(&mut self) {
        self.outstanding += 1;
        self.sent += 1;
    }

    /// Ends a request that was answered, or has its next command sent.
    #[inline]
    pub(crate) fn settle(&mut self, slot: Slot) {
        self.outstanding -= 1;
        self.answers += 1;
        let entry = self.entry(slot);
        match entry.answered() {
            Some(outcome) => {
                self.failed += u64::from(outcome.is_err());
                if outcome.is_ok() {
                    self.note_done(slot);
                }
                self.client(slot.client).end(slot.entry, outcome);
            }
            None => {
                entry.ask_again();
                self.unsent.push_back(slot);
            }
        }
    }

    /// Notes a request that was done: a flush makes earlier writes durable, and a write is not durable yet.
    #[inline]
    fn note_done(&mut self, slot: Slot) {
        let entry = self.entry(slot);
        let (work, flush) = (entry.work, entry.flush);
        if work.kind == CommandKind::Flush {
            self.flushes.end(flush);
        } else if work.changes_data() && !work.fua {
            self.written = Some(self.flushes.begun());
        }
    }

    /// Returns whether a write was acknowledged that is not durable yet, and notes that it may be lost.
    pub fn lose_unflushed(&mut self) -> bool {
        let written = self.written.take();
        written.is_some_and(|written| !self.flushes.cover(written))
    }

    /// Begins to use a new connection, on which everything that was not answered is sent.
    pub fn connected(&mut self, structured: bool) {
        if self.state != LineState::Dead {
            self.state = LineState::Up;
        }
        self.structured = structured;
    }

    /// Notes that the connection is over. Requests without an answer wait for the next one, in their order, except
    /// those that no queue waits for: these end.
    pub fn disconnected(&mut self) {
        if self.state == LineState::Up {
            self.state = LineState::Down;
        }
        (self.sender, self.receiver) = (Sender::IDLE, Receiver::IDLE);
        self.outstanding = 0;
        self.unsent.clear();
        for client in 0..self.clients.len() as u16 {
            for entry in 0..self.client(client).entries.len() as u16 {
                let slot = Slot { client, entry };
                let open = self.client(client).is_open();
                let request = self.entry(slot);
                if request.state == EntryState::Free {
                    continue;
                }
                if request.unwanted || !open {
                    self.client(client).end(entry, Err(IoError::Cancelled));
                } else {
                    request.ask_again();
                    self.unsent.push_back(slot);
                }
            }
        }
        let mut unsent = core::mem::take(&mut self.unsent);
        let order = |slot: &Slot| self.get(*slot).map(|entry| entry.order);
        // Each client's are nearly in order. The library's sort would be larger than what a connection lost needs.
        let slots = unsent.make_contiguous();
        for next in 1..slots.len() {
            let place = slots[..next].partition_point(|slot| order(slot) <= order(&slots[next]));
            slots[place..=next].rotate_right(1);
        }
        self.unsent = unsent;
    }

    /// Fails all requests, because there has been no connection for too long.
    pub fn expire(&mut self) {
        if self.state == LineState::Down {
            self.state = LineState::Expired;
            self.fail_all();
        }
    }

    /// Fails all requests, and later ones, for good.
    pub fn die(&mut self) {
        self.state = LineState::Dead;
        (self.sender, self.receiver) = (Sender::IDLE, Receiver::IDLE);
        self.fail_all();
    }

    fn fail_all(&mut self) {
        self.unsent.clear();
        self.outstanding = 0;
        for client in &mut self.clients {
            for entry in 0..client.entries.len() {
                if client.entries[entry].state != EntryState::Free {
                    client.end(entry as u16, Err(IoError::Medium));
                }
            }
            client.wake();
        }
    }

    /// Gives up the requests of a queue with that tag, or all of them. Requests that the server has end when it has
    /// answered, or when the connection ends.
    pub fn cancel(&mut self, number: u16, tag: Option<Tag>) {
        for entry in 0..self.client(number).entries.len() as u16 {
            let slot = Slot {
                client: number,
                entry,
            };
            let request = self.entry(slot);
            if tag.is_some_and(|tag| tag != request.tag) {
                continue;
            }
            match request.state {
                EntryState::Free => {}
                EntryState::Waits => {
                    self.unsent.retain(|other| *other != slot);
                    self.client(number).end(entry, Err(IoError::Cancelled));
                }
                EntryState::IsSent | EntryState::Sent => request.unwanted = true,
            }
        }
    }

    /// Closes a queue. Its reads are forgotten at once, its writes only when the server cannot do them any more.
    pub fn close(&mut self, number: u16) {
        if !self.client(number).is_open() {
            return;
        }
        self.client(number).close();
        self.cancel(number, None);
        for entry in &mut self.client(number).entries {
            if entry.state != EntryState::Free && !entry.work.changes_data() {
                entry.segments.clear();
            }
        }
    }

    /// Closes a queue that is dropped. Another queue has its place, once the server has none of its requests.
    pub fn release(&mut self, number: u16) {
        self.close(number);
        self.client(number).set_dropped();
    }

    /// Returns ready once the server writes nothing any more that a closed queue has asked for, and none of the queue's
    /// memory is used.
    pub fn poll_close(&mut self, number: u16, context: &Context<'_>) -> Poll<()> {
        let client = self.client(number);
        if !client.may_change_data() {
            return Poll::Ready(());
        }
        client.wake_with(context.waker());
        Poll::Pending
    }

    /// Returns whether the server has yet to answer a request, or to send the rest of an answer.
    pub fn is_waiting(&self) -> bool {
        self.outstanding > 0 || self.receiver.is_amid()
    }

    /// Returns a number that grows while the server makes progress: by the bytes that come from it, and by those that
    /// it takes while it has nothing to answer. Further bytes that it takes show nothing: its system takes them even if
    /// the server hangs.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Returns the numbers of commands that were ever sent, of those that were answered, and of those that failed.
    pub fn counts(&self) -> [u64; 3] {
        [self.sent, self.answers, self.failed]
    }

    /// Returns the number of requests that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.unsent.len()
    }
}
