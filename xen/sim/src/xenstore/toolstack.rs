//! The toolstack: the nodes that libxl writes when a domain is made, and when a disk is attached or detached.
//!
//! The nodes, their values and their permissions are those of libxl 4.17; each step is one
//! transaction, as there. Waiting is left to the test: where libxl waits for the backend's state,
//! look at [`Vbd::backend_state`], and where it waits for the backend to clear up, at
//! [`Vbd::backend_gone`].
//!
//! ```
//! use bulkhead_xen::DomId;
//! use bulkhead_xen_sim::xenstore::Server;
//! use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
//!
//! let mut store = Server::new();
//! let (storage, guest) = (DomId(2), DomId(5));
//! toolstack::create_domain(&mut store, storage, "storage", true);
//! toolstack::create_domain(&mut store, guest, "guest", false);
//!
//! let vbd = Vbd::new(storage, guest, "xvda");
//! toolstack::attach(&mut store, &vbd, &Disk::new("ram:disk0"));
//! assert_eq!(vbd.backend_path(), "/local/domain/2/backend/vbd/5/51712");
//! assert_eq!(vbd.backend_state(&mut store).as_deref(), Some("1"));
//! ```

use super::{Server, Session, domain_path, owned_by};
use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{Permission, Refusal};

const DOM0: DomId = DomId(0);

/// A disk of a guest: which backend serves it, and as which device the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vbd {
    /// The driver domain.
    pub backend: DomId,
    /// The guest.
    pub frontend: DomId,
    /// The device's name in the guest, such as `xvda`.
    pub name: String,
    /// The kind of backend: `vbd`, or `qdisk` where libxl has QEMU serve the disk.
    pub kind: &'static str,
}

impl Vbd {
    /// Returns the disk of that name (`xvda`, …) with a backend of the kind `vbd`.
    ///
    /// # Panics
    /// If the name is not that of a whole `xvd` disk.
    pub fn new(backend: DomId, frontend: DomId, name: &str) -> Vbd {
        let vbd = Vbd {
            backend,
            frontend,
            name: name.into(),
            kind: "vbd",
        };
        assert!(vbd.disk_index().is_some(), "{name:?} is no xvd disk");
        vbd
    }

    /// Returns the same disk with a backend of another kind.
    pub fn of_kind(self, kind: &'static str) -> Vbd {
        Vbd { kind, ..self }
    }

    /// Counts `xvda`, `xvdb`, … `xvdz`, `xvdaa`, … from 0.
    fn disk_index(&self) -> Option<u32> {
        let letters = self.name.strip_prefix("xvd")?;
        let count = letters.bytes().try_fold(0, |count: u32, letter| {
            let digit = letter.is_ascii_lowercase().then(|| letter - b'a' + 1)?;
            Some(count * 26 + u32::from(digit))
        });
        count?.checked_sub(1)
    }

    /// The device number in the names of the disk's directories
    /// (`docs/man/xen-vbd-interface.7`): 16 disks by the old numbers, the rest by extended ones.
    pub fn device_number(&self) -> u32 {
        match self.disk_index().expect("checked in `new`") {
            index @ 0..=15 => 202 << 8 | index << 4,
            index => 1 << 28 | index << 8,
        }
    }

    /// The backend's directory.
    pub fn backend_path(&self) -> String {
        format!(
            "{}/backend/{}/{}/{}",
            domain_path(self.backend),
            self.kind,
            self.frontend,
            self.device_number()
        )
    }

    /// The frontend's directory.
    pub fn frontend_path(&self) -> String {
        format!(
            "{}/device/vbd/{}",
            domain_path(self.frontend),
            self.device_number()
        )
    }

    fn libxl_path(&self) -> String {
        format!(
            "/libxl/{}/device/vbd/{}",
            self.frontend,
            self.device_number()
        )
    }

    /// Returns what the backend says its state is; `None` if there is none.
    pub fn backend_state(&self, store: &mut Server) -> Option<String> {
        store.read(&format!("{}/state", self.backend_path()))
    }

