//! Starting again in place: a domain that fails restores its image as it was loaded and boots once more, within the
//! same Xen domain. `docs/recovery.md` says what survives and what does not.
//!
//! ```text
//!   panic ──► restart ──► region ──► record       what the crash leaves to the next boot, checked like hostile input
//!                │
//!                ├──► pristine                    .data as it was loaded, read-only
//!                ├──► others ──► parking          the other vCPUs: stopped, and brought to where the next boot starts them
//!                ├──► leaving ──► mappings        Xen's state of this boot, and the handles of mapped pages, to be removed
//!                ├──► copying                     code that puts an image into its place, and enters it
//!                ├──► upgrade, trial              a new version takes over, or hands back
//!                └──► obstacles                   what a restart could not take up again: then a crash is final
//! ```

pub mod record;

#[cfg(feature = "unikernel")]
mod copying;
#[cfg(feature = "unikernel")]
pub(crate) mod leaving;
#[cfg(feature = "unikernel")]
pub(crate) mod mappings;
#[cfg(feature = "unikernel")]
pub(crate) mod obstacles;
#[cfg(feature = "unikernel")]
pub(crate) mod others;
#[cfg(feature = "unikernel")]
pub(crate) mod parking;
#[cfg(feature = "unikernel")]
pub(crate) mod pristine;
#[cfg(feature = "unikernel")]
pub mod region;
#[cfg(feature = "unikernel")]
pub mod restart;
#[cfg(feature = "unikernel")]
pub mod trial;
#[cfg(feature = "unikernel")]
pub mod upgrade;
