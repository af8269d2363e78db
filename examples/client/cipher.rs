//! The encryption between a client and its gateway: docs/protocol.md, section 6, whose clauses the comments cite.

use aes_gcm::aead::{Aead as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use anyhow::{Context as _, Result, anyhow};
use base64_simd::STANDARD;
use hkdf::Hkdf;
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::{PublicKey, ecdh::EphemeralSecret};
use serde_json::{Value, json};
use sha2::Sha256;

/// The client's key pair, made for one connection (6.2).
pub(crate) struct KeyPair(EphemeralSecret);

/// Seals and opens the messages of one connection.
pub(crate) struct Cipher(Aes256Gcm);

impl KeyPair {
    pub(crate) fn generate() -> Self {
        Self(EphemeralSecret::generate())
    }

    /// `clientPublicKey`: an uncompressed point in base64 (6.1).
    pub(crate) fn public_key(&self) -> String {
        let point = self.0.public_key().to_sec1_point(false);
        STANDARD.encode_to_string(point.as_bytes())
    }

    /// Derives the session key from `serverPublicKey` and `salt` in the data of `connected` (6.3).
    pub(crate) fn agree(&self, connected: &Value) -> Result<Cipher> {
        let server = PublicKey::from_sec1_bytes(&bytes(connected, "serverPublicKey")?)?;
        let shared = self.0.diffie_hellman(&server);
        let salt = bytes(connected, "salt")?;
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(&salt), shared.raw_secret_bytes())
            .expand(b"ignis-ecdh-p256-aes-256-gcm-v1", &mut key)
            .map_err(|error| anyhow!("no session key: {error}"))?;
        Ok(Cipher(Aes256Gcm::new(&key.into())))
    }
}

impl Cipher {
    /// Gives the `encrypted` envelope around another one (6.4).
    pub(crate) fn seal(&self, envelope: &Value) -> Result<Value> {
        let iv: [u8; 12] = rand::random();
        let plaintext = envelope.to_string();
        let sealed = self.0.encrypt(&Nonce::from(iv), plaintext.as_bytes());
        let ct = sealed.map_err(|_| anyhow!("a message cannot be sealed"))?;
        let (iv, ct) = (STANDARD.encode_to_string(iv), STANDARD.encode_to_string(ct));
        Ok(json!({"event": "encrypted", "data": {"iv": iv, "ct": ct}}))
    }

    /// Gives the envelope inside the data of `encrypted` (6.4).
    pub(crate) fn open(&self, data: &Value) -> Result<Value> {
        let iv = <[u8; 12]>::try_from(bytes(data, "iv")?).map_err(|_| anyhow!("iv: 12 bytes"))?;
        let opened = self.0.decrypt(&Nonce::from(iv), &*bytes(data, "ct")?);
        let plaintext = opened.map_err(|_| anyhow!("a message does not open"))?;
        Ok(serde_json::from_slice(&plaintext)?)
    }
}

fn bytes(data: &Value, name: &str) -> Result<Vec<u8>> {
    let text = data[name].as_str().context(format!("{name} is missing"))?;
    STANDARD
        .decode_to_vec(text)
        .map_err(|error| anyhow!("{name}: {error}"))
}
