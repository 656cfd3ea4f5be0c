//! The progress of a sweep with the pages of its requests.

use super::super::cost_model::Method;
use bulkhead_xen::Instant;
use core::marker::PhantomData;

/// One sweep's use of the pages of its requests, from [`PageAccess::begin`](super::PageAccess::begin) to
/// [`PageAccess::finish`](super::PageAccess::finish). Its type tells the next step: pages are noted while it is
/// [`Queueing`], and used once it is [`Executed`].
#[must_use = "a sweep that began is to be finished"]
pub struct Sweep<Phase> {
    /// The way to the pages, their number, and when that began.
    pub(super) method: Method,
    pub(super) pages: usize,
    pub(super) began: Option<Instant>,
    /// True if the device was asked for its memory.
    pub(super) asked: bool,
    pub(super) phase: PhantomData<Phase>,
}

/// The pages of a sweep are being noted; none of them can be used yet.
pub enum Queueing {}

/// The noted pages are mapped and copied.
pub enum Executed {}

impl<Phase> Sweep<Phase> {
    pub(super) fn new(method: Method, pages: usize, began: Option<Instant>) -> Self {
        Sweep {
            method,
            pages,
            began,
            asked: false,
            phase: PhantomData,
        }
    }
}

impl Sweep<Queueing> {
    /// Returns whether this sweep copies what it can.
    pub fn copies(&self) -> bool {
        self.method == Method::Copy
    }

    /// Notes that the device is asked for its memory, to copy from or to it.
    pub fn memory_asked(&mut self) {
        self.asked = true;
    }
}
