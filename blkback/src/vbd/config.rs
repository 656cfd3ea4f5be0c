//! The description of a disk that the toolstack wrote into its backend directory (libxl, and
//! `io/blkif.h`, "Backend Device Node").

use crate::id::VbdId;
use alloc::string::{String, ToString};
use bulkhead_images::Access;
use bulkhead_xenbus::{NodeMap, excerpt};
use core::fmt;

/// The nodes of a backend directory that describe the disk. They do not change while the disk
/// is there: if they differ from what they were, the toolstack has made the directory anew.
pub const CONFIG_NODES: [&str; 7] = [
    "frontend",
    "frontend-id",
    "params",
    "mode",
    "device-type",
    "removable",
    "discard-enable",
];

/// A disk as the toolstack wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VbdConfig {
    /// The frontend's directory, absolute.
    pub frontend_path: String,
    /// The image to serve: `target=` of the disk's configuration.
    pub target: String,
    /// The guest's access: read-only or writable.
    pub access: Access,
    /// True if the guest is to see a CD-ROM drive.
    pub cdrom: bool,
    /// True if the guest is to see a removable disk.
    pub removable: bool,
    /// True if the guest may discard, where the image can.
    pub discard: bool,
}

/// An error in what the toolstack wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A node that must be there is not.
    Missing(&'static str),
    /// A node that names the frontend names another one than the directory that it is in.
    OtherFrontend {
        /// The node.
        node: &'static str,
        /// The start of its value.
        value: String,
        /// The frontend that the directory names.
        expected: String,
    },
    /// The mode is neither reading nor writing.
    UnknownMode(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing("params") => f.write_str("the disk names no target=, expected ram:NAME"),
            Self::Missing(node) => write!(f, "the toolstack wrote no {node}"),
            Self::OtherFrontend {
                node,
                value,
                expected,
            } => write!(
                f,
                "the toolstack's {node} is {value:?}, expected {expected}"
            ),
            Self::UnknownMode(mode) => write!(f, "the disk's mode is {mode:?}, expected r or w"),
        }
    }
}

impl core::error::Error for ConfigError {}

impl VbdConfig {
    /// Reads the nodes of the backend directory of this disk. The frontend must be that of the directory:
    /// otherwise one guest's disk would follow the state, and map the pages, of another.
    pub fn parse(id: VbdId, nodes: &NodeMap) -> Result<VbdConfig, ConfigError> {
        let text = |name| nodes.get(name).map(String::as_str);
        let required = |name| {
            text(name)
                .filter(|value| !value.is_empty())
                .ok_or(ConfigError::Missing(name))
        };
        let same = |node, expected: String| match required(node)? {
            value if value == expected => Ok(expected),
            other => Err(ConfigError::OtherFrontend {
                node,
                value: excerpt(other),
                expected,
            }),
        };
        let frontend_path = same("frontend", id.frontend_path())?;
        same("frontend-id", id.frontend.to_string())?;
        let access = match required("mode")? {
            "r" => Access::ReadOnly,
            "w" => Access::ReadWrite,
            other => return Err(ConfigError::UnknownMode(other.into())),
        };
        let cdrom = text("device-type") == Some("cdrom");
        Ok(VbdConfig {
            frontend_path,
            target: required("params")?.into(),
            access,
            cdrom,
            removable: text("removable") == Some("1") || cdrom,
            discard: text("discard-enable") != Some("0"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_xen::DomId;

    fn nodes(pairs: &[(&str, &str)]) -> NodeMap {
        pairs
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect()
    }

    const ID: VbdId = VbdId {
        frontend: DomId(5),
        device: 51712,
    };

    const LIBXL: [(&str, &str); 7] = [
        ("frontend", "/local/domain/5/device/vbd/51712"),
        ("frontend-id", "5"),
        ("params", "ram:disk0"),
        ("mode", "w"),
        ("device-type", "disk"),
        ("removable", "0"),
        ("discard-enable", "1"),
    ];

    #[test]
    fn what_libxl_writes() {
        let config = VbdConfig::parse(ID, &nodes(&LIBXL)).unwrap();
        assert_eq!(config.frontend_path, "/local/domain/5/device/vbd/51712");
        assert_eq!(config.target, "ram:disk0");
        assert_eq!(config.access, Access::ReadWrite);
        assert!(!config.cdrom && !config.removable && config.discard);
    }

    #[test]
    fn a_missing_node_is_named() {
        let mut without = nodes(&LIBXL);
        without.remove("params");
        assert_eq!(
            VbdConfig::parse(ID, &without),
            Err(ConfigError::Missing("params"))
        );
        let mut strange = nodes(&LIBXL);
        strange.insert("mode".into(), "x".into());
        assert_eq!(
            VbdConfig::parse(ID, &strange),
            Err(ConfigError::UnknownMode("x".into()))
        );
    }
}
