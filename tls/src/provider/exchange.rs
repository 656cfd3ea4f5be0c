//! Key exchange by elliptic curves.

use crate::random::Random;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use p256::elliptic_curve::sec1::ToSec1Point;
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved};
use zeroize::Zeroizing;

/// The most attempts at a number within a curve's order: each fails less than once in four thousand million times.
const ATTEMPTS: usize = 8;

/// A curve, with the source of its keys.
pub struct Curve {
    pub name: NamedGroup,
    pub random: &'static dyn Random,
}

impl fmt::Debug for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl Curve {
    fn draw<const N: usize>(&self) -> Result<Zeroizing<[u8; N]>, Error> {
        let mut bytes = Zeroizing::new([0; N]);
        self.random.fill(&mut *bytes).map_err(|_| GetRandomFailed)?;
        Ok(bytes)
    }
}

/// One half of an exchange.
struct Half<S> {
    name: NamedGroup,
    secret: S,
    public: Vec<u8>,
}

/// What a point is for that is not on the curve, or not one that there may be.
const NO_POINT: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

impl SupportedKxGroup for Curve {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        match self.name {
            NamedGroup::X25519 => {
                let secret = x25519_dalek::StaticSecret::from(*self.draw()?);
                Ok(Box::new(Half {
                    name: self.name,
                    public: x25519_dalek::PublicKey::from(&secret).to_bytes().to_vec(),
                    secret,
                }))
            }
            NamedGroup::secp256r1 => Half::<p256::SecretKey>::draw(self),
            _ => Half::<p384::SecretKey>::draw(self),
        }
    }

    fn name(&self) -> NamedGroup {
        self.name
    }
}

impl ActiveKeyExchange for Half<x25519_dalek::StaticSecret> {
    fn complete(self: Box<Self>, theirs: &[u8]) -> Result<SharedSecret, Error> {
        let theirs: [u8; 32] = theirs.try_into().map_err(|_| NO_POINT)?;
        let shared = self.secret.diffie_hellman(&theirs.into());
        // RFC 8446, section 7.4.2: all zeros is what a point of small order makes of every secret.
        match shared.was_contributory() {
            true => Ok(SharedSecret::from(&shared.as_bytes()[..])),
            false => Err(NO_POINT),
        }
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        self.name
    }
}

macro_rules! half {
    ($curve:ident, $bytes:literal) => {
        impl Half<$curve::SecretKey> {
            fn draw(curve: &Curve) -> Result<Box<dyn ActiveKeyExchange>, Error> {
                for _ in 0..ATTEMPTS {
                    let bytes = curve.draw::<$bytes>()?;
                    if let Ok(secret) = $curve::SecretKey::from_slice(&*bytes) {
                        let public = secret.public_key().to_sec1_point(false);
                        return Ok(Box::new(Half {
                            name: curve.name,
                            public: public.as_bytes().to_vec(),
                            secret,
                        }));
                    }
                }
                Err(GetRandomFailed.into())
            }
        }

        impl ActiveKeyExchange for Half<$curve::SecretKey> {
            fn complete(self: Box<Self>, theirs: &[u8]) -> Result<SharedSecret, Error> {
                // RFC 8446, section 4.2.8.2: no other form of a point is permitted than this one.
                if theirs.first() != Some(&4) {
                    return Err(NO_POINT);
                }
                let theirs = $curve::PublicKey::from_sec1_bytes(theirs).map_err(|_| NO_POINT)?;
                let shared = self.secret.diffie_hellman(&theirs);
                Ok(SharedSecret::from(&shared.raw_secret_bytes()[..]))
            }

            fn pub_key(&self) -> &[u8] {
                &self.public
            }

            fn group(&self) -> NamedGroup {
                self.name
            }
        }
    };
}

half!(p256, 32);
half!(p384, 48);
