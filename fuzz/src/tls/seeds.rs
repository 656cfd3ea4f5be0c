//! Recordings of what a well-behaved server sends.

use super::{AUTHORITY, Lines, NAME, Wire, talk};
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;

/// Returns a recording of each version of TLS, and one of small records: most messages, and the session tickets behind the
/// handshake, come in several of them.
pub fn seeds() -> Vec<Vec<u8>> {
    [(&TLS12, None), (&TLS13, None), (&TLS13, Some(64))]
        .map(|(version, record)| recorded(version, record))
        .to_vec()
}

/// Returns an input of the target: a zero (large pieces), and all that a server of that version sends. The server sends
/// back what it receives, renews its keys once if the version is TLS 1.3, and closes the connection when the client
/// does. Its records have at most `record` bytes.
fn recorded(version: &'static SupportedProtocolVersion, record: Option<usize>) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![NAME.to_string()]).expect("a name");
    let own = params.signed_by(&key, &*AUTHORITY).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth();
    let config = builder.with_single_cert(vec![own.der().clone()], key);
    let mut config = config.expect("a server");
    config.max_fragment_size = record;
    let mut server = ServerConnection::new(Arc::new(config)).expect("a server");
    let wire = Wire(Rc::new(RefCell::new(Lines {
        arriving: VecDeque::new(),
        piece: 1 << 14,
        sent: Vec::new(),
        ended: None,
    })));
    let mut said = vec![0];
    let mut renewed = version != &TLS13;
    let step = || {
        let lines = &mut *wire.0.borrow_mut();
        let sent = std::mem::take(&mut lines.sent);
        let mut rest = &sent[..];
        let before = said.len();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("it reads");
            let state = server.process_new_packets().expect("a good client");
            let mut data = vec![0; 1 << 16];
            if let Ok(len) = server.reader().read(&mut data) {
                server.writer().write_all(&data[..len]).expect("memory");
                if len > 0 && !renewed {
                    server.refresh_traffic_keys().expect("new keys");
                    server
                        .writer()
                        .write_all(b"by the new key")
                        .expect("memory");
                    renewed = true;
                }
            }
            if state.peer_has_closed() {
                server.send_close_notify();
                lines.ended = Some(bulkhead_stream::Ended::Closed);
            }
        }
        while server.wants_write() {
            server.write_tls(&mut said).expect("memory");
        }
        lines.arriving.extend(&said[before..]);
        !sent.is_empty() || said.len() > before
    };
    talk(&wire, 1000, step).expect("it connects");
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::SENT;
    use bulkhead_stream::Ended;

    #[test]
    fn a_recording_leads_to_a_connection_again() {
        for seed in seeds() {
            // libFuzzer would cut longer ones off.
            assert!(seed.len() <= 4096, "{} bytes", seed.len());
            let wire = Wire(Rc::new(RefCell::new(Lines {
                arriving: seed[1..].iter().copied().collect(),
                piece: 100,
                sent: Vec::new(),
                ended: Some(Ended::Closed),
            })));
            let received = talk(&wire, 10_000, || false).expect("it connects");
            assert!(received >= SENT, "{received} bytes came");
            crate::tls(&seed);
        }
    }
}
