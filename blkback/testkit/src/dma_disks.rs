//! Disks of a device that was given to the driver domain: the device reads and writes frontends' pages by bus address,
//! and never sees another address.

use super::{Setup, World};
use bulkhead_images::testing::Layer;
use bulkhead_images::{
    BlockDevice, Caps, DataAccess, Geometry, Io, IoError, IoQueue, IoSegment, Op, OpenQueue,
    QueueContext, Sector, SectorSize, Submitted, Tag, opened,
};
use bulkhead_xen::DmaMemory;
use bulkhead_xen_sim::{DomainKind, SimDevice};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

/// The device and the memory that the driver domain was given, once it is there.
type Given = Arc<OnceLock<(SimDevice, Arc<dyn DmaMemory>)>>;

impl World {
    /// Makes a machine whose PV driver domain has only such disks: empty, and as large as their images.
    pub fn with_dma_disks(setup: Setup) -> World {
        let given = Given::default();
        let behind = given.clone();
        let layer = Layer::new(move |image, _| Arc::new(DmaDisk::new(&*image, behind.clone())));
        let world = World::with(Setup {
            kind: DomainKind::Pv,
            layer: Some(layer),
            ..setup
        });
        let memory = Arc::new(world.storage.hypervisor());
        let first = given.set((world.storage.add_device(), memory));
        assert!(first.is_ok(), "one device");
        world
    }
}

struct DmaDisk {
    geometry: Geometry,
    given: Given,
    medium: Arc<Mutex<Vec<u8>>>,
}

impl DmaDisk {
    fn new(image: &dyn BlockDevice, given: Given) -> DmaDisk {
        let geometry = Geometry {
            sector_size: SectorSize::B512,
            physical_sector_size: SectorSize::B512,
            flush: false,
            discard: None,
            ..image.geometry()
        };
        let bytes = geometry.sectors.0 as usize * Sector::SIZE;
        DmaDisk {
            geometry,
            given,
            medium: Arc::new(Mutex::new(vec![0; bytes])),
        }
    }
}

impl BlockDevice for DmaDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue<'a>(&'a self, _: &QueueContext) -> OpenQueue<'a> {
        let (device, memory) = self.given.get().expect("the device is there").clone();
        opened(DmaQueue {
            device,
            memory,
            medium: self.medium.clone(),
            pending: VecDeque::new(),
            working: false,
        })
    }
}

struct DmaQueue {
    device: SimDevice,
    memory: Arc<dyn DmaMemory>,
    medium: Arc<Mutex<Vec<u8>>>,
    pending: VecDeque<(Tag, Op, Vec<IoSegment>)>,
    /// True if the device has seen that there is something to do.
    working: bool,
}

impl DmaQueue {
    /// Does a request as the device does it: by bus address.
    fn serve(&self, op: Op, segments: &[IoSegment]) -> Result<(), IoError> {
        let (Op::Read { sector } | Op::Write { sector, .. }) = op else {
            return Err(IoError::NotSupported);
        };
        let mut medium = self.medium.lock().expect("nobody panicked");
        let mut at = sector.0 as usize * Sector::SIZE;
        for segment in segments {
            let address = segment.dma_addr().ok_or(IoError::Medium)?;
            let bytes = medium.get_mut(at..at + segment.len());
            let bytes = bytes.ok_or(IoError::OutOfRange)?;
            let moved = match op {
                Op::Read { .. } => self.device.write(address, bytes),
                _ => self.device.read(address, bytes),
            };
            moved.map_err(|_| IoError::Medium)?;
            at += segment.len();
        }
        Ok(())
    }
}

impl IoQueue for DmaQueue {
    fn caps(&self) -> Caps {
        Caps {
            access: DataAccess::Dma,
            ..Caps::UNLIMITED
        }
    }

    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        Some(self.memory.clone())
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        // SAFETY: dropped when the request completes, or the queue is closed.
        let kept = io.segments.iter().map(|it| unsafe { it.keep() });
        self.pending.push_back((tag, io.op, kept.collect()));
        Submitted::Pending
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        // The device takes its time: what is submitted is not done before the next look.
        if !std::mem::replace(&mut self.working, !self.pending.is_empty()) {
            if self.working {
                context.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        while let Some((tag, op, segments)) = self.pending.pop_front() {
            let outcome = self.serve(op, &segments);
            drop(segments);
            sink(tag, outcome);
        }
        self.working = false;
        Poll::Ready(())
    }

    fn cancel(&mut self, _: Tag) {}

    fn cancel_all(&mut self) {}

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<()> {
        self.pending.clear();
        Poll::Ready(())
    }
}
