//! All exports that guests' disks use, and those that they have used lately.

use crate::export::Export;
use crate::lifecycle::live;
use crate::name::ExportName;
use crate::properties::Properties;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Waiters};
use bulkhead_stream::{Network, Tls};
use bulkhead_xen::Hypervisor;
use core::cell::RefCell;
use core::time::Duration;
use spin::Mutex;

/// The most connections for one export.
const MOST_LINES: usize = 4;

/// The settings for all servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportSettings {
    /// The vCPUs on which guests' requests are served.
    pub vcpus: usize,
    /// The time for which requests wait for a server that is gone before they fail. `None`: for ever.
    pub timeout: Option<Duration>,
}

/// The longest such time that an operator can set, in seconds.
const LONGEST_TIMEOUT: u32 = 86_400;

impl ExportSettings {
    /// Reads the time for which an operator wants requests to wait, in seconds; 0 is no limit. The error says what was
    /// expected.
    ///
    /// ```
    /// use bulkhead_nbd::ExportSettings;
    /// use core::time::Duration;
    ///
    /// assert_eq!(ExportSettings::parse_timeout("60"), Ok(Some(Duration::from_secs(60))));
    /// assert_eq!(ExportSettings::parse_timeout("0"), Ok(None));
    /// assert!(ExportSettings::parse_timeout("a minute").is_err());
    /// ```
    pub fn parse_timeout(text: &str) -> Result<Option<Duration>, String> {
        match text.parse() {
            Ok(0) => Ok(None),
            Ok(seconds @ 1..=LONGEST_TIMEOUT) => Ok(Some(Duration::from_secs(seconds.into()))),
            _ => Err(format!(
                "expected 1 to {LONGEST_TIMEOUT} seconds, or 0 for no limit"
            )),
        }
    }
}

/// The exports.
pub struct Exports<H: Hypervisor> {
    handle: Handle<H>,
    network: Rc<dyn Network>,
    tls: Option<Rc<dyn Tls>>,
    settings: ExportSettings,
    /// All exports, with TLS and without it.
    all: Rc<RefCell<Vec<Arc<Export>>>>,
    waiting: Arc<Mutex<Waiters>>,
}

impl<H: Hypervisor> Exports<H> {
    /// Returns a client without exports. Its connections are served on the network's vCPU, which is that of `handle`.
    /// With `tls`, all connections to servers use TLS, and targets begin with `nbds:`.
    pub fn new(
        handle: Handle<H>,
        network: Rc<dyn Network>,
        tls: Option<Rc<dyn Tls>>,
        settings: ExportSettings,
    ) -> Rc<Self> {
        Rc::new(Exports {
            handle,
            network,
            tls,
            settings,
            all: Rc::default(),
            waiting: Arc::default(),
        })
    }

    /// Returns the exports that are reached by TLS. No disk uses an export with TLS while another uses it without, and
    /// the other way round.
    pub fn by_tls(&self, tls: Rc<dyn Tls>) -> Rc<Self> {
        Rc::new(Exports {
            handle: self.handle.clone(),
            network: self.network.clone(),
            tls: Some(tls),
            settings: self.settings,
            all: self.all.clone(),
            waiting: self.waiting.clone(),
        })
    }

    pub(crate) fn handle(&self) -> &Handle<H> {
        &self.handle
    }

    pub(crate) fn network(&self) -> &dyn Network {
        &*self.network
    }

    pub(crate) fn tls(&self) -> Option<&dyn Tls> {
        self.tls.as_deref()
    }

