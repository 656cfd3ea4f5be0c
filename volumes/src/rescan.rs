//! What became of the volumes that are open, when the tables of a disk were read again.

use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_images::Sector;
use core::fmt;

/// The tables of a disk were read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescan {
    /// The disk.
    pub disk: String,
    /// The number of volumes that are on it now.
    pub volumes: usize,
    /// Those that are open and not as they were.
    pub changes: Vec<VolumeChange>,
}

/// An open volume that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeChange {
    /// Its name.
    pub name: String,
    /// The name of the one that has it open.
    pub owner: String,
    /// The outcome for it.
    pub outcome: Outcome,
}

/// The outcome of a rescan for an open volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is larger.
    Grown {
        /// The size that it had.
        from: Sector,
        /// The size that it has.
        to: Sector,
    },
    /// It is served as it was, for that reason.
    Kept(String),
}

impl fmt::Display for Rescan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rescan { disk, volumes, .. } = self;
        write!(f, "{disk} was read again, volumes on it: {volumes}")
    }
}

impl fmt::Display for VolumeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VolumeChange { name, owner, .. } = self;
        match &self.outcome {
            Outcome::Grown { from, to } => write!(
                f,
                "{name} of {owner} has grown from {from} to {to} sectors of 512 bytes"
            ),
            Outcome::Kept(reason) => {
                write!(f, "{name} of {owner} is served as it was: {reason}")
            }
        }
    }
}
