//! The admin queue, which the controller's task alone uses: one command after another, and asynchronous event requests.

use crate::command::{AsyncEvent, Command, CommandId, Completion, PAGE, QueueId, Status, admin};
use crate::controller::Controller;
use crate::function::ControllerVectors;
use crate::registers::{self, Capabilities};
use crate::rings::Rings;
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::{DmaPages, NoPages};
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_xen::{Hypervisor, Registers};
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};
use core::time::Duration;

/// The time in which a controller has to complete an admin command.
const ANSWERS: Duration = Duration::from_secs(15);

/// The first and the longest pause between two looks at the queue while a command is outstanding. An interrupt ends a
/// pause early.
const FIRST_LOOK: Duration = Duration::from_micros(50);
const LAST_LOOK: Duration = Duration::from_millis(10);

/// The number of entries of the queues: more than are ever used.
const ENTRIES: usize = 64;

/// The lowest command number (CID) of asynchronous event requests; those of other commands are lower.
const EVENTS: u16 = 0x8000;

/// The most asynchronous event requests that are outstanding.
const MOST_EVENTS: u8 = 4;

/// The reason why the admin queue cannot be used any more, or a command has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// The controller is not there.
    Gone,
    /// The controller reports that it has failed (CSTS.CFS).
    Fatal,
    /// The controller did not complete a command in time.
    Silent {
        /// The opcode of the command.
        opcode: u8,
    },
    /// The controller has completed a command that it does not have.
    Unknown(CommandId),
    /// The controller has refused a command. The queue can still be used.
    Refused {
        /// The opcode of the command.
        opcode: u8,
        /// The status of the completion.
        status: Status,
    },
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the controller is not there any more"),
            Self::Fatal => f.write_str("the controller reports that it has failed (CSTS.CFS)"),
            Self::Silent { opcode } => write!(
                f,
                "the controller has not answered admin command {opcode:#04x} for {} s",
                ANSWERS.as_secs()
            ),
            Self::Unknown(id) => write!(
                f,
                "the controller has completed admin command {:#x}, which it does not have",
                id.0
            ),
            Self::Refused { opcode, status } => {
                write!(
                    f,
                    "the controller refuses admin command {opcode:#04x}: {status}"
                )
            }
        }
    }
}

impl core::error::Error for AdminError {}

impl From<AdminError> for String {
    fn from(error: AdminError) -> String {
        error.to_string()
    }
}

/// The admin queue.
pub struct Admin<H: Hypervisor> {
    handle: Handle<H>,
    controller: Arc<Controller>,
    rings: Rings,
    /// The page for the data of commands.
    data: DmaPages,
    channel: Option<EventChannel<H>>,
    vectors: Arc<dyn ControllerVectors<H>>,
    next: u16,
    /// The asynchronous event requests that the controller has.
    requests: Vec<CommandId>,
    events: VecDeque<AsyncEvent>,
}

impl<H: Hypervisor> Admin<H> {
    /// Allocates the memory of the admin queue of a controller with these interrupts.
    pub fn new(
        handle: Handle<H>,
        controller: Arc<Controller>,
        vectors: Arc<dyn ControllerVectors<H>>,
    ) -> Result<Self, NoPages> {
        let memory = controller.memory().clone();
        Ok(Admin {
            handle,
            controller,
            rings: Rings::new(&*memory)?,
            data: DmaPages::new(&*memory, 1)?,
            channel: None,
            vectors,
            next: 0,
            requests: Vec::new(),
            events: VecDeque::new(),
        })
    }

    fn registers(&self) -> &dyn Registers {
        &**self.controller.registers()
    }

    /// Has an interrupt, the first one of the function, wake the task from now on.
    pub fn listen(&mut self, channel: EventChannel<H>) {
        self.channel = Some(channel);
    }

    /// Returns whether an interrupt tells of completions.
    pub fn is_interrupted(&self) -> bool {
        self.channel.is_some()
    }

    /// Has the controller start with an empty queue.
    pub fn enable(&mut self, capabilities: Capabilities) {
        // The controller's limit of queue entries (CAP.MQES) is for I/O queues only.
        self.rings
            .reset(QueueId(0), ENTRIES, capabilities.doorbell_stride());
        self.data.set_in_use(true);
        self.requests.clear();
        self.events.clear();
        let (submission, completion) =
            (self.rings.submission_queue(), self.rings.completion_queue());
        registers::enable(self.registers(), submission, completion);
    }

    /// Notes that the controller has stopped, and accesses no memory any more.
    pub fn released(&mut self) {
        self.rings.released();
        self.data.set_in_use(false);
    }

