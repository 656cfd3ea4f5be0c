//! Events that a controller reports, and commands that it does not complete in time.

use super::ControllerTask;
use crate::admin::AdminError;
use crate::command::{Command, EventKind, PAGE, SmartLog, admin};
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_dma::{DeviceQueueState, HardwareQueue, seconds};
use bulkhead_xen::Hypervisor;
use log::Level;

/// The time that a command may take before it is aborted, in seconds, as in Linux (`nvme_io_timeout`), and the time
/// that the controller then has to end it before it is reset. The unit does not depend on how often commands are
/// checked.
const COMMAND_TICKS: u32 = 30;
const ABORT_TICKS: u32 = 5;

impl<H: Hypervisor> ControllerTask<'_, H> {
    /// Has the controller abort commands that take too long, or whose requests were cancelled.
    pub(super) async fn look_at_commands(&mut self) -> Result<(), String> {
        let now = seconds(self.handle.now());
        for index in 0..self.controller.pairs().len() {
            let (queue, late) = {
                let mut pair = self.controller.pairs()[index].lock();
                // Completions whose interrupt was lost are found here.
                pair.look();
                if pair.state() == DeviceQueueState::Broken {
                    return Err("it does not keep to the protocol".to_string());
                }
                (pair.queue(), pair.late(now, COMMAND_TICKS, ABORT_TICKS))
            };
            if late.overdue {
                return Err(format!(
                    "it has not ended a command of queue {queue} in time"
                ));
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

    /// Handles an event, and reads its log.
    pub(super) async fn note(&mut self, kind: EventKind, log_page: u8) -> Result<(), AdminError> {
        match kind {
            EventKind::Namespaces => {
                // Reading the log lets the controller report the next change.
                let log = admin::get_log_page(log_page, PAGE as u32);
                self.read_unused(log).await?;
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
                self.read_unused(admin::get_log_page(log_page, 64)).await?;
            }
        }
        Ok(())
    }

    /// Reads the namespaces anew. If the controller refuses that, they stay as they are.
    pub(super) async fn look_at_namespaces(&mut self) -> Result<(), AdminError> {
        match self.find_namespaces(None).await {
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

    /// Reads a log whose content is not used.
    async fn read_unused(&mut self, command: Command) -> Result<(), AdminError> {
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
