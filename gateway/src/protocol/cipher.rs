//! The connection's own encryption: ECDH on P-256, HKDF-SHA-256, AES-256-GCM (protocol.md 6.1 to 6.4).
//!
//! It encrypts one hop, between a client and this gateway: the gateway sees the plaintext. Key agreement and sealing use ring, several times faster
//! than portable code; the tests check both against `p256` and `aes-gcm`.

use std::mem::MaybeUninit;
use std::sync::Arc;

use base64_simd::STANDARD as BASE64;
use hkdf::Hkdf;
use p256::elliptic_curve::sec1::ToSec1Point;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::SystemRandom;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::event::Encrypted;
use super::frame::{Opcode, header, header_length};

/// Bytes of an uncompressed P-256 point.
pub const POINT_BYTES: usize = 65;
/// Bytes of a compressed one.
const COMPRESSED_BYTES: usize = 33;
/// Bytes of the salt of a handshake.
pub const SALT_BYTES: usize = 32;
/// Bytes of an IV.
pub const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// More than an agreement uses of the stack.
const SCRUBBED_BYTES: usize = 16 * 1024;
const INFO: &[u8] = b"ignis-ecdh-p256-aes-256-gcm-v1";
const HEAD: &[u8] = br#"{"event":"encrypted","data":{"iv":""#;
const MIDDLE: &[u8] = br#"","ct":""#;
const TAIL: &[u8] = br#""}}"#;

/// The client's key is not a point of P-256 in raw form and standard base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unusable public key")]
pub struct UnusableKey;

/// The frame was not sealed with this connection's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot be opened with this connection's key")]
pub struct NotOurs;

/// What `connected` sends to the client, and the cipher that both sides share.
pub struct Handshake {
    /// The server's public key, base64.
    pub public_key: String,
    /// The salt, base64.
    pub salt: String,
    /// Seals and opens.
    pub cipher: Cipher,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handshake")
    }
}

/// Agrees on a key with a client, with a fresh key pair and the given salt.
///
/// # Errors
/// [`UnusableKey`] for anything that is not a point on the curve.
pub fn handshake(
    client_key: &str,
    salt: [u8; SALT_BYTES],
    random: &SystemRandom,
) -> Result<Handshake, UnusableKey> {
    let handshake = agree(client_key, salt, random);
    scrub_stack();
    handshake
}

/// Overwrites the part of the stack that functions have used that just returned. A value that moves leaves a copy where it was, and no destructor runs there:
/// of the session key, of its expanded form, of the shared secret.
#[inline(never)]
fn scrub_stack() {
    let mut used = [0u64; SCRUBBED_BYTES / 8];
    used.zeroize();
    std::hint::black_box(&used);
}

#[inline(never)]
fn agree(
    client_key: &str,
    salt: [u8; SALT_BYTES],
    random: &SystemRandom,
) -> Result<Handshake, UnusableKey> {
    let point = uncompressed(BASE64.decode_to_vec(client_key).map_err(|_| UnusableKey)?)?;
    let private = EphemeralPrivateKey::generate(&ECDH_P256, random).map_err(|_| UnusableKey)?;
    let public = private.compute_public_key().map_err(|_| UnusableKey)?;
    let mut key = Zeroizing::new([0u8; 32]);
    agree_ephemeral(
        private,
        &UnparsedPublicKey::new(&ECDH_P256, &point),
        |shared| derive(shared, &salt, &mut key),
    )
    .map_err(|_| UnusableKey)?;
    Ok(Handshake {
        public_key: BASE64.encode_to_string(public.as_ref()),
        salt: BASE64.encode_to_string(salt),
        cipher: Cipher::new(&key),
    })
}

/// Returns the uncompressed form of a point, the only one that ring takes. The first byte marks the form (SEC 1 section 2.3.3).
fn uncompressed(point: Vec<u8>) -> Result<Vec<u8>, UnusableKey> {
    match (point.len(), point.first()) {
        (POINT_BYTES, Some(4)) => Ok(point),
        (COMPRESSED_BYTES, Some(2 | 3)) => {
            let key = p256::PublicKey::from_sec1_bytes(&point).map_err(|_| UnusableKey)?;
            Ok(key.to_sec1_point(false).as_bytes().to_vec())
        }
        _ => Err(UnusableKey),
    }
}

