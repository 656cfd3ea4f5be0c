//! An export, as all vCPUs have it, and each of its users as a block device.

use crate::line::{Line, LineCounts};
use crate::name::ExportName;
use crate::properties::Properties;
use crate::queue::ExportQueue;
use crate::wire::TransmissionFlags;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Waiters;
use bulkhead_images::{
    BlockDevice, Flushes, Geometry, OpenQueue, OpenQueueError, QueueContext, Sector, not_opened,
    opened,
};
use bulkhead_xen::VcpuId;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::Waker;
use spin::{Mutex, Once};

/// An export.
pub struct Export {
    /// The server, and its name there.
    pub name: ExportName,
    /// The scheme of targets that name it.
    scheme: &'static str,
    /// Its name, as targets have it.
    shown: String,
    lines: Vec<Line>,
    /// The number of lines in use.
    used: AtomicUsize,
    /// The properties that it had when it was found.
    properties: Once<Properties>,
    /// The reason why it is not served any more, if it was given up.
    failure: Once<String>,
    /// True if it is to be let go of.
    leaving: AtomicBool,
    /// True if a disk that can write to it goes on from a boot before this one. The log says so once.
    resumed: AtomicBool,
    users: AtomicUsize,
    /// The number of times that a disk has asked for it.
    wanted: AtomicU64,
    /// The tasks that wait for a change of any export.
    waiting: Arc<Mutex<Waiters>>,
}

impl Export {
    /// Returns an export that was not found yet, to be used by up to `lines` connections. The tasks in `waiting` are
    /// woken at every change.
    pub fn new(
        scheme: &'static str,
        name: ExportName,
        lines: usize,
        waiting: Arc<Mutex<Waiters>>,
    ) -> Export {
        let flushes = Arc::<Flushes>::default();
        let line = |_| Line::new(flushes.clone());
        Export {
            scheme,
            shown: name.to_string(),
            name,
            lines: (0..lines.max(1)).map(line).collect(),
            used: AtomicUsize::new(1),
            properties: Once::new(),
            failure: Once::new(),
            leaving: AtomicBool::new(false),
            resumed: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            wanted: AtomicU64::new(0),
            waiting,
        }
    }

    /// Returns the scheme of targets that name it.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Returns its name, as targets have it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Returns whether it has that name, and can be opened.
    pub fn is_there(&self, name: &str) -> bool {
        self.shown == name && self.failure().is_none() && !self.is_leaving()
    }

    /// Returns a line.
    #[inline]
    pub fn line(&self, number: usize) -> &Line {
        &self.lines[number]
    }

