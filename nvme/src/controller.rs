//! A controller, as all vCPUs have it.

use crate::command::{ControllerData, NamespaceId, PAGE, SmartLog};
use crate::namespace::Namespace;
use crate::pair::{Counts, Pair};
use crate::prp::MOST_BYTES;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::Watch;
use bulkhead_executor::Waiters;
use bulkhead_xen::{DmaMemory, Instant, Registers};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use spin::{Mutex, Once};

/// A controller.
pub struct Controller {
    name: String,
    registers: Arc<dyn Registers>,
    memory: Arc<dyn DmaMemory>,
    watch: Arc<Watch>,
    /// The longest that completions are held back, if the operator has set that.
    hold: Option<Duration>,
    /// What it said of itself when it started first.
    data: Once<ControllerData>,
    /// Its queue pairs, from its first start on.
    pairs: Once<Vec<Mutex<Pair>>>,
    namespaces: Mutex<Vec<Arc<Namespace>>>,
    /// The namespaces that cannot be served, and why.
    refused: Mutex<Vec<(NamespaceId, String)>>,
    /// It works, and its namespaces are known.
    ready: AtomicBool,
    /// It is to be let go of.
    leaving: AtomicBool,
    /// It was stopped for good.
    left: AtomicBool,
    /// Somebody wants to know how it is.
    asked: AtomicBool,
    failure: Mutex<Option<Arc<str>>>,
    /// What it said of its health, and when.
    smart: Mutex<Option<(SmartLog, Instant)>>,
    resets: AtomicU32,
}

impl Controller {
    /// Returns a controller that has not started. `waiting` are told of every change of its state.
    pub fn new(
        name: String,
        registers: Arc<dyn Registers>,
        memory: Arc<dyn DmaMemory>,
        waiting: Arc<Mutex<Waiters>>,
        hold: Option<Duration>,
    ) -> Controller {
        Controller {
            name,
            registers,
            memory,
            watch: Arc::new(Watch::new(waiting)),
            hold,
            data: Once::new(),
            pairs: Once::new(),
            namespaces: Mutex::default(),
            refused: Mutex::default(),
            ready: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            left: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            failure: Mutex::default(),
            smart: Mutex::default(),
            resets: AtomicU32::new(0),
        }
    }

    /// Returns its name, as targets have it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its registers.
    pub fn registers(&self) -> &Arc<dyn Registers> {
        &self.registers
    }

    /// Returns how this domain's memory is named to it.
    pub fn memory(&self) -> &Arc<dyn DmaMemory> {
        &self.memory
    }

    /// Returns how its task is called.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Returns the longest that completions are held back, if the operator has set that.
    pub fn hold(&self) -> Option<Duration> {
        self.hold
    }

    /// Returns what it said of itself.
    pub fn data(&self) -> Option<&ControllerData> {
        self.data.get()
    }

    /// Keeps what it says of itself, if it has not said anything before.
    pub fn set_data(&self, data: ControllerData) -> &ControllerData {
        self.data.call_once(|| data)
    }

    /// Returns the most bytes of a request.
    pub fn most_bytes(&self) -> usize {
        let most = self.data().and_then(|data| data.most_bytes);
        most.unwrap_or(MOST_BYTES).clamp(PAGE, MOST_BYTES)
    }

    /// Returns its queue pairs; none before it has started.
    #[inline]
    pub fn pairs(&self) -> &[Mutex<Pair>] {
        self.pairs.get().map_or(&[], Vec::as_slice)
    }

    /// Gives it queue pairs.
    pub fn set_pairs(&self, pairs: Vec<Pair>) {
        self.pairs
            .call_once(|| pairs.into_iter().map(Mutex::new).collect());
    }

