//! Disks that the boot before has served until it crashed, and the journals of those that are served now.

use super::super::frontend_nodes::{Published, QueueDetails};
use super::super::problem::Problem;
use super::super::retry::Failure;
use super::super::state_machine::{Phase, Step};
use super::Vbd;
use crate::engine::Journal;
use crate::recovery::{LeftDisk, QueueRecord, mark_of};
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_images::Sector;
use bulkhead_xen::Hypervisor;
use log::Level;

impl<H: Hypervisor> Vbd<'_, H> {
    /// Notes that the state that the boot before has left is of no use, unless the next step is to go on with it.
    pub(super) fn follow_what_was_left(&mut self, step: Step) {
        if self.phase == Phase::Left && step != Step::Resume {
            self.services.kept_queues.settle(self.id);
            self.phase = Phase::New;
        }
    }

    /// Goes on serving the rings that the boot before has served. xenstore stays as it is.
    pub(super) async fn resume(&mut self) -> Result<(), Failure> {
        let services = self.services;
        let Some(left) = services.kept_queues.take(self.id) else {
            self.phase = Phase::New;
            return Ok(());
        };
        let resumed = self.serve_again(left).await;
        // Also if it failed: others may have the image when this disk has given it back.
        services.kept_queues.settle(self.id);
        resumed.map_err(Failure::Fatal)
    }

    async fn serve_again(&mut self, left: LeftDisk) -> Result<(), Problem> {
        let services = self.services;
        let Some(&(record, _)) = left.queues.first() else {
            return Err(Problem::NotAsLeft);
        };
        let geometry = self.device.geometry();
        // A version before this one did not note where the sectors lie.
        let marks = [mark_of(&self.nodes), self.mark(record.sectors)];
        // It may have grown since the frontend connected.
        if !marks.contains(&record.nodes)
            || record.sectors > geometry.sectors.0
            || record.sector_size as usize != geometry.sector_size.bytes()
        {
            return Err(Problem::NotAsLeft);
        }
        let mut published = Published {
            abi: record.abi,
            persistent: record.persistent,
            queues: Vec::new(),
        };
        let mut journals = Vec::new();
        for (record, claim) in left.queues {
            published.queues.push(QueueDetails {
                ring: vec![record.ring],
                event_channel: record.event_channel,
            });
            journals.push(Journal::new(Some(claim)));
        }
        services.admit_again(self.id, published.needs(services.limits))?;
        self.serve(&published, journals).await?;
        if !geometry.read_only {
            self.device.resumed();
        }
        // Another size is announced next, which may have been told before.
        self.sectors = Sector(record.sectors);
        Ok(())
    }

    /// Returns the number that tells this disk, of which the frontend was told that many sectors, from others.
    fn mark(&self, sectors: u64) -> u32 {
        mark_of(&self.nodes) ^ self.device.identity(Sector(sectors))
    }

    /// Returns the journals that keep the requests of the queues that are about to be served; nothing if none are kept.
    pub(super) fn journals(&self, published: &Published) -> Vec<Journal> {
        let kept_queues = &self.services.kept_queues;
        if !kept_queues.keeps() {
            return Vec::new();
        }
        let geometry = self.device.geometry();
        let record = |(queue, details): (u32, &QueueDetails)| {
            let &[ring] = &details.ring[..] else {
                return None;
            };
            Some(QueueRecord {
                disk: self.id,
                queue,
                queues: published.queues.len() as u32,
                ring,
                event_channel: details.event_channel,
                abi: published.abi,
                persistent: published.persistent,
                sectors: geometry.sectors.0,
                sector_size: geometry.sector_size.bytes() as u32,
                nodes: self.mark(geometry.sectors.0),
                // Known once the store has opened the queue.
                any_order: false,
            })
        };
        let records: Option<Vec<QueueRecord>> = (0..).zip(&published.queues).map(record).collect();
        let claims = records.and_then(|records| kept_queues.claim(&records));
        if claims.is_none() {
            self.tell(
                Level::Warn,
                format_args!(
                    "no places are left to keep its queues in: a crash of this domain ends the disk"
                ),
            );
        }
        let claims = claims.unwrap_or_default().into_iter();
        claims.map(|claim| Journal::new(Some(claim))).collect()
    }
}