    /// Returns the scheme of targets that name these exports.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.tls {
            None => "nbd",
            Some(_) => "nbds",
        }
    }

    pub(crate) fn settings(&self) -> ExportSettings {
        self.settings
    }

    fn is_ours(&self, export: &Export) -> bool {
        export.scheme() == self.scheme()
    }

    /// Returns all exports.
    pub(crate) fn list(&self) -> Vec<Arc<Export>> {
        let all = self.all.borrow();
        let ours = all.iter().filter(|export| self.is_ours(export));
        ours.cloned().collect()
    }

    /// Returns the export of that name that is in use, or was lately.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Export>> {
        let found = |export: &&Arc<Export>| self.is_ours(export) && export.is_there(name);
        self.all.borrow().iter().find(found).cloned()
    }

    /// Returns the number of bytes at the beginning of the payload that are neither data nor text; `None` if the
    /// payload cannot be that long.
    pub(crate) fn used_otherwise(&self, name: &str) -> Option<&'static str> {
        let other = |export: &&Arc<Export>| {
            !self.is_ours(export) && export.is_there(name) && export.users() > 0
        };
        let all = self.all.borrow();
        all.iter().find(other).map(|export| export.scheme())
    }

    /// Returns the target by which a disk uses that export under another of its names, if the server has told its own
    /// name for both. Otherwise it is not known whether two names mean the same export.
    pub(crate) fn used_by_another_name(&self, export: &Export) -> Option<String> {
        let same = |other: &&Arc<Export>| {
            other.name.server == export.name.server
                && other.shown() != export.shown()
                && other.own_name() == export.own_name()
                && other.failure().is_none()
                && other.users() > 0
        };
        let all = self.all.borrow();
        let found = all.iter().find(same);
        found.map(|other| format!("{}:{}", other.scheme(), other.shown()))
    }

    /// Returns an export. Connects to it if it is not known yet.
    pub(crate) fn want(self: &Rc<Self>, name: &str) -> Result<Arc<Export>, String> {
        if let Some(known) = self.find(name) {
            known.want();
            return Ok(known);
        }
        let parsed = ExportName::parse(name)?;
        let lines = self.settings.vcpus.clamp(1, MOST_LINES);
        let export = Arc::new(Export::new(
            self.scheme(),
            parsed,
            lines,
            self.waiting.clone(),
        ));
        self.all.borrow_mut().push(export.clone());
        let (all, kept) = (self.clone(), export.clone());
        self.handle.spawn(async move {
            live(&all, &kept).await;
            all.all
                .borrow_mut()
                .retain(|other| !Arc::ptr_eq(other, &kept));
            kept.changed();
        });
        Ok(export)
    }

    /// Lets go of all exports in order, because the domain ends.
    pub async fn close(&self) {
        self.list().iter().for_each(|export| export.leave());
        self.until(|| self.list().is_empty().then_some(())).await;
    }

    /// Returns the number of exports that are connected, or that are being connected to.
    pub fn count(&self) -> usize {
        self.list().len()
    }

    /// Waits until `look` returns a value; calls it again whenever an export has changed.
    pub(crate) async fn until<T>(&self, look: impl FnMut() -> Option<T>) -> T {
        Waiters::until(&self.waiting, look).await
    }

    /// Returns lines about each export for the operator, and about the network to their servers. With TLS, the network
    /// is that of the store `nbd:`, whose lines have it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let scheme = self.scheme();
        let all = self.list();
        let line = |export: &Arc<Export>| {
            let what = |properties: &Properties| {
                let access = match properties.is_read_only() {
                    true => ", read-only",
                    false => "",
                };
                format!("{} sectors{access}", properties.sectors)
            };
            let (connected, lines) = export.connections();
            let disconnect_reason = export.disconnect_reasons().next();
            let state = match (export.failure(), disconnect_reason, export.properties()) {
                (Some(reason), _, _) => format!("given up: {reason}"),
                (None, Some(disconnect_reason), Some(properties)) if connected > 0 => {
                    let what = what(properties);
                    format!(
                        "connected by {connected} of {lines} connections ({disconnect_reason}), {what}"
                    )
                }
                (None, Some(disconnect_reason), _) => format!("not connected: {disconnect_reason}"),
                (None, None, None) => "being connected to".to_string(),
                (None, None, Some(properties)) => format!("connected, {}", what(properties)),
            };
            let counts = export.counts();
            format!(
                "{scheme}:{}: {state}; {} users; {} connections made, {} commands sent, {} answered, {} failed, {} \
                 waiting",
                export.shown(),
                export.users(),
                counts.connections,
                counts.commands,
                counts.answers,
                counts.failed,
                counts.waiting
            )
        };
        let network = match self.tls {
            None => self.network.lines(),
            Some(_) => Vec::new(),
        };
        all.iter().map(line).chain(network).collect()
    }
}
