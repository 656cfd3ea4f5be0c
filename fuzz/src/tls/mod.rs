//! The bytes that a server sends to the domain's TLS client.
//!
//! The client is the same each time: its random numbers and its time do not change. So the recorded bytes of a
//! well-behaved server lead to a connection again, and the seeds are such recordings ([`seeds`]). An input without the
//! server's keys cannot get further than a recording.

mod seeds;

pub use seeds::seeds;

use crate::heap;
use bulkhead_stream::{Ended, Stream};
use bulkhead_tls::{Clock, NoRandomness, Random, TlsClient, TlsError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The name that the server is asked for.
const NAME: &str = "storage.example";

/// The client's time, since 1970: 1 July 2027.
const NOW: Duration = Duration::from_secs(1_814_400_000);

/// The bytes that the client sends once it is connected.
const SENT: usize = 1000;

/// The most turns of the client's task, beside one for each byte that arrives.
const MOST_TURNS: usize = 200;

/// The start of an Ed25519 key in PKCS #8, which its 32 secret bytes follow (RFC 8410, section 7).
const KEY: [u8; 16] = [
    0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
];

/// The bytes that arrive from a server, and those that the client has sent.
struct Lines {
    arriving: VecDeque<u8>,
    /// The most bytes that one call receives or sends.
    piece: usize,
    sent: Vec<u8>,
    /// How the connection ends after the last byte; `None` if it stays open.
    ended: Option<Ended>,
}

#[derive(Clone)]
struct Wire(Rc<RefCell<Lines>>);

impl Stream for Wire {
    fn receive(&mut self, take: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let lines = &mut *self.0.borrow_mut();
        let piece = lines.piece.min(lines.arriving.len());
        if piece == 0 {
            return lines.ended.map_or(Ok(0), Err);
        }
        let taken = take(&mut lines.arriving.make_contiguous()[..piece]);
        assert!(taken <= piece, "more was taken than there was");
        lines.arriving.drain(..taken);
        Ok(taken)
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let lines = &mut *self.0.borrow_mut();
        let mut room = vec![0; lines.piece];
        let filled = fill(&mut room);
        lines.sent.extend(&room[..filled]);
        Ok(filled)
    }

    fn push(&mut self) {}

    fn wake_with(&mut self, _: &Waker) {}

    fn close(&mut self) {}
}

thread_local! {
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// A source of numbers that are the same for each input (splitmix64).
#[derive(Debug)]
struct Same;

impl Random for Same {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for byte in bytes {
            let state = DRAWN.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            DRAWN.set(state);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (mixed >> 56) as u8;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Option<Duration> {
        Some(NOW)
    }
}

/// The authority. Its key is always the same, so that a recording of another process is valid in this one.
static AUTHORITY: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::try_from([KEY, [7; 16], [9; 16]].concat()).expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("an authority")
});

static CLIENT: LazyLock<TlsClient> = LazyLock::new(|| {
    let authority = AUTHORITY.pem();
    TlsClient::new(authority.as_bytes(), None, &Same, Stopped).expect("a client")
});

/// Fuzzes the TLS client. The input is a byte that chooses the size of the pieces, then the bytes that the server
/// sends.
///
/// # Panics
/// If the client takes more turns than 200 and one for each byte, goes on after the end, yields more data than
/// there were bytes, or allocates more than 512 KiB and 4 bytes for each byte of the input.
pub fn tls(input: &[u8]) {
    // The client is made once: its memory does not count for an input.
    LazyLock::force(&CLIENT);
    let _heap = heap::limited((512 << 10) + 4 * input.len());
    let Some((first, said)) = input.split_first() else {
        return;
    };
    let piece = [usize::MAX >> 1, 1000, 100, 7][usize::from(first % 4)].min(1 << 14);
    // A byte at a time is what the tests do; here it would only be slow.
    let wire = Wire(Rc::new(RefCell::new(Lines {
        arriving: said.iter().copied().collect(),
        piece,
        sent: Vec::new(),
        ended: Some(Ended::Closed),
    })));
    let most = MOST_TURNS + said.len();
    let received = talk(&wire, most, || false);
    assert!(
        received.is_none_or(|received| received <= said.len()),
        "more data came than bytes"
    );
}

/// Connects, sends data, and receives until the end. `step` is the server's turn, and returns whether it did anything.
/// Returns the bytes of data that came; `None` if there was no connection.
fn talk(wire: &Wire, most: usize, mut step: impl FnMut() -> bool) -> Option<usize> {
    DRAWN.set(0);
    let mut connecting = pin!(CLIENT.connect(Box::new(wire.clone()), NAME));
    let mut context = Context::from_waker(Waker::noop());
    let mut turns = 0;
    let connected = loop {
        turns += 1;
        assert!(turns <= most, "a handshake without an end");
        match connecting.as_mut().poll(&mut context) {
            Poll::Ready(connected) => break connected,
            Poll::Pending => _ = step(),
        }
    };
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            short(&error);
            return None;
        }
    };
    let mut left = SENT;
    while left > 0 {
        let sent = stream.send(&mut |room| {
            let part = room.len().min(left);
            room[..part].fill(0x5a);
            part
        });
        match sent {
            Ok(0) | Err(_) => break,
            Ok(sent) => left -= sent,
        }
    }
    stream.push();
    let (mut received, mut closed) = (0, false);
    let end = loop {
        turns += 1;
        assert!(turns <= most, "data without an end");
        match stream.receive(&mut |bytes| bytes.len()) {
            Ok(0) if step() => {}
            Ok(0) if closed => return Some(received),
            Ok(0) => {
                stream.close();
                closed = true;
            }
            Ok(some) => received += some,
            Err(end) => break end,
        }
    };
    for _ in 0..2 {
        let again = stream.receive(&mut |_| panic!("data after the end"));
        assert_eq!(again, Err(end), "the end does not stay what it was");
        stream.push();
    }
    Some(received)
}

/// Checks that an error is short and has no control characters, whatever the server has put into its certificate.
fn short(error: &TlsError) {
    let text = error.to_string();
    assert!(text.len() < 1024, "a sentence of {} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
