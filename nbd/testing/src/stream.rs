//! The network to a server: streams of it, and TLS of a kind.

use crate::FakeServer;
use crate::server::Reach;
use bulkhead_stream::{
    AddressChoice, Buffers, Connecting, Ended, Endpoint, Network, StartTlsError, StartingTls,
    Stream, Tls,
};
use std::net::{IpAddr, Ipv4Addr};
use std::task::Waker;

/// A network with servers, each at its own address. Those of the same name are the addresses of that name.
pub struct FakeNetwork(pub Vec<(String, FakeServer)>);

impl FakeNetwork {
    /// Returns the address of an entry, by which the server can be named, too.
    fn address(&self, index: usize) -> IpAddr {
        let (name, _) = &self.0[index];
        let named = Endpoint::parse(name, 10809).expect("an endpoint").host;
        let given = Ipv4Addr::new(192, 0, 2, index as u8);
        named.parse().unwrap_or(given.into())
    }
}

impl Network for FakeNetwork {
    fn connect<'a>(
        &'a self,
        server: &'a Endpoint,
        choice: &'a AddressChoice,
        _: Buffers,
    ) -> Connecting<'a> {
        let is_meant = |index: &usize| {
            self.0[*index].0 == server.to_string()
                || self.address(*index).to_string() == server.host
        };
        let meant: Vec<usize> = (0..self.0.len()).filter(is_meant).collect();
        let addresses: Vec<IpAddr> = meant.iter().map(|index| self.address(*index)).collect();
        let first = choice.first(&addresses);
        let mut refused = None;
        for turn in first..first + meant.len() {
            let turn = turn % meant.len();
            let fake = &self.0[meant[turn]].1;
            choice.begin(addresses[turn]);
            let reach = match fake.is_full() {
                true => Reach::Hangs,
                false => fake.0.borrow().config.reach,
            };
            match reach {
                Reach::Fails(error) => refused = Some(error),
                Reach::Hangs => return Box::pin(std::future::pending()),
                Reach::Connects => {
                    let number = fake.0.borrow_mut().connect();
                    let stream: Box<dyn Stream> = Box::new(FakeStream {
                        server: fake.clone(),
                        number,
                    });
                    return Box::pin(std::future::ready(Ok(stream)));
                }
            }
        }
        let refused = refused.expect("a server of that address");
        Box::pin(std::future::ready(Err(refused)))
    }
}

struct FakeStream {
    server: FakeServer,
    number: usize,
}

impl Stream for FakeStream {
    fn receive(&mut self, take: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let mut server = self.server.0.borrow_mut();
        let piece = server.config.piece;
        let connection = &mut server.connections[self.number];
        let left = connection.cuts[0].unwrap_or(usize::MAX);
        let part = connection.to_client.len().min(piece).min(left);
        if part == 0 {
            if left == 0 {
                connection.end(Ended::Reset);
            }
            return connection.ended.map_or(Ok(0), Err);
        }
        // Nothing is allocated here: that would count as the client's.
        let lent = &mut connection.to_client.make_contiguous()[..part];
        let taken = take(lent);
        assert!(taken <= part, "more than was lent");
        connection.to_client.drain(..taken);
        if let Some(left) = &mut connection.cuts[0] {
            *left -= taken;
        }
        Ok(taken)
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let mut server = self.server.0.borrow_mut();
        let (piece, room) = (server.config.piece, server.config.room);
        let connection = &mut server.connections[self.number];
        if let Some(ended) = connection.ended {
            return Err(ended);
        }
        let left = connection.cuts[1].unwrap_or(usize::MAX);
        if left == 0 {
            connection.end(Ended::Reset);
            return Err(Ended::Reset);
        }
        let free = room.saturating_sub(connection.from_client.len());
        let part = free.min(piece).min(left).min(connection.lent.len());
        if part == 0 {
            return Ok(0);
        }
        // What a client does not write, it must not say that it has written.
        let lent = &mut connection.lent[..part];
        lent.fill(0xee);
        let filled = fill(lent);
        assert!(filled <= part, "more than there is room for");
        connection.from_client.extend(&connection.lent[..filled]);
        if let Some(left) = &mut connection.cuts[1] {
            *left -= filled;
        }
        Ok(filled)
    }

    fn push(&mut self) {}

    fn wake_with(&mut self, waker: &Waker) {
        let mut server = self.server.0.borrow_mut();
        let kept = &mut server.connections[self.number].waker;
        if !kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            *kept = Some(waker.clone());
        }
    }

    fn close(&mut self) {
        // What was sent is still read.
        self.server.step();
    }
}

impl Drop for FakeStream {
    fn drop(&mut self) {
        self.server.0.borrow_mut().connections[self.number].let_go();
    }
}

/// A stand-in for TLS: it changes nothing, and knows the servers that it is to trust.
pub struct FakeTls(pub Vec<String>);

impl Tls for FakeTls {
    fn start<'a>(&'a self, stream: Box<dyn Stream>, server: &'a str) -> StartingTls<'a> {
        let known = self.0.iter().any(|name| name == server);
        let outcome = match known {
            true => Ok(stream),
            false => Err(StartTlsError {
                reason: format!("the certificate is not one of {server}"),
                passes: false,
            }),
        };
        Box::pin(std::future::ready(outcome))
    }
}
