//! Growing an image while it is attached: the operator's request, its steps, and its errors.
//!
//! ```
//! use bulkhead_images::GrowRequest;
//!
//! // As in `xenstore-write /local/domain/3/data/grow "disk0 128M"`.
//! let request: GrowRequest = "disk0 128M".parse()?;
//! assert_eq!((request.name.as_str(), request.size), ("disk0", 128 << 20));
//! assert_eq!(
//!     "disk0".parse::<GrowRequest>().unwrap_err().to_string(),
//!     "'disk0' is not an image and its new size, expected NAME SIZE, as in disk0 128M"
//! );
//! # Ok::<(), bulkhead_images::GrowRequestError>(())
//! ```

use crate::catalog::NotFound;
use crate::memory::ImageMemory;
use crate::memory_image::MemoryImage;
use crate::target::parse_size;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;

/// The number of bytes that are cleared before other tasks get their turn.
const STEP_BYTES: usize = 1 << 20;

/// An operator's request to make an image larger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowRequest {
    /// The image's name, without `ram:`.
    pub name: String,
    /// The size asked for, in bytes.
    pub size: u64,
}

/// An image that is becoming larger: it has its old size until all that is added is cleared.
///
/// If this is dropped before, the image stays as it is, and the memory that was to be added is lost to
/// the domain.
#[derive(Debug)]
#[must_use = "the image does not grow unless every step is done"]
pub struct Resize {
    image: Arc<MemoryImage>,
    /// The memory that is added, until it is the image's.
    added: Option<AddedMemory>,
}

impl Resize {
    pub(crate) fn new(image: Arc<MemoryImage>, added: AddedMemory) -> Resize {
        Resize {
            image,
            added: Some(added),
        }
    }

    /// Clears up to a MiB of the memory added. Once all of it is cleared, the image grows, the devices open on it
    /// report that ([`BlockDevice::on_change`](crate::BlockDevice::on_change)), and this returns the number of bytes
    /// that the image had before. After `None`, the caller calls it again.
    pub fn step(&mut self) -> Option<u64> {
        if self.added.as_mut().is_some_and(AddedMemory::clear) {
            return None;
        }
        let added = self.added.take()?;
        Some(self.image.finish_resize(added) as u64)
    }
}

impl Drop for Resize {
    fn drop(&mut self) {
        if self.added.is_some() {
            self.image.cancel_resize();
        }
    }
}

/// The memory by which an image grows.
#[derive(Debug)]
pub(crate) struct AddedMemory {
    memory: ImageMemory,
    /// The bytes of the memory that will belong to the image.
    bytes: Range<usize>,
    /// Their range in the image.
    image_bytes: Range<usize>,
    cleared: usize,
}

impl AddedMemory {
    pub(crate) fn new(
        memory: ImageMemory,
        bytes: Range<usize>,
        image_bytes: Range<usize>,
    ) -> AddedMemory {
        AddedMemory {
            memory,
            bytes,
            image_bytes,
            cleared: 0,
        }
    }

    /// Clears a part of the memory. Returns false if there is nothing left to clear.
    fn clear(&mut self) -> bool {
        let len = STEP_BYTES.min(self.memory.len() - self.cleared);
        self.memory.zero(self.cleared, len);
        self.cleared += len;
        len > 0
    }

    /// Returns the range that is added to the image, the memory, and the range in that memory.
    ///
    /// # Panics
    /// If not all of it is cleared.
    pub(crate) fn into_parts(self) -> (Range<usize>, ImageMemory, Range<usize>) {
        assert_eq!(self.cleared, self.memory.len(), "not cleared yet");
        (self.image_bytes, self.memory, self.bytes)
    }
}

/// A text that is not a request for growth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowRequestError(String);

impl FromStr for GrowRequest {
    type Err = GrowRequestError;

    fn from_str(text: &str) -> Result<GrowRequest, GrowRequestError> {
        let wrong = || GrowRequestError(text.chars().take(80).collect());
        // The name may have spaces in it, the size has none.
        let (name, size) = text.trim().rsplit_once(' ').ok_or_else(wrong)?;
        let name = name.trim_end();
        let name = name.strip_prefix("ram:").unwrap_or(name);
        let size = parse_size(size).map_err(|_| wrong())?;
        if name.is_empty() {
            return Err(wrong());
        }
        Ok(GrowRequest {
            name: name.to_string(),
            size,
        })
    }
}

impl fmt::Display for GrowRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not an image and its new size, expected NAME SIZE, as in disk0 128M",
            self.0
        )
    }
}

impl core::error::Error for GrowRequestError {}

/// The reason why an image does not grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrowError {
    /// The image is not there.
    NotFound(NotFound),
    /// Its new size would not fit every sector size.
    Size {
        /// Its name.
        name: String,
        /// The size asked for.
        size: u64,
    },
    /// The image is as large already. Images never shrink.
    NotLarger {
        /// Its name.
        name: String,
        /// The size asked for.
        size: u64,
        /// The size it has.
        now: u64,
    },
    /// The image is growing already.
    Growing {
        /// Its name.
        name: String,
    },
    /// The driver domain has no memory for it.
    NoMemory {
        /// Its name.
        name: String,
        /// The number of contiguous bytes that it needs.
        wanted: u64,
    },
}

impl fmt::Display for GrowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GrowError::NotFound(error) => error.fmt(f),
            GrowError::Size { name, size } => write!(
                f,
                "image {name} cannot have {size} bytes, which is not a multiple of 4096"
            ),
            GrowError::NotLarger { name, size, now } => write!(
                f,
                "image {name} has {now} bytes already and cannot grow to {size}"
            ),
            GrowError::Growing { name } => write!(f, "image {name} is growing already"),
            GrowError::NoMemory { name, wanted } => write!(
                f,
                "image {name} cannot grow: this domain has no {wanted} bytes of memory in one \
                 piece (memory= in its configuration)"
            ),
        }
    }
}

impl core::error::Error for GrowError {}

impl From<NotFound> for GrowError {
    fn from(error: NotFound) -> Self {
        GrowError::NotFound(error)
    }
}
