//! The controller's own state, and what it does with I/O commands.

use crate::bus::Bus;
use crate::data::Refused;
use crate::queues::{CompletionQueue, SubmissionQueue};
use bulkhead_nvme::command::{Command, CommandId, Completion, QueueId, Status};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A namespace of the controller.
#[derive(Clone)]
pub struct FakeNamespace {
    /// Its number.
    pub id: u32,
    /// The size of its blocks, as a power of two.
    pub shift: u32,
    /// Its content.
    pub bytes: Vec<u8>,
    /// It is write-protected.
    pub read_only: bool,
    /// What the blocks held that were written and are in the cache alone.
    undurable: BTreeMap<usize, Vec<u8>>,
}

impl FakeNamespace {
    /// A namespace of that many blocks, all zeros.
    pub fn new(id: u32, shift: u32, blocks: usize) -> FakeNamespace {
        FakeNamespace {
            id,
            shift,
            bytes: vec![0; blocks << shift],
            read_only: false,
            undurable: BTreeMap::new(),
        }
    }

    /// Notes that some bytes, of whole blocks, are about to be written, to the cache alone.
    pub fn will_cache(&mut self, range: Range<usize>) {
        let size = 1 << self.shift;
        for at in range.step_by(size) {
            let block = &self.bytes[at..at + size];
            self.undurable.entry(at).or_insert_with(|| block.to_vec());
        }
    }

    /// Makes some bytes durable.
    pub fn make_durable(&mut self, range: Range<usize>) {
        self.undurable.retain(|at, _| !range.contains(at));
    }

    /// Loses what is in the cache alone.
    pub fn lose_cache(&mut self) {
        for (at, block) in std::mem::take(&mut self.undurable) {
            self.bytes[at..at + block.len()].copy_from_slice(&block);
        }
    }

    /// Returns the number of its blocks.
    pub fn blocks(&self) -> u64 {
        (self.bytes.len() >> self.shift) as u64
    }
}

/// Changes the data of a command before it is sent.
pub type Forge = Arc<dyn Fn(&Command, &mut [u8]) + Send + Sync>;

/// What the controller is like.
#[derive(Clone)]
pub struct Config {
    /// Its namespaces, by ascending numbers.
    pub namespaces: Vec<FakeNamespace>,
    /// Its interrupts.
    pub vectors: usize,
    /// The I/O queue pairs that it has.
    pub queues: u16,
    /// The most entries of a queue.
    pub queue_entries: usize,
    /// The most bytes of a command, as a power of two pages; 0 for no limit.
    pub most_pages: u8,
    /// The bytes between doorbells, as a power of two times four.
    pub stride: u8,
    /// It has a write cache.
    pub cache: bool,
    /// It understands Dataset Management, and Write Zeroes that deallocate.
    pub deallocates: bool,
    /// See [`deallocates`](Self::deallocates).
    pub writes_zeroes: bool,
    /// The most blocks of a range that it deallocates; 0 if it does not say.
    pub most_range: u32,
    /// The most bytes that it clears at a time, as a power of two pages; 0 if it does not say, as many as it writes.
    pub most_zeroes: u8,
    /// It has lists of active namespaces.
    pub lists: bool,
    /// It interrupts for a completion only if the driver had taken all others, as the bit IS does of the specification's
    /// MSI.
    pub sparing: bool,
    /// It completes a command that was held back at the moment at which the driver tells it what was taken.
    pub untimely: bool,
    /// Its serial number.
    pub serial: &'static str,
    /// Changes a structure that it sends: an admin command and its data.
    pub forge: Forge,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            namespaces: vec![FakeNamespace::new(1, 9, 4096)],
            vectors: 65,
            queues: 64,
            queue_entries: 2048,
            most_pages: 7,
            stride: 0,
            cache: true,
            deallocates: true,
            writes_zeroes: true,
            most_range: 0,
            most_zeroes: 0,
            lists: true,
            sparing: false,
            untimely: false,
            serial: "fake0",
            forge: Arc::new(|_, _| ()),
        }
    }
}

impl Config {
    /// Returns a namespace.
    pub fn namespace(&self, id: u32) -> Option<&FakeNamespace> {
        self.namespaces.iter().find(|namespace| namespace.id == id)
    }

