//! The ciphers of records, as TLS 1.3 (RFC 8446, section 5.2) and TLS 1.2 (RFC 5288 and RFC 7905) use them.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ops::Range;
use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape, MessageDecrypter,
    MessageEncrypter, Nonce, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload,
    Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError, make_tls12_aad,
    make_tls13_aad,
};
use rustls::{ContentType, Error, ProtocolVersion};

/// The bytes of a tag.
const TAG: usize = 16;

/// The bytes of a nonce that TLS 1.2 sends before a record that AES-GCM encrypts, and those before them that it keeps.
const EXPLICIT: usize = 8;
const FIXED: usize = 4;

/// The most bytes of a record's data.
const LONGEST: usize = 1 << 14;

/// A cipher, with its key.
pub trait Cipher: Send + Sync + Sized + 'static {
    /// The bytes of its key.
    const KEY: usize;

    /// Takes a key, which has [`KEY`](Self::KEY) bytes.
    fn new(key: &[u8]) -> Self;

    /// Encrypts bytes in place, and returns the tag. Only more bytes than any cipher takes are an error.
    fn seal(&self, nonce: &Nonce, aad: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG], Error>;

    /// Decrypts bytes in place, if the tag is theirs.
    fn open(&self, nonce: &Nonce, aad: &[u8], bytes: &mut [u8], tag: &[u8]) -> Result<(), Error>;
}

macro_rules! cipher {
    ($cipher:ty, $module:ident, $key:literal) => {
        impl Cipher for $cipher {
            const KEY: usize = $key;

            fn new(key: &[u8]) -> Self {
                use $module::KeyInit;
                KeyInit::new_from_slice(key).expect("rustls asks how long keys are")
            }

            fn seal(
                &self,
                nonce: &Nonce,
                aad: &[u8],
                bytes: &mut [u8],
            ) -> Result<[u8; TAG], Error> {
                use $module::aead::AeadInOut;
                let tag = self.encrypt_inout_detached(&nonce.0.into(), aad, bytes.into());
                tag.map(Into::into).map_err(|_| Error::EncryptError)
            }

            fn open(
                &self,
                nonce: &Nonce,
                aad: &[u8],
                bytes: &mut [u8],
                tag: &[u8],
            ) -> Result<(), Error> {
                use $module::aead::AeadInOut;
                let tag = tag.try_into().map_err(|_| Error::DecryptError)?;
                let opened = self.decrypt_inout_detached(&nonce.0.into(), aad, bytes.into(), tag);
                opened.map_err(|_| Error::DecryptError)
            }
        }
    };
}

cipher!(aes_gcm::Aes128Gcm, aes_gcm, 16);
cipher!(aes_gcm::Aes256Gcm, aes_gcm, 32);
cipher!(chacha20poly1305::ChaCha20Poly1305, chacha20poly1305, 32);

/// A cipher in TLS 1.3, and ChaCha20-Poly1305 in TLS 1.2: every nonce is the vector, and the record's number.
pub struct Counted<C>(pub PhantomData<C>);

/// AES-GCM in TLS 1.2: a part of the nonce is sent.
pub struct Sent<C>(pub PhantomData<C>);

/// The key and the vector of one direction.
struct Tls13<C>(C, Iv);

/// The same, in TLS 1.2.
struct Tls12<C> {
    cipher: C,
    iv: Iv,
    /// The last bytes of the nonce are before the record.
    sends: bool,
}

impl<C: Cipher> Tls13AeadAlgorithm for Counted<C> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Tls13(C::new(key.as_ref()), iv))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Tls13(C::new(key.as_ref()), iv))
    }

    fn key_len(&self) -> usize {
        C::KEY
    }

    fn extract_keys(
        &self,
        _: AeadKey,
        _: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

impl<C: Cipher> MessageEncrypter for Tls13<C> {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let len = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(len);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&message.typ.to_array());
        let nonce = Nonce::new(&self.1, number);
        let tag = self
            .0
            .seal(&nonce, &make_tls13_aad(len), payload.as_mut())?;
        payload.extend_from_slice(&tag);
        // A record says that it is data of TLS 1.2, whatever it is (section 5.2).
        Ok(OutboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + 1 + TAG
    }
}

