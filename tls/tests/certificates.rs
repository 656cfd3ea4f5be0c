//! Certificates that are refused, and what the operator is told.

use crate::rsa_keys;
use crate::world::{
    Authority, Certified, HostRandom, NAME, NOW, Server, Settings, Stopped, VERSIONS, Wire, client,
    connect,
};
use bulkhead_tls::{ConfigError, Identity, NoRandomness, Random, TlsClient, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Returns why a server of that certificate is refused, in both versions of TLS; the server learns of it.
fn refusal(client: &TlsClient, certified: &Certified, name: &str) -> String {
    let [old, new] = VERSIONS.map(|versions| {
        let wire = Wire::new(4096);
        let mut settings = Settings::new(certified.clone());
        settings.versions = versions;
        let mut server = Server::new(settings, &wire);
        let error = connect(client, &mut server, name)
            .err()
            .expect("it is refused");
        assert!(!error.may_pass(), "{error}");
        let told = server.failure.expect("the server is told");
        assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told:?}");
        assert!(wire.0.borrow().closed_by_client, "the connection is ended");
        error.to_string()
    });
    assert_eq!(old, new);
    new
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

#[test]
fn another_authoritys_certificate_is_refused() {
    let (ours, other) = (Authority::new("CA"), Authority::new("Other CA"));
    assert_eq!(
        refusal(&client(&ours), &other.server(), NAME),
        "the server's certificate is not signed by the CA given"
    );
    // One that only has the same name is no better.
    let same_name = Authority::new("CA");
    let refused = refusal(&client(&ours), &same_name.server(), NAME);
    assert!(refused.contains("not signed by the CA given"), "{refused}");
    // Nor if its key is of another kind.
    let rsa = KeyPair::from_pem(rsa_keys::CLIENT).expect("a key");
    let other_kind = Authority::with_key("CA", rsa);
    let refused = refusal(&client(&ours), &other_kind.server(), NAME);
    assert!(refused.contains("not signed by the CA given"), "{refused}");
    // Nor is one that nobody has signed.
    let key = key();
    let params = CertificateParams::new([NAME.to_string()]).expect("a name");
    let alone = Certified {
        certificate: params.self_signed(&key).expect("a certificate").pem(),
        key: key.serialize_pem(),
    };
    let refused = refusal(&client(&ours), &alone, NAME);
    assert!(refused.contains("not signed by the CA given"), "{refused}");
}

/// An authority that others can vouch for.
struct Between {
    name: String,
    key: KeyPair,
}

impl Between {
    fn new(name: &str) -> Between {
        let name = name.to_string();
        Between { name, key: key() }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params
            .distinguished_name
            .push(DnType::CommonName, &self.name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    /// Signs the certificate of a server, or of another authority.
    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> String {
        let own = self.params();
        let issuer = Issuer::from_params(&own, &self.key);
        let signed = params.signed_by(key, &issuer);
        signed.expect("a certificate").pem()
    }

    /// Has an authority vouch for it.
    fn signed_by(&self, authority: &Authority) -> String {
        let signed = self.params().signed_by(&self.key, &authority.0);
        signed.expect("a certificate").pem()
    }
}

/// Has authorities vouch for each other and for a server, the first one signed by `authority`. The certificates are the
/// server's, and the others', the last first.
fn chain(authority: &Authority, between: &[Between]) -> (Vec<String>, String) {
    let server_key = key();
    let params = CertificateParams::new([NAME.to_string()]).expect("a name");
    let last = between.last().expect("some");
    let mut chain = vec![last.sign(&params, &server_key)];
    for pair in between.windows(2).rev() {
        chain.push(pair[0].sign(&pair[1].params(), &pair[1].key));
    }
    chain.push(between[0].signed_by(authority));
    (chain, server_key.serialize_pem())
}

#[test]
fn authorities_between_are_followed_in_whatever_order_they_are_sent() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    let between: Vec<Between> = (0..5).map(|n| Between::new(&format!("CA {n}"))).collect();
    for count in 1..=between.len() {
        let (mut sent, key) = chain(&authority, &between[..count]);
        sent[1..].reverse();
        sent.push(Authority::new("Other CA").pem());
        sent.push(authority.pem());
        let certified = Certified {
            certificate: sent.concat(),
            key,
        };
        if count > 4 {
            let refused = refusal(&client, &certified, NAME);
            assert!(refused.contains("not signed by the CA given"), "{refused}");
            continue;
        }
        let mut server = Server::new(Settings::new(certified), &Wire::new(4096));
        connect(&client, &mut server, NAME).unwrap_or_else(|error| panic!("{count}: {error}"));
    }
}

/// Authorities that all have one name could vouch for each other in a hundred ways.
#[test]
fn a_chain_that_could_be_followed_in_many_ways_is_followed_in_one() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    let alike: Vec<Between> = (0..8).map(|_| Between::new("CA")).collect();
    let server_key = key();
    let params = CertificateParams::new([NAME.to_string()]).expect("a name");
    let nobody = Between::new("CA");
    let mut sent = vec![nobody.sign(&params, &server_key)];
    sent.extend(alike.iter().map(|one| one.signed_by(&authority)));
    let certified = Certified {
        certificate: sent.concat(),
        key: server_key.serialize_pem(),
    };
    let refused = refusal(&client, &certified, NAME);
    assert!(refused.contains("not signed by the CA given"), "{refused}");
}

#[test]
fn a_certificate_is_valid_for_a_time() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    let expired = authority.sign(&[NAME], &key(), |params| {
        params.not_after = date_time_ymd(2027, 2, 3);
    });
    assert_eq!(
        refusal(&client, &expired, NAME),
        "the server's certificate expired on 2027-02-03 00:00 UTC (it is 2027-07-01 00:00 UTC here)"
    );
    let early = authority.sign(&[NAME], &key(), |params| {
        params.not_before = date_time_ymd(2027, 12, 31);
    });
    assert_eq!(
        refusal(&client, &early, NAME),
        "the server's certificate is not valid before 2027-12-31 00:00 UTC (it is 2027-07-01 00:00 UTC here)"
    );
}

