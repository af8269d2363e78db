//! Encrypted payloads, as `@venizia/ignis` writes them (authorization.md 1.14).
//!
//! Input: the members of a payload whose signature was verified, and the application secret of the source. Output: the members in clear, or nothing. A
//! wrong secret, a wrong padding and a wrong text are one and the same refusal.
//!
//! The registered claims stay clear. Of every other member the name and the value are encrypted, each by itself: AES-256-CBC with PKCS#7 padding, the IV
//! of 16 bytes in front, in standard base64. The key is the secret's first 32 characters, filled up with the digit `0`. A value is JSON text; roles may
//! be `id|identifier|priority`.

use aes::Aes256;
use base64_simd::STANDARD as BASE64;
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::auth::members::Members;

/// The claims that stay clear: those that RFC 7519 registers.
const CLEAR: [&str; 7] = ["iss", "sub", "aud", "jti", "nbf", "exp", "iat"];
const KEY_BYTES: usize = 32;
const IV_BYTES: usize = 16;
/// What a secret of fewer than 32 characters is filled up with.
const FILL: u8 = b'0';

/// The key of one source's payloads. It is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::auth) struct PayloadKey(Zeroizing<[u8; KEY_BYTES]>);

/// A text that is no application secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::auth) enum NotASecret {
    #[error("it is empty")]
    Empty,
    /// The library's issuers cannot use it either: its first 32 characters are not 32 bytes.
    #[error("its first 32 characters are not all ASCII")]
    NotAscii,
}

impl PayloadKey {
    /// Makes the key of an application secret.
    ///
    /// # Errors
    /// [`NotASecret`] for a secret of which there is no key.
    pub(in crate::auth) fn new(secret: &str) -> Result<Self, NotASecret> {
        if secret.is_empty() {
            return Err(NotASecret::Empty);
        }
        let mut key = Zeroizing::new([FILL; KEY_BYTES]);
        for (byte, character) in key.iter_mut().zip(secret.chars()) {
            *byte = u8::try_from(character)
                .ok()
                .filter(u8::is_ascii)
                .ok_or(NotASecret::NotAscii)?;
        }
        Ok(Self(key))
    }

    /// Decrypts a payload. `None` when any member is not encrypted with this key or its value is not JSON, and when a name stands twice.
    pub(in crate::auth) fn open(&self, payload: Members) -> Option<Members> {
        let mut opened = Members::default();
        for (name, value) in payload {
            let (name, value) = if CLEAR.contains(&&*name) {
                (name, value)
            } else {
                self.member(&name, value.as_str()?)?
            };
            if !opened.add(name, value) {
                return None;
            }
        }
        Some(opened)
    }

    fn member(&self, name: &str, value: &str) -> Option<(String, Value)> {
        let name = self.text(name)?;
        // A registered claim is never encrypted, so nothing encrypted may pose as one.
        let good = !name.is_empty() && !name.contains(char::is_control) && !CLEAR.contains(&&*name);
        let value = serde_json::from_str(&self.text(value)?).ok()?;
        good.then_some((name, value))
    }

    fn text(&self, sealed: &str) -> Option<String> {
        let sealed = BASE64.decode_to_vec(sealed.as_bytes()).ok()?;
        let (iv, sealed) = sealed.split_at_checked(IV_BYTES)?;
        let decryptor = Decryptor::<Aes256>::new_from_slices(&*self.0, iv).ok()?;
        let text = decryptor.decrypt_padded_vec::<Pkcs7>(sealed).ok()?;
        String::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_cut_or_filled_up_to_a_key() {
        let key = |secret: &str| PayloadKey::new(secret).map(|key| key.0.to_vec());
        assert_eq!(
            key("application").unwrap(),
            b"application000000000000000000000"
        );
        assert_eq!(
            key("a-secret-of-more-than-thirty-two-characters").unwrap(),
            b"a-secret-of-more-than-thirty-two"
        );
        assert_eq!(key(""), Err(NotASecret::Empty));
        assert_eq!(key("mật khẩu"), Err(NotASecret::NotAscii));
        let ascii = "x".repeat(32);
        assert_eq!(key(&format!("{ascii}ậ")).unwrap(), ascii.as_bytes());
    }
}
