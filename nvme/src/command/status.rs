//! The status of a completed command.

use bulkhead_images::IoError;
use core::fmt;

/// The status field of a completion, without its phase: a code, its type, and whether the command may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Status(u16);

impl Status {
    /// The command succeeded.
    pub const SUCCESS: Status = Status(0);
    /// The controller knows no such command.
    pub const INVALID_OPCODE: Status = Status(0x001);
    /// A field of the command is invalid.
    pub const INVALID_FIELD: Status = Status(0x002);
    /// The data could not be transferred.
    pub const DATA_TRANSFER_ERROR: Status = Status(0x004);
    /// The command was aborted at the host's request.
    pub const ABORT_REQUESTED: Status = Status(0x007);
    /// The command was aborted because its queue was deleted.
    pub const QUEUE_DELETED: Status = Status(0x008);
    /// There is no such namespace.
    pub const INVALID_NAMESPACE: Status = Status(0x00b);
    /// A PRP entry has an offset where it may have none.
    pub const INVALID_PRP_OFFSET: Status = Status(0x013);
    /// The namespace is write-protected.
    pub const WRITE_PROTECTED: Status = Status(0x020);
    /// The command was interrupted, and is to be sent again.
    pub const INTERRUPTED: Status = Status(0x021);
    /// The blocks are past the end of the namespace.
    pub const LBA_OUT_OF_RANGE: Status = Status(0x080);
    /// The namespace is not ready.
    pub const NAMESPACE_NOT_READY: Status = Status(0x082);
    /// The number of a queue is invalid.
    pub const INVALID_QUEUE: Status = Status(0x101);
    /// The size of a queue is invalid.
    pub const INVALID_QUEUE_SIZE: Status = Status(0x102);
    /// More asynchronous event requests than the controller takes.
    pub const TOO_MANY_EVENT_REQUESTS: Status = Status(0x105);
    /// The data could not be written to the medium.
    pub const WRITE_FAULT: Status = Status(0x280);
    /// The data could not be read from the medium.
    pub const UNRECOVERED_READ: Status = Status(0x281);

    /// Bit 14: the same command would fail again.
    const DO_NOT_RETRY: u16 = 1 << 14;

    /// Returns the status with these 15 bits: the code, its type (bits 8 to 10), the delay for a retry (11 and 12),
    /// "more" (13) and "do not retry" (14).
    #[inline]
    pub const fn new(bits: u16) -> Status {
        Status(bits & 0x7fff)
    }

    /// Returns the same status with "do not retry" set.
    #[must_use]
    pub const fn for_good(self) -> Status {
        Status(self.0 | Self::DO_NOT_RETRY)
    }

    /// Returns the field of a completion, with the phase 0.
    pub(super) const fn field(self) -> u16 {
        self.0 << 1
    }

    /// Returns whether the command succeeded.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Returns whether the same command may succeed if it is sent again.
    pub const fn may_be_retried(self) -> bool {
        !self.is_success() && self.0 & Self::DO_NOT_RETRY == 0
    }

    /// Returns the code and its type alone.
    pub const fn code(self) -> Status {
        Status(self.0 & 0x7ff)
    }

    /// Returns whether the command was aborted.
    pub fn is_aborted(self) -> bool {
        let code = self.code();
        code == Self::ABORT_REQUESTED || code == Self::QUEUE_DELETED
    }

    /// Returns the result that a request gets whose command ended so.
    pub fn outcome(self) -> Result<(), IoError> {
        match self.code() {
            Self::SUCCESS => Ok(()),
            Self::LBA_OUT_OF_RANGE => Err(IoError::OutOfRange),
            Self::WRITE_PROTECTED => Err(IoError::ReadOnly),
            Self::INVALID_OPCODE => Err(IoError::NotSupported),
            _ => Err(IoError::Medium),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = match self.code() {
            Self::SUCCESS => "success",
            Self::INVALID_OPCODE => "the controller knows no such command",
            Self::INVALID_FIELD => "a field of the command is invalid",
            Self::DATA_TRANSFER_ERROR => "the data could not be transferred",
            Self::ABORT_REQUESTED => "aborted as requested",
            Self::QUEUE_DELETED => "its queue was deleted",
            Self::INVALID_NAMESPACE => "there is no such namespace",
            Self::INVALID_PRP_OFFSET => "a page is not named by its start",
            Self::WRITE_PROTECTED => "the namespace is write-protected",
            Self::INTERRUPTED => "interrupted by the controller",
            Self::LBA_OUT_OF_RANGE => "past the end of the namespace",
            Self::NAMESPACE_NOT_READY => "the namespace is not ready",
            Self::INVALID_QUEUE => "a queue has an impossible number",
            Self::INVALID_QUEUE_SIZE => "a queue has an impossible size",
            Self::TOO_MANY_EVENT_REQUESTS => "too many requests for events",
            Self::WRITE_FAULT => "the medium did not take the data",
            Self::UNRECOVERED_READ => "unrecovered read error",
            other => return write!(f, "status {:#05x}", other.0),
        };
        f.write_str(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn retry_is_for_failures_that_may_pass() {
        assert!(!Status::SUCCESS.may_be_retried());
        assert!(Status::INTERRUPTED.may_be_retried());
        assert!(!Status::INTERRUPTED.for_good().may_be_retried());
        assert_eq!(Status::INTERRUPTED.for_good().code(), Status::INTERRUPTED);
        // The phase is no part of it, and a delay makes no failure.
        assert!(Status::new(0x9800).is_success());
        assert_eq!(Status::new(0x1881).code().to_string(), "status 0x081");
    }
}
