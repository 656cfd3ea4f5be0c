//! xenstored's end of a domain's shared page (`struct xenstore_domain_interface`).

use super::Server;
use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{
    CONNECTED, ERROR_NONE, ERROR_RING_INDEX, FEATURE_ERROR, FEATURE_RECONNECTION, RECONNECT,
    RING_SIZE, XenstoreInterface,
};
use core::mem::offset_of;
use core::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Moves bytes between a domain's ring and the [`Server`].
#[derive(Debug)]
pub struct ServerEnd {
    page: NonNull<u8>,
    domain: DomId,
}

// SAFETY: the page is shared memory that is only accessed by volatile and atomic operations.
unsafe impl Send for ServerEnd {}

impl ServerEnd {
    /// Takes over the server's end of a domain's page, and announces in it what xenstored
    /// announces. Indices stay as they are.
    ///
    /// # Safety
    /// `page` is a page-aligned page that stays readable and writable as long as this value
    /// lives, and that no Rust reference points into.
    pub unsafe fn new(page: NonNull<u8>, domain: DomId) -> ServerEnd {
        let end = ServerEnd { page, domain };
        end.word(offset_of!(XenstoreInterface, server_features))
            .store(FEATURE_RECONNECTION | FEATURE_ERROR, Ordering::Release);
        end
    }

    /// Takes requests off the ring, lets the server serve, and puts what it sends onto the ring.
    /// Returns whether anything on the page has changed, so that the domain has to be notified.
    ///
    /// Serving may concern other domains too: pump all ends until none has anything to do.
    pub fn pump(&self, server: &mut Server) -> bool {
        let mut changed = self.reconnect(server);
        if !server.is_introduced(self.domain) || self.error() != ERROR_NONE {
            return changed;
        }
        let moved = self
            .take_requests(server)
            .and_then(|taken| {
                server.step();
                if let Some(error) = server.connection_error(self.domain) {
                    return Err(error);
                }
                Ok(self.put_responses(server)? || taken)
            })
            .unwrap_or_else(|error| {
                server.give_up(self.domain, error);
                self.word(offset_of!(XenstoreInterface, error))
                    .store(error, Ordering::Release);
                true
            });
        changed |= moved;
        changed
    }

    /// The domain asked for a new start: nothing of the old connection is left.
    fn reconnect(&self, server: &mut Server) -> bool {
        let connection = self.word(offset_of!(XenstoreInterface, connection));
        if connection.load(Ordering::Acquire) != RECONNECT {
            return false;
        }
        server.connections.insert(self.domain, Default::default());
        for index in [
            offset_of!(XenstoreInterface, request_consumer),
            offset_of!(XenstoreInterface, request_producer),
            offset_of!(XenstoreInterface, response_consumer),
            offset_of!(XenstoreInterface, response_producer),
            offset_of!(XenstoreInterface, error),
        ] {
            self.word(index).store(0, Ordering::Relaxed);
        }
        connection.store(CONNECTED, Ordering::Release);
        true
    }

    fn take_requests(&self, server: &mut Server) -> Result<bool, u32> {
        let consumer = self.word(offset_of!(XenstoreInterface, request_consumer));
        let producer = self.word(offset_of!(XenstoreInterface, request_producer));
        let start = consumer.load(Ordering::Relaxed);
        let end = producer.load(Ordering::Acquire);
        let length = used(start, end)?;
        let bytes: Vec<u8> = (0..length)
            .map(|at| self.byte(offset_of!(XenstoreInterface, requests), start, at))
            .collect();
        consumer.store(end, Ordering::Release);
        server.receive(self.domain, &bytes);
        Ok(length > 0)
    }

    fn put_responses(&self, server: &mut Server) -> Result<bool, u32> {
        let consumer = self.word(offset_of!(XenstoreInterface, response_consumer));
        let producer = self.word(offset_of!(XenstoreInterface, response_producer));
        let start = producer.load(Ordering::Relaxed);
        let room = RING_SIZE - used(consumer.load(Ordering::Acquire), start)?;
        let bytes = server.take_outgoing(self.domain, room);
        for (at, &byte) in bytes.iter().enumerate() {
            let slot = (start as usize).wrapping_add(at) % RING_SIZE;
            // SAFETY: the slot lies in the ring, which lies in the page that the caller of `new`
            // has promised.
            unsafe {
                self.page
                    .add(offset_of!(XenstoreInterface, responses) + slot)
                    .write_volatile(byte);
            }
        }
        producer.store(start.wrapping_add(bytes.len() as u32), Ordering::Release);
        Ok(!bytes.is_empty())
    }

    fn error(&self) -> u32 {
        self.word(offset_of!(XenstoreInterface, error))
            .load(Ordering::Relaxed)
    }

    fn byte(&self, ring: usize, start: u32, at: usize) -> u8 {
        let slot = (start as usize).wrapping_add(at) % RING_SIZE;
        // SAFETY: the slot lies in the ring, which lies in the page that the caller of `new` has
        // promised.
        unsafe { self.page.add(ring + slot).read_volatile() }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: all offsets passed here are those of aligned words of the interface, which lies
        // in the page that the caller of `new` has promised.
        unsafe { AtomicU32::from_ptr(self.page.add(offset).cast().as_ptr()) }
    }
}

/// The bytes between two indices, of which there can be no more than the ring holds.
fn used(consumer: u32, producer: u32) -> Result<usize, u32> {
    let length = producer.wrapping_sub(consumer) as usize;
    if length > RING_SIZE {
        return Err(ERROR_RING_INDEX);
    }
    Ok(length)
}
