//! The signatures of tokens: ring beneath `jsonwebtoken`.
//!
//! Input: what `jsonwebtoken` hands its provider, which is a key, the signed text and the signature. Output: whether they belong together. No key of
//! this module signs anything.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes `jsonwebtoken` verify with ring, in the whole process. Calling it again changes nothing.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        key: key.kind().clone(),
    }))
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verified = match &self.key {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                rsa(self.algorithm).is_some_and(|rsa| {
                    RsaPublicKeyComponents { n, e }
                        .verify(rsa, message, signature)
                        .is_ok()
                })
            }
            DecodingKeyKind::SecretOrDer(key) => self.verify_on_curve(key, message, signature),
        };
        verified.then_some(()).ok_or_else(Error::new)
    }
}

impl RingVerifier {
    /// Verifies with the key of a curve. Behind the key there may be the header that was signed in place of the message's ([`signed_under`]).
    fn verify_on_curve(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let Some((algorithm, length)) = curve(self.algorithm) else {
            return false;
        };
        let Some((key, header)) = key.split_at_checked(length) else {
            return false;
        };
        let key = UnparsedPublicKey::new(algorithm, key);
        if header.is_empty() {
            return key.verify(message, signature).is_ok();
        }
        let payload = memchr::memchr(b'.', message).map(|dot| &message[dot..]);
        payload.is_some_and(|payload| key.verify(&[header, payload].concat(), signature).is_ok())
    }
}

/// Returns the key of a curve for a token whose header is not the one that was signed.
///
/// `jsonwebtoken` does not know the names of RFC 9864 and refuses a header that has one. Such a token is given to it under the same algorithm's older
/// name, and with this key the signature is verified over the header as the issuer wrote it. `None` for RSA, which has no such names.
pub(super) fn signed_under(key: &DecodingKey, header: &str) -> Option<DecodingKey> {
    let both = [key.try_get_as_bytes().ok()?, header.as_bytes()].concat();
    Some(match key.family() {
        jsonwebtoken::AlgorithmFamily::Ec => DecodingKey::from_ec_der(&both),
        jsonwebtoken::AlgorithmFamily::Ed => DecodingKey::from_ed_der(&both),
        _ => return None,
    })
}

/// Returns how ring verifies an algorithm on a curve, and how long its public keys are: an uncompressed point, or an Ed25519 key.
fn curve(algorithm: Algorithm) -> Option<(&'static dyn VerificationAlgorithm, usize)> {
    match algorithm {
        Algorithm::ES256 => Some((&signature::ECDSA_P256_SHA256_FIXED, 65)),
        Algorithm::ES384 => Some((&signature::ECDSA_P384_SHA384_FIXED, 97)),
        Algorithm::EdDSA => Some((&signature::ED25519, 32)),
        _ => None,
    }
}

fn rsa(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        Algorithm::RS256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        _ => None,
    }
}