    /// Sends a command, and waits for its completion, for [`ANSWERS`] at most.
    pub async fn command(&mut self, command: Command) -> Result<Completion, AdminError> {
        self.next = (self.next + 1) % EVENTS;
        let command = command.with_id(CommandId(self.next));
        let opcode = command.opcode();
        self.rings.push(&command);
        self.submit();
        let deadline = self.handle.now() + ANSWERS;
        let mut pause = FIRST_LOOK;
        loop {
            let completion = self.look(Some(command.id()))?;
            // With a single interrupt, it may have been raised for the queue pairs' commands.
            self.look_at_pairs();
            self.handled();
            if let Some(completion) = completion {
                return match completion.status() {
                    status if status.is_success() => Ok(completion),
                    status => Err(AdminError::Refused { opcode, status }),
                };
            }
            self.check()?;
            if self.handle.now() >= deadline {
                return Err(AdminError::Silent { opcode });
            }
            let mut over = pin!(self.handle.sleep(pause));
            poll_fn(|context| {
                let interrupted = self.poll_interrupted(context).is_ready();
                match interrupted || over.as_mut().poll(context).is_ready() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// Sends a command that returns a structure of up to a page, and returns the first `N` bytes of that.
    pub async fn read<const N: usize>(&mut self, command: Command) -> Result<[u8; N], AdminError> {
        const { assert!(N <= PAGE) };
        // Bytes that the controller does not write must not be those of an earlier structure.
        self.data.clear();
        let command = command.with_data([self.data.address(0), 0]);
        self.command(command).await?;
        Ok(self.data.copy(0))
    }

    /// Sends as many asynchronous event requests as the controller takes: one more than `most` (AERL counts from 0), at
    /// most [`MOST_EVENTS`].
    pub fn request_events(&mut self, most: u8) {
        let most = most.saturating_add(1).min(MOST_EVENTS);
        while self.requests.len() < usize::from(most) {
            self.request_event();
        }
        self.submit();
    }

    fn submit(&mut self) {
        self.rings.submit(&**self.controller.registers());
    }

    fn request_event(&mut self) {
        let id = (EVENTS..=u16::MAX).map(CommandId);
        let free = id.into_iter().find(|id| !self.requests.contains(id));
        if let Some(id) = free {
            self.requests.push(id);
            self.rings.push(&admin::async_event_request().with_id(id));
        }
    }

    /// Returns an event that the controller has reported, and requests the next one.
    pub fn next_event(&mut self) -> Result<Option<AsyncEvent>, AdminError> {
        self.look(None)?;
        let event = self.events.pop_front();
        if event.is_some() {
            self.request_event();
            self.submit();
        }
        Ok(event)
    }

    /// Takes the completions that the controller has written, and returns that of the command `wanted`, if it is among
    /// them.
    fn look(&mut self, wanted: Option<CommandId>) -> Result<Option<Completion>, AdminError> {
        let mut found = None;
        while let Some(completion) = self.rings.take() {
            let id = completion.id();
            if wanted == Some(id) && found.is_none() {
                found = Some(completion);
            } else if let Some(at) = self.requests.iter().position(|request| *request == id) {
                self.requests.swap_remove(at);
                // A request that the controller refuses is not sent again.
                if completion.status().is_success() {
                    self.events
                        .push_back(AsyncEvent::parse(completion.result()));
                }
            } else {
                return Err(AdminError::Unknown(id));
            }
        }
        let registers = self.controller.registers();
        self.rings.acknowledge(&**registers, true);
        Ok(found)
    }

    /// Returns an error if the controller's status register says that it is gone or has failed.
    pub fn check(&self) -> Result<(), AdminError> {
        let status = registers::status(self.registers());
        if status.is_gone() {
            return Err(AdminError::Gone);
        }
        match status.is_fatal() {
            true => Err(AdminError::Fatal),
            false => Ok(()),
        }
    }

    /// Ready if the controller has interrupted since this was called last. Otherwise the next interrupt wakes the task.
    pub fn poll_interrupted(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.channel {
            Some(channel) => {
                let notified = channel.poll_notified(context);
                if notified.is_ready() {
                    self.controller.watch().count_interrupt();
                }
                notified
            }
            None => Poll::Pending,
        }
    }

    /// Takes the completions of all queue pairs, if these have no interrupts of their own.
    pub fn look_at_pairs(&self) {
        if self.vectors.count() <= 1 {
            for pair in self.controller.pairs() {
                pair.lock().look();
            }
        }
    }

    /// Notes that the interrupt was handled.
    pub fn handled(&self) {
        if self.is_interrupted() {
            self.vectors.handled(0, self.handle.hypervisor());
        }
    }
}
