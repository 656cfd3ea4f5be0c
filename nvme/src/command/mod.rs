//! Commands, their completions and the structures that they transfer, as the NVM Express specifications define
//! them. Nothing here knows how they reach a controller: over PCI or over a network.
//!
//! Everything that a controller sends is read from a private copy of the bytes. No value in it is trusted: a field
//! that makes no sense is an error, or is left out.
//!
//! ```
//! use bulkhead_nvme::command::{Command, CommandId, Lba, NamespaceId, Status, nvm};
//!
//! let read = nvm::read(NamespaceId(1), Lba(64), 8).with_id(CommandId(5));
//! assert_eq!(read.words()[5], 64);
//! assert_eq!(Status::new(0x0281).to_string(), "unrecovered read error");
//! # let _: Command = read;
//! ```

pub mod admin;
mod controller_data;
mod entry;
mod event;
mod field;
mod log_page;
mod namespace_data;
pub mod nvm;
mod status;

pub use controller_data::{ControllerData, ControllerKind, DeallocateLimits};
pub use entry::{Command, CommandId, Completion, Lba, NamespaceId, QueueId};
pub use event::{AsyncEvent, EventKind};
pub use log_page::{SmartLog, changed_namespaces};
pub use namespace_data::{NamespaceData, NamespaceError, active_namespaces};
pub use status::Status;

/// The bytes of an identify structure, and of a list of namespaces.
pub const PAGE: usize = 4096;
