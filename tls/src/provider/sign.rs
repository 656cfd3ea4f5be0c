//! The domain's own key, which it signs with if a server wants to know who it is.

use crate::random::{Random, Source};
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use p256::ecdsa::signature::{RandomizedSigner, SignatureEncoding, Signer as Signs};
use rsa::pkcs1::{DecodeRsaPrivateKey, EncodeRsaPublicKey};
use rsa::pkcs8::DecodePrivateKey;
use rsa::{PrivateKey as RsaPrivateKey, PublicKey as RsaPublicKey, pkcs1v15, pss};
use rustls::crypto::KeyProvider;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sha2::{Sha256, Sha384, Sha512};

/// Reads keys.
pub struct Keys(pub &'static dyn Random);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// A key, of one of the kinds that there are.
enum Secret {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Ed25519(ed25519_dalek::SigningKey),
    Rsa(Box<RsaPrivateKey>),
}

/// A key, its public half, and where RSA's random numbers come from.
struct Own {
    secret: Secret,
    public: SubjectPublicKeyInfoDer<'static>,
    random: &'static dyn Random,
}

/// The same, to be shared.
#[derive(Clone, Debug)]
struct OwnKey(Arc<Own>);

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Own({:?})", self.algorithm())
    }
}

impl KeyProvider for Keys {
    fn load_private_key(&self, der: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let secret = Secret::read(&der).ok_or_else(|| {
            Error::General(
                "it is none of ECDSA (P-256, P-384), Ed25519 and RSA (2048 to 4096 bits)"
                    .to_string(),
            )
        })?;
        let public = secret.public().ok_or(Error::FailedToGetRandomBytes)?;
        Ok(Arc::new(OwnKey(Arc::new(Own {
            secret,
            public,
            random: self.0,
        }))))
    }
}

impl Secret {
    fn read(der: &PrivateKeyDer<'_>) -> Option<Secret> {
        match der {
            PrivateKeyDer::Pkcs8(key) => {
                let der = key.secret_pkcs8_der();
                None.or_else(|| Some(Secret::P256(DecodePrivateKey::from_pkcs8_der(der).ok()?)))
                    .or_else(|| Some(Secret::P384(DecodePrivateKey::from_pkcs8_der(der).ok()?)))
                    .or_else(|| Some(Secret::Ed25519(DecodePrivateKey::from_pkcs8_der(der).ok()?)))
                    .or_else(|| {
                        Some(Secret::Rsa(Box::new(
                            DecodePrivateKey::from_pkcs8_der(der).ok()?,
                        )))
                    })
            }
            PrivateKeyDer::Sec1(key) => {
                let der = key.secret_sec1_der();
                let p256 = || Some(p256::SecretKey::from_sec1_der(der).ok()?.into());
                let p384 = || Some(p384::SecretKey::from_sec1_der(der).ok()?.into());
                p256()
                    .map(Secret::P256)
                    .or_else(|| p384().map(Secret::P384))
            }
            PrivateKeyDer::Pkcs1(key) => {
                let key = RsaPrivateKey::from_pkcs1_der(key.secret_pkcs1_der());
                Some(Secret::Rsa(Box::new(key.ok()?)))
            }
            _ => None,
        }
    }