impl<C: Cipher> MessageDecrypter for Tls13<C> {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let payload = &mut message.payload;
        let aad = make_tls13_aad(payload.len());
        let len = payload.len().checked_sub(TAG).ok_or(Error::DecryptError)?;
        let (bytes, tag) = payload.split_at_mut(len);
        self.0
            .open(&Nonce::new(&self.1, number), &aad, bytes, tag)?;
        payload.truncate(len);
        message.into_tls13_unpadded_message()
    }
}

impl<C: Cipher> Tls12AeadAlgorithm for Counted<C> {
    fn encrypter(&self, key: AeadKey, iv: &[u8], _: &[u8]) -> Box<dyn MessageEncrypter> {
        Box::new(Tls12::<C>::counted(key, iv))
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        Box::new(Tls12::<C>::counted(key, iv))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        KeyBlockShape {
            enc_key_len: C::KEY,
            fixed_iv_len: FIXED + EXPLICIT,
            explicit_nonce_len: 0,
        }
    }

    fn extract_keys(
        &self,
        _: AeadKey,
        _: &[u8],
        _: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

impl<C: Cipher> Tls12AeadAlgorithm for Sent<C> {
    fn encrypter(&self, key: AeadKey, iv: &[u8], explicit: &[u8]) -> Box<dyn MessageEncrypter> {
        Box::new(Tls12::<C>::sent(key, iv, explicit))
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        Box::new(Tls12::<C>::sent(key, iv, &[0; EXPLICIT]))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        KeyBlockShape {
            enc_key_len: C::KEY,
            fixed_iv_len: FIXED,
            explicit_nonce_len: EXPLICIT,
        }
    }

    fn extract_keys(
        &self,
        _: AeadKey,
        _: &[u8],
        _: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

impl<C: Cipher> Tls12<C> {
    fn counted(key: AeadKey, iv: &[u8]) -> Self {
        Tls12 {
            cipher: C::new(key.as_ref()),
            iv: Iv::copy(iv),
            sends: false,
        }
    }

    fn sent(key: AeadKey, fixed: &[u8], explicit: &[u8]) -> Self {
        let mut iv = [0; FIXED + EXPLICIT];
        iv[..FIXED].copy_from_slice(fixed);
        iv[FIXED..].copy_from_slice(explicit);
        Tls12 {
            cipher: C::new(key.as_ref()),
            iv: Iv::new(iv),
            sends: true,
        }
    }

    /// Returns where the data is in a record of that many bytes.
    fn data(&self, record: usize) -> Result<Range<usize>, Error> {
        let first = if self.sends { EXPLICIT } else { 0 };
        match record.checked_sub(TAG) {
            Some(end) if end >= first => Ok(first..end),
            _ => Err(Error::DecryptError),
        }
    }
}

impl<C: Cipher> MessageEncrypter for Tls12<C> {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let len = message.payload.len();
        let mut payload = PrefixedPayload::with_capacity(self.encrypted_payload_len(len));
        let nonce = Nonce::new(&self.iv, number);
        let before = if self.sends { EXPLICIT } else { 0 };
        payload.extend_from_slice(&nonce.0[FIXED..][..before]);
        payload.extend_from_chunks(&message.payload);
        let aad = make_tls12_aad(number, message.typ, message.version, len);
        let tag = self
            .cipher
            .seal(&nonce, &aad, &mut payload.as_mut()[before..])?;
        payload.extend_from_slice(&tag);
        Ok(OutboundOpaqueMessage::new(
            message.typ,
            message.version,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        let before = if self.sends { EXPLICIT } else { 0 };
        before + payload_len + TAG
    }
}

impl<C: Cipher> MessageDecrypter for Tls12<C> {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let (typ, version) = (message.typ, message.version);
        let payload = &mut message.payload;
        let data = self.data(payload.len())?;
        if data.len() > LONGEST {
            return Err(Error::PeerSentOversizedRecord);
        }
        let mut nonce = Nonce::new(&self.iv, number);
        if self.sends {
            // The other end chooses it, and need not count.
            nonce.0[..FIXED].copy_from_slice(&self.iv.as_ref()[..FIXED]);
            nonce.0[FIXED..].copy_from_slice(&payload[..EXPLICIT]);
        }
        let aad = make_tls12_aad(number, typ, version, data.len());
        let (bytes, tag) = payload.split_at_mut(data.end);
        self.cipher
            .open(&nonce, &aad, &mut bytes[data.start..], tag)?;
        // The record has to be one slice: what was before the data goes.
        payload.copy_within(data.clone(), 0);
        payload.truncate(data.len());
        Ok(message.into_plain_message())
    }
}
