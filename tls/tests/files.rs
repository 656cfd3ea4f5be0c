//! The files of the CA and of the client, as an operator puts them into the ramdisk.

use crate::rsa_keys;
use crate::world::{
    Authority, HostRandom, NAME, NOW, Server, Settings, Stopped, Wire, connect, echo,
};
use bulkhead_tls::{FileNames, TlsClient};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Files, with their names.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Makes a client of files and of words on the command line.
fn client(files: &Files, line: &[(&str, &'static str)]) -> Result<TlsClient, String> {
    let names = FileNames::parse(|key| line.iter().find(|it| it.0 == key).map(|it| it.1));
    let take = |name: &str| files.iter().find(|file| file.0 == name).map(|file| &file.1);
    let client = TlsClient::from_files(&names, take, &HostRandom, Stopped(Some(NOW)));
    client.map_err(|error| error.to_string())
}

fn refusal(files: &Files, line: &[(&str, &'static str)]) -> String {
    client(files, line).err().expect("a refusal")
}

/// Connects to a server that wants a certificate of the authority's, and sends a word there and back.
fn talks(client: &TlsClient, authority: &Authority) {
    let wire = Wire::new(4096);
    let mut settings = Settings::new(authority.server());
    settings.clients = Some(authority.pem());
    let mut server = Server::new(settings, &wire);
    let mut stream = connect(client, &mut server, NAME).expect("it connects");
    assert_eq!(echo(&mut *stream, &mut server, b"hello"), b"hello");
}

fn certificate_der(pem: &str) -> Vec<u8> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    der.to_vec()
}

fn key_der(pem: &str) -> Vec<u8> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
    der.secret_der().to_vec()
}

#[test]
fn files_are_found_by_their_usual_names_and_by_others() {
    let authority = Authority::new("CA");
    let own = authority.server();
    let pem = vec![
        ("ca-cert.pem", authority.pem().into_bytes()),
        ("client-cert.pem", own.certificate.clone().into_bytes()),
        ("client-key.pem", own.key.clone().into_bytes()),
    ];
    talks(&client(&pem, &[]).expect("a client"), &authority);
    let der = vec![
        ("pki/ca", certificate_der(&authority.pem())),
        ("pki/own", certificate_der(&own.certificate)),
        ("pki/key", key_der(&own.key)),
    ];
    let line = [
        ("tls-ca", "pki/ca"),
        ("tls-cert", "pki/own"),
        ("tls-key", "pki/key"),
    ];
    talks(&client(&der, &line).expect("a client"), &authority);
}

#[test]
fn an_rsa_key_may_be_der() {
    let authority = Authority::new("CA");
    let key = KeyPair::from_pem(rsa_keys::CLIENT).expect("a key");
    let own = authority.sign(&["bulkhead"], &key, |_| {});
    let files = vec![
        ("ca-cert.pem", authority.pem().into_bytes()),
        ("client-cert.pem", own.certificate.into_bytes()),
        ("client-key.pem", key_der(rsa_keys::CLIENT)),
    ];
    talks(&client(&files, &[]).expect("a client"), &authority);
}

#[test]
fn what_is_missing_or_of_no_use_is_named() {
    let authority = Authority::new("CA");
    let own = authority.server();
    let ca = || ("ca-cert.pem", authority.pem().into_bytes());
    let certificate = || ("client-cert.pem", own.certificate.clone().into_bytes());
    let key = || ("client-key.pem", own.key.clone().into_bytes());
    let other = || ("client-key.pem", authority.server().key.into_bytes());
    let locked = || {
        let text =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        ("client-key.pem", text.as_bytes().to_vec())
    };
    let pem = "expected -----BEGIN CERTIFICATE-----";
    for (files, line, reason) in [
        (
            vec![],
            &[][..],
            "the ramdisk has no file ca-cert.pem, the certificate of the CA",
        ),
        (
            vec![ca()],
            &[("tls-ca", "my-ca.pem")],
            "the ramdisk has no file my-ca.pem, the certificate of the CA",
        ),
        (
            vec![ca(), certificate()],
            &[],
            "the ramdisk has no file client-key.pem, which client-cert.pem needs",
        ),
        (
            vec![ca(), key()],
            &[],
            "the ramdisk has no file client-cert.pem, which client-key.pem needs",
        ),
        (
            vec![ca()],
            &[("tls-cert", "own.pem")],
            "the ramdisk has no file own.pem, which tls-cert needs",
        ),
        (
            vec![ca()],
            &[("tls-key", "own.key")],
            "the ramdisk has no file own.key, which tls-key needs",
        ),
        (
            vec![("ca-cert.pem", b"nothing".to_vec())],
            &[],
            &format!("ca-cert.pem of the ramdisk: the CA's file has no certificate, {pem}"),
        ),
        (
            vec![("ca-cert.pem", vec![0x30, 0x82, 0, 1, 0])],
            &[],
            "ca-cert.pem of the ramdisk: the CA's certificate: ",
        ),
        (
            vec![ca(), ("client-cert.pem", Vec::new()), key()],
            &[],
            &format!("client-cert.pem of the ramdisk: the client's certificate: {pem}"),
        ),
        (
            vec![ca(), certificate(), other()],
            &[],
            "client-key.pem of the ramdisk: the client's key: it is not the one of the certificate",
        ),
        (
            vec![ca(), certificate(), locked()],
            &[],
            "client-key.pem of the ramdisk: the client's key: it is encrypted, expected one without a passphrase",
        ),
        (
            vec![("ca-cert.pem", vec![0; (1 << 20) + 1])],
            &[],
            "ca-cert.pem of the ramdisk has 1048577 bytes, expected a certificate or a key",
        ),
    ] {
        let refused = refusal(&files, line);
        assert!(refused.starts_with(reason), "{refused}, and not {reason}");
    }
    client(&vec![ca()], &[]).expect("no certificate of the client's is needed");
}

#[test]
fn every_file_is_taken_whatever_is_wrong_with_another() {
    let mut taken = Vec::new();
    let names = FileNames::parse(|_| None);
    let take = |name: &str| {
        taken.push(name.to_string());
        None::<Vec<u8>>
    };
    assert!(TlsClient::from_files(&names, take, &HostRandom, Stopped(None)).is_err());
    assert_eq!(taken, names.all());
}
