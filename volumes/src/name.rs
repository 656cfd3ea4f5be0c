//! How a user names a volume: `DISK`, `DISK/LABEL`, `DISK/GUID` or `DISK/GROUP/VOLUME`.

use crate::lvm::{is_name, shown};
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use gpt_disk_types::Guid;

/// A disk and, if not all of it is meant, a volume on it.
///
/// ```
/// use bulkhead_volumes::{VolumeName, VolumePart};
///
/// let name: VolumeName = "xvda/vg0/alice".parse()?;
/// assert_eq!(name.disk, "xvda");
/// let part = VolumePart::Logical { group: "vg0".into(), volume: "alice".into() };
/// assert_eq!(name.part, part);
/// assert_eq!("03:00.0/root-alice".parse::<VolumeName>()?.disk, "03:00.0");
/// assert_eq!("xvda".parse::<VolumeName>()?.part, VolumePart::Whole);
/// # Ok::<(), bulkhead_volumes::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeName {
    /// The disk.
    pub disk: String,
    /// What of it.
    pub part: VolumePart,
}

/// What of a disk is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumePart {
    /// All of it.
    Whole,
    /// The partition with that label.
    Label(String),
    /// The partition with that identity.
    Guid(Guid),
    /// A logical volume of a volume group that has a physical volume on the disk.
    Logical {
        /// The group's name.
        group: String,
        /// The volume's.
        volume: String,
    },
}

/// Why a text names no volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    /// There is no disk's name before the first slash.
    NoDisk,
    /// There is nothing behind a slash.
    NoVolume(String),
    /// No disk of the kind has such a name: a sentence for the operator.
    Disk(String),
    /// A group or a logical volume cannot have that name.
    Impossible(String),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected =
            "expected DISK, DISK/PARTITION-LABEL, DISK/PARTITION-GUID or DISK/GROUP/VOLUME";
        match self {
            NameError::NoDisk => write!(f, "there is no disk's name, {expected}"),
            NameError::Disk(reason) => f.write_str(reason),
            NameError::NoVolume(name) => {
                write!(
                    f,
                    "'{}' has nothing behind the slash, {expected}",
                    shown(name)
                )
            }
            NameError::Impossible(name) => write!(
                f,
                "no volume group or logical volume can be named '{}', {expected}",
                shown(name)
            ),
        }
    }
}

impl core::error::Error for NameError {}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<VolumeName, NameError> {
        let (disk, rest) = match text.split_once('/') {
            Some((disk, rest)) => (disk, Some(rest)),
            None => (text, None),
        };
        if disk.is_empty() {
            return Err(NameError::NoDisk);
        }
        let part = match rest.map(|rest| (rest, rest.split_once('/'))) {
            None => VolumePart::Whole,
            Some((_, Some(("", _) | (_, ""))) | ("", None)) => {
                return Err(NameError::NoVolume(text.to_string()));
            }
            Some((label, None)) => match label.parse() {
                Ok(guid) => VolumePart::Guid(guid),
                Err(_) => VolumePart::Label(label.to_string()),
            },
            Some((_, Some((group, volume)))) => {
                if let Some(name) = [group, volume].into_iter().find(|name| !is_name(name)) {
                    return Err(NameError::Impossible(name.to_string()));
                }
                VolumePart::Logical {
                    group: group.to_string(),
                    volume: volume.to_string(),
                }
            }
        };
        Ok(VolumeName {
            disk: disk.to_string(),
            part,
        })
    }
}

impl fmt::Display for VolumePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumePart::Whole => Ok(()),
            VolumePart::Label(label) => write!(f, "/{}", shown(label)),
            VolumePart::Guid(guid) => write!(f, "/{guid}"),
            VolumePart::Logical { group, volume } => write!(f, "/{group}/{volume}"),
        }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.disk, self.part)
    }
}
