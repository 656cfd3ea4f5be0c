//! A layer that encrypts, with a cipher for tests alone.

use crate::device::{BlockDevice, Geometry};
use crate::guest_memory;
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::queue::{Caps, DataAccess, IoQueue, OpenQueue, QueueContext, Staging, StagingPhase};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::DmaMemory;
use core::ptr::NonNull;
use core::task::{Context, Poll};

/// The most requests that it takes at a time, and the most bytes in each.
const DEPTH: usize = 8;
const BYTES: usize = 16 * 1024;

/// A layer that encrypts the data on a device. All data goes through memory of its own: neither the layer nor the
/// device below ever gets a guest's page.
///
/// # Panics
/// If a request that moves data does not lie in the memory that it was given.
pub struct Encrypting {
    inner: Arc<dyn BlockDevice>,
    key: u64,
}

impl Encrypting {
    /// Returns a layer that encrypts the data on `inner`, which takes requests of any size and may take guests' pages.
    pub fn new(inner: Arc<dyn BlockDevice>, key: u64) -> Encrypting {
        Encrypting { inner, key }
    }

    /// Encrypts or decrypts bytes that lie at that place of a device.
    pub fn apply(key: u64, sector: Sector, bytes: &mut [u8]) {
        for (number, word) in bytes.chunks_mut(8).enumerate() {
            let place = sector.0 * 64 + number as u64;
            // SplitMix64: it need only look like noise.
            let mut noise = (place ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            noise = (noise ^ (noise >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            noise = (noise ^ (noise >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            for (byte, mask) in word.iter_mut().zip((noise ^ (noise >> 31)).to_le_bytes()) {
                *byte ^= mask;
            }
        }
    }
}

impl BlockDevice for Encrypting {
    fn geometry(&self) -> Geometry {
        Geometry {
            // What is forgotten below would not read as zeros here.
            discard: None,
            ..self.inner.geometry()
        }
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        let opening = self.inner.open_queue(context);
        Box::pin(async move {
            let inner = opening.await?;
            // Not at the start of a page, as a store's memory may be.
            let buffer = || Box::leak(alloc::vec![0_u8; 512 + BYTES].into_boxed_slice());
            let queue = EncryptingQueue {
                inner,
                key: self.key,
                buffers: (0..DEPTH)
                    .map(|_| (NonNull::from(buffer()).cast(), None))
                    .collect(),
            };
            let queue: Box<dyn IoQueue> = Box::new(queue);
            Ok(queue)
        })
    }
}

struct EncryptingQueue {
    inner: Box<dyn IoQueue>,
    key: u64,
    /// The buffers, each with the request that has it.
    buffers: Vec<(NonNull<u8>, Option<User>)>,
}

/// The request that has a buffer, and what that does.
type User = (Tag, Op);

impl EncryptingQueue {
    /// Returns the buffer of a request, and the request's operation.
    fn of(&self, tag: Tag) -> Option<(NonNull<u8>, Op)> {
        let mut buffers = self.buffers.iter();
        buffers.find_map(|(memory, user)| {
            user.filter(|(user, _)| *user == tag)
                .map(|(_, op)| (*memory, op))
        })
    }

    fn apply(&self, sector: Sector, memory: NonNull<u8>, len: usize) {
        let mut bytes = alloc::vec![0; len];
        // SAFETY: a buffer of ours has as many bytes, and is no memory of Rust's.
        unsafe { guest_memory::copy(memory.as_ptr(), bytes.as_mut_ptr(), len) };
        Encrypting::apply(self.key, sector, &mut bytes);
        // SAFETY: as above.
        unsafe { guest_memory::copy(bytes.as_ptr(), memory.as_ptr(), len) };
    }
}

impl IoQueue for EncryptingQueue {
    fn caps(&self) -> Caps {
        let inner = self.inner.caps();
        Caps {
            depth: inner.depth.min(DEPTH),
            bytes: inner.bytes.min(BYTES),
            access: DataAccess::Staged,
            ..inner
        }
    }

    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        self.inner.dma_memory()
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        let sector = match io.op {
            Op::Read { sector } | Op::Write { sector, .. } => sector,
            Op::Flush => return self.inner.submit(tag, io),
            Op::Discard { .. } => return Submitted::Done(Err(IoError::NotSupported)),
        };
        let (memory, op) = self.of(tag).expect("memory was asked for");
        assert_eq!(op, io.op, "the memory was asked for another request");
        let mut len = 0;
        for segment in io.segments {
            let expected = memory.as_ptr().wrapping_add(len);
            let address = segment.address().map(NonNull::as_ptr);
            assert_eq!(address, Some(expected), "a page of a guest's");
            len += segment.len();
        }
        let write = matches!(op, Op::Write { .. });
        if write {
            self.apply(sector, memory, len);
        }
        let submitted = self.inner.submit(tag, io);
        match submitted {
            // It comes again.
            Submitted::Busy if write => self.apply(sector, memory, len),
            Submitted::Done(Ok(())) if !write => self.apply(sector, memory, len),
            _ => {}
        }
        submitted
    }

    fn flush_submissions(&mut self) {
        self.inner.flush_submissions();
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        let mut told = Vec::new();
        let polled = self
            .inner
            .poll_complete(context, &mut |tag, result| told.push((tag, result)));
        for (tag, result) in told {
            if let Some((memory, Op::Read { sector })) = self.of(tag)
                && result.is_ok()
            {
                self.apply(sector, memory, BYTES);
            }
            sink(tag, result);
        }
        polled
    }

    fn cancel(&mut self, tag: Tag) {
        self.inner.cancel(tag);
    }

    fn cancel_all(&mut self) {
        self.inner.cancel_all();
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_close(context)
    }

    fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        assert!(len <= BYTES, "{len} bytes are more than it takes");
        let free = self.buffers.iter_mut().find(|(_, user)| user.is_none());
        let (memory, user) = free?;
        *user = Some((tag, op));
        Some(Staging {
            memory: *memory,
            phase: match op {
                Op::Write { .. } => StagingPhase::BeforeSubmit,
                _ => StagingPhase::AfterComplete,
            },
        })
    }

    fn unstage(&mut self, tag: Tag) {
        for (_, user) in &mut self.buffers {
            *user = user.filter(|(user, _)| *user != tag);
        }
    }
}

impl Drop for EncryptingQueue {
    fn drop(&mut self) {
        for (memory, _) in self.buffers.drain(..) {
            let slice = NonNull::slice_from_raw_parts(memory, 512 + BYTES);
            // SAFETY: leaked from such a box when the queue was opened; no code uses it any more.
            drop(unsafe { Box::from_raw(slice.as_ptr()) });
        }
    }
}