    /// Returns what the frontend says its state is; `None` if there is none.
    pub fn frontend_state(&self, store: &mut Server) -> Option<String> {
        store.read(&format!("{}/state", self.frontend_path()))
    }

    /// Returns whether the backend has removed its directory.
    pub fn backend_gone(&self, store: &Server) -> bool {
        !store.exists(&self.backend_path())
    }
}

/// A disk to attach, as a `disk=` line of the guest's configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `target=`: written to the backend's `params` as it is.
    pub target: String,
    /// `access=ro`.
    pub read_only: bool,
    /// `devtype=cdrom`.
    pub cdrom: bool,
    /// `removable`.
    pub removable: bool,
    /// `discard` (the default) or `no-discard`.
    pub discard: bool,
}

impl Disk {
    /// Returns a writable disk with the default of each option.
    pub fn new(target: &str) -> Disk {
        Disk {
            target: target.into(),
            read_only: false,
            cdrom: false,
            removable: false,
            discard: true,
        }
    }

    /// Returns a read-only disk with the default of each other option.
    pub fn read_only(target: &str) -> Disk {
        Disk {
            read_only: true,
            ..Disk::new(target)
        }
    }
}

/// Makes the directories of a new domain, which need not be introduced yet.
pub fn create_domain(store: &mut Server, domain: DomId, name: &str, driver_domain: bool) {
    let path = domain_path(domain);
    let dom0s = owned_by(DOM0, &[domain]);
    let own = owned_by(domain, &[]);
    let hidden = owned_by(DOM0, &[]);
    store.transaction(|tx| {
        make(tx, &path, &dom0s)?;
        make(tx, &format!("/libxl/{domain}"), &hidden)?;
        make(tx, &format!("/libxl/{domain}/device"), &hidden)?;
        // Every domain has a console, which keeps libxl's directory of its devices alive.
        tx.write(&format!("/libxl/{domain}/device/console/0/state"), "1")?;
        tx.write(&format!("{path}/name"), name)?;
        tx.write(&format!("{path}/domid"), domain.to_string())?;
        for below in ["cpu", "memory", "device", "control"] {
            make(tx, &format!("{path}/{below}"), &dom0s)?;
        }
        for below in [
            "device/suspend/event-channel",
            "control/shutdown",
            "control/feature-poweroff",
            "control/feature-reboot",
            "control/feature-suspend",
            "control/sysrq",
            "data",
            "drivers",
            "feature",
            "attr",
            "error",
        ] {
            make(tx, &format!("{path}/{below}"), &own)?;
        }
        if driver_domain {
            make(tx, &format!("{path}/libxl"), &own)?;
            make(tx, &format!("{path}/device-model"), &own)?;
        }
        Ok(())
    });
}

/// Makes a node anew, with permissions.
fn make(tx: &mut Session<'_>, path: &str, permissions: &[Permission]) -> Result<(), Refusal> {
    forget(tx, path)?;
    tx.mkdir(path)?;
    tx.set_permissions(path, permissions)
}

/// Removes a node, if it is there.
fn forget(tx: &mut Session<'_>, path: &str) -> Result<(), Refusal> {
    match tx.remove(path) {
        Err(Refusal::NotFound) => Ok(()),
        result => result,
    }
}

