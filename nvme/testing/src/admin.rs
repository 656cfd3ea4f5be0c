//! What the controller does with admin commands.

use crate::data::Refused;
use crate::device::{Device, Treatment};
use crate::identify;
use crate::queues::{CompletionQueue, SubmissionQueue};
use bulkhead_nvme::command::admin::opcode;
use bulkhead_nvme::command::{Command, CommandId, Status};

impl Device {
    /// Takes an admin command.
    pub fn admin(&mut self, command: &Command) {
        self.admin_seen.push(*command);
        let treatment = (self.admin_treatment)(command);
        self.violates |= matches!(treatment, Treatment::Twice | Treatment::Misnamed);
        match treatment {
            Treatment::Held | Treatment::Lost => {}
            Treatment::Failed(status) => self.complete(0, command.id(), 0, status),
            Treatment::Misnamed => self.complete(0, CommandId(!command.id().0), 0, Status::SUCCESS),
            treatment => {
                if command.opcode() == opcode::ASYNC_EVENT_REQUEST {
                    return self.event_requests.push(command.id());
                }
                let (result, status) = match self.do_admin(command) {
                    Ok(result) => (result, Status::SUCCESS),
                    Err(Refused(status)) => (0, status.for_good()),
                };
                self.complete(0, command.id(), result, status);
                if treatment == Treatment::Twice {
                    self.complete(0, command.id(), result, status);
                }
            }
        }
    }

    fn do_admin(&mut self, command: &Command) -> Result<u32, Refused> {
        let invalid = Refused(Status::INVALID_FIELD);
        match command.opcode() {
            opcode::IDENTIFY => {
                let id = command.namespace().0;
                let data = match command.dword(10) & 0xff {
                    0 => match self.config.namespace(id) {
                        Some(namespace) => identify::namespace(namespace),
                        None => vec![0; 4096],
                    },
                    1 => identify::controller(&self.config),
                    2 if self.config.lists => identify::list(&self.config, id),
                    6 if command.dword(11) == 0 => identify::limits(&self.config),
                    _ => return Err(invalid),
                };
                self.send(command, data)
            }
            opcode::GET_LOG_PAGE => {
                let len = 4 * (command.dword(10) >> 16) as usize + 4;
                let mut data = match command.dword(10) & 0xff {
                    2 => identify::smart(),
                    1 | 3 | 4 => vec![0; 4096],
                    _ => return Err(invalid),
                };
                data.resize(len, 0);
                self.send(command, data)
            }
            opcode::SET_FEATURES => match command.dword(10) & 0xff {
                7 => {
                    let wanted = command.dword(11);
                    let most = u32::from(self.config.queues) - 1;
                    Ok((wanted & 0xffff).min(most) | (wanted >> 16).min(most) << 16)
                }
                0xb => Ok(0),
                _ => Err(invalid),
            },
            opcode::CREATE_COMPLETION_QUEUE => self.create_completion_queue(command),
            opcode::CREATE_SUBMISSION_QUEUE => self.create_submission_queue(command),
            opcode::ABORT => {
                let (queue, id) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
                let held = self
                    .held
                    .iter()
                    .position(|held| held.queue == queue && held.command.id().0 == id);
                let Some(held) = held else {
                    return Ok(1);
                };
                self.held.remove(held);
                self.complete(queue, CommandId(id), 0, Status::ABORT_REQUESTED);
                Ok(0)
            }
            _ => Err(Refused(Status::INVALID_OPCODE)),
        }
    }

    /// Sends a structure.
    fn send(&mut self, command: &Command, mut data: Vec<u8>) -> Result<u32, Refused> {
        (self.config.forge)(command, &mut data);
        self.write_data(command, &data)?;
        Ok(0)
    }

    /// Returns the number and the entries of a queue that is to be created.
    fn new_queue(&self, command: &Command) -> Result<(u16, usize), Refused> {
        let (queue, entries) = (
            command.dword(10) as u16,
            (command.dword(10) >> 16) as usize + 1,
        );
        if queue == 0 || queue > self.config.queues {
            return Err(Refused(Status::INVALID_QUEUE));
        }
        if entries < 2 || entries > self.config.queue_entries {
            return Err(Refused(Status::INVALID_QUEUE_SIZE));
        }
        let contiguous = command.dword(11) & 1 == 1;
        let aligned = command.data()[0].is_multiple_of(4096);
        match contiguous && aligned {
            true => Ok((queue, entries)),
            false => Err(Refused(Status::INVALID_FIELD)),
        }
    }

    fn create_completion_queue(&mut self, command: &Command) -> Result<u32, Refused> {
        let (queue, entries) = self.new_queue(command)?;
        if self.completions.contains_key(&queue) {
            return Err(Refused(Status::INVALID_QUEUE));
        }
        let interrupts = command.dword(11) >> 1 & 1 == 1;
        let vector = interrupts.then_some((command.dword(11) >> 16) as u16);
        if vector.is_some_and(|vector| usize::from(vector) >= self.config.vectors) {
            return Err(Refused(Status::INVALID_FIELD));
        }
        let completions = CompletionQueue::new(command.data()[0], entries, vector);
        self.completions.insert(queue, completions);
        Ok(0)
    }

    fn create_submission_queue(&mut self, command: &Command) -> Result<u32, Refused> {
        let (queue, entries) = self.new_queue(command)?;
        let completions = (command.dword(11) >> 16) as u16;
        let taken = self.submissions.contains_key(&queue);
        if taken || !self.completions.contains_key(&completions) {
            return Err(Refused(Status::INVALID_QUEUE));
        }
        let submissions = SubmissionQueue::new(command.data()[0], entries, completions);
        self.submissions.insert(queue, submissions);
        Ok(0)
    }

    /// Reports an event, if the driver has asked for one.
    pub fn report(&mut self, event: u32) -> bool {
        let Some(request) = self.event_requests.pop() else {
            return false;
        };
        self.complete(0, request, event, Status::SUCCESS);
        true
    }
}
