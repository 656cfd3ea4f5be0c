//! Stores that targets name: the trait that a kind of store implements, and the list of all kinds.

use crate::catalog::{Catalog, OpenError};
use crate::claim::Access;
use crate::device::BlockDevice;
use crate::stores::null::NullStore;
use crate::stores::ram::RamStore;
use crate::target::{Target, TargetError};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::DomId;
use core::fmt;
use core::pin::Pin;

/// The future that opens a device ([`Store::open`]).
pub type OpenDevice<'a> =
    Pin<Box<dyn Future<Output = Result<Arc<dyn BlockDevice>, OpenError>> + 'a>>;

/// The future that reads the tables of a device again ([`Store::rescan`]).
pub type RescanFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + 'a>>;

/// A kind of store: the form of its targets, and opening the devices that they name.
///
/// A store is registered with [`Stores::register`] when the driver domain starts. Its crate needs nothing else of this
/// one but the [block-device traits](BlockDevice).
///
/// ```
/// use bulkhead_images::target::{Target, TargetError};
/// use bulkhead_images::{Access, NullDevice, OpenDevice, Owner, Sector, SectorSize, Store, Stores, open_with};
/// use std::sync::Arc;
///
/// /// `zero:SECTORS`
/// struct Zeros;
///
/// impl Store for Zeros {
///     fn scheme(&self) -> &'static str {
///         "zero"
///     }
///
///     fn expected(&self) -> &'static str {
///         "zero:SECTORS"
///     }
///
///     fn open<'a>(&'a self, target: Target<'a>, access: Access, _owner: Owner<'a>) -> OpenDevice<'a> {
///         open_with(|| {
///             let sectors = target.value.parse().map_err(|_| TargetError::Size(target.value.into()))?;
///             Ok(Arc::new(NullDevice::new(Sector(sectors), SectorSize::B512, access)))
///         })
///     }
/// }
///
/// let mut stores = Stores::default();
/// stores.register(Box::new(Zeros));
/// let device = stores.open_now("zero:64", Access::ReadWrite, "domain 5, xvda")?;
/// assert_eq!(device.geometry().sectors, Sector(64));
/// # Ok::<(), bulkhead_images::OpenError>(())
/// ```
pub trait Store {
    /// Returns the scheme: the beginning of targets of this kind, before the colon.
    fn scheme(&self) -> &'static str;

    /// Returns what is common to the schemes of all stores that have the same devices, each with targets of its own: one
    /// of these schemes.
    fn family(&self) -> &'static str {
        self.scheme()
    }

    /// Returns the form of such a target, for messages: `ram:NAME`.
    fn expected(&self) -> &'static str;

    /// Returns lines for the operator about the store's devices, open or not, and about the owners who have them open.
    fn lines(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads the tables of a device again, which another writer has changed, and tells the users of volumes on it.
    /// Returns sentences for the operator. May wait.
    fn rescan<'a>(&'a self, device: &'a str) -> RescanFuture<'a> {
        let reason = alloc::format!("{}:{device} has no tables that are read", self.scheme());
        Box::pin(core::future::ready(Err(reason)))
    }

    /// Opens the device that the target names, for `owner`. May wait; the caller gives it up by dropping the future.
    ///
    /// A mistake in the target's value is reported before one in its options: it explains more.
    fn open<'a>(&'a self, target: Target<'a>, access: Access, owner: Owner<'a>) -> OpenDevice<'a>;
}

/// The disk of a guest that a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Its name, which is shown to later owners who cannot have the device.
    pub name: &'a str,
    /// The guest.
    pub domain: DomId,
}

/// Opens a device without waiting, for stores that need not wait.
pub fn open_with<'a>(
    open: impl FnOnce() -> Result<Arc<dyn BlockDevice>, OpenError>,
) -> OpenDevice<'a> {
    Box::pin(core::future::ready(open()))
}

/// All kinds of stores that targets can name.
pub struct Stores {
    all: Vec<Box<dyn Store>>,
    catalog: Arc<Catalog>,
    #[cfg(feature = "test-support")]
    layer: Option<crate::testing::Layer>,
}

impl Stores {
    /// Returns the stores of a driver domain with these images: `ram:` and `null:`.
    pub fn new(catalog: Catalog) -> Stores {
        let catalog = Arc::new(catalog);
        let mut stores = Stores {
            all: Vec::new(),
            catalog: catalog.clone(),
            #[cfg(feature = "test-support")]
            layer: None,
        };
        stores.register(Box::new(RamStore::new(catalog)));
        stores.register(Box::new(NullStore));
        stores
    }

    /// Adds a kind of store.
    ///
    /// # Panics
    /// If there is one with the same scheme.
    pub fn register(&mut self, store: Box<dyn Store>) {
        let scheme = store.scheme();
        let known = self.all.iter().any(|other| other.scheme() == scheme);
        assert!(!known, "the store {scheme}: is registered twice");
        self.all.push(store);
    }

    /// Returns the images of the ramdisk.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Returns the same stores, which open every device through `layer`.
    #[cfg(feature = "test-support")]
    pub fn behind(self, layer: crate::testing::Layer) -> Stores {
        let layer = Some(layer);
        Stores { layer, ..self }
    }

    /// Opens the device that a target names, for `owner`.
    ///
    /// A device has one writer alone or any number of readers, or those whose targets all say that they
    /// share it. It is free again when the device and all its queues are dropped. The future may wait for
    /// the store, and is dropped to give that up.
    pub async fn open(
        &self,
        target: &str,
        access: Access,
        owner: Owner<'_>,
    ) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let device = match Target::parse(target) {
            Ok(target) => match self.all.iter().find(|one| one.scheme() == target.scheme) {
                Some(store) => store.open(target, access, owner).await?,
                None => return Err(self.unknown(target.scheme.to_string() + ":").into()),
            },
            Err(_) => {
                let store = target.split(',').next().unwrap_or_default();
                return Err(self.unknown(store.to_string()).into());
            }
        };
        #[cfg(feature = "test-support")]
        if let Some(layer) = &self.layer {
            return Ok(layer.over(device, owner.name));
        }
        Ok(device)
    }

    /// Returns the [family](Store::family) of the store that a target names; without one, nothing.
    pub fn family(&self, target: &str) -> &'static str {
        let scheme = Target::parse(target).map_or("", |target| target.scheme);
        let store = self.all.iter().find(|one| one.scheme() == scheme);
        store.map_or("", |store| store.family())
    }

    /// Returns lines for the operator about the devices of every store, and about the owners who have them open.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for store in &self.all {
            lines.append(&mut store.lines());
        }
        lines
    }

    /// Reads the tables of a device again ([`Store::rescan`]), which is named as in a target.
    pub async fn rescan(&self, device: &str) -> Result<Vec<String>, String> {
        let target = Target::parse(device).map_err(|error| error.to_string())?;
        let store = self.all.iter().find(|one| one.scheme() == target.scheme);
        match store {
            Some(store) => store.rescan(target.value).await,
            None => Err(self.unknown(target.scheme.to_string() + ":").to_string()),
        }
    }

    fn unknown(&self, store: String) -> TargetError {
        let expected: Vec<&str> = self.all.iter().map(|store| store.expected()).collect();
        TargetError::UnknownStore {
            store,
            expected: expected.join(" or "),
        }
    }
}

impl Default for Stores {
    /// Returns the stores of a driver domain without images.
    fn default() -> Self {
        Stores::new(Catalog::empty())
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schemes = self.all.iter().map(|store| store.scheme());
        f.debug_list().entries(schemes).finish()
    }
}
