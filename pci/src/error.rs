//! The reasons why pciback, Xen or a device does not do what a driver wants.

use crate::bars::BadBar;
use bulkhead_xen::Errno;
use bulkhead_xen::abi::pciif;
use core::fmt;

/// The reason why an operation of pciback's was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationError {
    /// pciback knows no such function (`XEN_PCI_ERR_dev_not_found`).
    NotFound,
    /// The register is not aligned, or not there (`XEN_PCI_ERR_invalid_offset`).
    InvalidOffset,
    /// pciback does not let this domain write that (`XEN_PCI_ERR_access_denied`).
    AccessDenied,
    /// pciback knows no such operation (`XEN_PCI_ERR_not_implemented`).
    NotImplemented,
    /// The operation failed in dom0, whose log has the reason (`XEN_PCI_ERR_op_failed`).
    Failed,
    /// dom0's kernel answered with an error number, 6 to 4095.
    Errno(Errno),
    /// The answer is neither a code of the protocol nor an error number.
    Meaningless(i32),
    /// pciback did not answer within the time in [`FrontendOptions::timeout`](crate::FrontendOptions::timeout).
    TimedOut,
    /// pciback is gone.
    Disconnected,
}

impl OperationError {
    /// Reads the field `err` of an answer. pciback answers with the codes of the protocol (`XEN_PCI_ERR_*`,
    /// `io/pciif.h`), -1 to -5, or with a negated error number of dom0's kernel. An error number up to 5 (EIO)
    /// cannot be told from a code, and is read as one.
    pub fn check(err: i32) -> Result<(), OperationError> {
        Err(match err {
            pciif::SUCCESS => return Ok(()),
            pciif::DEV_NOT_FOUND => OperationError::NotFound,
            pciif::INVALID_OFFSET => OperationError::InvalidOffset,
            pciif::ACCESS_DENIED => OperationError::AccessDenied,
            pciif::NOT_IMPLEMENTED => OperationError::NotImplemented,
            pciif::OP_FAILED => OperationError::Failed,
            -4095..=-6 => OperationError::Errno(Errno(err.unsigned_abs() as u16)),
            other => OperationError::Meaningless(other),
        })
    }
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("pciback does not know the function"),
            Self::InvalidOffset => f.write_str("pciback knows no such register"),
            Self::AccessDenied => f.write_str("pciback denies access"),
            Self::NotImplemented => f.write_str("pciback cannot do that"),
            Self::Failed => f.write_str("it failed in dom0 (see dom0's kernel log)"),
            Self::Errno(error) => write!(f, "dom0 answers: {error}"),
            Self::Meaningless(answer) => write!(f, "pciback's answer {answer} has no meaning"),
            Self::TimedOut => f.write_str("pciback did not answer in time"),
            Self::Disconnected => f.write_str("pciback is gone"),
        }
    }
}

impl core::error::Error for OperationError {}

/// The reason why a driver does not get what it wants of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciError {
    /// pciback did not do an operation.
    Operation(OperationError),
    /// A BAR is not what the driver expects.
    Bar(BadBar),
    /// Registers that the driver wants share a page with the MSI-X table, which Xen lets no domain write.
    Protected {
        /// The BAR.
        bar: u8,
    },
    /// Xen refuses to map registers.
    NotMapped {
        /// The BAR.
        bar: u8,
        /// Xen's reason.
        error: Errno,
    },
    /// The driver has enabled the function's interrupts before.
    Enabled,
    /// The function has no interrupts that this domain can have: it can only be polled.
    NoInterrupts,
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(error) => error.fmt(f),
            Self::Bar(error) => error.fmt(f),
            Self::Protected { bar } => write!(
                f,
                "registers in BAR {bar} share a page with the MSI-X table, which Xen lets no domain write: the \
                 function cannot be used by a PV domain"
            ),
            Self::NotMapped { bar, error } => {
                write!(f, "Xen does not map registers of BAR {bar}: {error}")
            }
            Self::Enabled => f.write_str("its interrupts are enabled already"),
            Self::NoInterrupts => f.write_str("it has no interrupt"),
        }
    }
}

impl core::error::Error for PciError {}

impl From<OperationError> for PciError {
    fn from(error: OperationError) -> Self {
        PciError::Operation(error)
    }
}

impl From<BadBar> for PciError {
    fn from(error: BadBar) -> Self {
        PciError::Bar(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn codes_of_the_protocol_are_no_error_numbers() {
        let told = |err| {
            OperationError::check(err)
                .map_err(|error| error.to_string())
                .err()
        };
        assert_eq!(told(0), None);
        let text = |err| told(err).expect("an error");
        assert_eq!(text(-1), "pciback does not know the function");
        assert_eq!(text(-2), "pciback knows no such register");
        assert_eq!(text(-3), "pciback denies access");
        assert_eq!(text(-4), "pciback cannot do that");
        assert_eq!(text(-5), "it failed in dom0 (see dom0's kernel log)");
        assert_eq!(
            text(-6),
            "dom0 answers: no such device or address (errno 6)"
        );
        assert_eq!(text(-22), "dom0 answers: invalid argument (errno 22)");
        assert_eq!(text(-114), "dom0 answers: already in progress (errno 114)");
        for err in [1, i32::MAX, i32::MIN, -4096] {
            assert_eq!(
                text(err),
                alloc::format!("pciback's answer {err} has no meaning")
            );
        }
    }
}