    /// Returns a namespace, to be changed.
    pub fn namespace_mut(&mut self, id: u32) -> Option<&mut FakeNamespace> {
        self.namespaces
            .iter_mut()
            .find(|namespace| namespace.id == id)
    }
}

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is done and completed.
    Done,
    /// It fails, and nothing of it is done.
    Failed(Status),
    /// It is held back, until the test has it done. An abort gives it up.
    Held,
    /// Nothing is ever heard of it, not even when it is aborted.
    Lost,
    /// It is done, and completed twice.
    Twice,
    /// It is done, and the completion names another command.
    Misnamed,
}

/// A command that is held back.
pub struct HeldCommand {
    pub queue: u16,
    pub command: Command,
}

type Decide = Box<dyn FnMut(&Command) -> Treatment + Send>;

/// The controller.
pub struct Device {
    pub bus: Bus,
    pub config: Config,
    pub configuration: u32,
    pub admin_attributes: u32,
    pub admin_submission: u64,
    pub admin_completion: u64,
    pub ready: bool,
    pub fatal: bool,
    pub vanished: bool,
    pub never_stops: bool,
    /// When it is to stop, it does so many things before.
    pub stops_late: usize,
    pub never_starts: bool,
    /// Its access to memory cannot be taken away.
    pub stays_master: bool,
    pub shut_down: bool,
    /// It works for its last user: it must not access memory before it was stopped.
    pub left_at_work: bool,
    pub submissions: BTreeMap<u16, SubmissionQueue>,
    pub completions: BTreeMap<u16, CompletionQueue>,
    pub treatment: Decide,
    pub admin_treatment: Decide,
    pub held: Vec<HeldCommand>,
    /// Requests for events that it has, and events that it could not report.
    pub event_requests: Vec<CommandId>,
    pub seen: Vec<Command>,
    pub admin_seen: Vec<Command>,
    pub doorbells: u64,
    pub interrupts: u64,
    /// It has completed what it should not have.
    pub violates: bool,
}

impl Device {
    pub fn new(bus: Bus, config: Config) -> Device {
        Device {
            bus,
            config,
            configuration: 0,
            admin_attributes: 0,
            admin_submission: 0,
            admin_completion: 0,
            ready: false,
            fatal: false,
            vanished: false,
            never_stops: false,
            stops_late: 0,
            never_starts: false,
            stays_master: false,
            shut_down: false,
            left_at_work: false,
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            treatment: Box::new(|_| Treatment::Done),
            admin_treatment: Box::new(|_| Treatment::Done),
            held: Vec::new(),
            event_requests: Vec::new(),
            seen: Vec::new(),
            admin_seen: Vec::new(),
            doorbells: 0,
            interrupts: 0,
            violates: false,
        }
    }

    /// Does what there is to do.
    pub fn step(&mut self) -> bool {
        if self.vanished {
            return false;
        }
        let is_let = self.left_at_work && self.bus.is_master();
        assert!(!is_let, "it works for its last user, and may access memory");
        let enabled = self.configuration & 1 == 1;
        if enabled && !self.ready && !self.never_starts && !self.fatal {
            self.start();
            return true;
        }
        if !enabled && self.ready && !self.never_stops {
            match self.stops_late.checked_sub(1) {
                Some(left) => self.stop_later(left),
                None => self.stop(),
            }
            return true;
        }
        let shutting = self.configuration >> 14 & 3 == 1;
        if shutting && enabled && !self.shut_down {
            self.shut_down = true;
            return true;
        }
        if !self.ready || self.fatal {
            return false;
        }
        let mut any = false;
        let queues: Vec<u16> = self.submissions.keys().copied().collect();
        for queue in queues {
            while let Some(command) = self.fetch(queue) {
                any = true;
                match queue {
                    0 => self.admin(&command),
                    queue => self.io(queue, &command),
                }
            }
        }
        any
    }

