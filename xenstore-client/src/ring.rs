//! The domain's end of the shared page (`struct xenstore_domain_interface`): the only module of
//! this crate with `unsafe` in it.
//!
//! Two circles of bytes, one for each direction. Each index counts bytes modulo 2^32 and has one
//! writer; neither starts at zero for sure. What the other side writes is checked before use: an
//! index that is further ahead than the ring is long ends the connection.
#![allow(unsafe_code)]

use crate::connection::Transport;
use crate::error::ConnectionFault;
use bulkhead_xen::abi::xs_wire::{
    CONNECTED, ERROR_NONE, FEATURE_ERROR, FEATURE_RECONNECTION, RING_SIZE, XenstoreInterface,
};
use bulkhead_xen::{Hypervisor, Port, StoreRing};
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// The ring to xenstored.
#[derive(Debug)]
pub struct Ring<H> {
    page: NonNull<u8>,
    port: Port,
    hypervisor: H,
}

impl<H: Hypervisor> Ring<H> {
    /// Takes over the ring. Bytes that an earlier user of it did not read are dropped.
    ///
    /// # Safety
    /// The page is mapped, page-aligned and shared with xenstored as long as this value lives;
    /// nothing else in this domain uses it, and no Rust reference to it exists.
    pub unsafe fn new(hypervisor: H, ring: StoreRing) -> Ring<H> {
        // SAFETY: the caller's promise.
        let ring = unsafe { Ring::resumed(hypervisor, ring) };
        if ring.connected() {
            let written = ring.response_producer().load(Ordering::Acquire);
            let unread = written.wrapping_sub(ring.response_consumer().load(Ordering::Relaxed));
            if unread != 0 {
                log::warn!(
                    "xenstore: dropped {unread} bytes that an earlier connection had not read"
                );
                ring.response_consumer().store(written, Ordering::Release);
            }
        }
        ring
    }

    /// Takes over the ring as an earlier user has left it; see [`Resumable`](crate::Resumable).
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    pub unsafe fn resumed(hypervisor: H, ring: StoreRing) -> Ring<H> {
        Ring {
            page: ring.page,
            port: ring.port,
            hypervisor,
        }
    }

    /// Returns the event channel that goes with the ring.
    pub fn port(&self) -> Port {
        self.port
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: every offset passed here is that of an aligned word of the interface, which
        // lies in the page; the caller of `new` promised the page for as long as `self` lives.
        unsafe { AtomicU32::from_ptr(self.page.add(offset).cast().as_ptr()) }
    }

    fn request_consumer(&self) -> &AtomicU32 {
        self.word(offset_of!(XenstoreInterface, request_consumer))
    }

    fn request_producer(&self) -> &AtomicU32 {
        self.word(offset_of!(XenstoreInterface, request_producer))
    }

    fn response_consumer(&self) -> &AtomicU32 {
        self.word(offset_of!(XenstoreInterface, response_consumer))
    }

    fn response_producer(&self) -> &AtomicU32 {
        self.word(offset_of!(XenstoreInterface, response_producer))
    }

    fn offers(&self, feature: u32) -> bool {
        let features = self.word(offset_of!(XenstoreInterface, server_features));
        features.load(Ordering::Acquire) & feature != 0
    }

    /// Returns false while xenstored starts the ring anew: nothing else in the page has a meaning then
    /// (`docs/misc/xenstore-ring.txt`).
    fn connected(&self) -> bool {
        let connection = self.word(offset_of!(XenstoreInterface, connection));
        !self.offers(FEATURE_RECONNECTION) || connection.load(Ordering::Acquire) == CONNECTED
    }

    /// Checks whether the server has given up on this domain.
    fn check_error(&self) -> Result<(), ConnectionFault> {
        let error = self.word(offset_of!(XenstoreInterface, error));
        let code = error.load(Ordering::Acquire);
        if self.offers(FEATURE_ERROR) && code != ERROR_NONE {
            return Err(ConnectionFault::GivenUp { code });
        }
        Ok(())
    }
}

