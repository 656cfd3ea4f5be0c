//! A stream during the handshake: whole messages, which the caller waits for.

use alloc::boxed::Box;
use bulkhead_stream::{Ended, Stream};
use core::future::poll_fn;
use core::task::Poll;

/// A stream whose messages are waited for.
pub struct MessageStream(pub Box<dyn Stream>);

impl MessageStream {
    /// Fills `to` with the next bytes that arrive.
    pub async fn read(&mut self, to: &mut [u8]) -> Result<(), Ended> {
        let mut done = 0;
        self.each(to.len(), &mut |bytes| {
            to[done..done + bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
        })
        .await
    }

    /// Calls `take` with the next `len` bytes, in parts.
    async fn each(&mut self, len: usize, take: &mut dyn FnMut(&[u8])) -> Result<(), Ended> {
        let mut left = len;
        poll_fn(|context| {
            while left > 0 {
                let mut some = |bytes: &mut [u8]| {
                    let part = left.min(bytes.len());
                    take(&bytes[..part]);
                    part
                };
                self.0.wake_with(context.waker());
                match self.0.receive(&mut some) {
                    Ok(0) => return Poll::Pending,
                    Ok(part) => left -= part,
                    Err(ended) => return Poll::Ready(Err(ended)),
                }
                self.0.push();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Sends bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let mut done = 0;
        poll_fn(|context| {
            while done < bytes.len() {
                let mut some = |room: &mut [u8]| {
                    let part = room.len().min(bytes.len() - done);
                    room[..part].copy_from_slice(&bytes[done..done + part]);
                    part
                };
                self.0.wake_with(context.waker());
                match self.0.send(&mut some) {
                    Ok(0) => return Poll::Pending,
                    Ok(part) => done += part,
                    Err(ended) => return Poll::Ready(Err(ended)),
                }
                self.0.push();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}
