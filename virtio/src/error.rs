//! The reasons why a device does not start, or cannot be used any more.

use alloc::string::String;
use bulkhead_dma::{NoPages, StartFailure};
use bulkhead_pci::{OperationError, PciError};
use bulkhead_xen::{Errno, TooManyDevices};
use core::fmt;

/// The reason why a device does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// dom0's pciback or Xen refuses an operation on the PCI function.
    Pci(PciError),
    /// The function lacks a structure of a modern device.
    NotModern,
    /// It does not complete a reset in time.
    Stays,
    /// It is not there any more.
    Gone,
    /// It does not accept the features that were chosen of those it offers.
    FeaturesRefused,
    /// Its configuration changes whenever it is read.
    Restless,
    /// It cannot be used, for a reason that will not pass.
    Unusable(String),
    /// There is no memory for its queues.
    Pages(NoPages),
    /// One of its interrupts cannot be used.
    Interrupt {
        /// The number of the interrupt.
        vector: usize,
        /// Xen's reason.
        error: Errno,
    },
    /// Too many devices are registered to be stopped when the domain ends.
    TooMany(TooManyDevices),
    /// The domain ends.
    Ending,
}

impl StartFailure for StartError {
    fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Stays | Self::FeaturesRefused | Self::Restless | Self::Pci(_)
        )
    }

    fn stays(&self) -> bool {
        self.is_final() && !matches!(self, Self::Gone | Self::Pages(_))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(error) => error.fmt(f),
            Self::NotModern => f.write_str(
                "it lacks a structure of a modern virtio device (with QEMU: disable-legacy=on)",
            ),
            Self::Stays => f.write_str("it does not reset itself"),
            Self::Gone => f.write_str("it is not there any more"),
            Self::FeaturesRefused => {
                f.write_str("it does not accept the features that it offers (FEATURES_OK)")
            }
            Self::Restless => f.write_str("its configuration changes whenever it is read"),
            Self::Unusable(reason) => f.write_str(reason),
            Self::Pages(error) => error.fmt(f),
            Self::Interrupt { vector, error } => {
                write!(f, "its interrupt {vector} cannot be used: {error}")
            }
            Self::TooMany(error) => error.fmt(f),
            Self::Ending => f.write_str("the domain ends"),
        }
    }
}

impl core::error::Error for StartError {}

impl From<PciError> for StartError {
    fn from(error: PciError) -> Self {
        StartError::Pci(error)
    }
}

impl From<OperationError> for StartError {
    fn from(error: OperationError) -> Self {
        StartError::Pci(error.into())
    }
}

impl From<NoPages> for StartError {
    fn from(error: NoPages) -> Self {
        StartError::Pages(error)
    }
}