    /// Returns the number of lines in use.
    #[inline]
    pub fn lines(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Returns the number of the line for a queue of that vCPU. A server may announce that it takes several
    /// connections, and take only one: a line counts once it was connected.
    pub fn line_for(&self, vcpu: VcpuId) -> usize {
        let number = vcpu.0 as usize % self.lines();
        match self.line(number).connections() {
            0 => 0,
            _ => number,
        }
    }

    /// Returns the properties that it had when it was found.
    pub fn properties(&self) -> Option<&Properties> {
        self.properties.get()
    }

    /// Returns the server's own name for it, as far as that is known.
    pub fn own_name(&self) -> &str {
        let own = self.properties().and_then(|it| it.name.as_deref());
        own.unwrap_or(&self.name.export)
    }

    /// Notes the properties of the export when there is a connection for the first time. Afterwards, checks that they
    /// are the same: the error names the difference.
    pub fn found(&self, properties: Properties) -> Result<(), String> {
        if let Some(known) = self.properties.get() {
            return known.check_same(&properties);
        }
        let several = properties.flags.contains(TransmissionFlags::CAN_MULTI_CONN);
        if several {
            self.used.store(self.lines.len(), Ordering::Release);
        }
        self.properties.call_once(|| properties);
        self.changed();
        Ok(())
    }

    /// Returns whether a write was acknowledged that is not durable yet, and notes that it may be lost.
    pub fn lose_unflushed(&self) -> bool {
        let lines = self.lines.iter();
        // All of them note it.
        lines.fold(false, |any, line| line.table().lose_unflushed() | any)
    }

    /// Notes that a disk that can write to it goes on from a boot before this one, which alone knew what was flushed.
    fn resumed(&self) {
        if self.resumed.swap(true, Ordering::AcqRel) {
            return;
        }
        log::warn!(
            "{}:{}: it is connected again after a restart of this domain; what guests wrote and did not flush may be lost \
             if the server was started anew meanwhile",
            self.scheme,
            self.shown
        );
    }

    /// Returns the reasons why lines have no connection.
    pub fn disconnect_reasons(&self) -> impl Iterator<Item = String> {
        self.lines.iter().filter_map(Line::disconnect_reason)
    }

    /// Returns the number of connections that there are, and the number that there should be: the first one, and those
    /// that were made at least once.
    pub fn connections(&self) -> (usize, usize) {
        let others = self.lines.iter().skip(1);
        let all = 1 + others.filter(|line| line.connections() > 0).count();
        (all.saturating_sub(self.disconnect_reasons().count()), all)
    }

    /// Gives up the export: all requests fail from now on.
    #[cold]
    pub fn fail(&self, reason: String) {
        if self.failure.is_completed() {
            return;
        }
        self.failure.call_once(|| reason);
        self.end_requests();
        self.changed();
    }

    fn end_requests(&self) {
        for line in &self.lines {
            line.table().die();
            line.wake();
        }
    }

    /// Returns the reason why it is not served any more.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Lets go of the export in order.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.wake_lines();
        self.changed();
    }

    /// Wakes the tasks of its lines.
    pub fn wake_lines(&self) {
        self.lines.iter().for_each(Line::wake);
    }

    /// Returns whether its lines are to end their connections.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Notes that there is no connection any more, and never will be.
    pub fn set_left(&self) {
        self.end_requests();
        self.changed();
    }

    /// Returns the number of its users.
    pub fn users(&self) -> usize {
        self.users.load(Ordering::Acquire)
    }

    /// Notes that a disk asks for it.
    pub fn want(&self) {
        self.wanted.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the number of times that a disk has asked for it.
    pub fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Acquire)
    }

    /// Returns the sum of what its lines have done so far.
    pub fn counts(&self) -> LineCounts {
        let mut all = LineCounts::default();
        let lines = self.lines.iter();
        lines.for_each(|line| all += line.counts());
        all
    }

    /// Wakes all tasks that wait for a change.
    pub fn changed(&self) {
        let waiting = self.waiting.lock().take();
        waiting.for_each(Waker::wake);
    }
}

/// An export that a disk has opened.
pub struct OpenedExport {
    pub export: Arc<Export>,
    pub properties: Properties,
}

impl Drop for OpenedExport {
    fn drop(&mut self) {
        self.export.users.fetch_sub(1, Ordering::AcqRel);
        self.export.changed();
    }
}

/// An export as a block device.
pub struct ExportDevice(Arc<OpenedExport>);

impl ExportDevice {
    /// Opens an export that was found.
    pub fn new(export: Arc<Export>, properties: Properties) -> ExportDevice {
        export.users.fetch_add(1, Ordering::AcqRel);
        ExportDevice(Arc::new(OpenedExport { export, properties }))
    }
}

impl BlockDevice for ExportDevice {
    fn geometry(&self) -> Geometry {
        self.0.properties.geometry()
    }

    fn identity(&self, _: Sector) -> u32 {
        self.0.properties.identity()
    }

    fn resumed(&self) {
        self.0.export.resumed();
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        if let Some(reason) = self.0.export.failure() {
            return not_opened(OpenQueueError::Failed(reason.to_string()));
        }
        match ExportQueue::new(self.0.clone(), context) {
            Ok(queue) => opened(queue),
            Err(no) => not_opened(OpenQueueError::NoMemory { bytes: no.bytes }),
        }
    }
}
