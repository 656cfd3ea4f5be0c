//! The last way to reach a frontend's pages, for when Xen has no map slots for them: the hypervisor copies them from
//! and to the driver domain's own memory, which the device gets. It is slow, needs little memory, and serves one
//! request at a time.

use super::pages::{InflightPages, Pages};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::memory::room_for;
use bulkhead_grant::{CopyBatch, Direction, GrantedBytes, OutOfMemory};
use bulkhead_images::{IoSegment, Op, Sector, Tag};
use bulkhead_ring::blkif::SECTOR_SIZE;
use bulkhead_xen::{DmaMemory, DomId, GrantStatus, Hypervisor, PAGE_SIZE};
use core::ptr::NonNull;

/// A page, for devices with sectors of 4096 bytes.
#[repr(C, align(4096))]
struct Whole([u8; PAGE_SIZE]);

/// The memory for other devices. Every queue has it, and it is seldom used.
#[repr(C, align(2048))]
struct Half([u8; PAGE_SIZE / 2]);

/// The memory that the device gets at a time. It lies within one page and holds whole sectors of the device, so a
/// device that takes a request as a whole takes these pieces of it, too.
enum Memory {
    Whole(Vec<Whole>),
    Half(Vec<Half>),
}

impl Memory {
    fn for_sectors(size: usize) -> Result<Memory, OutOfMemory> {
        Ok(match size_of::<Half>().is_multiple_of(size) {
            true => Memory::Half(room_for(1)?),
            false => Memory::Whole(room_for(1)?),
        })
    }

    fn len(&self) -> usize {
        match self {
            Memory::Whole(_) => size_of::<Whole>(),
            Memory::Half(_) => size_of::<Half>(),
        }
    }
}

/// A queue's own memory, and the request that it serves.
pub struct Bounce<H: Hypervisor> {
    /// The memory's name on the device's bus, if the device needs one.
    dma: Option<Arc<dyn DmaMemory>>,
    /// No reference to it exists. The device and the hypervisor write to it.
    memory: Memory,
    copies: CopyBatch<H>,
    current: Option<Current>,
}

/// The progress of the request that is being served.
#[derive(Clone, Copy)]
struct Current {
    tag: Tag,
    op: Op,
    /// The number of bytes that are done, and of those that the device has now.
    done: usize,
    chunk: usize,
    all: usize,
}

impl<H: Hypervisor> Bounce<H> {
    /// Returns the memory for pages of `frontend`, and a device with sectors of that many bytes.
    pub fn new(
        hypervisor: &H,
        dma: Option<Arc<dyn DmaMemory>>,
        frontend: DomId,
        sector_size: usize,
    ) -> Result<Self, OutOfMemory> {
        let memory = Memory::for_sectors(sector_size)?;
        // A page of a request has at least one sector of 512 bytes.
        let pieces = memory.len() / SECTOR_SIZE;
        Ok(Bounce {
            dma,
            memory,
            copies: CopyBatch::new(hypervisor.clone(), frontend, pieces)?,
            current: None,
        })
    }

    /// Returns whether that request is being served.
    pub fn serves(&self, tag: Tag) -> bool {
        self.current.is_some_and(|current| current.tag == tag)
    }

    /// Returns whether no request is being served.
    pub fn is_free(&self) -> bool {
        self.current.is_none()
    }

    /// Begins a read or a write of `bytes` bytes.
    pub fn begin(&mut self, tag: Tag, op: Op, bytes: usize) {
        debug_assert!(self.is_free(), "one at a time");
        self.current = Some(Current {
            tag,
            op,
            done: 0,
            chunk: 0,
            all: bytes,
        });
    }

    /// Returns whether all of the request is done.
    pub fn is_done(&self) -> bool {
        self.current
            .is_none_or(|current| current.done == current.all)
    }

    /// Ends the request, finished or not.
    pub fn end(&mut self) {
        self.current = None;
    }

    fn address(&mut self) -> NonNull<u8> {
        let start = match &mut self.memory {
            Memory::Whole(memory) => memory.as_mut_ptr().cast(),
            Memory::Half(memory) => memory.as_mut_ptr().cast(),
        };
        // A vector with room is never null.
        NonNull::new(start).unwrap_or(NonNull::dangling())
    }

