//! Why a volume cannot be opened, in sentences for the operator.

use crate::claims::Overlap;
use crate::content::ContentError;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_images::MappingError;
use core::fmt;
use gpt_disk_types::Guid;

/// Why a volume cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
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
        /// Why not.
        reason: String,
    },
    /// What is on the disk is not known.
    Content {
        /// The disk.
        disk: String,
        /// Why.
        error: ContentError,
    },
    /// The disk has no partition table.
    NoTable {
        /// What was to be opened.
        name: String,
    },
    /// There is no such volume.
    NotFound {
        /// What was to be opened.
        name: String,
        /// Names of some that there are.
        there: Vec<String>,
        /// What was not looked at.
        unsearched: Unsearched,
    },
    /// Several partitions have the name.
    Ambiguous {
        /// What was to be opened.
        name: String,
        /// Their identities.
        partitions: Vec<Guid>,
    },
    /// It cannot be used.
    Unusable {
        /// What was to be opened.
        name: String,
        /// Why not.
        fault: String,
    },
    /// Disks that it lies on are not there.
    Missing {
        /// What was to be opened.
        name: String,
        /// The names and identities of the physical volumes.
        physical: Vec<String>,
        /// What was not looked at.
        unsearched: Unsearched,
    },
    /// It is a partition for LVM, and a guest is not to write to it.
    ForLvm {
        /// What was to be opened.
        name: String,
    },
    /// It is not to be written to.
    ReadOnly {
        /// What was to be opened.
        name: String,
    },
    /// Somebody has sectors of it open and does not share them.
    InUse {
        /// What was to be opened.
        name: String,
        /// Who.
        overlap: Overlap,
    },
    /// No device can be made of it.
    Mapping {
        /// What was to be opened.
        name: String,
        /// Why.
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

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoDisk { name, disks } => {
                write!(f, "there is no disk {name}, there are: {}", Names(disks))
            }
            OpenError::Disk { disk, reason } => write!(f, "disk {disk} cannot be used: {reason}"),
            OpenError::Content { disk, error } => {
                write!(f, "what is on disk {disk} is not known: {error}")
            }
            OpenError::NoTable { name } => {
                write!(
                    f,
                    "there is no {name}: its disk has no GUID partition table"
                )
            }
            OpenError::NotFound {
                name,
                there,
                unsearched,
            } => {
                let there = Names(there);
                write!(f, "there is no {name}, there are: {there}{unsearched}")
            }
            OpenError::Ambiguous { name, partitions } => {
                write!(f, "{name} names several partitions, name one by its GUID:")?;
                let mut before = " ";
                for partition in partitions {
                    write!(f, "{before}{partition}")?;
                    before = ", ";
                }
                Ok(())
            }
            OpenError::Unusable { name, fault } => write!(f, "{name} cannot be used: {fault}"),
            OpenError::Missing {
                name,
                physical,
                unsearched,
            } => write!(
                f,
                "{name} cannot be used: none of the disks has its physical volume {}{unsearched}",
                Names(physical)
            ),
            OpenError::ForLvm { name } => write!(
                f,
                "{name} has the partition type of LVM, whose volumes other guests may have: expected access=ro, or \
                 another type (sgdisk --typecode)"
            ),
            OpenError::ReadOnly { name } => write!(f, "{name} is read-only, expected access=ro"),
            OpenError::InUse { name, overlap } if overlap.name == *name => {
                write!(f, "{name} is {}", overlap.who())
            }
            OpenError::InUse { name, overlap } => write!(f, "{name} is in use: {overlap}"),
            OpenError::Mapping { name, error } => write!(f, "{name} cannot be used: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}