    fn public(&self) -> Option<SubjectPublicKeyInfoDer<'static>> {
        Some(match self {
            Secret::P256(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                public_key_to_spki(&alg_id::ECDSA_P256, point.as_bytes())
            }
            Secret::P384(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                public_key_to_spki(&alg_id::ECDSA_P384, point.as_bytes())
            }
            Secret::Ed25519(key) => {
                public_key_to_spki(&alg_id::ED25519, key.verifying_key().as_bytes())
            }
            Secret::Rsa(key) => {
                let public = RsaPublicKey::from(&**key).to_pkcs1_der().ok()?;
                public_key_to_spki(&alg_id::RSA_ENCRYPTION, public.as_bytes())
            }
        })
    }

    /// Returns the schemes that it can sign with, the best one first.
    fn schemes(&self) -> &'static [SignatureScheme] {
        match self {
            Secret::P256(_) => &[SignatureScheme::ECDSA_NISTP256_SHA256],
            Secret::P384(_) => &[SignatureScheme::ECDSA_NISTP384_SHA384],
            Secret::Ed25519(_) => &[SignatureScheme::ED25519],
            Secret::Rsa(_) => &[
                SignatureScheme::RSA_PSS_SHA256,
                SignatureScheme::RSA_PSS_SHA384,
                SignatureScheme::RSA_PSS_SHA512,
                SignatureScheme::RSA_PKCS1_SHA256,
                SignatureScheme::RSA_PKCS1_SHA384,
                SignatureScheme::RSA_PKCS1_SHA512,
            ],
        }
    }
}

/// A key that signs with one scheme.
#[derive(Debug)]
struct Signing(Arc<Own>, SignatureScheme);

impl SigningKey for OwnKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let mut schemes = self.0.secret.schemes().iter();
        let scheme = schemes.find(|scheme| offered.contains(scheme))?;
        Some(Box::new(Signing(self.0.clone(), *scheme)))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.0.public.clone())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Own {
    fn algorithm(&self) -> SignatureAlgorithm {
        match self.secret {
            Secret::P256(_) | Secret::P384(_) => SignatureAlgorithm::ECDSA,
            Secret::Ed25519(_) => SignatureAlgorithm::ED25519,
            Secret::Rsa(_) => SignatureAlgorithm::RSA,
        }
    }

    fn sign_with_rsa(
        &self,
        key: &RsaPrivateKey,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> Option<Vec<u8>> {
        // Random numbers for the salt, and to blind the computation.
        fn by<S: SignatureEncoding>(
            key: impl RandomizedSigner<S>,
            random: &'static dyn Random,
            message: &[u8],
        ) -> Option<Vec<u8>> {
            let signature = key.try_sign_with_rng(&mut Source(random), message);
            Some(signature.ok()?.to_vec())
        }
        let (key, random) = (key.clone(), self.random);
        match scheme {
            SignatureScheme::RSA_PSS_SHA256 => {
                by(pss::SigningKey::<Sha256>::new(key), random, message)
            }
            SignatureScheme::RSA_PSS_SHA384 => {
                by(pss::SigningKey::<Sha384>::new(key), random, message)
            }
            SignatureScheme::RSA_PSS_SHA512 => {
                by(pss::SigningKey::<Sha512>::new(key), random, message)
            }
            SignatureScheme::RSA_PKCS1_SHA256 => {
                by(pkcs1v15::SigningKey::<Sha256>::new(key), random, message)
            }
            SignatureScheme::RSA_PKCS1_SHA384 => {
                by(pkcs1v15::SigningKey::<Sha384>::new(key), random, message)
            }
            SignatureScheme::RSA_PKCS1_SHA512 => {
                by(pkcs1v15::SigningKey::<Sha512>::new(key), random, message)
            }
            _ => None,
        }
    }
}

impl Signer for Signing {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        // Those of ECDSA derive from key and message (RFC 6979): no bad random number gives the key away.
        let signature = match &self.0.secret {
            Secret::P256(key) => Signs::<p256::ecdsa::DerSignature>::try_sign(key, message)
                .map(|signature| signature.to_vec())
                .ok(),
            Secret::P384(key) => Signs::<p384::ecdsa::DerSignature>::try_sign(key, message)
                .map(|signature| signature.to_vec())
                .ok(),
            Secret::Ed25519(key) => key.try_sign(message).map(|it| it.to_bytes().to_vec()).ok(),
            Secret::Rsa(key) => self.0.sign_with_rsa(key, self.1, message),
        };
        signature.ok_or_else(|| Error::General("the own key cannot sign".to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.1
    }
}
