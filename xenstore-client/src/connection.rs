//! The connection: moves bytes between the ring and the tasks that wait.

use crate::client::Client;
use crate::error::ConnectionFault;
use crate::shared::Handle;
use crate::wire::Message;
use alloc::vec::Vec;
use bulkhead_xen::abi::xs_wire::RING_SIZE;
use core::future::Future;
use core::pin::pin;
use core::task::Poll;

/// Bytes to and from xenstored: the [`Ring`](crate::Ring), or something that stands for it.
pub trait Transport {
    /// Sends as many of the bytes as there is room for now, and returns their number.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, ConnectionFault>;

    /// Takes as many bytes as there are and fit, and returns their number.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, ConnectionFault>;

    /// Notifies xenstored that bytes were sent or taken.
    fn notify(&mut self);
}

/// The side that serves a [`Client`]. Its owner has to [`run`](Self::run) it, or to
/// [`pump`](Self::pump) it whenever there may be something to do.
#[derive(Debug)]
pub struct Connection<T> {
    transport: T,
    shared: Handle,
    /// The start of a message that has not arrived in full.
    incoming: Vec<u8>,
}

impl<T: Transport> Connection<T> {
    /// Returns a connection over a transport, and the client that it serves.
    pub fn new(transport: T) -> (Client, Connection<T>) {
        let shared = Handle::default();
        let client = Client::new(shared.clone());
        let connection = Connection {
            transport,
            shared,
            incoming: Vec::new(),
        };
        (client, connection)
    }

    /// Moves bytes in both directions until there are no more, or no more room, and hands
    /// messages out. On an error the connection is broken for good, and all tasks that wait for it
    /// have been woken.
    pub fn pump(&mut self) -> Result<(), ConnectionFault> {
        if let Some(breakdown) = &self.shared.borrow().broken {
            return Err(breakdown.clone());
        }
        let result = self.exchange();
        if let Err(breakdown) = &result {
            self.shared.borrow_mut().fail(breakdown.clone());
        }
        result
    }

    fn exchange(&mut self) -> Result<(), ConnectionFault> {
        let mut moved_any = false;
        loop {
            let moved = self.send()? + self.receive()?;
            if moved == 0 {
                break;
            }
            moved_any = true;
        }
        if moved_any {
            self.transport.notify();
        }
        Ok(())
    }

    fn send(&mut self) -> Result<usize, ConnectionFault> {
        let mut shared = self.shared.borrow_mut();
        shared.kicked = false;
        // Whole messages, wherever the queue wraps.
        let sent = self.transport.send(shared.outgoing.make_contiguous())?;
        shared.outgoing.drain(..sent);
        Ok(sent)
    }

    fn receive(&mut self) -> Result<usize, ConnectionFault> {
        let mut buffer = [0; RING_SIZE];
        let count = self.transport.receive(&mut buffer)?;
        self.incoming.extend_from_slice(&buffer[..count]);
        let mut rest = &self.incoming[..];
        while let Some((message, after)) = Message::split(rest)? {
            self.shared.borrow_mut().deliver(message);
            rest = after;
        }
        let done = self.incoming.len() - rest.len();
        self.incoming.drain(..done);
        Ok(count)
    }

    /// Serves the client until the connection breaks, and returns the reason. `notified` waits
    /// for a notification from xenstored; one that came before it was called must count.
    pub async fn run(mut self, notified: impl AsyncFn()) -> ConnectionFault {
        // Dropping this future stops the connection, and no task may hang then.
        let _stopped = StopOnDrop(self.shared.clone());
        loop {
            if let Err(breakdown) = self.pump() {
                return breakdown;
            }
            let mut notification = pin!(notified());
            core::future::poll_fn(|context| {
                let mut shared = self.shared.borrow_mut();
                if shared.kicked {
                    return Poll::Ready(());
                }
                match &mut shared.driver {
                    Some(driver) => driver.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                drop(shared);
                notification.as_mut().poll(context)
            })
            .await;
        }
    }
}

struct StopOnDrop(Handle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // The first reason stays.
        self.0.borrow_mut().fail(ConnectionFault::Stopped);
    }
}
