//! An authority, a server, and the wire between it and a client.

use bulkhead_stream::{Ended, Stream};
use bulkhead_tls::{Clock, Identity, NoRandomness, Random, TlsClient, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{Read, Write};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// The name that servers are asked for.
pub const NAME: &str = "storage.example";

/// The time at which certificates are valid: in the middle of 2027, the first of July.
pub const NOW: u64 = 1_814_400_000;

/// An authority of certificates.
pub struct Authority(pub CertifiedIssuer<'static, KeyPair>);

/// A certificate, with its key, both as PEM.
#[derive(Clone)]
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        Authority::with_key(name, KeyPair::generate().expect("a key"))
    }

    pub fn with_key(name: &str, key: KeyPair) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate, after `change` has changed it.
    pub fn sign(
        &self,
        names: &[&str],
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certified {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2028, 3, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        Certified {
            certificate: params.signed_by(key, &self.0).expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }

    pub fn server(&self) -> Certified {
        self.sign(&[NAME], &KeyPair::generate().expect("a key"), |_| {})
    }
}

/// Versions of TLS.
pub type Versions = &'static [&'static SupportedProtocolVersion];

/// TLS 1.2.
pub const OLD: Versions = &[&TLS12];

/// TLS 1.3.
pub const NEW: Versions = &[&TLS13];

/// Each of them.
pub const VERSIONS: [Versions; 2] = [OLD, NEW];

/// What the server is like.
pub struct Settings {
    pub certified: Certified,
    pub versions: Versions,
    /// It wants a certificate that this authority has signed.
    pub clients: Option<String>,
    /// The suites that it has; all if there are none.
    pub suites: Vec<rustls::SupportedCipherSuite>,
    pub groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
    /// Changes what else there is.
    pub change: fn(&mut ServerConfig),
}

impl Settings {
    pub fn new(certified: Certified) -> Settings {
        Settings {
            certified,
            versions: rustls::ALL_VERSIONS,
            clients: None,
            suites: Vec::new(),
            groups: Vec::new(),
            change: |_| {},
        }
    }
}

/// Both directions of a connection.
pub struct Lines {
    pub to_client: VecDeque<u8>,
    pub to_server: VecDeque<u8>,
    /// The most bytes that are lent at a time.
    pub piece: usize,
    /// The bytes that fit in before the server reads.
    pub room: usize,
    /// How it ended, after what has arrived.
    pub ended: Option<Ended>,
    pub closed_by_client: bool,
    /// Bytes that were filled and not pushed.
    pub unpushed: bool,
    /// The waker that the client has left.
    pub waker: Option<Waker>,
}

/// A wire. Clones are of the same one.
#[derive(Clone)]
pub struct Wire(pub Rc<RefCell<Lines>>);

impl Wire {
    pub fn new(piece: usize) -> Wire {
        Wire(Rc::new(RefCell::new(Lines {
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            piece,
            room: 64 << 10,
            ended: None,
            closed_by_client: false,
            unpushed: false,
            waker: None,
        })))
    }
}

impl Stream for Wire {
    fn receive(&mut self, take: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let mut lines = self.0.borrow_mut();
        let part = lines.to_client.len().min(lines.piece);
        if part == 0 {
            return lines.ended.map_or(Ok(0), Err);
        }
        let taken = take(&mut lines.to_client.make_contiguous()[..part]);
        assert!(taken <= part, "more than was lent");
        lines.to_client.drain(..taken);
        Ok(taken)
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        let mut lines = self.0.borrow_mut();
        assert!(!lines.closed_by_client, "nothing is sent after the end");
        if let Some(ended) = lines.ended {
            return Err(ended);
        }
        let part = (lines.room - lines.to_server.len().min(lines.room)).min(lines.piece);
        if part == 0 {
            return Ok(0);
        }
        let mut room = vec![0xee; part];
        let filled = fill(&mut room);
        assert!(filled <= part, "more than there is room for");
        lines.to_server.extend(&room[..filled]);
        lines.unpushed |= filled > 0;
        Ok(filled)
    }

    fn push(&mut self) {
        self.0.borrow_mut().unpushed = false;
    }

    fn wake_with(&mut self, waker: &Waker) {
        self.0.borrow_mut().waker = Some(waker.clone());
    }

    fn close(&mut self) {
        self.0.borrow_mut().closed_by_client = true;
    }
}

/// A server, which sends back what it gets.
pub struct Server {
    pub connection: ServerConnection,
    pub wire: Wire,
    /// What ended its handshake.
    pub failure: Option<rustls::Error>,
    /// What has come that was not sent back.
    pub got: Vec<u8>,
    pub echoes: bool,
    pub client_has_closed: bool,
}

impl Server {
    pub fn new(settings: Settings, wire: &Wire) -> Server {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let mut provider = ring::default_provider();
        if !settings.suites.is_empty() {
            provider.cipher_suites = settings.suites;
        }
        if !settings.groups.is_empty() {
            provider.kx_groups = settings.groups;
        }
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(settings.versions)
            .expect("versions");
        let builder = match settings.clients {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                let root = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
                roots.add(root).expect("an authority");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let certificates =
            CertificateDer::pem_slice_iter(settings.certified.certificate.as_bytes())
                .map(|it| it.expect("a certificate"))
                .collect();
        let key = PrivateKeyDer::from_pem_slice(settings.certified.key.as_bytes()).expect("a key");
        let mut config = builder
            .with_single_cert(certificates, key)
            .expect("a server");
        (settings.change)(&mut config);
        Server {
            connection: ServerConnection::new(Arc::new(config)).expect("a connection"),
            wire: wire.clone(),
            failure: None,
            got: Vec::new(),
            echoes: true,
            client_has_closed: false,
        }
    }

    /// Has the server do what there is to do. Returns whether there was anything.
    pub fn step(&mut self) -> bool {
        let mut lines = self.wire.0.borrow_mut();
        let lines = &mut *lines;
        assert!(!lines.unpushed, "what was filled was not pushed");
        let before = lines.to_client.len();
        let mut moved = !lines.to_server.is_empty();
        while self.failure.is_none() && !lines.to_server.is_empty() {
            self.connection
                .read_tls(&mut lines.to_server)
                .expect("it reads");
            match self.connection.process_new_packets() {
                Ok(state) => self.client_has_closed |= state.peer_has_closed(),
                Err(error) => self.failure = Some(error),
            }
            let mut data = vec![0; 1 << 16];
            if let Ok(len) = self.connection.reader().read(&mut data) {
                match self.echoes {
                    true => self
                        .connection
                        .writer()
                        .write_all(&data[..len])
                        .expect("it writes"),
                    false => self.got.extend(&data[..len]),
                }
            }
            while self.connection.wants_write() {
                self.connection
                    .write_tls(&mut lines.to_client)
                    .expect("memory");
            }
        }
        while self.connection.wants_write() {
            self.connection
                .write_tls(&mut lines.to_client)
                .expect("memory");
        }
        moved |= lines.to_client.len() > before;
        moved
    }

    /// Sends data of its own.
    pub fn say(&mut self, data: &[u8]) {
        self.connection.writer().write_all(data).expect("it writes");
        self.step();
    }
}

/// Random numbers of the host.
#[derive(Debug)]
pub struct HostRandom;

impl Random for HostRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        let random = ring::default_provider().secure_random;
        random.fill(bytes).map_err(|_| NoRandomness)
    }
}