/// The client's half of a handshake, for the watcher of dev mode.
pub struct Offer {
    private: EphemeralPrivateKey,
    /// The client's public key, base64.
    pub public_key: String,
}

impl Offer {
    /// Creates a fresh key pair, or returns `None` if the system has no randomness.
    pub fn new(random: &SystemRandom) -> Option<Self> {
        let private = EphemeralPrivateKey::generate(&ECDH_P256, random).ok()?;
        let public_key = BASE64.encode_to_string(private.compute_public_key().ok()?.as_ref());
        Some(Self {
            private,
            public_key,
        })
    }

    /// Completes the handshake with the key and the salt of `connected`.
    ///
    /// # Errors
    /// [`UnusableKey`] for a key that is not a point on the curve, or a salt that is not base64.
    pub fn accept(self, server_key: &str, salt: &str) -> Result<Cipher, UnusableKey> {
        let cipher = self.agree(server_key, salt);
        scrub_stack();
        cipher
    }

    #[inline(never)]
    fn agree(self, server_key: &str, salt: &str) -> Result<Cipher, UnusableKey> {
        let point = BASE64.decode_to_vec(server_key).map_err(|_| UnusableKey)?;
        let salt = BASE64.decode_to_vec(salt).map_err(|_| UnusableKey)?;
        let mut key = Zeroizing::new([0u8; 32]);
        agree_ephemeral(
            self.private,
            &UnparsedPublicKey::new(&ECDH_P256, &point),
            |shared| derive(shared, &salt, &mut key),
        )
        .map_err(|_| UnusableKey)?;
        Ok(Cipher::new(&key))
    }
}

/// Writes the session key where it is wiped.
fn derive(shared: &[u8], salt: &[u8], key: &mut [u8; 32]) {
    Hkdf::<Sha256>::new(Some(salt), shared)
        .expand(INFO, key)
        .expect("32 bytes are within HKDF's limit");
}

/// Seals and opens for one connection. Its clones share one expanded key, which is wiped when the last of them is dropped.
#[derive(Clone)]
pub struct Cipher {
    key: Arc<WipedKey>,
}

/// The expanded key of a [`Cipher`].
struct WipedKey(MaybeUninit<LessSafeKey>);