    /// Prepares the next piece of the request for the device, of at most `most` bytes. Returns the operation and its
    /// memory.
    pub fn next_piece(
        &mut self,
        pool: &InflightPages,
        pages: &Pages,
        most: usize,
    ) -> Result<(Op, IoSegment), GrantStatus> {
        let Some(mut current) = self.current else {
            return Err(GrantStatus::GENERAL_ERROR);
        };
        current.chunk = (current.all - current.done)
            .min(self.memory.len())
            .min(most);
        self.current = Some(current);
        let sectors = (current.done / SECTOR_SIZE) as u64;
        let after = |sector: Sector| Sector(sector.0 + sectors);
        let address = self.address();
        let op = match current.op {
            Op::Write { sector, fua } => {
                self.copy(Direction::FromGranted, pool, pages)?;
                Op::Write {
                    sector: after(sector),
                    fua,
                }
            }
            Op::Read { sector } => {
                // Bytes that the device does not write must not be those of an earlier request.
                // SAFETY: the memory is ours, and neither the device nor the hypervisor uses it now.
                unsafe { address.write_bytes(0, current.chunk) };
                Op::Read {
                    sector: after(sector),
                }
            }
            other => other,
        };
        let dma = match &self.dma {
            Some(memory) => Some(
                memory
                    .dma_addr(address.as_ptr())
                    .ok_or(GrantStatus::BAD_DEV_ADDR)?,
            ),
            None => None,
        };
        // SAFETY: own memory that stays as long as the device's queue, which `Queue` drops first; it is
        // not written before the completion of this piece is told, and never referred to.
        let segment = unsafe { IoSegment::new(address, current.chunk, dma) };
        Ok((op, segment))
    }

    /// Notes that the device has completed a piece, and copies what was read to the frontend.
    pub fn piece_done(&mut self, pool: &InflightPages, pages: &Pages) -> Result<(), GrantStatus> {
        let Some(current) = self.current else {
            return Err(GrantStatus::GENERAL_ERROR);
        };
        if matches!(current.op, Op::Read { .. }) {
            self.copy(Direction::ToGranted, pool, pages)?;
        }
        self.current = Some(Current {
            done: current.done + current.chunk,
            chunk: 0,
            ..current
        });
        Ok(())
    }

    /// Copies the piece from or to the frontend's pages, by one hypercall.
    fn copy(
        &mut self,
        direction: Direction,
        pool: &InflightPages,
        pages: &Pages,
    ) -> Result<(), GrantStatus> {
        let Some(Current { done, chunk, .. }) = self.current else {
            return Err(GrantStatus::GENERAL_ERROR);
        };
        let own = self.address();
        let mut start = 0;
        for page in pool.iter(pages) {
            let (first, end) = (start.max(done), (start + page.len()).min(done + chunk));
            if first < end {
                let granted = GrantedBytes {
                    gref: page.gref,
                    offset: page.offset() + first - start,
                    len: end - first,
                };
                // SAFETY: within our memory, of which the bytes from `done` on are asked for; it holds
                // nothing but this frontend's data, and is not referred to.
                let queued =
                    unsafe { self.copies.queue(direction, granted, own.add(first - done)) };
                if queued.is_err() {
                    self.copies.clear();
                    return Err(GrantStatus::GENERAL_ERROR);
                }
            }
            start += page.len();
        }
        self.copies.run();
        let outcome = self.copies.outcome();
        self.copies.clear();
        outcome
    }

    /// Copies bytes of one page of the frontend's to `to`, by one hypercall.
    ///
    /// # Safety
    /// `to` is this domain's own memory of that many bytes, and no reference to it exists.
    pub unsafe fn fetch(
        &mut self,
        bytes: GrantedBytes,
        to: NonNull<u8>,
    ) -> Result<(), GrantStatus> {
        // SAFETY: as the caller promises.
        let queued = unsafe { self.copies.queue(Direction::FromGranted, bytes, to) };
        self.copies.run();
        let outcome = match queued {
            Ok(_) => self.copies.outcome(),
            Err(_) => Err(GrantStatus::GENERAL_ERROR),
        };
        self.copies.clear();
        outcome
    }

    /// Returns the number of hypercalls that copied so far, and of their bytes.
    pub fn copied(&self) -> (u64, u64) {
        (self.copies.calls(), self.copies.bytes())
    }
}
