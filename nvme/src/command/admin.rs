//! Admin commands.

use super::entry::{Command, CommandId, NamespaceId, QueueId};

/// Opcodes.
pub mod opcode {
    /// Delete I/O Submission Queue.
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
}

/// What [`identify`] asks for (CNS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identify {
    /// A namespace ([`NamespaceData`](super::NamespaceData)).
    Namespace(NamespaceId),
    /// The controller ([`ControllerData`](super::ControllerData)).
    Controller,
    /// What commands of the NVM command set are limited to ([`DeallocateLimits`](super::DeallocateLimits)).
    Limits,
    /// The active namespaces with larger numbers ([`active_namespaces`](super::active_namespaces)).
    NamespacesAfter(NamespaceId),
}

/// Asks for an identify structure of one [page](super::PAGE).
pub const fn identify(what: Identify) -> Command {
    let (kind, namespace) = match what {
        Identify::Namespace(namespace) => (0, namespace),
        Identify::Controller => (1, NamespaceId::NONE),
        Identify::NamespacesAfter(namespace) => (2, namespace),
        // The command set is number 0.
        Identify::Limits => (6, NamespaceId::NONE),
    };
    Command::new(opcode::IDENTIFY, namespace).with_10_11(kind, 0)
}

/// A log that a controller keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Log {
    /// Errors that commands have ended with.
    Errors = 1,
    /// Health ([`SmartLog`](super::SmartLog)).
    Smart = 2,
    /// Firmware slots.
    Firmware = 3,
    /// The namespaces that have changed since this was read last
    /// ([`changed_namespaces`](super::changed_namespaces)).
    ChangedNamespaces = 4,
}

/// Asks for the first `bytes` bytes of a log, a multiple of four, at least four. Reading a log lets the controller
/// report the next event of the type that the log belongs to.
pub const fn get_log_page(log: u8, bytes: u32) -> Command {
    let dwords = bytes / 4 - 1;
    let low = log as u32 | (dwords & 0xffff) << 16;
    Command::new(opcode::GET_LOG_PAGE, NamespaceId::ALL).with_10_11(low, dwords >> 16)
}

/// Asks for `pairs` I/O queue pairs, at least one (Number of Queues, feature 07h).
pub const fn set_number_of_queues(pairs: u16) -> Command {
    let count = pairs as u32 - 1;
    set_feature(0x07, count | count << 16)
}

/// Returns the number of queue pairs that the completion of [`set_number_of_queues`] grants.
pub const fn queues_granted(result: u32) -> u32 {
    let (submission, completion) = (result & 0xffff, result >> 16);
    let least = if submission < completion {
        submission
    } else {
        completion
    };
    least + 1
}

/// Asks for events: all warnings about the controller's health, and changes of namespaces (Asynchronous Event
/// Configuration, feature 0Bh).
pub const fn set_async_events() -> Command {
    const WARNINGS: u32 = 0x1f;
    const NAMESPACE_ATTRIBUTES: u32 = 1 << 8;
    set_feature(0x0b, WARNINGS | NAMESPACE_ATTRIBUTES)
}

const fn set_feature(feature: u32, value: u32) -> Command {
    Command::new(opcode::SET_FEATURES, NamespaceId::NONE).with_10_11(feature, value)
}

/// Asks the controller to report one event, by completing this command.
pub const fn async_event_request() -> Command {
    Command::new(opcode::ASYNC_EVENT_REQUEST, NamespaceId::NONE)
}

/// Creates a completion queue of `entries` entries, at least two, in contiguous memory, with interrupts by `vector`, or
/// without interrupts.
pub const fn create_completion_queue(queue: QueueId, entries: u16, vector: Option<u16>) -> Command {
    const CONTIGUOUS: u32 = 1;
    const INTERRUPTS: u32 = 1 << 1;
    let flags = match vector {
        Some(vector) => CONTIGUOUS | INTERRUPTS | (vector as u32) << 16,
        None => CONTIGUOUS,
    };
    let size = queue.0 as u32 | (entries as u32 - 1) << 16;
    Command::new(opcode::CREATE_COMPLETION_QUEUE, NamespaceId::NONE).with_10_11(size, flags)
}

/// Creates a submission queue of `entries` entries, at least two, in contiguous memory, whose completions go to the
/// completion queue of the same number.
pub const fn create_submission_queue(queue: QueueId, entries: u16) -> Command {
    const CONTIGUOUS: u32 = 1;
    let size = queue.0 as u32 | (entries as u32 - 1) << 16;
    Command::new(opcode::CREATE_SUBMISSION_QUEUE, NamespaceId::NONE)
        .with_10_11(size, CONTIGUOUS | (queue.0 as u32) << 16)
}

/// Asks the controller to abort a command.
pub const fn abort(queue: QueueId, command: CommandId) -> Command {
    let which = queue.0 as u32 | (command.0 as u32) << 16;
    Command::new(opcode::ABORT, NamespaceId::NONE).with_10_11(which, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_where_the_specification_has_them() {
        let completion = create_completion_queue(QueueId(3), 256, Some(2));
        assert_eq!(completion.dword(10), 255 << 16 | 3);
        assert_eq!(completion.dword(11), 2 << 16 | 3);
        assert_eq!(create_completion_queue(QueueId(3), 2, None).dword(11), 1);
        let submission = create_submission_queue(QueueId(3), 64);
        assert_eq!(submission.dword(10), 63 << 16 | 3);
        assert_eq!(submission.dword(11), 3 << 16 | 1);
        let log = get_log_page(Log::Smart as u8, 512);
        assert_eq!((log.dword(10), log.dword(11)), (127 << 16 | 2, 0));
        assert_eq!(set_number_of_queues(4).dword(11), 3 << 16 | 3);
        assert_eq!(queues_granted(7 << 16 | 1), 2);
        assert_eq!(queues_granted(u32::MAX), 0x10000);
        let abort = abort(QueueId(1), CommandId(0x402));
        assert_eq!(abort.dword(10), 0x402 << 16 | 1);
        let list = identify(Identify::NamespacesAfter(NamespaceId(7)));
        assert_eq!((list.namespace().0, list.dword(10)), (7, 2));
    }
}
