//! Frontends with several queues, and the vCPUs that serve them.

use super::{Answer, Frontend, Guest, SECTORS, Setup, Style, World};
use bulkhead_blkback::engine::DataPath;
use bulkhead_ring::blkif::Status;

impl World {
    /// Makes a machine whose driver domain has that many vCPUs.
    pub fn with_vcpus(vcpus: u32, data_path: DataPath) -> World {
        World::with(Setup {
            vcpus,
            ..Setup::on_path(data_path)
        })
    }

    /// Returns the number of queues that each vCPU serves.
    pub fn load(&self) -> Vec<usize> {
        self.backend.services.vcpus.load().collect()
    }
}

impl Style {
    /// Returns the default style with that many queues.
    pub fn queues(queues: usize) -> Style {
        Style {
            queues,
            ..Style::default()
        }
    }
}

impl<'w> Guest<'w> {
    /// Attaches a disk and connects it with that many queues.
    pub fn with_queues(&self, name: &str, target: &str, queues: usize) -> Frontend<'w> {
        self.attach(name, target)
            .styled(Style::queues(queues))
            .connected()
    }
}

impl Frontend<'_> {
    /// Returns the number of queues that the backend offers.
    pub fn offered_queues(&self) -> usize {
        let offered = self.backend_node("multi-queue-max-queues");
        offered.expect("is offered").parse().expect("a number")
    }

    /// Shows all rings to the backend at once, and takes the answers of each.
    pub fn exchange_all(&mut self) -> Vec<Vec<Answer>> {
        self.queues().for_each(|queue| queue.kick());
        self.world.run();
        self.queues().map(|queue| queue.collect()).collect()
    }

    /// Has each queue write a part of the disk, and read what another one wrote.
    pub fn verify(&mut self) {
        const WRITES: u64 = 16;
        let queues = self.rings();
        let part = SECTORS / queues as u64;
        let writes = WRITES.min(part / 2);
        let place = |queue: usize, number: u64| queue as u64 * part + number * 2;
        let data = |queue: usize, number: u64| [queue as u8 * 16 + number as u8 + 1; 512];
        for (queue, link) in self.queues().enumerate() {
            for number in 0..writes {
                link.push_write(place(queue, number), &data(queue, number));
            }
        }
        for answers in self.exchange_all() {
            assert_eq!(answers.len() as u64, writes);
            assert!(answers.iter().all(|answer| answer.status == Status::Okay));
        }
        for (queue, link) in self.queues().enumerate() {
            for number in 0..writes {
                link.push_read(place((queue + 1) % queues, number), 1);
            }
        }
        for (queue, mut answers) in self.exchange_all().into_iter().enumerate() {
            // Asked for in this order, and so numbered.
            answers.sort_by_key(|answer| answer.id.0);
            assert_eq!(answers.len() as u64, writes);
            for (number, answer) in answers.iter().enumerate() {
                let expected = data((queue + 1) % queues, number as u64);
                assert!(answer.data == expected, "queue {queue}, read {number}");
            }
        }
    }
}
