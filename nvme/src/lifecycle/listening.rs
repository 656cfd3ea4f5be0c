//! What a controller tells by itself, and the commands that it does not tell of.

use super::{End, Life, seconds};
use crate::admin::AdminError;
use crate::command::{Command, EventKind, PAGE, SmartLog, admin};
use crate::pair::State;
use alloc::format;
use alloc::string::ToString;
use bulkhead_xen::Hypervisor;
use log::Level;

/// The ticks that a command may take, as long as in Linux, and those that the controller has to give it up when it was
/// asked for that.
const COMMAND_TICKS: u32 = 30;
const ABORT_TICKS: u32 = 5;

impl<H: Hypervisor> Life<'_, H> {
    /// Has the controller give up commands that take too long, or that nobody waits for.
    pub(super) async fn look_at_commands(&mut self) -> Result<(), End> {
        let now = seconds(self.handle.now());
        for index in 0..self.controller.pairs().len() {
            let (queue, late) = {
                let mut pair = self.controller.pairs()[index].lock();
                // An interrupt may have been lost.
                pair.look();
                if pair.state() == State::Broken {
                    return Err(End::Fails("it does not keep to the protocol".to_string()));
                }
                (pair.queue(), pair.late(now, COMMAND_TICKS, ABORT_TICKS))
            };
            if late.overdue {
                let reason = format!("it has not ended a command of queue {queue} in time");
                return Err(End::Fails(reason));
            }
            for command in late.abort {
                let id = command.0;
                let line = format_args!(": queue {queue}: it is asked to abort command {id:#x}");
                self.tell(Level::Warn, line);
                match self.admin.command(admin::abort(queue, command)).await {
                    // Whether it was aborted shows in its completion.
                    Ok(_) | Err(AdminError::Refused { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Takes note of an event.
    pub(super) async fn note(&mut self, kind: EventKind, log_page: u8) -> Result<(), AdminError> {
        match kind {
            EventKind::Namespaces => {
                // Reading it has the controller tell of the next change.
                let log = admin::get_log_page(log_page, PAGE as u32);
                self.lenient(log).await?;
                self.look_at_namespaces().await?;
            }
            EventKind::Health => {
                if let Some(smart) = self.read_smart().await? {
                    self.tell(Level::Warn, format_args!(": {smart}"));
                }
            }
            EventKind::Error | EventKind::Other => {
                let line = format_args!(": it reports an event: {kind:?}, log {log_page}");
                self.tell(Level::Warn, line);
                self.lenient(admin::get_log_page(log_page, 64)).await?;
            }
        }
        Ok(())
    }

    /// Finds the namespaces anew, as far as the controller describes them.
    pub(super) async fn look_at_namespaces(&mut self) -> Result<(), AdminError> {
        match self.find_namespaces().await {
            Ok(()) => self.controller.watch().changed(),
            Err(AdminError::Refused { opcode, status }) => {
                let line = format_args!(
                    ": its namespaces cannot be read anew: command {opcode:#04x}: {status}"
                );
                self.tell(Level::Warn, line);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads a log whose content is of no interest.
    async fn lenient(&mut self, command: Command) -> Result<(), AdminError> {
        match self.admin.read::<64>(command).await {
            Ok(_) | Err(AdminError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn read_smart(&mut self) -> Result<Option<SmartLog>, AdminError> {
        let log = admin::get_log_page(admin::Log::Smart as u8, SmartLog::BYTES as u32);
        match self.admin.read(log).await {
            Ok(bytes) => {
                let smart = SmartLog::parse(&bytes);
                self.controller.set_smart(smart, self.handle.now());
                Ok(Some(smart))
            }
            Err(AdminError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
