//! The block device of each user of a device, and the queues for guests' rings.

use crate::device::Device;
use crate::device_queue::DeviceQueue;
use crate::disk_config::DiskConfig;
use crate::slots::{Request, SectorRange};
use alloc::string::ToString;
use alloc::sync::Arc;
use bulkhead_images::{
    BlockDevice, Caps, DataAccess, DiscardLimits, Geometry, Io, IoError, IoQueue, Op, OpenQueue,
    OpenQueueError, QueueContext, Sector, Submitted, Tag, not_opened, opened,
};
use bulkhead_xen::{DmaMemory, PAGE_SIZE};
use core::task::{Context, Poll, Waker};
use spin::MutexGuard;
use virtio_spec::blk::T;

/// The most bytes of a request.
const MOST_BYTES: usize = 1 << 20;

/// A user's claim on a device, shared by the user's queues.
struct OpenedDevice {
    device: Arc<Device>,
    config: DiskConfig,
    watcher: u64,
}

impl Drop for OpenedDevice {
    fn drop(&mut self) {
        self.device.remove_user(self.watcher);
    }
}

/// A device as a block device.
pub struct VirtioDisk(Arc<OpenedDevice>);

impl VirtioDisk {
    /// Opens a device for reading and, unless it is read-only, writing. `config` is its configuration at its first
    /// start.
    pub fn new(device: Arc<Device>, config: DiskConfig) -> VirtioDisk {
        let watcher = device.add_user();
        VirtioDisk(Arc::new(OpenedDevice {
            device,
            config,
            watcher,
        }))
    }
}

impl BlockDevice for VirtioDisk {
    fn geometry(&self) -> Geometry {
        let OpenedDevice { device, config, .. } = &*self.0;
        let limits = config.discards.map(|discards| DiscardLimits {
            granularity: discards.granularity,
            alignment: Sector(0),
            secure: false,
        });
        Geometry {
            sectors: device.sectors(),
            sector_size: config.sector_size,
            physical_sector_size: config.physical_sector_size,
            read_only: config.read_only,
            // Offered without a cache, too: a flush then completes at once.
            flush: true,
            discard: limits.filter(|_| !config.read_only),
        }
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        if let Some(reason) = self.0.device.failure() {
            return not_opened(OpenQueueError::Failed(reason.to_string()));
        }
        match VirtioDiskQueue::new(self.0.clone(), context) {
            Ok(queue) => opened(queue),
            Err(error) => not_opened(error),
        }
    }

    fn uses_dma(&self) -> bool {
        true
    }

    fn on_change(&self, waker: &Waker) {
        self.0.device.wait_for_change(self.0.watcher, waker);
    }
}

/// The queue that serves one ring of a guest's: puts the guest's requests on a queue of the device.
struct VirtioDiskQueue {
    opened: Arc<OpenedDevice>,
    number: usize,
    client: usize,
    caps: Caps,
}

impl VirtioDiskQueue {
    /// Opens a queue on the device's queue for the vCPU in `context`; vCPUs share queues if there are fewer of these.
    fn new(
        opened: Arc<OpenedDevice>,
        context: &QueueContext,
    ) -> Result<VirtioDiskQueue, OpenQueueError> {
        let queues = opened.device.queues();
        if queues.is_empty() {
            let reason = "the device has not started".to_string();
            return Err(OpenQueueError::Failed(reason));
        }
        let number = context.vcpu.0 as usize % queues.len();
        let mut locked = queues[number].lock();
        let depth = context.depth.clamp(1, locked.most_requests());
        let segments = opened.config.segments.min(locked.most_segments());
        let client = locked.open(depth);
        drop(locked);
        let client = client.map_err(|no| OpenQueueError::NoMemory { bytes: no.bytes })?;
        let caps = Caps {
            depth,
            segments,
            bytes: (segments * PAGE_SIZE).min(MOST_BYTES),
            alignment: opened.config.sector_size.bytes(),
            access: DataAccess::Dma,
            fua: false,
            // The device's task resets a device that takes too long for a request.
            timeout: None,
            at_once: false,
        };
        Ok(VirtioDiskQueue {
            opened,
            number,
            client,
            caps,
        })
    }

    #[inline]
    fn queue(&self) -> MutexGuard<'_, DeviceQueue> {
        self.opened.device.queues()[self.number].lock()
    }

    /// Checks that a request of `bytes` bytes is allowed, within the disk and aligned. Returns the number of its
    /// sectors.
    #[inline]
    fn check(&self, sector: Sector, bytes: u64, writes: bool) -> Result<u64, IoError> {
        if writes && self.opened.config.read_only {
            return Err(IoError::ReadOnly);
        }
        let start = sector.bytes().ok_or(IoError::OutOfRange)?;
        let end = start.checked_add(bytes).ok_or(IoError::OutOfRange)?;
        if end > self.opened.device.sectors().bytes().unwrap_or(0) {
            return Err(IoError::OutOfRange);
        }
        if (start | bytes) & (self.caps.alignment as u64 - 1) != 0 {
            return Err(IoError::Misaligned);
        }
        Ok(bytes / Sector::SIZE as u64)
    }

    #[inline]
    fn start(&self, tag: Tag, io: Io<'_>) -> Result<Submitted, IoError> {
        let data = || io.segments.iter().map(|segment| segment.len() as u64).sum();
        let mut request = Request {
            kind: T::In,
            sector: 0,
            range: SectorRange::default(),
            most: 0,
        };
        let count = match io.op {
            Op::Read { sector } => {
                request.sector = sector.0;
                self.check(sector, data(), false)?
            }
            Op::Write { sector, .. } => {
                (request.kind, request.sector) = (T::Out, sector.0);
                self.check(sector, data(), true)?
            }
            Op::Flush => {
                request.kind = T::Flush;
                u64::from(self.opened.config.flushes)
            }
            Op::Discard { secure: true, .. } => return Err(IoError::NotSupported),
            Op::Discard { sector, count, .. } => {
                let discards = self.opened.config.discards.ok_or(IoError::NotSupported)?;
                let bytes = count.bytes().ok_or(IoError::OutOfRange)?;
                let count = self.check(sector, bytes, true)?;
                (request.kind, request.most) = (discards.request, discards.most);
                request.range = SectorRange {
                    start: sector.0,
                    count,
                };
                count
            }
        };
        if count == 0 {
            return Ok(Submitted::Done(Ok(())));
        }
        let segments = match io.op {
            Op::Read { .. } | Op::Write { .. } => io.segments,
            _ => &[],
        };
        Ok(self.queue().ask(self.client, tag, &request, segments))
    }
}

impl IoQueue for VirtioDiskQueue {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        Some(self.opened.device.memory().clone())
    }

    #[inline]
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        match self.start(tag, io) {
            Ok(submitted) => submitted,
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn flush_submissions(&mut self) {
        self.queue().submit();
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.queue().poll(self.client, context, sink)
    }

    fn cancel(&mut self, tag: Tag) {
        self.queue().cancel(self.client, Some(tag));
    }

    fn cancel_all(&mut self) {
        self.queue().cancel(self.client, None);
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.queue();
        queue.close(self.client);
        queue.poll_close(self.client, context)
    }
}

impl Drop for VirtioDiskQueue {
    fn drop(&mut self) {
        self.queue().release(self.client);
    }
}