/// Attaches a disk: `xl create`, or `xl block-attach`. libxl then waits 10 s for the backend's
/// state to become 2.
pub fn attach(store: &mut Server, vbd: &Vbd, disk: &Disk) {
    let flag = |set: bool| if set { "1" } else { "0" };
    let device_type = if disk.cdrom { "cdrom" } else { "disk" };
    let frontend_id = vbd.frontend.to_string();
    let backend_id = vbd.backend.to_string();
    let device = vbd.device_number().to_string();
    let frontend_nodes = [
        ("backend-id", backend_id.as_str()),
        ("state", "1"),
        ("virtual-device", &device),
        ("device-type", device_type),
        ("trusted", "1"),
    ];
    let backend_nodes = [
        ("params", disk.target.as_str()),
        ("script", "/etc/xen/scripts/block"),
        ("frontend-id", &frontend_id),
        ("online", "1"),
        ("removable", flag(disk.removable)),
        ("bootable", "1"),
        ("state", "1"),
        ("dev", &vbd.name),
        ("type", if vbd.kind == "vbd" { "phy" } else { vbd.kind }),
        ("mode", if disk.read_only { "r" } else { "w" }),
        ("device-type", device_type),
        ("discard-enable", flag(disk.discard)),
        ("specification", "xen"),
    ];
    let (frontend, backend, libxl) = (vbd.frontend_path(), vbd.backend_path(), vbd.libxl_path());
    store.transaction(|tx| {
        forget(tx, &libxl)?;
        tx.write(&format!("{libxl}/frontend"), &frontend)?;
        tx.write(&format!("{libxl}/backend"), &backend)?;

        let guests = owned_by(vbd.frontend, &[vbd.backend]);
        make(tx, &frontend, &guests)?;
        tx.write(&format!("{frontend}/backend"), &backend)?;
        for (name, value) in frontend_nodes {
            let path = format!("{frontend}/{name}");
            tx.write(&path, value)?;
            tx.set_permissions(&path, &guests)?;
        }

        make(tx, &backend, &owned_by(vbd.backend, &[vbd.frontend]))?;
        tx.write(&format!("{backend}/frontend"), &frontend)?;
        for (name, value) in backend_nodes {
            tx.write(&format!("{backend}/{name}"), value)?;
            tx.write(&format!("{libxl}/{name}"), value)?;
        }
        Ok(())
    });
}

/// Asks the backend to let go of a disk: `xl block-detach`, and every disk on `xl shutdown`.
/// libxl then waits 10 s for the backend's state to become 6, and 10 s more for its directory to
/// vanish. Returns false if there is no backend any more.
pub fn request_detach(store: &mut Server, vbd: &Vbd) -> bool {
    detach(store, vbd, false)
}

/// As [`request_detach`], but with the frontend's directory gone at once: `xl destroy`,
/// `xl block-detach --force`, and what is left of a guest that crashed.
pub fn force_detach(store: &mut Server, vbd: &Vbd) -> bool {
    detach(store, vbd, true)
}

fn detach(store: &mut Server, vbd: &Vbd, force: bool) -> bool {
    let backend = vbd.backend_path();
    let state = format!("{backend}/state");
    let mut there = false;
    store.transaction(|tx| {
        if force {
            clean_up(tx, &vbd.frontend_path())?;
        }
        let value = match tx.read(&state) {
            Err(Refusal::NotFound) => return Ok(()),
            result => result?,
        };
        there = true;
        tx.write(&format!("{backend}/online"), "0")?;
        if value != b"6" {
            tx.write(&state, "5")?;
        }
        Ok(())
    });
    there
}

/// Removes what is left of a disk once the backend has done its part (or libxl has given up
/// waiting): the frontend's directory, libxl's own, the backend's, and parents left empty.
pub fn finish_detach(store: &mut Server, vbd: &Vbd) {
    store.transaction(|tx| {
        clean_up(tx, &vbd.frontend_path())?;
        clean_up(tx, &vbd.libxl_path())?;
        clean_up(tx, &vbd.backend_path())
    });
}

/// Removes a node, and those above it that are left without children and value.
fn clean_up(tx: &mut Session<'_>, path: &str) -> Result<(), Refusal> {
    // If not even the node above is there, libxl leaves those further up as they are.
    match tx.remove(path) {
        Err(Refusal::NotFound) => return Ok(()),
        result => result?,
    }
    let mut above = path;
    while let Some(slash) = above.rfind('/').filter(|&slash| slash > 0) {
        above = &above[..slash];
        let empty = tx.read(above)?.is_empty() && tx.list(above)?.is_empty();
        if !empty {
            break;
        }
        tx.remove(above)?;
    }
    Ok(())
}

/// Removes all directories of a domain: the end of `xl destroy`, after its disks were
/// [`force_detach`]ed and [`finish_detach`]ed. The server's
/// [`release`](Server::release) is what tells that the domain itself is gone.
pub fn remove_domain(store: &mut Server, domain: DomId) {
    store.remove(&domain_path(domain));
    store.remove(&format!("/libxl/{domain}"));
}