    fn start(&mut self) {
        let entries = |shift: u32| (self.admin_attributes >> shift & 0xfff) as usize + 1;
        let submission = SubmissionQueue::new(self.admin_submission, entries(0), 0);
        let completion = CompletionQueue::new(self.admin_completion, entries(16), Some(0));
        self.submissions.insert(0, submission);
        self.completions.insert(0, completion);
        (self.ready, self.shut_down) = (true, false);
    }

    /// Goes on with the commands that it has, although it is to stop.
    fn stop_later(&mut self, left: usize) {
        self.stops_late = left;
        if let Some(held) = self.held.pop() {
            // What it says of that is of no interest to anybody.
            let _ = self.execute(&held.command);
        }
    }

    /// Forgets everything, as a reset does.
    fn stop(&mut self) {
        self.submissions.clear();
        self.completions.clear();
        self.held.clear();
        self.event_requests.clear();
        (self.ready, self.fatal, self.left_at_work) = (false, false, false);
    }

    /// Takes the next command off a queue.
    fn fetch(&mut self, queue: u16) -> Option<Command> {
        let submission = self.submissions.get_mut(&queue)?;
        let from = submission.next()?;
        let mut bytes = [0; 64];
        if self.dma_read(from, &mut bytes).is_err() {
            self.fatal = true;
            return None;
        }
        let words = std::array::from_fn(|word| {
            let word: [u8; 8] = std::array::from_fn(|byte| bytes[word * 8 + byte]);
            u64::from_le_bytes(word)
        });
        Some(Command::from_words(words))
    }

    fn io(&mut self, queue: u16, command: &Command) {
        self.seen.push(*command);
        let treatment = (self.treatment)(command);
        self.violates |= matches!(treatment, Treatment::Twice | Treatment::Misnamed);
        match treatment {
            Treatment::Done => self.finish(queue, command),
            Treatment::Failed(status) => self.complete(queue, command.id(), 0, status),
            Treatment::Held => self.held.push(HeldCommand {
                queue,
                command: *command,
            }),
            Treatment::Lost => {}
            Treatment::Twice => {
                self.finish(queue, command);
                self.complete(queue, command.id(), 0, Status::SUCCESS);
            }
            Treatment::Misnamed => {
                let other = CommandId(command.id().0 ^ 0x8000);
                self.complete(queue, other, 0, Status::SUCCESS);
            }
        }
    }

    /// Does the first command of a queue that was held back, if it is to be done at such a moment.
    pub fn finish_untimely(&mut self, queue: u16) {
        let first = self.held.iter().position(|held| held.queue == queue);
        if let Some(first) = first.filter(|_| self.config.untimely) {
            let held = self.held.remove(first);
            self.finish(queue, &held.command);
        }
    }

    /// Does a command, and completes it.
    pub fn finish(&mut self, queue: u16, command: &Command) {
        let status = self
            .execute(command)
            .err()
            .unwrap_or(Refused(Status::SUCCESS));
        self.complete(queue, command.id(), 0, status.0);
    }

    /// Completes a command.
    pub fn complete(&mut self, queue: u16, id: CommandId, result: u32, status: Status) {
        let Some(submissions) = self.submissions.get(&queue) else {
            return;
        };
        let (head, completions) = (submissions.head(), submissions.completions);
        let completion = Completion::new(result, QueueId(queue), head, id, status);
        self.write_completion(completions, completion);
    }

    /// Writes a completion, and interrupts.
    pub fn write_completion(&mut self, queue: u16, completion: Completion) {
        let Some(completions) = self.completions.get_mut(&queue) else {
            return;
        };
        let interrupts = !self.config.sparing || completions.is_taken();
        let vector = completions.vector.filter(|_| interrupts);
        let Some((to, phase)) = completions.next() else {
            // Only completions that the driver does not expect can be too many.
            assert!(self.violates, "completion queue {queue} overflows");
            return;
        };
        let [first, second] = completion.with_phase(phase).words();
        // The phase is in the second word, and the driver looks at it at any time.
        let written = self
            .dma_write(to, &first.to_le_bytes())
            .and_then(|()| self.dma_write(to + 8, &second.to_le_bytes()));
        if written.is_err() {
            self.fatal = true;
            return;
        }
        if vector.is_some_and(|vector| self.bus.interrupt(vector)) {
            self.interrupts += 1;
        }
    }
}
