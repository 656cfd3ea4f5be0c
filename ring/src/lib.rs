//! Xen's shared rings, both ends, and the blkif messages that travel on them.
//!
//! A ring is one to sixteen pages that two domains share (`io/ring.h`). The frontend puts
//! requests in, the backend replaces them by responses, and each end tells the other by an event
//! channel that something is there, but only where the other has asked for it.
//!
//! ```text
//!   frontend: push, publish --> [ req_prod req_event | rsp_prod rsp_event ] <-- respond, publish
//!             take, final_check [ slot 0 | slot 1 | ... | slot 2^n - 1     ]     take, final_check
//! ```
//!
//! This crate holds the protocol alone. Who maps the pages, sends the notifications and sleeps
//! is somebody else; [`BackRing::publish`] says whether to notify and
//! [`BackRing::final_check`] whether sleeping is allowed.
//!
//! ```
//! use bulkhead_ring::blkif::{Abi, Blkif, Operation, Request, RequestId, Response, Status};
//! use bulkhead_ring::{BackRing, FrontRing, SharedPages};
//! use core::ptr::NonNull;
//!
//! #[repr(align(4096))]
//! struct Page([u8; 4096]);
//! let mut page = Page([0; 4096]);
//! let base = NonNull::from(&mut page.0).cast::<u8>();
//! // SAFETY: the page outlives both ends, and nothing else touches it.
//! let memory = || unsafe { SharedPages::new(base, 1) }.expect("one aligned page");
//!
//! let mut front = FrontRing::new(memory(), Blkif::new(Abi::X86_64))?;
//! let mut back = BackRing::new(memory(), Blkif::new(Abi::X86_64))?;
//! assert_eq!(back.slots(), 32);
//!
//! front.push(&Request::flush(RequestId(7))).expect("an empty ring has room");
//! assert!(front.publish(), "a fresh ring asks to be told of the first request");
//!
//! while let Some(received) = back.take()? {
//!     let response = match received {
//!         Ok(request) => {
//!             assert_eq!(request.operation, Operation::Flush);
//!             request.response(Status::Okay)
//!         }
//!         Err(malformed) => malformed.response(),
//!     };
//!     back.respond(&response).expect("each request is answered once");
//! }
//! let notify_frontend = back.publish();
//! assert!(notify_frontend);
//! assert!(!back.final_check()?, "nothing left: the backend may sleep");
//!
//! let answer = front.take()?.expect("the answer");
//! assert_eq!((answer.id, answer.status), (RequestId(7), Status::Okay));
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
//!
//! Read next: [`BackRing`] for the backend's end, [`blkif`] for the block messages, [`netif`] for a
//! network interface's,
//! [`RingMemory`] for how shared memory is reached.

#![no_std]
#![deny(unsafe_code)]

mod back;
pub mod blkif;
mod error;
mod front;
mod memory;
mod message;
pub mod netif;
#[allow(unsafe_code, reason = "the one place that touches shared memory")]
mod pages;
mod slots;

pub use back::{BackRing, Received};
pub use error::{AttachError, BadPages, Overrun, RingFull, TooSmall, Unasked};
pub use front::FrontRing;
pub use memory::{Index, RingMemory};
pub use message::{Format, MAX_PAGES, RING_HEADER_SIZE, ring_slots};
pub use pages::SharedPages;
