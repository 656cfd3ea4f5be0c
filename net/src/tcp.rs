//! TCP connections, in the form of streams of bytes.
//!
//! The bytes stay in the buffers of the stack's socket, whose memory is taken when the connection is made: the user
//! gets the contiguous part, and takes bytes from it or fills it. A user that does not take the bytes that have arrived
//! holds up the server, and no other user.

use crate::interface::Interface;
use crate::traces::{Trace, Traces};
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_stream::{Buffers, ConnectError, Ended, Stream};
use bulkhead_xen::Hypervisor;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

/// The time that a server has to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The time that a server has to acknowledge sent bytes.
const SILENCE: Duration = Duration::from_secs(60);
/// The time without any packet after which the server is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The time for which the acknowledgement of a single packet may wait for data to be sent with it. The packet may be
/// large, of many segments, and Linux sends the last of these again if they are not acknowledged within about two
/// milliseconds (RFC 8985, 7.2: twice the round trip; two ticks more, in `tcp_schedule_loss_probe`). The stack's own
/// limit is 10 ms.
const ACKNOWLEDGES: Duration = Duration::from_millis(1);
/// The time that a server has to answer that it has a connection that this end has not, and the time between two
/// checks. It is more than a second: the stack asks for a host's address once a second.
const ANSWERS: core::time::Duration = core::time::Duration::from_millis(1500);
const LOOK: core::time::Duration = core::time::Duration::from_millis(1);
/// The least and the largest size of a buffer.
const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 8 << 20;

/// A TCP connection.
pub struct TcpStream<H: Hypervisor> {
    interface: Rc<Interface<H>>,
    socket: SocketHandle,
    /// The address and the port at this end.
    own: Option<IpAddress>,
    port: u16,
    /// True if the connection is to end in order.
    closed: bool,
    /// True if bytes were filled in that the stack was not told of.
    filled: bool,
    /// True if more than half of the buffer for received bytes was in use, and it has not been empty since: the server
    /// may wait to be told of room.
    was_full: bool,
}

