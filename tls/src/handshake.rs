//! The handshake, until data can be sent.

use crate::error::TlsError;
use crate::records::{Progress, Records};
use crate::stream::TlsStream;
use alloc::boxed::Box;
use bulkhead_stream::Stream;
use core::future::poll_fn;
use core::task::{Context, Poll};
use rustls::client::UnbufferedClientConnection;

/// Does the client's part of a handshake. The caller bounds the time; the bytes that a server may send are bounded here.
pub async fn handshake(
    stream: Box<dyn Stream>,
    connection: UnbufferedClientConnection,
) -> Result<TlsStream, TlsError> {
    let mut records = Records::new(stream, connection)?;
    let shaken = poll_fn(|context| {
        let polled = poll(&mut records, context);
        records.stream.push();
        polled
    })
    .await;
    match shaken {
        Ok(()) => Ok(TlsStream::new(records)),
        Err(error) => {
            records.give_up();
            Err(error)
        }
    }
}

fn poll(records: &mut Records, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
    records.stream.wake_with(context.waker());
    loop {
        // A server that does not read has no answer either.
        if !records.send_out()? {
            return Poll::Pending;
        }
        match records.process()? {
            // A step may have computed with large numbers: other tasks have their turn before the next one.
            Progress::Some => {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Progress::Open => return Poll::Ready(Ok(())),
            Progress::Shaking => {
                if !records.take_in()? {
                    return Poll::Pending;
                }
            }
        }
    }
}
