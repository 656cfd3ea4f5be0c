//! A controller's state, which all vCPUs share.

use crate::command::{ControllerData, NamespaceId, PAGE, SmartLog};
use crate::namespace::Namespace;
use crate::pair::{QueuePair, QueuePairCounts};
use crate::prp::MOST_BYTES;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::PassedThrough;
use bulkhead_executor::Waiters;
use bulkhead_xen::{DmaMemory, Instant, Registers};
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use spin::{Mutex, Once};

/// A controller.
pub struct Controller {
    device: PassedThrough,
    registers: Arc<dyn Registers>,
    /// The longest time for which interrupts are held back, if the operator has set that (`hold=`).
    hold: Option<Duration>,
    /// Its identify structure, as it was at its first start.
    data: Once<ControllerData>,
    /// Its queue pairs, from its first start on.
    pairs: Once<Vec<Mutex<QueuePair>>>,
    namespaces: Mutex<Vec<Arc<Namespace>>>,
    /// The namespaces that cannot be served, and why.
    refused: Mutex<Vec<(NamespaceId, String)>>,
    /// An operator has asked for its state, so its health is to be read anew.
    asked: AtomicBool,
    /// Its health, and when that was read.
    smart: Mutex<Option<(SmartLog, Instant)>>,
}

impl Deref for Controller {
    type Target = PassedThrough;

    fn deref(&self) -> &PassedThrough {
        &self.device
    }
}

impl Controller {
    /// Returns a controller that has not started. `waiting` are the tasks that are woken by every change of its state.
    /// Interrupts are not held back for longer than `hold`, if that is given.
    pub fn new(
        name: String,
        registers: Arc<dyn Registers>,
        memory: Arc<dyn DmaMemory>,
        waiting: Arc<Mutex<Waiters>>,
        hold: Option<Duration>,
    ) -> Controller {
        Controller {
            device: PassedThrough::new(name, memory, waiting),
            registers,
            hold,
            data: Once::new(),
            pairs: Once::new(),
            namespaces: Mutex::default(),
            refused: Mutex::default(),
            asked: AtomicBool::new(false),
            smart: Mutex::default(),
        }
    }

    /// Returns its registers.
    pub fn registers(&self) -> &Arc<dyn Registers> {
        &self.registers
    }

    /// Returns the longest time for which interrupts are held back, if the operator has set that.
    pub fn hold(&self) -> Option<Duration> {
        self.hold
    }

    /// Returns its identify structure, as it was at its first start; `None` before that.
    pub fn data(&self) -> Option<&ControllerData> {
        self.data.get()
    }

    /// Keeps its identify structure, unless there is an earlier one. Returns the one that is kept.
    pub fn set_data(&self, data: ControllerData) -> &ControllerData {
        self.data.call_once(|| data)
    }

    /// Returns the most bytes of a command: its own limit, within 4 KiB and 1 MiB.
    pub fn most_bytes(&self) -> usize {
        let most = self.data().and_then(|data| data.most_bytes);
        most.unwrap_or(MOST_BYTES).clamp(PAGE, MOST_BYTES)
    }

    /// Returns its queue pairs; none before it has started.
    #[inline]
    pub fn pairs(&self) -> &[Mutex<QueuePair>] {
        self.pairs.get().map_or(&[], Vec::as_slice)
    }

    /// Gives it queue pairs, once: later ones are dropped.
    pub fn set_pairs(&self, pairs: Vec<QueuePair>) {
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

    /// Returns the namespaces that are open.
    pub fn used(&self) -> Vec<NamespaceId> {
        let namespaces = self.namespaces();
        let used = namespaces.iter().filter(|namespace| namespace.users() > 0);
        used.map(|namespace| namespace.id()).collect()
    }

    /// Keeps its health, which was read at the time `now`.
    pub fn set_smart(&self, smart: SmartLog, now: Instant) {
        *self.smart.lock() = Some((smart, now));
    }

    /// Returns whether its health was asked for since this was called last.
    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    /// Returns lines about it for the operator. Its health is as it was read last; this has it read anew for the next
    /// call.
    pub fn lines(&self, now: Instant) -> Vec<String> {
        self.asked.store(true, Ordering::Release);
        self.watch().call();
        let state = match self.failure() {
            Some(reason) => format!("given up: {reason}"),
            None if self.is_ready() => format!("{} queue pair(s)", self.pairs().len()),
            None => "not ready".into(),
        };
        let name = self.name();
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
            self.watch().interrupts(),
            counts.looks,
            self.resets()
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

    /// Returns the counts of all its queue pairs together.
    pub fn counts(&self) -> QueuePairCounts {
        let mut all = QueuePairCounts::default();
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