/// Takes memory for a buffer.
fn buffer(bytes: usize) -> Result<Vec<u8>, ConnectError> {
    let bytes = bytes.clamp(SMALLEST, LARGEST);
    let mut buffer = Vec::new();
    let reserved = buffer.try_reserve_exact(bytes);
    reserved.map_err(|_| ConnectError::NoMemory { bytes })?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

impl<H: Hypervisor> TcpStream<H> {
    /// Connects to an address.
    pub(crate) async fn connect(
        interface: Rc<Interface<H>>,
        address: IpAddress,
        port: u16,
        buffers: Buffers,
        traces: &Traces,
    ) -> Result<Self, ConnectError> {
        let begun = interface.handle.now();
        let stream = TcpStream::begin(&interface, (address, port), None, buffers, Some(traces))?;
        poll_fn(|context| {
            let mut state = interface.state.borrow_mut();
            let failed = state.failure.is_some();
            let socket = state.sockets.get_mut::<Socket<'_>>(stream.socket);
            socket.register_send_waker(context.waker());
            match socket.state() {
                State::SynSent | State::SynReceived => Poll::Pending,
                State::Closed if failed => Poll::Ready(Err(ConnectError::NoNetwork)),
                State::Closed => {
                    let time = interface.handle.now().since(begun);
                    Poll::Ready(Err(match time < CONNECT.into() {
                        true => ConnectError::Refused,
                        false => ConnectError::TimedOut,
                    }))
                }
                _ => {
                    socket.set_timeout(Some(SILENCE));
                    socket.set_keep_alive(Some(KEEP_ALIVE));
                    Poll::Ready(Ok(()))
                }
            }
        })
        .await?;
        Ok(stream)
    }

    /// Asks a server for a connection: from `own`, an address and port at this end, or from a port that no other
    /// connection has.
    fn begin(
        interface: &Rc<Interface<H>>,
        server: (IpAddress, u16),
        own: Option<(IpAddress, u16)>,
        buffers: Buffers,
        traces: Option<&Traces>,
    ) -> Result<Self, ConnectError> {
        let (received, sent) = (buffer(buffers.receive)?, buffer(buffers.send)?);
        let mut socket = Socket::new(
            smoltcp::socket::tcp::SocketBuffer::new(received),
            smoltcp::socket::tcp::SocketBuffer::new(sent),
        );
        socket.set_timeout(Some(CONNECT));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACKNOWLEDGES));
        socket.set_congestion_control(CongestionControl::Reno);
        let mut state = interface.state.borrow_mut();
        if state.failure.is_some() {
            return Err(ConnectError::NoNetwork);
        }
        if !state.reaches(&server.0) {
            return Err(ConnectError::Unreachable);
        }
        let local = match own {
            Some((address, port)) => IpListenEndpoint {
                addr: Some(address),
                port,
            },
            // There is no memory for so many connections that each port had one.
            None => state.port().ok_or(ConnectError::Unreachable)?.into(),
        };
        let stack = state.stack.as_mut().ok_or(ConnectError::NoNetwork)?;
        let asked = socket.connect(stack.context(), server, local);
        asked.map_err(|_| ConnectError::Unreachable)?;
        let own = socket.local_endpoint().map(|local| local.addr);
        let socket = state.sockets.add(socket);
        state.want(&server.0, interface.handle.now());
        let trace = own.zip(traces).map(|(own, traces)| {
            traces.keep(&Trace {
                own: (own.into(), local.port),
                server: (server.0.into(), server.1),
            })
        });
        state.device.sequences.add(local.port, server, trace);
        drop(state);
        interface.work.raise();
        Ok(TcpStream {
            interface: interface.clone(),
            socket,
            own,
            port: local.port,
            closed: false,
            filled: false,
            was_full: false,
        })
    }

    /// Ends connections of a boot before this one, and those that were given up, at their server. When it is asked for
    /// a connection that it has, it answers so, and the stack replies that there is none (RFC 9293, 3.5.1; RFC 5961,
    /// 4). A server that does not answer is not waited for.
    pub(crate) async fn end_left(
        interface: &Rc<Interface<H>>,
        server: (IpAddress, u16),
        traces: &Traces,
    ) {
        let (address, port) = server;
        // What was let go of just now is still in the stack, for its last packet.
        interface.handle.yield_now().await;
        let mut asked = Vec::new();
        for trace in traces.left_to((address.into(), port)) {
            let own = (trace.own.0.into(), trace.own.1);
            let state = interface.state.borrow();
            let is_own = state
                .stack
                .as_ref()
                .is_some_and(|stack| stack.has_ip_addr(own.0));
            let is_taken = state.device.sequences.has(own.1);
            drop(state);
            if !is_own || is_taken {
                // It never answers to this end, or does so already.
                traces.forget(&trace);
                continue;
            }
            let none = Buffers {
                receive: 0,
                send: 0,
            };
            if let Ok(stream) = TcpStream::begin(interface, server, Some(own), none, None) {
                asked.push((trace, stream));
            }
        }
        let over = interface.handle.now() + ANSWERS;
        while !asked.is_empty() && interface.handle.now() < over {
            interface.handle.sleep(LOOK).await;
            asked.retain(|(trace, stream)| {
                let answered = stream.has_answer();
                if answered {
                    traces.forget(trace);
                }
                !answered
            });
        }
    }

    /// Returns whether the server has answered to the first packet.
    fn has_answer(&self) -> bool {
        let heard = self
            .interface
            .state
            .borrow()
            .device
            .sequences
            .has_heard(self.port);
        heard || self.with(|socket| socket.state()) != State::SynSent
    }

    fn with<T>(&self, act: impl FnOnce(&mut Socket<'static>) -> T) -> T {
        let mut state = self.interface.state.borrow_mut();
        act(state.sockets.get_mut(self.socket))
    }

    /// Returns the reason why the connection, whose socket is closed, is over.
    fn ended(&self) -> Ended {
        let state = self.interface.state.borrow();
        let has = |own: IpAddress| {
            let stack = state.stack.as_ref();
            stack.is_some_and(|stack| stack.has_ip_addr(own))
        };
        match self.own {
            _ if state.failure.is_some() => Ended::NoNetwork,
            Some(own) if !has(own) => Ended::AddressLost,
            _ => Ended::Reset,
        }
    }
}

impl<H: Hypervisor> Stream for TcpStream<H> {
    fn receive(&mut self, take: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let (full, received) = self.with(|socket| {
            let full = socket.recv_queue() * 2 >= socket.recv_capacity();
            let received = socket.recv(|bytes| {
                if bytes.is_empty() {
                    return (0, 0);
                }
                let taken = take(bytes).min(bytes.len());
                (taken, taken)
            });
            (full, received)
        });
        self.was_full |= full;
        received.map_err(|error| match error {
            RecvError::Finished => Ended::Closed,
            RecvError::InvalidState => self.ended(),
        })
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let sent = self.with(|socket| {
            socket.send(|room| {
                if room.is_empty() {
                    return (0, 0);
                }
                let filled = fill(room).min(room.len());
                (filled, filled)
            })
        });
        self.filled |= matches!(sent, Ok(1..));
        sent.map_err(|_| self.ended())
    }

    fn push(&mut self) {
        // The stack tells of room by itself if it has doubled (`window_to_update` in smoltcp), and by each acknowledgement.
        // As long as less than half of the buffer was in use, the server has the other half to go on with.
        let room = self.was_full;
        self.was_full = room && self.with(|socket| socket.recv_queue() > 0);
        if core::mem::take(&mut self.filled) || room {
            self.interface.work.raise();
        }
    }

    fn wake_with(&mut self, waker: &Waker) {
        self.with(|socket| {
            socket.register_recv_waker(waker);
            socket.register_send_waker(waker);
        });
    }

    fn close(&mut self) {
        self.closed = true;
        self.with(Socket::close);
        self.interface.work.raise();
    }
}

impl<H: Hypervisor> Drop for TcpStream<H> {
    fn drop(&mut self) {
        let mut state = self.interface.state.borrow_mut();
        if !self.closed {
            state.sockets.get_mut::<Socket<'_>>(self.socket).abort();
        }
        state.leave(self.socket, self.port);
        drop(state);
        self.interface.work.raise();
    }
}
