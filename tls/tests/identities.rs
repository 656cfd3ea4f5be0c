//! Servers that want to know who the client is.

use crate::rsa_keys;
use crate::world::{
    Authority, Certified, NAME, NEW, Server, Settings, VERSIONS, Versions, Wire, client_with,
    connect, echo,
};
use bulkhead_stream::Ended;
use rcgen::KeyPair;

/// Connects with a certificate of the client's own, or none, to a server that wants one of `clients`. Returns how that
/// ends.
fn attempt(
    versions: Versions,
    authority: &Authority,
    clients: &Authority,
    identity: Option<&Certified>,
) -> Result<(), String> {
    let wire = Wire::new(4096);
    let mut settings = Settings::new(authority.server());
    settings.versions = versions;
    settings.clients = Some(clients.pem());
    let mut server = Server::new(settings, &wire);
    let client = client_with(authority, identity);
    let mut stream = connect(&client, &mut server, NAME).map_err(|error| error.to_string())?;
    // In TLS 1.3, the server judges after the client has done its part.
    let mut ended = stream.receive(&mut |_| panic!("the server has said nothing"));
    if ended == Ok(0) {
        assert_eq!(echo(&mut *stream, &mut server, b"hello"), b"hello");
        ended = Ok(5);
    }
    match ended {
        Ok(_) => Ok(()),
        Err(ended @ Ended::Alert(_)) => Err(ended.to_string()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn own_certificates_of_all_kinds_are_shown() {
    let (authority, clients) = (Authority::new("CA"), Authority::new("Clients' CA"));
    let keys = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyPair::generate_for(&rcgen::PKCS_ED25519),
        KeyPair::from_pem(rsa_keys::CLIENT),
    ];
    for key in keys {
        let own = clients.sign(&["bulkhead"], &key.expect("a key"), |_| {});
        for versions in VERSIONS {
            assert_eq!(attempt(versions, &authority, &clients, Some(&own)), Ok(()));
        }
    }
}

#[test]
fn a_server_says_why_it_does_not_accept_the_client() {
    let (authority, clients) = (Authority::new("CA"), Authority::new("Clients' CA"));
    let [old, new] = VERSIONS.map(|versions| attempt(versions, &authority, &clients, None));
    // TLS 1.2 has no alert for it, so that rustls says something else.
    assert!(old.is_err(), "{old:?}");
    assert_eq!(
        new.expect_err("it is refused"),
        "the server ended TLS: it wants a client's certificate (certificate_required)"
    );
    let stranger = authority.server();
    for versions in VERSIONS {
        let refused = attempt(versions, &authority, &clients, Some(&stranger));
        assert_eq!(
            refused.expect_err("it is refused"),
            "the server ended TLS: the client's certificate is not signed by a CA that it knows (unknown_ca)"
        );
    }
}

#[test]
fn a_server_that_says_nothing_is_understood() {
    let authority = Authority::new("CA");
    for ended in [Ended::Closed, Ended::Reset] {
        let wire = Wire::new(4096);
        let mut settings = Settings::new(authority.server());
        settings.versions = NEW;
        settings.clients = Some(authority.pem());
        let mut server = Server::new(settings, &wire);
        let client = client_with(&authority, None);
        let mut stream = connect(&client, &mut server, NAME).expect("the client is done");
        wire.0.borrow_mut().to_client.clear();
        wire.0.borrow_mut().ended = Some(ended);
        assert_eq!(stream.receive(&mut |_| 0), Err(Ended::NoIdentity));
        assert!(!Ended::NoIdentity.may_pass());
    }
    // One that did not ask, or has said something, has another reason.
    let own = authority.server();
    for (clients, says) in [(None, false), (Some(authority.pem()), true)] {
        let wire = Wire::new(4096);
        let mut settings = Settings::new(authority.server());
        settings.clients = clients;
        let mut server = Server::new(settings, &wire);
        let client = client_with(&authority, says.then_some(&own));
        let mut stream = connect(&client, &mut server, NAME).expect("it connects");
        if says {
            server.say(b"hello");
            assert_eq!(stream.receive(&mut |bytes| bytes.len()), Ok(5));
        }
        wire.0.borrow_mut().ended = Some(Ended::Reset);
        assert_eq!(stream.receive(&mut |_| 0), Err(Ended::Reset));
    }
}
