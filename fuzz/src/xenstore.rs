//! What xenstored sends, to a client that waits for all kinds of answers.

use crate::heap;
use bulkhead_xenstore_client::wire::{DirectoryPart, Event, Message};
use bulkhead_xenstore_client::{Client, Connection, ConnectionFault, Transport, wire};
use futures_util::FutureExt;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes that arrive a few at a time.
struct Bytes {
    left: VecDeque<u8>,
    chunk: usize,
}

impl Transport for Bytes {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, ConnectionFault> {
        Ok(bytes.len())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, ConnectionFault> {
        let count = self.left.len().min(buffer.len()).min(self.chunk);
        for (to, from) in buffer.iter_mut().zip(self.left.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn notify(&mut self) {}
}

/// Fuzzes the xenstore client. The input is the number of bytes that arrive at a time, then the bytes that xenstored
/// sends.
pub fn xenstore(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let Some((&chunk, bytes)) = bytes.split_first() else {
        return;
    };
    parse(bytes);
    let transport = Bytes {
        left: bytes.iter().copied().collect(),
        chunk: usize::from(chunk).max(1),
    };
    let (client, mut connection) = Connection::new(transport);
    let answered = Rc::new(RefCell::new(0));
    let mut waiting = waiting(&client, &answered);
    let count = waiting.len();
    // All tasks send their requests, which get the identifiers from 1 on, so that an input can answer them.
    waiting.retain_mut(|task| task.as_mut().now_or_never().is_none());
    let first = connection.pump();
    waiting.retain_mut(|task| task.as_mut().now_or_never().is_none());
    let second = connection.pump();
    if let Err(breakdown) = first {
        assert_eq!(second, Err(breakdown), "a breakdown stays");
        assert!(waiting.is_empty(), "and hangs nobody");
        assert_eq!(*answered.borrow(), count);
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// Returns tasks that each wait for the reply to another kind of request.
fn waiting(client: &Client, answered: &Rc<RefCell<usize>>) -> Vec<Task> {
    let task = |future: Task| {
        let answered = answered.clone();
        let counted: Task = Box::pin(async move {
            future.await;
            *answered.borrow_mut() += 1;
        });
        counted
    };
    let client = || client.clone();
    let (read, list, write, watch, begin, permissions) =
        (client(), client(), client(), client(), client(), client());
    vec![
        task(Box::pin(async move { drop(read.read("a").await) })),
        task(Box::pin(async move { drop(list.directory("a").await) })),
        task(Box::pin(async move { drop(write.write("a", "b").await) })),
        task(Box::pin(async move {
            if let Ok(mut watch) = watch.watch("a").await {
                while watch.next().await.is_ok() {}
            }
        })),
        task(Box::pin(async move {
            if let Ok(transaction) = begin.begin().await {
                let _ = transaction.commit().await;
            }
        })),
        task(Box::pin(
            async move { drop(permissions.permissions("a").await) },
        )),
    ]
}

/// Checks the parsers without a client.
fn parse(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((message, after))) = Message::split(rest) {
        assert!(after.len() < rest.len());
        assert!(message.payload.len() <= wire::PAYLOAD_MAX);
        let payload = message.payload;
        if let Some(names) = wire::parse_names(payload) {
            assert!(names.iter().all(|name| !name.is_empty()));
        }
        let _ = wire::parse_permissions(payload);
        let _ = wire::parse_transaction(payload);
        let _ = wire::parse_path(payload);
        let _ = wire::parse_refusal(payload);
        let _ = Event::parse(payload);
        if let Some(part) = DirectoryPart::parse(payload) {
            assert!(
                part.last || part.length > 0,
                "a listing must come to an end"
            );
        }
        rest = after;
    }
}