#[test]
fn a_certificate_is_for_its_names_and_addresses() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    let certified = authority.sign(
        &["a.example", "*.b.example", "10.0.0.2", "fd00::2"],
        &key(),
        |_| {},
    );
    for name in [
        "a.example",
        "x.b.example",
        "10.0.0.2",
        "fd00::2",
        "FD00:0::0002",
        "A.Example",
    ] {
        let wire = Wire::new(4096);
        let mut server = Server::new(Settings::new(certified.clone()), &wire);
        connect(&client, &mut server, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in [
        "b.example",
        "y.x.b.example",
        "10.0.0.3",
        "fd00::3",
        "c.example",
    ] {
        let refused = refusal(&client, &certified, name);
        assert_eq!(
            refused,
            format!(
                "the server's certificate is not for {name}, but for other names: a.example, *.b.example, 10.0.0.2, \
                 fd00::2"
            )
        );
    }
    let nameless = authority.sign(&[], &key(), |params| {
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, NAME);
    });
    assert_eq!(
        refusal(&client, &nameless, NAME),
        "the server's certificate has no subjectAltName, which should be storage.example"
    );
    let many: Vec<String> = (0..20).map(|number| format!("n{number}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = refusal(&client, &authority.sign(&many, &key(), |_| {}), NAME);
    assert!(refused.ends_with("n7.example and 12 more"), "{refused}");
}

#[test]
fn a_name_that_no_certificate_can_have_is_refused_before_anything_is_sent() {
    let authority = Authority::new("CA");
    let wire = Wire::new(4096);
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let error = connect(&client(&authority), &mut server, "a b").err();
    assert_eq!(
        error.expect("it is refused").to_string(),
        "'a b' is neither a name nor an address that a certificate can be for"
    );
    assert!(wire.0.borrow().to_server.is_empty());
}

#[test]
fn a_certificate_is_for_servers() {
    let authority = Authority::new("CA");
    let certified = authority.sign(&[NAME], &key(), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert_eq!(
        refusal(&client(&authority), &certified, NAME),
        "the server's certificate is not for a TLS server (its extended key usage)"
    );
}

#[test]
fn signatures_of_all_kinds_of_keys_are_verified() {
    let kinds = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyPair::generate_for(&rcgen::PKCS_ED25519),
        KeyPair::from_pkcs8_pem_and_sign_algo(rsa_keys::CLIENT, &rcgen::PKCS_RSA_SHA256),
        KeyPair::from_pkcs8_pem_and_sign_algo(rsa_keys::CLIENT, &rcgen::PKCS_RSA_SHA384),
        KeyPair::from_pkcs8_pem_and_sign_algo(rsa_keys::CLIENT, &rcgen::PKCS_RSA_SHA512),
    ];
    for issuer in kinds {
        let authority = Authority::with_key("CA", issuer.expect("a key"));
        let client = client(&authority);
        let keys = [
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyPair::from_pem(rsa_keys::SERVER),
        ];
        for key in keys {
            let certified = authority.sign(&[NAME], &key.expect("a key"), |_| {});
            for versions in VERSIONS {
                let mut settings = Settings::new(certified.clone());
                settings.versions = versions;
                let wire = Wire::new(4096);
                let mut server = Server::new(settings, &wire);
                connect(&client, &mut server, NAME).expect("it connects");
            }
        }
        // The same name, and a signature of the same kind that another key has made.
        let algorithm = authority.0.key().algorithm();
        let forger = KeyPair::generate_for(algorithm)
            .or_else(|_| KeyPair::from_pkcs8_pem_and_sign_algo(rsa_keys::SERVER, algorithm));
        let forged = Authority::with_key("CA", forger.expect("a key")).server();
        let refused = refusal(&client, &forged, NAME);
        assert!(refused.contains("not signed by the CA given"), "{refused}");
    }
}

#[test]
fn without_time_or_random_numbers_there_is_no_tls() {
    #[derive(Debug)]
    struct Broken;
    impl Random for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> {
            Err(NoRandomness)
        }
    }
    let authority = Authority::new("CA");
    let pem = authority.pem();
    for (client, error) in [
        (
            TlsClient::new(pem.as_bytes(), None, &HostRandom, Stopped(None)),
            TlsError::NoTime,
        ),
        (
            TlsClient::new(pem.as_bytes(), None, &Broken, Stopped(Some(NOW))),
            TlsError::NoRandomness,
        ),
    ] {
        let wire = Wire::new(4096);
        let mut server = Server::new(Settings::new(authority.server()), &wire);
        let refused = connect(&client.expect("a client"), &mut server, NAME);
        assert_eq!(refused.err(), Some(error));
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new("CA");
    let pem = authority.pem();
    let own = authority.server();
    let other = authority.server();
    let with = |authorities: &str, identity: Option<(&str, &str)>| {
        let identity = identity.map(|(certificates, key)| Identity {
            certificates: certificates.as_bytes(),
            key: key.as_bytes(),
        });
        let client = TlsClient::new(
            authorities.as_bytes(),
            identity,
            &HostRandom,
            Stopped(Some(NOW)),
        );
        client.err().expect("it is refused").to_string()
    };
    assert_eq!(with("", None), ConfigError::NoAuthority.to_string());
    assert_eq!(with(&own.key, None), ConfigError::NoAuthority.to_string());
    let cut = with(&pem[..pem.len() / 2], None);
    assert!(cut.starts_with("the CA's certificate: "), "{cut}");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbage = with(garbage, None);
    assert!(garbage.starts_with("the CA's certificate: "), "{garbage}");
    let none = with(&pem, Some(("", &own.key)));
    assert!(
        none.starts_with("the client's certificate: expected"),
        "{none}"
    );
    let none = with(&pem, Some((&own.certificate, "")));
    assert!(none.starts_with("the client's key: "), "{none}");
    assert_eq!(
        with(&pem, Some((&own.certificate, &other.key))),
        "the client's key: it is not the one of the certificate"
    );
    let odd = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(
        with(&pem, Some((&own.certificate, odd))),
        "the client's key: it is none of ECDSA (P-256, P-384), Ed25519 and RSA (2048 to 4096 bits)"
    );
}