    /// Returns its namespaces.
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.namespaces.lock().clone()
    }

    /// Replaces its namespaces, and those that cannot be served, with the reason of each.
    pub fn set_namespaces(
        &self,
        namespaces: Vec<Arc<Namespace>>,
        refused: Vec<(NamespaceId, String)>,
    ) {
        *self.namespaces.lock() = namespaces;
        *self.refused.lock() = refused;
    }

    /// Returns the reason why a namespace cannot be served, if it is there.
    pub fn refused(&self, id: NamespaceId) -> Option<String> {
        let refused = self.refused.lock();
        let found = refused.iter().find(|(other, _)| *other == id);
        found.map(|(_, reason)| reason.clone())
    }

    /// Returns a namespace, by its number.
    pub fn namespace(&self, id: NamespaceId) -> Option<Arc<Namespace>> {
        let namespaces = self.namespaces.lock();
        let found = namespaces.iter().find(|namespace| namespace.id() == id);
        found.cloned()
    }

    /// Returns the namespaces that somebody uses.
    pub fn used(&self) -> Vec<NamespaceId> {
        let namespaces = self.namespaces();
        let used = namespaces.iter().filter(|namespace| namespace.users() > 0);
        used.map(|namespace| namespace.id()).collect()
    }

    /// Returns whether its namespaces can be opened.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_leaving()
    }

    /// Notes that it works, or does not for the moment.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.watch.changed();
    }

    /// Has its task stop it for good.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.watch.call();
    }

    /// Returns whether it is to be stopped for good.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Notes that it was stopped for good.
    pub fn set_left(&self) {
        self.left.store(true, Ordering::Release);
        self.watch.changed();
    }

    /// Returns whether it was stopped for good.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Returns the reason why it was given up.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.failure.lock().clone()
    }

    /// Gives it up: nobody can open it until it [works again](Self::recover).
    pub fn fail(&self, reason: String) {
        self.failure.lock().get_or_insert_with(|| reason.into());
        self.watch.changed();
    }

    /// Notes that it works again, unless it is to be let go of.
    pub fn recover(&self) {
        if !self.is_leaving() {
            *self.failure.lock() = None;
        }
    }

    /// Counts a reset.
    pub fn count_reset(&self) -> u32 {
        self.resets.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps what it says of its health now.
    pub fn set_smart(&self, smart: SmartLog, now: Instant) {
        *self.smart.lock() = Some((smart, now));
    }

    /// Returns whether somebody has asked for its health since this was called last.
    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    /// Returns lines about it for the operator. Its health is asked for anew, for the next time.
    pub fn lines(&self, now: Instant) -> Vec<String> {
        self.asked.store(true, Ordering::Release);
        self.watch.call();
        let state = match self.failure() {
            Some(reason) => format!("given up: {reason}"),
            None if self.is_ready() => format!("{} queue pair(s)", self.pairs().len()),
            None => "not ready".into(),
        };
        let name = &self.name;
        let mut lines = Vec::new();
        if let Some(data) = self.data() {
            let (model, serial, firmware) = (&data.model, &data.serial, &data.firmware);
            lines.push(format!(
                "nvme:{name}: {model}, serial {serial}, firmware {firmware}, {state}"
            ));
        } else {
            lines.push(format!("nvme:{name}: {state}"));
        }
        if let Some((smart, since)) = *self.smart.lock() {
            let age = now.since(since).as_secs();
            lines.push(format!("nvme:{name}: {smart} (as of {age} s ago)"));
        }
        let counts = self.counts();
        lines.push(format!(
            "nvme:{name}: {} commands, {} of them parts of requests, {} failed, {} doorbells, {} interrupts, {} looks without one, {} resets",
            counts.commands,
            counts.parts,
            counts.failed,
            counts.doorbells,
            self.watch.interrupts(),
            counts.looks,
            self.resets.load(Ordering::Relaxed)
        ));
        for namespace in self.namespaces() {
            let state = match namespace.failure() {
                Some(reason) => format!("not served: {reason}"),
                None if namespace.is_read_only() => "read-only".into(),
                None => format!("open {} time(s)", namespace.users()),
            };
            lines.push(format!(
                "nvme:{name}/n{}: {} sectors of {}, {state}",
                namespace.id(),
                namespace.sectors(),
                namespace.data().sector_size
            ));
        }
        lines
    }

    /// Returns what its queue pairs have done so far.
    pub fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for pair in self.pairs() {
            let counts = pair.lock().counts();
            all.commands += counts.commands;
            all.parts += counts.parts;
            all.failed += counts.failed;
            all.doorbells += counts.doorbells;
            all.looks += counts.looks;
        }
        all
    }
}
