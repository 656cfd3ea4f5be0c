//! Memory for images and guests in tests, and archives made by the real `tar`.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod domain;

use bulkhead_images::{ImageMemory, Io, IoError, IoQueue, IoSegment, Op, Submitted, Tag};
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

/// Returns memory with this content that stays for the rest of the test run, as a ramdisk does.
pub fn memory(content: &[u8]) -> ImageMemory {
    let (memory, _) = visible_memory(content);
    memory
}

/// Returns memory as [`memory`] does, and a pointer to it with which its content can be checked.
pub fn visible_memory(content: &[u8]) -> (ImageMemory, *const u8) {
    let bytes: &'static mut [u8] = content.to_vec().leak();
    let len = bytes.len();
    let base = NonNull::from(bytes).cast::<u8>();
    // SAFETY: leaked, so it stays, and reached through nothing else but the pointer for looking.
    (unsafe { ImageMemory::new(base, len) }, base.as_ptr())
}

/// Pages of a guest, one buffer per segment.
pub struct Guest {
    buffers: Vec<Vec<u8>>,
}

impl Guest {
    /// Returns buffers with this content.
    pub fn with(buffers: &[&[u8]]) -> Guest {
        Guest {
            buffers: buffers.iter().map(|buffer| buffer.to_vec()).collect(),
        }
    }

    /// Returns buffers of these lengths, filled with 0xEE.
    pub fn filled(lengths: &[usize]) -> Guest {
        Guest {
            buffers: lengths.iter().map(|&len| vec![0xEE; len]).collect(),
        }
    }

    /// Returns the segments that name the buffers.
    pub fn segments(&mut self) -> Vec<IoSegment> {
        let segment = |buffer: &mut Vec<u8>| {
            let len = buffer.len();
            let address = NonNull::new(buffer.as_mut_ptr()).expect("a vector's pointer");
            // SAFETY: tests keep the guest until its requests are complete and look at the
            // buffers only then.
            unsafe { IoSegment::new(address, len, None) }
        };
        self.buffers.iter_mut().map(segment).collect()
    }

    /// Returns the content of all buffers, one after the other.
    pub fn content(&self) -> Vec<u8> {
        self.buffers.concat()
    }
}

/// Counts the times that it is woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wakes {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Submits to a device that completes at once.
pub fn submit(queue: &mut dyn IoQueue, op: Op, segments: &[IoSegment]) -> Result<(), IoError> {
    match queue.submit(Tag(0), Io { op, segments }) {
        Submitted::Done(result) => result,
        other => panic!("{op:?} is {other:?}"),
    }
}

/// An empty folder for one test, gone when dropped.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and makes the folders that it is in.
    pub fn file(&self, name: &str, content: &[u8]) -> &Folder {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("within the folder")).expect("folders");
        std::fs::write(path, content).expect("a file");
        self
    }

    /// Returns the archive that `tar` makes of the folder with these arguments.
    pub fn tar(&self, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("tar")
            .arg("-C")
            .arg(self.path())
            .args(["--create", "--file=-"])
            .args(arguments)
            .output()
            .expect("tar is installed");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tar failed: {complaint}");
        output.stdout
    }
}
