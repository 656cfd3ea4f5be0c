//! What can be wrong with a ring or with the other end of it.

use core::fmt;

/// The other end's producer index cannot be: it runs further ahead than the ring has slots, or it
/// went back (`RING_REQUEST_PROD_OVERFLOW`, `RING_RESPONSE_PROD_OVERFLOW`, io/ring.h). That end is
/// broken or hostile; nothing on the ring can be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// The index that the other end published.
    pub producer: u32,
    /// The index up to which the ring was taken so far.
    pub consumer: u32,
    /// The most that it could have been ahead of `consumer`.
    pub most: u32,
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overrun {
            producer,
            consumer,
            most,
        } = self;
        write!(
            f,
            "ring overrun: producer index {producer:#x} with {consumer:#x} consumed, \
             at most {most} may be pending"
        )
    }
}

impl core::error::Error for Overrun {}

/// The memory has not room for a single slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// Bytes of the memory.
    pub size: usize,
    /// Bytes of a slot.
    pub slot_size: usize,
}

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooSmall { size, slot_size } = self;
        write!(f, "{size} bytes hold no ring of {slot_size}-byte slots")
    }
}

impl core::error::Error for TooSmall {}

/// The reason why a ring that is already in use cannot be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// There is no room for a ring.
    TooSmall(TooSmall),
    /// The shared indices contradict each other.
    Overrun(Overrun),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::TooSmall(error) => error.fmt(f),
            AttachError::Overrun(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AttachError {}

impl From<TooSmall> for AttachError {
    fn from(error: TooSmall) -> AttachError {
        AttachError::TooSmall(error)
    }
}

impl From<Overrun> for AttachError {
    fn from(error: Overrun) -> AttachError {
        AttachError::Overrun(error)
    }
}

/// Pages that cannot be a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPages {
    /// Not one to sixteen of them.
    Count(usize),
    /// The address is not that of a page.
    Unaligned(usize),
}

impl fmt::Display for BadPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPages::Count(pages) => write!(f, "a ring has 1 to 16 pages, not {pages}"),
            BadPages::Unaligned(address) => write!(f, "a ring at {address:#x} is not page-aligned"),
        }
    }
}

impl core::error::Error for BadPages {}

/// A response without a request that it could answer: every request has had its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unasked;

impl fmt::Display for Unasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more responses than requests")
    }
}

impl core::error::Error for Unasked {}

/// No slot is free: as many requests are outstanding as the ring has slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFull;

impl fmt::Display for RingFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the ring is full")
    }
}

impl core::error::Error for RingFull {}
