//! The admin queue, which the controller's task alone uses: one command after another, and requests to be told of
//! events.

use crate::command::{AsyncEvent, Command, CommandId, Completion, PAGE, QueueId, Status, admin};
use crate::controller::Controller;
use crate::function::Vectors;
use crate::registers::{self, Capabilities};
use crate::rings::Rings;
use alloc::collections::VecDeque;
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

/// The time that a controller has for an admin command.
const ANSWERS: Duration = Duration::from_secs(15);

/// The first pause between two looks at the queue, where no interrupt tells of a completion, and the longest one.
const FIRST_LOOK: Duration = Duration::from_micros(50);
const LAST_LOOK: Duration = Duration::from_millis(10);

/// The most entries of the queues: more than are ever used.
const ENTRIES: usize = 64;

/// The numbers of requests for events begin here; those of other commands are less.
const EVENTS: u16 = 0x8000;

/// The most requests for events.
const MOST_EVENTS: u8 = 4;

/// The reason why the admin queue cannot be used any more, or a command has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// The controller is not there.
    Gone,
    /// The controller says that it has failed.
    Fatal,
    /// The controller did not answer.
    Silent {
        /// The opcode of the command.
        opcode: u8,
    },
    /// The controller has completed a command that it does not have.
    Unknown(CommandId),
    /// The controller has refused a command. It can be used on.
    Refused {
        /// The opcode of the command.
        opcode: u8,
        /// Why.
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

/// The admin queue.
pub struct Admin<H: Hypervisor> {
    handle: Handle<H>,
    controller: Arc<Controller>,
    rings: Rings,
    /// What commands transfer.
    data: DmaPages,
    channel: Option<EventChannel<H>>,
    vectors: Arc<dyn Vectors<H>>,
    next: u16,
    /// Requests for events that the controller has.
    requests: Vec<CommandId>,
    events: VecDeque<AsyncEvent>,
}

impl<H: Hypervisor> Admin<H> {
    /// Takes the memory of the queue of a controller with these interrupts.
    pub fn new(
        handle: Handle<H>,
        controller: Arc<Controller>,
        vectors: Arc<dyn Vectors<H>>,
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

    /// Uses an interrupt from now on: the first one of the function.
    pub fn listen(&mut self, channel: EventChannel<H>) {
        self.channel = Some(channel);
    }

    /// Returns whether an interrupt tells of completions.
    pub fn is_interrupted(&self) -> bool {
        self.channel.is_some()
    }

    /// Has the controller start with an empty queue.
    pub fn enable(&mut self, capabilities: Capabilities) {
        // The limit of queue entries is one of I/O queues.
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

    /// Sends a command, and waits for its completion.
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
            // The interrupt may have told of their commands, and be the only one.
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

    /// Sends a command that returns a structure of up to a page, and waits for that.
    pub async fn read<const N: usize>(&mut self, command: Command) -> Result<[u8; N], AdminError> {
        const { assert!(N <= PAGE) };
        // What the controller leaves out is not to be another structure's.
        self.data.clear();
        let command = command.with_data([self.data.address(0), 0]);
        self.command(command).await?;
        Ok(self.data.copy(0))
    }

    /// Asks to be told of as many events as the controller can tell of at a time.
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

    /// Returns an event that the controller has told of. It is asked for the next one.
    pub fn next_event(&mut self) -> Result<Option<AsyncEvent>, AdminError> {
        self.look(None)?;
        let event = self.events.pop_front();
        if event.is_some() {
            self.request_event();
            self.submit();
        }
        Ok(event)
    }

    /// Takes what the controller has completed, and returns the completion of one command.
    fn look(&mut self, wanted: Option<CommandId>) -> Result<Option<Completion>, AdminError> {
        let mut found = None;
        while let Some(completion) = self.rings.take() {
            let id = completion.id();
            if wanted == Some(id) && found.is_none() {
                found = Some(completion);
            } else if let Some(at) = self.requests.iter().position(|request| *request == id) {
                self.requests.swap_remove(at);
                // A request that is refused is not made again.
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

    /// Returns why the controller cannot be used, if it says so itself.
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

    /// Takes what queue pairs have completed, if no task of their own is interrupted for that.
    pub fn look_at_pairs(&self) {
        if self.vectors.count() <= 1 {
            for pair in self.controller.pairs() {
                pair.lock().look();
            }
        }
    }

    /// Notes that what the controller has interrupted for was looked at.
    pub fn handled(&self) {
        if self.is_interrupted() {
            self.vectors.handled(0, self.handle.hypervisor());
        }
    }
}
