//! The identity of a vbd (a guest, and a disk of it) and its places in xenstore.

use alloc::format;
use alloc::string::String;
use bulkhead_xen::DomId;
use bulkhead_xenbus::DiskName;
use core::fmt;

/// The directory in which the toolstack announces block devices, relative to the driver domain's own one.
pub const BACKEND_ROOT: &str = "backend/vbd";

/// A virtual block device: the guest that has it, and its number there (`virtual-device`:
/// 51712 is xvda).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VbdId {
    /// The guest.
    pub frontend: DomId,
    /// The device number.
    pub device: u32,
}

impl VbdId {
    /// Returns the vbd that an event path or a listing under [`BACKEND_ROOT`] names:
    /// `backend/vbd/<guest>/<device>[/…]`.
    pub fn from_path(path: &str) -> Option<VbdId> {
        let mut parts = path
            .strip_prefix(BACKEND_ROOT)?
            .strip_prefix('/')?
            .split('/');
        let frontend = DomId(parts.next()?.parse().ok()?);
        let device = parts.next()?.parse().ok()?;
        (frontend < DomId::FIRST_RESERVED).then_some(VbdId { frontend, device })
    }

    /// Returns the backend's directory, relative to the driver domain's own.
    pub fn backend_path(&self) -> String {
        format!("{BACKEND_ROOT}/{}/{}", self.frontend, self.device)
    }

    /// Returns the frontend's directory as libxl and every other toolstack spell it, absolute.
    pub fn frontend_path(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.frontend, self.device)
    }
}

/// As the log names it: `5/51712 (xvda)`.
impl fmt::Display for VbdId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frontend, self.device)?;
        match DiskName::of(self.device) {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn paths_and_identities_agree() {
        let vbd = VbdId {
            frontend: DomId(5),
            device: 51712,
        };
        assert_eq!(vbd.backend_path(), "backend/vbd/5/51712");
        assert_eq!(VbdId::from_path(&vbd.backend_path()), Some(vbd));
        assert_eq!(VbdId::from_path("backend/vbd/5/51712/state"), Some(vbd));
        assert_eq!(vbd.frontend_path(), "/local/domain/5/device/vbd/51712");
    }

    #[test]
    fn other_paths_name_no_vbd() {
        for path in [
            "backend/vbd",
            "backend/vbd/5",
            "backend/vbd/5/",
            "backend/vbd/x/51712",
            "backend/vbd/70000/51712",
            "backend/vbd/32752/51712",
            "backend/vif/5/0",
            "backend/vbd5/51712",
        ] {
            assert_eq!(VbdId::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn disks_have_the_names_a_guest_shows() {
        let named = |device| {
            VbdId {
                frontend: DomId(1),
                device,
            }
            .to_string()
        };
        assert_eq!(named(51712), "1/51712 (xvda)");
        assert_eq!(named(51729), "1/51729 (xvdb1)");
        assert_eq!(named(768), "1/768");
    }
}
