//! Why a volume cannot be opened, in sentences for the operator.

use crate::claims::Overlap;
use crate::content::ContentError;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_images::MappingError;
use core::fmt;
use gpt_disk_types::Guid;

/// The reason why a volume cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeError {
    /// There is no such disk.
    NoDisk {
        /// Its name.
        name: String,
        /// The names there are.
        disks: Vec<String>,
    },
    /// The disk cannot be used.
    Disk {
        /// The disk.
        disk: String,
        /// The reason.
        reason: String,
    },
    /// The content of the disk is not known.
    Content {
        /// The disk.
        disk: String,
        /// The reason.
        error: ContentError,
    },
    /// The disk has no partition table.
    NoTable {
        /// The volume that was to be opened.
        name: String,
    },
    /// There is no such volume.
    NotFound {
        /// The volume that was to be opened.
        name: String,
        /// Names of some that there are.
        there: Vec<String>,
        /// The places that were not looked at.
        unsearched: Unsearched,
    },
    /// Several partitions have the name.
    Ambiguous {
        /// The volume that was to be opened.
        name: String,
        /// Their identities.
        partitions: Vec<Guid>,
    },
    /// It cannot be used.
    Unusable {
        /// The volume that was to be opened.
        name: String,
        /// The reason.
        fault: String,
    },
    /// Disks that it lies on are not there.
    Missing {
        /// The volume that was to be opened.
        name: String,
        /// The names and identities of the physical volumes.
        physical: Vec<String>,
        /// The places that were not looked at.
        unsearched: Unsearched,
    },
    /// It is a partition for LVM, and a guest is not to write to it.
    ForLvm {
        /// The volume that was to be opened.
        name: String,
    },
    /// It is not to be written to.
    ReadOnly {
        /// The volume that was to be opened.
        name: String,
    },
    /// Sectors of it are open, and are not shared.
    InUse {
        /// The volume that was to be opened.
        name: String,
        /// The owner's name.
        overlap: Overlap,
    },
    /// No device can be made of it.
    Mapping {
        /// The volume that was to be opened.
        name: String,
        /// The reason.
        error: MappingError,
    },
}

/// Places that are not searched for physical volumes of LVM, because guests could write to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsearched(pub Vec<String>);

impl fmt::Display for Unsearched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => Ok(()),
            false => write!(
                f,
                "; not searched, as guests could write to it since data/rescan named its disk: {}",
                Names(&self.0)
            ),
        }
    }
}

/// Names in a row.
struct Names<'n>(&'n [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.0.join(", "))
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeError::NoDisk { name, disks } => {
                write!(f, "there is no disk {name}, there are: {}", Names(disks))
            }
            VolumeError::Disk { disk, reason } => write!(f, "disk {disk} cannot be used: {reason}"),
            VolumeError::Content { disk, error } => {
                write!(f, "what is on disk {disk} is not known: {error}")
            }
            VolumeError::NoTable { name } => {
                write!(
                    f,
                    "there is no {name}: its disk has no GUID partition table"
                )
            }
            VolumeError::NotFound {
                name,
                there,
                unsearched,
            } => {
                let there = Names(there);
                write!(f, "there is no {name}, there are: {there}{unsearched}")
            }
            VolumeError::Ambiguous { name, partitions } => {
                write!(f, "{name} names several partitions, name one by its GUID:")?;
                let mut before = " ";
                for partition in partitions {
                    write!(f, "{before}{partition}")?;
                    before = ", ";
                }
                Ok(())
            }
            VolumeError::Unusable { name, fault } => write!(f, "{name} cannot be used: {fault}"),
            VolumeError::Missing {
                name,
                physical,
                unsearched,
            } => write!(
                f,
                "{name} cannot be used: none of the disks has its physical volume {}{unsearched}",
                Names(physical)
            ),
            VolumeError::ForLvm { name } => write!(
                f,
                "{name} has the partition type of LVM, whose volumes other guests may have: expected access=ro, or \
                 another type (sgdisk --typecode)"
            ),
            VolumeError::ReadOnly { name } => write!(f, "{name} is read-only, expected access=ro"),
            VolumeError::InUse { name, overlap } if overlap.name == *name => {
                write!(f, "{name} is {}", overlap.who())
            }
            VolumeError::InUse { name, overlap } => write!(f, "{name} is in use: {overlap}"),
            VolumeError::Mapping { name, error } => write!(f, "{name} cannot be used: {error}"),
        }
    }
}

impl core::error::Error for VolumeError {}
