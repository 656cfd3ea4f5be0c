//! Counters of the connected disks, for the operator (`operator.rs`).

use crate::engine::{QueueCounts, QueueStats};
use crate::id::VbdId;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::VcpuId;
use core::cell::RefCell;
use core::fmt::Write;
use litemap::LiteMap;

/// A queue that is served.
#[derive(Clone, Default)]
pub struct ServedQueue {
    /// The vCPU that serves it.
    pub vcpu: VcpuId,
    /// Its counters.
    pub stats: Arc<QueueStats>,
}

/// The counters of all disks that are connected now.
#[derive(Default)]
pub struct Statistics(RefCell<LiteMap<VbdId, Vec<ServedQueue>>>);

impl Statistics {
    /// Adds a disk that has connected, with these queues.
    pub fn connected(&self, id: VbdId, queues: Vec<ServedQueue>) {
        self.0.borrow_mut().insert(id, queues);
    }

    /// Removes a disk that is not connected any more.
    pub fn disconnected(&self, id: VbdId) {
        self.0.borrow_mut().remove(&id);
    }

    /// Returns the sums over a disk's queues since it connected.
    pub fn of(&self, id: VbdId) -> Option<QueueCounts> {
        let disks = self.0.borrow();
        let queues = disks.get(&id)?;
        Some(queues.iter().fold(QueueCounts::default(), |sum, queue| {
            sum.and(&queue.stats.counts())
        }))
    }

    /// Returns the vCPU and the counters of each of a disk's queues.
    pub fn queues_of(&self, id: VbdId) -> Vec<(VcpuId, QueueCounts)> {
        let disks = self.0.borrow();
        let queues = disks.get(&id).into_iter().flatten();
        queues
            .map(|queue| (queue.vcpu, queue.stats.counts()))
            .collect()
    }

    /// Returns the disks that are connected.
    pub fn disks(&self) -> Vec<VbdId> {
        self.0.borrow().keys().copied().collect()
    }
}

/// The most bytes of a `statistics` node: xenstored refuses an unprivileged domain's node from 2048
/// bytes on, its permissions and a header included.
const NODE_SIZE: usize = 1950;

/// Returns the text of the `statistics` node: all counters, one `name value` a line; then the vCPU and the
/// requests of each queue, as far as the node has room; then the number of queues that are left out. (The
/// console shows all.)
pub fn as_lines(counts: &QueueCounts, queues: &[(VcpuId, QueueCounts)]) -> String {
    let mut lines = String::new();
    for (name, value) in counts.named() {
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{name} {value}");
    }
    for (number, (vcpu, counts)) in queues.iter().enumerate() {
        let (reads, writes) = (counts.reads, counts.writes);
        let queue = format!(
            "queue_{number}_vcpu {vcpu}\nqueue_{number}_reads {reads}\nqueue_{number}_writes {writes}\n"
        );
        let left_out = format!("queues_not_shown {}\n", queues.len() - number);
        if lines.len() + queue.len() + left_out.len() > NODE_SIZE {
            lines.push_str(&left_out);
            break;
        }
        lines.push_str(&queue);
    }
    lines
}

/// Returns the counters that are not zero in one line, as the console shows them.
pub fn as_line(counts: &QueueCounts) -> String {
    let mut line = String::new();
    for (name, value) in counts.named().filter(|&(_, value)| value > 0) {
        let _ = write!(line, " {name}={value}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_shown_while_it_is_connected() {
        let statistics = Statistics::default();
        let id = VbdId {
            frontend: bulkhead_xen::DomId(5),
            device: 51712,
        };
        assert_eq!(statistics.of(id), None);
        statistics.connected(id, alloc::vec![ServedQueue::default(); 2]);
        assert_eq!(statistics.of(id), Some(QueueCounts::default()));
        assert_eq!(statistics.disks(), [id]);
        assert_eq!(statistics.queues_of(id).len(), 2);
        statistics.disconnected(id);
        assert_eq!(statistics.disks(), []);
    }

    #[test]
    fn the_node_shows_every_counter_and_the_console_what_happened() {
        let counts = QueueCounts {
            reads: 3,
            sectors_read: 24,
            ..QueueCounts::default()
        };
        let lines = as_lines(&counts, &[(VcpuId(1), counts)]);
        assert!(lines.contains("\nwrites 0\n"));
        assert!(lines.ends_with("\nqueue_0_vcpu 1\nqueue_0_reads 3\nqueue_0_writes 0\n"));
        assert!(lines.starts_with("reads 3\n"));
        assert_eq!(as_line(&counts), " reads=3 sectors_read=24");
    }

    #[test]
    fn the_node_has_room_for_the_largest_counts() {
        let counts = QueueCounts {
            reads: u64::MAX,
            writes: u64::MAX,
            ..QueueCounts::default()
        };
        let queues = [(VcpuId(31), counts); 32];
        let lines = as_lines(&counts, &queues);
        assert!(lines.len() <= NODE_SIZE, "{}", lines.len());
        let shown = lines.matches("_vcpu 31").count();
        assert!((10..32).contains(&shown), "{shown}");
        let rest = format!("\nqueues_not_shown {}\n", 32 - shown);
        assert!(lines.ends_with(&rest), "{lines}");
        assert!(!as_lines(&counts, &queues[..8]).contains("not_shown"));
    }
}