impl Cipher {
    /// Expands the key once.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key");
        Self {
            key: Arc::new(WipedKey(MaybeUninit::new(LessSafeKey::new(key)))),
        }
    }

    #[expect(
        unsafe_code,
        reason = "the key is initialized by `new` and wiped only by `drop`"
    )]
    fn key(&self) -> &LessSafeKey {
        // SAFETY: `new` wrote it, and nothing takes it out before `drop`.
        unsafe { self.key.0.assume_init_ref() }
    }

    /// Returns what says whether a clone is left.
    #[cfg(test)]
    pub fn watch(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.key)
    }

    /// Returns the length of the key in bytes: whoever is about to seal has it fetched from memory with this.
    pub fn key_length(&self) -> usize {
        self.key().algorithm().key_len()
    }

    /// Seals an envelope and appends a whole `encrypted` text frame to `out`. `iv` must be random and used once with this key; `scratch` is
    /// overwritten.
    pub fn seal(
        &self,
        envelope: &[u8],
        iv: [u8; IV_BYTES],
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        self.seal_written(|text| text.extend_from_slice(envelope), iv, scratch, out);
    }

    /// Seals the envelope that `write` appends, as [`Cipher::seal`] does.
    pub fn seal_written(
        &self,
        write: impl FnOnce(&mut Vec<u8>),
        iv: [u8; IV_BYTES],
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        scratch.clear();
        write(scratch);
        let tag = self
            .key()
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), scratch)
            .expect("an envelope is shorter than AES-GCM's limit of 64 GiB");
        scratch.extend_from_slice(tag.as_ref());
        let iv_chars = BASE64.encoded_length(IV_BYTES);
        let ct_chars = BASE64.encoded_length(scratch.len());
        let length = HEAD.len() + iv_chars + MIDDLE.len() + ct_chars + TAIL.len();
        out.reserve(header_length(length) + length);
        out.extend_from_slice(&header(Opcode::Text, length));
        out.extend_from_slice(HEAD);
        BASE64.encode_append(iv, out);
        out.extend_from_slice(MIDDLE);
        BASE64.encode_append(&scratch[..], out);
        out.extend_from_slice(TAIL);
    }

    /// Opens the data of an `encrypted` event into the inner envelope's text.
    ///
    /// # Errors
    /// [`NotOurs`] for bad base64, a wrong IV length, a failed tag, or text that is not UTF-8.
    pub fn open(&self, sealed: &Encrypted<'_>) -> Result<String, NotOurs> {
        let iv: [u8; IV_BYTES] = BASE64
            .decode_to_vec(sealed.iv.as_bytes())
            .ok()
            .and_then(|iv| iv.try_into().ok())
            .ok_or(NotOurs)?;
        let mut text = BASE64
            .decode_to_vec(sealed.ct.as_bytes())
            .map_err(|_| NotOurs)?;
        let length = self
            .key()
            .open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut text)
            .map_err(|_| NotOurs)?
            .len();
        text.truncate(length);
        String::from_utf8(text).map_err(|_| NotOurs)
    }

    /// Returns the length of the frame for an envelope of `length` bytes, header included.
    pub fn sealed_length(length: usize) -> usize {
        let payload = HEAD.len()
            + BASE64.encoded_length(IV_BYTES)
            + MIDDLE.len()
            + BASE64.encoded_length(length + TAG_BYTES)
            + TAIL.len();
        header_length(payload) + payload
    }
}

