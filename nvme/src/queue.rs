//! The queue that serves one ring of a guest's: turns the guest's requests into commands on a queue pair.

use crate::command::Lba;
use crate::namespace::OpenedNamespace;
use crate::pair::QueuePair;
use crate::splits::{Action, Blocks, SEGMENTS};
use alloc::string::ToString;
use alloc::sync::Arc;
use bulkhead_images::{
    Access, Caps, DataAccess, Io, IoError, IoQueue, Op, OpenQueueError, QueueContext, Sector,
    Submitted, Tag,
};
use bulkhead_xen::DmaMemory;
use core::task::{Context, Poll};
use spin::MutexGuard;

/// A queue of a namespace.
pub struct NamespaceQueue {
    opened: Arc<OpenedNamespace>,
    pair: usize,
    client: usize,
    caps: Caps,
    shift: u32,
}

impl NamespaceQueue {
    /// Opens a queue on the pair of the vCPU in `context`; vCPUs share pairs if there are fewer pairs.
    pub fn new(
        opened: Arc<OpenedNamespace>,
        context: &QueueContext,
    ) -> Result<NamespaceQueue, OpenQueueError> {
        let controller = &opened.controller;
        let pairs = controller.pairs();
        if pairs.is_empty() {
            return Err(OpenQueueError::Failed(
                "the controller has not started".to_string(),
            ));
        }
        let pair = context.vcpu.0 as usize % pairs.len();
        let mut locked = pairs[pair].lock();
        let depth = context.depth.clamp(1, locked.most_requests());
        let client = locked.open(depth);
        drop(locked);
        let client = client.map_err(|no| OpenQueueError::NoMemory { bytes: no.bytes })?;
        let sector_size = opened.namespace.data().sector_size.bytes();
        let caps = Caps {
            depth,
            segments: SEGMENTS,
            bytes: controller.most_bytes(),
            alignment: sector_size,
            access: DataAccess::Dma,
            fua: true,
            // The controller's task aborts commands that take too long, or resets the controller.
            timeout: None,
            at_once: false,
        };
        Ok(NamespaceQueue {
            pair,
            client,
            caps,
            shift: sector_size.ilog2(),
            opened,
        })
    }

    #[inline]
    fn pair(&self) -> MutexGuard<'_, QueuePair> {
        self.opened.controller.pairs()[self.pair].lock()
    }

    /// Returns the blocks of a request of `bytes` bytes, if it is allowed, within the namespace and aligned.
    #[inline]
    fn blocks(&self, sector: Sector, bytes: u64, writes: bool) -> Result<Blocks, IoError> {
        let namespace = &self.opened.namespace;
        if writes && self.opened.access == Access::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        if namespace.failure().is_some() {
            return Err(IoError::Medium);
        }
        let start = sector.bytes().ok_or(IoError::OutOfRange)?;
        let end = start.checked_add(bytes).ok_or(IoError::OutOfRange)?;
        if end > namespace.sectors().bytes().unwrap_or(0) {
            return Err(IoError::OutOfRange);
        }
        if (start | bytes) & ((1 << self.shift) - 1) != 0 {
            return Err(IoError::Misaligned);
        }
        Ok(Blocks {
            namespace: namespace.id(),
            shift: self.shift,
            start: Lba(start >> self.shift),
            count: bytes >> self.shift,
        })
    }

    #[inline]
    fn start(&self, tag: Tag, io: Io<'_>) -> Result<Submitted, IoError> {
        let namespace = &self.opened.namespace;
        let data = || io.segments.iter().map(|segment| segment.len() as u64).sum();
        let (action, blocks) = match io.op {
            Op::Read { sector } => (Action::Read, self.blocks(sector, data(), false)?),
            Op::Write { sector, fua } => {
                // Without a volatile cache, all writes are durable.
                let action = match fua && namespace.flushes() {
                    true => Action::WriteThrough,
                    false => Action::Write,
                };
                (action, self.blocks(sector, data(), true)?)
            }
            Op::Flush if !namespace.flushes() => return Ok(Submitted::Done(Ok(()))),
            Op::Flush => {
                let blocks = self.blocks(Sector(0), 0, false)?;
                return Ok(self.pair().flush(self.client, tag, blocks));
            }
            Op::Discard { secure: true, .. } => return Err(IoError::NotSupported),
            Op::Discard { sector, count, .. } => {
                let action = namespace.discards().ok_or(IoError::NotSupported)?;
                let bytes = count.bytes().ok_or(IoError::OutOfRange)?;
                (action, self.blocks(sector, bytes, true)?)
            }
        };
        if blocks.count == 0 {
            return Ok(Submitted::Done(Ok(())));
        }
        Ok(self
            .pair()
            .transfer(self.client, tag, action, blocks, io.segments))
    }
}

impl IoQueue for NamespaceQueue {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        Some(self.opened.controller.memory().clone())
    }

    #[inline]
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        match self.start(tag, io) {
            Ok(submitted) => submitted,
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn flush_submissions(&mut self) {
        self.pair().submit();
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.pair().poll(self.client, context, sink)
    }

    fn cancel(&mut self, tag: Tag) {
        self.pair().cancel(self.client, Some(tag));
    }

    fn cancel_all(&mut self) {
        self.pair().cancel(self.client, None);
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut pair = self.pair();
        pair.close(self.client);
        pair.poll_close(self.client, context)
    }
}

impl Drop for NamespaceQueue {
    fn drop(&mut self) {
        self.pair().release(self.client);
    }
}
