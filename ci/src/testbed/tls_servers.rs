//! NBD servers in dom0 that require TLS, their certificates, and the files that a driver domain has for them.

use super::Testbed;
use super::images::Image;
use super::network::{self, DOM0};
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType,
    date_time_ymd,
};
use std::fs;

/// The folder with a folder for each server, in the shared folder.
const FOLDER: &str = "pki";

/// A server. Each differs in its certificate, or in what it requires of its clients'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsServer {
    /// nbdkit with the file `root-bob`, of 16 MiB; it requires no certificate of clients.
    Files,
    /// The same one, with a certificate that is not valid any more.
    FilesExpired,
    /// nbdkit with an empty disk of 8 MiB in its memory; it requires a certificate of clients.
    Memory,
    /// qemu-nbd with a qcow2 image of 16 MiB as the export `qcow`; it requires a certificate of clients, too.
    Qcow2,
    /// nbdkit with a certificate that is not valid any more.
    Expired,
    /// nbdkit with a certificate for another machine.
    OtherName,
    /// nbdkit with a certificate of another CA.
    OtherAuthority,
}

impl TlsServer {
    /// All servers.
    const ALL: [Self; 7] = [
        Self::Files,
        Self::FilesExpired,
        Self::Memory,
        Self::Qcow2,
        Self::Expired,
        Self::OtherName,
        Self::OtherAuthority,
    ];

    fn port(self) -> u16 {
        match self {
            Self::Files | Self::FilesExpired => 10820,
            Self::Memory => 10821,
            Self::Qcow2 => 10822,
            Self::Expired => 10823,
            Self::OtherName => 10824,
            Self::OtherAuthority => 10825,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::FilesExpired => "files-expired",
            Self::Memory => "memory",
            Self::Qcow2 => "qcow2",
            Self::Expired => "expired",
            Self::OtherName => "other-name",
            Self::OtherAuthority => "other-authority",
        }
    }

    fn pid_file(self) -> String {
        format!("/tmp/nbd/tls-{}.pid", self.port())
    }

    /// Returns the target that names an export of it.
    pub fn target(self, export: &str) -> String {
        format!("nbds:{DOM0}:{}/{export}", self.port())
    }

    /// Returns the target of the same export without TLS.
    pub fn plain_target(self, export: &str) -> String {
        format!("nbd:{DOM0}:{}/{export}", self.port())
    }

    /// Returns a shell command that starts it in the background, with its data from before.
    fn script(self) -> String {
        let (port, pid) = (self.port(), self.pid_file());
        let certificates = format!("/lab/{FOLDER}/{}", self.name());
        let nbdkit = format!(
            "nbdkit --ipaddr {DOM0} --port {port} --pidfile {pid} --tls=require --tls-certificates={certificates}"
        );
        match self {
            Self::Files | Self::FilesExpired => format!(
                "[ -e tls-root-bob ] || truncate --size=16M tls-root-bob
{nbdkit} file /tmp/nbd/tls-root-bob"
            ),
            Self::Memory => format!("{nbdkit} --tls-verify-peer memory 8M"),
            Self::Qcow2 => format!(
                "[ -e tls.qcow2 ] || qemu-img create -q -f qcow2 tls.qcow2 16M
qemu-nbd --fork --persistent --shared=4 --pid-file={pid} --bind={DOM0} --port={port} --export-name=qcow \
    --object tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir={certificates} --tls-creds=tls \
    --format=qcow2 --discard=unmap tls.qcow2"
            ),
            Self::Expired | Self::OtherName | Self::OtherAuthority => {
                format!("{nbdkit} memory 1M")
            }
        }
    }
}

/// An authority, in whose name certificates are made.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both as PEM.
struct Certified {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// Signs the certificate of a server at that address, valid until the end of that year.
    fn sign(
        &self,
        address: &str,
        purpose: ExtendedKeyUsagePurpose,
        until: i32,
    ) -> Result<Certified> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, address);
        params.subject_alt_names = vec![SanType::IpAddress(address.parse()?)];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 12, 31);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Certified {
            certificate: params.signed_by(&key, &self.0)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// The files for the driver domain's ramdisk.
pub struct ClientFiles {
    /// The CA's certificate.
    pub authority: Image,
    /// The domain's own certificate, and its key.
    pub identity: [Image; 2],
}

impl Testbed<'_> {
    /// Makes the certificates of all servers, and returns the files of a client that they accept.
    pub fn make_certificates(&self) -> Result<ClientFiles> {
        // One that has the same name makes other signatures.
        let authority = Authority::new("Storage CA")?;
        let other = Authority::new("Storage CA")?;
        let far = 2090;
        for server in TlsServer::ALL {
            let (folder, _) = self.shared_file(&format!("{FOLDER}/{}", server.name()));
            fs::create_dir_all(&folder)?;
            let purpose = ExtendedKeyUsagePurpose::ServerAuth;
            let own = match server {
                TlsServer::FilesExpired | TlsServer::Expired => {
                    authority.sign(DOM0, purpose, 2021)?
                }
                TlsServer::OtherName => authority.sign("10.0.0.9", purpose, far)?,
                TlsServer::OtherAuthority => other.sign(DOM0, purpose, far)?,
                _ => authority.sign(DOM0, purpose, far)?,
            };
            for (name, text) in [
                ("ca-cert.pem", &authority.0.pem()),
                ("server-cert.pem", &own.certificate),
                ("server-key.pem", &own.key),
            ] {
                fs::write(folder.join(name), text)
                    .with_context(|| format!("cannot write {name}"))?;
            }
        }
        let own = authority.sign("10.0.0.7", ExtendedKeyUsagePurpose::ClientAuth, far)?;
        Ok(ClientFiles {
            authority: Image::of("ca-cert.pem", authority.0.pem().as_bytes()),
            identity: [
                Image::of("client-cert.pem", own.certificate.as_bytes()),
                Image::of("client-key.pem", own.key.as_bytes()),
            ],
        })
    }

    /// Starts a server, and waits until it listens.
    pub fn start_tls_server(&self, server: TlsServer) -> Result<()> {
        network::start_listener(
            self.host,
            DOM0,
            server.port(),
            &server.pid_file(),
            &server.script(),
        )
    }

    /// Kills a server, as a crash would end it.
    pub fn kill_tls_server(&self, server: TlsServer) -> Result<()> {
        self.kill_listener(&server.pid_file())
    }
}