/// Returns the number of bytes between a reader and a writer.
fn used(consumer: u32, producer: u32) -> Result<usize, ConnectionFault> {
    let length = producer.wrapping_sub(consumer);
    if length as usize > RING_SIZE {
        return Err(ConnectionFault::RingIndex { consumer, producer });
    }
    Ok(length as usize)
}

/// The single steps of a transport.
impl<H: Hypervisor> Ring<H> {
    /// Returns the index of the next byte to be sent.
    pub(crate) fn sent(&self) -> u32 {
        self.request_producer().load(Ordering::Relaxed)
    }

    /// Returns the index of the next byte to be sent, and how many there is room for.
    pub(crate) fn room(&self) -> Result<(u32, usize), ConnectionFault> {
        let producer = self.sent();
        if !self.connected() {
            return Ok((producer, 0));
        }
        self.check_error()?;
        // Acquire: bytes are overwritten only after xenstored was seen to have read them.
        let consumer = self.request_consumer().load(Ordering::Acquire);
        Ok((producer, RING_SIZE - used(consumer, producer)?))
    }

    /// Writes bytes, for which there is room, from an index on. xenstored does not see them yet.
    pub(crate) fn write(&mut self, producer: u32, bytes: &[u8]) {
        for (at, &byte) in bytes.iter().enumerate() {
            let slot = (producer as usize).wrapping_add(at) % RING_SIZE;
            // SAFETY: the slot lies in the ring, which lies in the page that the caller of `new`
            // promised; xenstored only reads there.
            unsafe {
                self.page
                    .add(offset_of!(XenstoreInterface, requests) + slot)
                    .write_volatile(byte);
            }
        }
    }

    /// Shows xenstored the bytes before an index.
    pub(crate) fn publish(&mut self, producer: u32) {
        // Release: the bytes are there before the index says so.
        self.request_producer().store(producer, Ordering::Release);
    }

    /// Returns the index of the next byte to be taken.
    pub(crate) fn taken(&self) -> u32 {
        self.response_consumer().load(Ordering::Relaxed)
    }

    /// Copies the bytes that have arrived, as far as they fit, and returns the index of the first one, and their
    /// number. The bytes stay on the ring.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<(u32, usize), ConnectionFault> {
        let consumer = self.taken();
        if !self.connected() {
            return Ok((consumer, 0));
        }
        self.check_error()?;
        // Acquire: the bytes are read after the index that covers them.
        let producer = self.response_producer().load(Ordering::Acquire);
        let count = used(consumer, producer)?.min(buffer.len());
        for (at, byte) in buffer[..count].iter_mut().enumerate() {
            let slot = (consumer as usize).wrapping_add(at) % RING_SIZE;
            // SAFETY: the slot lies in the ring, which lies in the page that the caller of `new`
            // promised; each byte is read once.
            *byte = unsafe {
                self.page
                    .add(offset_of!(XenstoreInterface, responses) + slot)
                    .read_volatile()
            };
        }
        Ok((consumer, count))
    }

    /// Lets xenstored use the room of the bytes before an index again.
    pub(crate) fn take(&mut self, consumer: u32) {
        // Release: xenstored may overwrite the bytes once they have been read.
        self.response_consumer().store(consumer, Ordering::Release);
    }
}

impl<H: Hypervisor> Transport for Ring<H> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, ConnectionFault> {
        let (producer, room) = self.room()?;
        let count = room.min(bytes.len());
        if count > 0 {
            self.write(producer, &bytes[..count]);
            self.publish(producer.wrapping_add(count as u32));
        }
        Ok(count)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, ConnectionFault> {
        let (consumer, count) = self.read(buffer)?;
        if count > 0 {
            self.take(consumer.wrapping_add(count as u32));
        }
        Ok(count)
    }

    fn notify(&mut self) {
        if let Err(error) = self.hypervisor.notify(self.port) {
            log::error!(
                "xenstore: cannot notify event channel {}: {error}",
                self.port
            );
        }
    }
}
