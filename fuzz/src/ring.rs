//! The backend's end of a ring whose memory is the guest's to write.

use crate::heap;
use bulkhead_ring::blkif::{Abi, Blkif, Status};
use bulkhead_ring::{BackRing, SharedPages};
use std::ptr::NonNull;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Fuzzes the backend's end of a ring. The input is the ABI (even: 64-bit, odd: 32-bit), the number of the guest's
/// writes, then the writes (an offset of two bytes, little-endian, and a byte), one of which is made each time that the
/// ring is empty, then the first content of the ring's page.
pub fn ring(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let [abi, writes, bytes @ ..] = bytes else {
        return;
    };
    let (writes, bytes) = bytes.split_at(bytes.len().min(usize::from(*writes) * 3));
    let mut page = Box::new(Page([0; 4096]));
    let len = bytes.len().min(4096);
    page.0[..len].copy_from_slice(&bytes[..len]);
    let base = NonNull::from(Box::leak(page));
    serve(*abi, base.cast(), writes);
    // SAFETY: leaked above, and the ring in it is gone.
    drop(unsafe { Box::from_raw(base.as_ptr()) });
}

/// Serves the ring in a page until it breaks or the guest has no more to write.
fn serve(abi: u8, base: NonNull<u8>, writes: &[u8]) {
    // SAFETY: the page is freed after this, and reached through raw pointers alone meanwhile.
    let memory = unsafe { SharedPages::new(base, 1) }.expect("an aligned page");
    let abi = if abi.is_multiple_of(2) {
        Abi::X86_64
    } else {
        Abi::X86_32
    };
    let mut back = BackRing::new(memory, Blkif::new(abi)).expect("a page holds a ring");
    let mut writes = writes.chunks_exact(3);
    loop {
        let mut taken = 0;
        let error = loop {
            let response = match back.take() {
                Ok(Some(Ok(request))) => request.response(Status::Okay),
                Ok(Some(Err(malformed))) => malformed.response(),
                Ok(None) => break None,
                Err(overrun) => break Some(overrun),
            };
            taken += 1;
            assert!(taken <= back.slots(), "more requests than slots");
            if taken % 3 != 0 {
                back.respond(&response).expect("each is answered once");
            }
        };
        // Every third request is answered here, after the others, with the identifier 0.
        while back.outstanding() > 0 {
            let flush = bulkhead_ring::blkif::Request::flush(Default::default());
            back.respond(&flush.response(Status::Error))
                .expect("it was asked");
        }
        let _ = back.publish();
        if error.is_some() {
            break;
        }
        // Asks to be notified of the next request; one that is there already is taken in the next turn.
        let _ = back.final_check();
        let Some(write) = writes.next() else { break };
        let offset = usize::from(u16::from_le_bytes([write[0], write[1]])) % 4096;
        // SAFETY: within the page.
        unsafe { base.add(offset).write_volatile(write[2]) };
    }
}