impl Drop for WipedKey {
    #[expect(unsafe_code, reason = "ring does not wipe its keys, so this does")]
    fn drop(&mut self) {
        const {
            assert!(
                !std::mem::needs_drop::<LessSafeKey>(),
                "wiping would break a destructor"
            )
        };
        // SAFETY: the key is owned, `LessSafeKey` has no destructor, and nothing reads it afterwards: a `MaybeUninit` may hold any bytes.
        unsafe { zeroize::zeroize_flat_type(std::ptr::from_mut(&mut self.0)) }
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Envelope;
    use aes_gcm::aead::{Aead, KeyInit};
    use p256::elliptic_curve::sec1::ToSec1Point;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    fn seal(cipher: &Cipher, envelope: &[u8], iv: [u8; 12]) -> Vec<u8> {
        let mut out = Vec::new();
        cipher.seal(envelope, iv, &mut Vec::new(), &mut out);
        out
    }

    fn payload(frame: &[u8]) -> &str {
        let header = match frame[1] {
            0..=125 => 2,
            126 => 4,
            _ => 10,
        };
        std::str::from_utf8(&frame[header..]).unwrap()
    }

    /// McGrew and Viega, "The Galois/Counter Mode of Operation", test case 14, without additional data.
    /// protocol.md 6.4 and 6.10.
    #[test]
    fn sealing_gives_the_published_gcm_vector() {
        let frame = seal(&Cipher::new(&[0; 32]), &[0; 16], [0; 12]);
        let envelope = Envelope::parse(payload(&frame)).unwrap();
        let sealed: Encrypted<'_> = envelope.read().unwrap();
        let expected = hex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919");
        assert_eq!(
            BASE64.decode_to_vec(sealed.ct.as_bytes()).unwrap(),
            expected
        );
        assert_eq!(frame.len(), Cipher::sealed_length(16));
    }

    /// RFC 5903 section 8.1: the shared secret of two P-256 keys is the x coordinate alone.
    /// protocol.md 6.3 and 6.10.
    #[test]
    fn agreement_gives_the_published_ecdh_vector() {
        let i = p256::SecretKey::from_slice(&hex(
            "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
        ))
        .unwrap();
        let r = p256::PublicKey::from_sec1_bytes(&hex(
            "04D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF6356FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB",
        ))
        .unwrap();
        let shared = p256::ecdh::diffie_hellman(i.to_nonzero_scalar(), r.as_affine());
        assert_eq!(
            &shared.raw_secret_bytes()[..],
            hex("D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE")
        );
    }

    /// RFC 5869 appendix A.1.
    /// protocol.md 6.3 and 6.10.
    #[test]
    fn derivation_gives_the_published_hkdf_vector() {
        let mut okm = [0u8; 42];
        Hkdf::<Sha256>::new(Some(&hex("000102030405060708090a0b0c")), &[0x0b; 22])
            .expand(&hex("f0f1f2f3f4f5f6f7f8f9"), &mut okm)
            .unwrap();
        assert_eq!(
            okm.to_vec(),
            hex(
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
            )
        );
    }

    /// protocol.md 6.2, 6.3 and 6.4.
    #[test]
    fn an_independent_client_derives_the_same_key_and_opens_what_is_sealed() {
        let client = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let point = client.public_key().to_sec1_point(false);
        let shake = handshake(
            &BASE64.encode_to_string(point.as_bytes()),
            [3; 32],
            &SystemRandom::new(),
        )
        .unwrap();
        let server =
            p256::PublicKey::from_sec1_bytes(&BASE64.decode_to_vec(&shake.public_key).unwrap())
                .unwrap();
        let shared = p256::ecdh::diffie_hellman(client.to_nonzero_scalar(), server.as_affine());
        let mut key = [0u8; 32];
        Hkdf::<Sha256>::new(Some(&[3; 32]), shared.raw_secret_bytes())
            .expand(INFO, &mut key)
            .unwrap();
        for length in [0, 1, 100, 126, 5000, 70_000] {
            let text = "x".repeat(length);
            let frame = seal(&shake.cipher, text.as_bytes(), [9; 12]);
            assert_eq!(frame.len(), Cipher::sealed_length(length));
            let envelope = Envelope::parse(payload(&frame)).unwrap();
            assert_eq!(envelope.event, crate::protocol::event::name::ENCRYPTED);
            let sealed: Encrypted<'_> = envelope.read().unwrap();
            let gcm = aes_gcm::Aes256Gcm::new_from_slice(&key).unwrap();
            let opened = gcm
                .decrypt(
                    &[9u8; 12].into(),
                    &*BASE64.decode_to_vec(sealed.ct.as_bytes()).unwrap(),
                )
                .unwrap();
            assert_eq!(opened, text.as_bytes());
            assert_eq!(shake.cipher.open(&sealed).unwrap(), text);
        }
    }

    /// protocol.md 6.10: the whole way from two private keys to a sealed message.
    #[test]
    fn the_whole_way_gives_the_vector_of_the_page() {
        let page = include_str!("../../../docs/protocol.md");
        let value = |what: &str| {
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| {what} | `")))
                .unwrap_or_else(|| panic!("the page has no {what}"));
            row.split('`').nth(row.matches('`').count() - 1).unwrap()
        };
        let point = |key: &p256::SecretKey| {
            BASE64.encode_to_string(key.public_key().to_sec1_point(false).as_bytes())
        };
        let client = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let server = p256::SecretKey::from_slice(&[5; 32]).unwrap();
        assert_eq!(point(&client), value("`clientPublicKey`"));
        assert_eq!(point(&server), value("`serverPublicKey`"));
        let shared =
            p256::ecdh::diffie_hellman(server.to_nonzero_scalar(), client.public_key().as_affine());
        assert_eq!(shared.raw_secret_bytes()[..], hex(value("shared secret")));
        let salt = BASE64.decode_to_vec(value("`salt`")).unwrap();
        let mut key = [0; 32];
        derive(shared.raw_secret_bytes(), &salt, &mut key);
        assert_eq!(key[..], hex(value("session key")));
        let frame = seal(&Cipher::new(&key), value("plaintext").as_bytes(), [9; 12]);
        let envelope = Envelope::parse(payload(&frame)).unwrap();
        let sealed: Encrypted<'_> = envelope.read().unwrap();
        assert_eq!((&*sealed.iv, &*sealed.ct), (value("`iv`"), value("`ct`")));
    }

    #[test]
    fn both_halves_of_a_handshake_share_a_key() {
        let random = SystemRandom::new();
        let offer = Offer::new(&random).unwrap();
        let shake = handshake(&offer.public_key, [3; 32], &random).unwrap();
        let client = offer.accept(&shake.public_key, &shake.salt).unwrap();
        let frame = seal(&shake.cipher, b"{}", [9; 12]);
        let envelope = Envelope::parse(payload(&frame)).unwrap();
        assert_eq!(client.open(&envelope.read().unwrap()).unwrap(), "{}");
        assert!(
            Offer::new(&random)
                .unwrap()
                .accept(&BASE64.encode_to_string([4u8; 65]), &shake.salt)
                .is_err()
        );
    }

    /// protocol.md 6.1.
    #[test]
    fn a_compressed_key_is_the_same_key() {
        // The last bit of y tells two points apart: secrets with either.
        for secret in [5, 6, 7, 8, 9] {
            let client = p256::SecretKey::from_slice(&[secret; 32]).unwrap();
            let point = client.public_key().to_sec1_point(true);
            let key = BASE64.encode_to_string(point.as_bytes());
            let shake = handshake(&key, [3; 32], &SystemRandom::new()).unwrap();
            let server = BASE64.decode_to_vec(&shake.public_key).unwrap();
            assert_eq!((server.len(), server[0]), (POINT_BYTES, 4));
            let server = p256::PublicKey::from_sec1_bytes(&server).unwrap();
            let shared = p256::ecdh::diffie_hellman(client.to_nonzero_scalar(), server.as_affine());
            let mut key = [0; 32];
            derive(shared.raw_secret_bytes(), &[3; 32], &mut key);
            let ours = Cipher::new(&key);
            let frame = seal(&shake.cipher, b"{}", [9; 12]);
            let envelope = Envelope::parse(payload(&frame)).unwrap();
            assert_eq!(ours.open(&envelope.read().unwrap()).unwrap(), "{}");
        }
    }

    /// protocol.md 6.1.
    #[test]
    fn keys_that_are_no_point_are_unusable() {
        let good = p256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
        let mut other_form = good.to_sec1_point(false).as_bytes().to_vec();
        other_form[0] = 6;
        let no_x: Vec<u8> = std::iter::once(2).chain([0xff; 32]).collect();
        let mut off_curve = good.to_sec1_point(false).as_bytes().to_vec();
        off_curve[64] ^= 1;
        let bad = [
            String::new(),
            "!".into(),
            BASE64.encode_to_string(other_form),
            BASE64.encode_to_string(no_x),
            BASE64.encode_to_string([4u8; 33]),
            BASE64.encode_to_string([4u8; 65]),
            BASE64.encode_to_string(off_curve),
        ];
        for key in bad {
            assert!(
                handshake(&key, [0; 32], &SystemRandom::new()).is_err(),
                "{key}"
            );
        }
    }

    /// protocol.md 6.9.
    #[test]
    fn a_changed_frame_does_not_open() {
        let cipher = Cipher::new(&[1; 32]);
        let other = Cipher::new(&[2; 32]);
        let frame = seal(&cipher, b"{\"event\":\"x\"}", [5; 12]);
        let envelope = Envelope::parse(payload(&frame)).unwrap();
        let sealed: Encrypted<'_> = envelope.read().unwrap();
        assert!(cipher.open(&sealed).is_ok());
        assert_eq!(other.open(&sealed), Err(NotOurs));
        for (iv, ct) in [
            ("", &*sealed.ct),
            ("AAAA", &*sealed.ct),
            (&*sealed.iv, "AAAA"),
            (&*sealed.iv, "not base64"),
        ] {
            assert_eq!(
                cipher.open(&Encrypted {
                    iv: iv.into(),
                    ct: ct.into()
                }),
                Err(NotOurs)
            );
        }
    }
}
