//! The identity of a device of any kind, as xenstore's paths spell it.

use crate::id::VbdId;
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_xen::DomId;
use core::fmt;

/// The directory where the toolstack announces devices, relative to the driver domain's own directory.
pub const BACKENDS: &str = "backend";

/// The directory of devices' errors, as Linux's xenbus lays it out.
const ERRORS: &str = "error/backend";

/// The kind that is served here.
const VBD: &str = "vbd";

/// A device that this domain is to be the backend of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// The kind of backend, as xenstore's paths spell it: `vbd`, `qdisk`, `vif`.
    pub kind: String,
    /// The guest.
    pub frontend: DomId,
    /// The device's number in the guest.
    pub device: u32,
}

impl DeviceId {
    /// Returns the device that an event path or a listing under [`BACKENDS`] is about:
    /// `backend/<kind>/<guest>/<device>[/…]`.
    pub fn from_path(path: &str) -> Option<DeviceId> {
        let mut parts = path.strip_prefix(BACKENDS)?.strip_prefix('/')?.split('/');
        let kind = parts.next().filter(|kind| !kind.is_empty())?.to_string();
        let frontend = DomId(parts.next()?.parse().ok()?);
        let device = parts.next()?.parse().ok()?;
        (frontend < DomId::FIRST_RESERVED).then_some(DeviceId {
            kind,
            frontend,
            device,
        })
    }

    /// Returns the disk that this is, if it is of the kind that is served here.
    pub fn as_vbd(&self) -> Option<VbdId> {
        let (frontend, device) = (self.frontend, self.device);
        (self.kind == VBD).then_some(VbdId { frontend, device })
    }

    /// Returns the backend's directory, relative to the driver domain's own.
    pub fn backend_path(&self) -> String {
        format!("{BACKENDS}/{self}")
    }

    /// Returns the directory of all errors of devices of this kind and guest.
    pub fn guests_error_path(&self) -> String {
        format!("{ERRORS}/{}/{}", self.kind, self.frontend)
    }

    /// Returns the directory of [`error_path`](Self::error_path).
    pub fn error_directory(&self) -> String {
        format!("{ERRORS}/{self}")
    }

    /// Returns the node in which operators read what is wrong with this device.
    pub fn error_path(&self) -> String {
        format!("{}/error", self.error_directory())
    }
}

impl From<VbdId> for DeviceId {
    fn from(id: VbdId) -> Self {
        DeviceId {
            kind: VBD.to_string(),
            frontend: id.frontend,
            device: id.device,
        }
    }
}

/// As paths spell it: `qdisk/5/51712`.
impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.frontend, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_identities_agree() {
        let disk = DeviceId {
            kind: "qdisk".into(),
            frontend: DomId(5),
            device: 51712,
        };
        assert_eq!(disk.backend_path(), "backend/qdisk/5/51712");
        assert_eq!(
            DeviceId::from_path("backend/qdisk/5/51712"),
            Some(disk.clone())
        );
        assert_eq!(
            DeviceId::from_path("backend/qdisk/5/51712/state"),
            Some(disk.clone())
        );
        assert_eq!(disk.error_path(), "error/backend/qdisk/5/51712/error");
        assert_eq!(disk.guests_error_path(), "error/backend/qdisk/5");
    }

    #[test]
    fn a_vbd_is_a_device_too() {
        let vbd = VbdId {
            frontend: DomId(5),
            device: 51712,
        };
        let device = DeviceId::from(vbd);
        assert_eq!(device.backend_path(), vbd.backend_path());
        assert_eq!(device.error_path(), "error/backend/vbd/5/51712/error");
        assert_eq!(device.as_vbd(), Some(vbd));
        let other = DeviceId::from_path("backend/qdisk/5/51712").unwrap();
        assert_eq!(other.as_vbd(), None);
    }

    #[test]
    fn other_paths_name_no_device() {
        for path in [
            "backend",
            "backend/qdisk",
            "backend/qdisk/5",
            "backend//5/51712",
            "backend/qdisk/x/51712",
            "backend/qdisk/32752/51712",
            "backend/qdisk/5/x",
            "backends/qdisk/5/51712",
        ] {
            assert_eq!(DeviceId::from_path(path), None, "{path}");
        }
    }
}
