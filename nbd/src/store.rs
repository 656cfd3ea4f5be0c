//! The stores `nbd:` and `nbds:`, which serve exports and volumes on them.

use crate::export::ExportDevice;
use crate::exports::Exports;
use crate::name::{ExportName, abridged};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::target::Target;
use bulkhead_images::{Access, BlockDevice, OpenDevice, OpenError, Owner, Store};
use bulkhead_volumes::{DiskStore, Disks, KnownDisk, NameError, VolumeName, Waiting};
use bulkhead_xen::Hypervisor;
use core::time::Duration;

/// Returns the store of these exports: `nbd:`, or `nbds:` if they are reached by TLS.
///
/// A target names a server, an export of it and, after a `#`, a volume on that: `nbd:10.0.0.2:10809/root-alice`,
/// `nbd:ceph-gw/pool/image`, `nbd:10.0.0.2/disk#root-alice`, `nbd:[fd00::2]/disk#vg0/alice`.
pub fn nbd_store<H: Hypervisor>(exports: Rc<Exports<H>>) -> DiskStore {
    DiskStore::new(Rc::new(ServedExports(exports)))
}

/// The family of both stores: they have the same servers.
const FAMILY: &str = "nbd";

struct ServedExports<H: Hypervisor>(Rc<Exports<H>>);

impl<H: Hypervisor> ServedExports<H> {
    fn reason(&self, name: &str, reason: &str) -> String {
        format!("{}:{}: {reason}", self.scheme(), abridged(name))
    }
}

impl<H: Hypervisor> Disks for ServedExports<H> {
    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }

    fn family(&self) -> &'static str {
        FAMILY
    }

    fn example(&self) -> &'static str {
        "10.0.0.2:10809/root-alice"
    }

    fn expected(&self) -> &'static str {
        match self.0.tls() {
            None => "nbd:HOST[:PORT]/EXPORT[#VOLUME]",
            Some(_) => "nbds:HOST[:PORT]/EXPORT[#VOLUME]",
        }
    }

    fn parse(&self, value: &str) -> Result<VolumeName, NameError> {
        match value.is_empty() {
            true => Err(NameError::NoDisk),
            false => ExportName::parse_volume(value),
        }
    }

    fn ready<'a>(&'a self, name: &'a str) -> Waiting<'a, Result<String, String>> {
        Box::pin(async move {
            let export = self.0.want(name)?;
            let failed = self.0.until(|| match export.failure() {
                Some(reason) => Some(Some(reason.to_string())),
                None => export.properties().map(|_| None),
            });
            match failed.await {
                None => Ok(export.shown().to_string()),
                Some(reason) => Err(self.reason(name, &reason)),
            }
        })
    }

    fn missing(&self, name: &str) -> String {
        let export = self.0.find(name);
        let disconnect_reason = export.and_then(|export| export.disconnect_reasons().next());
        let disconnect_reason =
            disconnect_reason.unwrap_or_else(|| "the server does not answer".to_string());
        self.reason(name, &disconnect_reason)
    }

    fn pause(&self, span: Duration) -> Waiting<'_, ()> {
        Box::pin(self.0.handle().sleep(span))
    }

    fn spawn(&self, task: Waiting<'static, ()>) {
        self.0.handle().spawn(task);
    }

    fn list(&self) -> Vec<KnownDisk> {
        let all = self.0.list().into_iter();
        all.filter(|export| export.failure().is_none() && export.properties().is_some())
            .filter(|export| !export.is_leaving())
            .map(|export| KnownDisk {
                name: export.shown().to_string(),
                identity: export,
            })
            .collect()
    }

    fn lines(&self) -> Vec<String> {
        self.0.lines()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let export = self.0.find(name).ok_or("it is not there any more")?;
        let properties = export.properties().cloned();
        let properties = properties.ok_or("it is not connected to")?;
        let otherwise = self.0.used_otherwise(name);
        let otherwise = otherwise.map(|scheme| format!("{scheme}:{name}"));
        if let Some(other) = otherwise.or_else(|| self.0.used_by_another_name(&export)) {
            return Err(format!(
                "it is in use as {}, expected one of the two for all who use it",
                abridged(&other)
            ));
        }
        Ok(Arc::new(ExportDevice::new(export, properties)))
    }
}

/// Returns the store `nbds:` of a driver domain that has no TLS, which refuses all of its targets for that reason.
pub fn without_tls(reason: String) -> impl Store {
    WithoutTls(reason)
}

struct WithoutTls(String);

impl Store for WithoutTls {
    fn scheme(&self) -> &'static str {
        "nbds"
    }

    fn family(&self) -> &'static str {
        FAMILY
    }

    fn expected(&self) -> &'static str {
        "nbds:HOST[:PORT]/EXPORT[#VOLUME]"
    }

    fn open<'a>(&'a self, _: Target<'a>, _: Access, _: Owner<'a>) -> OpenDevice<'a> {
        let reason = format!("nbds: cannot be served: {}", self.0);
        Box::pin(core::future::ready(Err(OpenError::Store(reason))))
    }
}
