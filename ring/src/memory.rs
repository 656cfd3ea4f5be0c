//! The memory that a ring shares with the other end.

/// The four shared indices at the start of a ring (`struct __name##_sring`, io/ring.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Index {
    /// Requests published by the frontend (`req_prod`).
    RequestProducer = 0,
    /// The request that the backend wants to be notified of (`req_event`).
    RequestEvent = 4,
    /// Responses published by the backend (`rsp_prod`).
    ResponseProducer = 8,
    /// The response that the frontend wants to be notified of (`rsp_event`).
    ResponseEvent = 12,
}

impl Index {
    /// Returns where the index lies, in bytes from the start of the ring.
    pub fn offset(self) -> usize {
        self as usize
    }
}

/// Memory shared with the other end of a ring, which may change it at any time.
///
/// [`SharedPages`](crate::SharedPages) is the real one. Tests bring others, so that an explorer
/// of interleavings sees each access and the very code that runs in production is what it checks.
pub trait RingMemory {
    /// Returns how many bytes there are.
    fn size(&self) -> usize;

    /// Reads an index; what the other end wrote before it published that value is visible
    /// afterwards (acquire).
    fn load(&self, index: Index) -> u32;

    /// Writes an index; what was written before is visible to the end that reads that value (release).
    fn store(&self, index: Index, value: u32);

    /// A full barrier (`xen_mb`): stores before it are visible to the other end before any load
    /// after it is made.
    fn barrier(&self);

    /// Copies out bytes from `offset`, a multiple of 4. Each byte is read once.
    ///
    /// # Panics
    /// May panic if the range does not lie within [`size`](Self::size).
    fn read(&self, offset: usize, into: &mut [u8]);

    /// Copies bytes in at `offset`, a multiple of 4.
    ///
    /// # Panics
    /// May panic if the range does not lie within [`size`](Self::size).
    fn write(&self, offset: usize, from: &[u8]);
}