/// A clock that stands still.
#[derive(Debug)]
pub struct Stopped(pub Option<u64>);

impl Clock for Stopped {
    fn now(&self) -> Option<Duration> {
        self.0.map(Duration::from_secs)
    }
}

pub fn client(authority: &Authority) -> TlsClient {
    client_with(authority, None)
}

pub fn client_with(authority: &Authority, identity: Option<&Certified>) -> TlsClient {
    let identity = identity.map(|certified| Identity {
        certificates: certified.certificate.as_bytes(),
        key: certified.key.as_bytes(),
    });
    let authority = authority.pem();
    TlsClient::new(
        authority.as_bytes(),
        identity,
        &HostRandom,
        Stopped(Some(NOW)),
    )
    .expect("a client")
}

/// Runs a client's future and a server until there is nothing left to do; `None` if the future is not done then.
pub fn run<T>(server: &mut Server, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    loop {
        let before = server.wire.0.borrow().to_client.len();
        if let Poll::Ready(output) = turns(future.as_mut(), usize::MAX).0 {
            server.step();
            return Some(output);
        }
        assert!(server.wire.0.borrow().waker.is_some(), "it left a waker");
        let took = server.wire.0.borrow().to_client.len() != before;
        if !server.step() && !took {
            return None;
        }
    }
}

/// Polls a client's future as often as it asks for another turn at once, and not more than that often. Returns the
/// number of turns, too.
pub fn turns<F: Future>(mut future: Pin<&mut F>, most: usize) -> (Poll<F::Output>, usize) {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut turns = 0;
    loop {
        turns += 1;
        let polled = future.as_mut().poll(&mut context);
        if polled.is_ready() || !woken.0.swap(false, Ordering::Relaxed) || turns == most {
            return (polled, turns);
        }
    }
}

/// Whether the client's task was woken since the last look.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects a client to a server.
pub fn connect(
    client: &TlsClient,
    server: &mut Server,
    name: &str,
) -> Result<Box<dyn Stream>, TlsError> {
    let wire = Box::new(server.wire.clone());
    run(server, client.connect(wire, name)).expect("it comes to an end")
}

/// Sends data, and returns what comes back, as many bytes.
pub fn echo(stream: &mut dyn Stream, server: &mut Server, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut back) = (0, Vec::new());
    while back.len() < data.len() {
        let mut moved = false;
        while sent < data.len() {
            let mut some = |room: &mut [u8]| {
                let part = room.len().min(data.len() - sent);
                room[..part].copy_from_slice(&data[sent..sent + part]);
                part
            };
            match stream.send(&mut some).expect("it is open") {
                0 => break,
                part => sent += part,
            }
            moved = true;
        }
        stream.push();
        moved |= server.step();
        while take(stream, &mut back).expect("it is open") > 0 {
            moved = true;
        }
        stream.push();
        assert!(
            moved,
            "{sent} of {} bytes were sent, {} came back",
            data.len(),
            back.len()
        );
    }
    back
}

/// Takes what has arrived, by one call.
pub fn take(stream: &mut dyn Stream, to: &mut Vec<u8>) -> Result<usize, Ended> {
    stream.receive(&mut |bytes| {
        to.extend_from_slice(bytes);
        bytes.len()
    })
}
