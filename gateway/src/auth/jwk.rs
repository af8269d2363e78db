//! JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037).
//!
//! Input: the text of a key set, as [`super::key_set`] fetched it. Output: those public keys in it that can verify a signature of a supported
//! algorithm; private, symmetric, encryption and unknown keys are left out (authorization.md 2.4). No IO.
//!
//! `jsonwebtoken` reads key sets too, but not with these rules: it takes private keys for public ones, refuses a whole set for one key that it does not
//! understand, and does not look whether a point lies on its curve. So keys are read here, and handed to it as [`DecodingKey`]s.

use std::sync::Arc;

use base64_simd::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use ring::{agreement, digest, rand};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use signal_contract::Object;

use super::signature;
use crate::config::Algorithm;
use crate::principal::Thumbprint;

/// Most keys of one set; a longer set is refused as a whole, because a part of it would be an arbitrary choice.
pub(super) const MAX_KEYS: usize = 64;
/// Longest `kid` in bytes.
pub(super) const MAX_KID: usize = 256;
/// RSA moduli in bytes: 2048 to 8192 bits, which is what ring verifies and RFC 7518 section 3.3 demands at least.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// Why a text is not a key set.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAKeySet {
    #[error("it is not a JWK Set: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is not a JWK Set: it has no list `keys`")]
    NoList,
    #[error("it holds {0} keys, more than {MAX_KEYS}")]
    TooMany(usize),
}

/// A public key that verifies signatures.
#[derive(Debug)]
pub(super) struct Key {
    /// `kid`, if it has one.
    pub(super) kid: Option<Arc<str>>,
    /// Its `kid`, or its thumbprint in base64url if it has none.
    pub(super) name: Arc<str>,
    /// RFC 7638.
    pub(super) thumbprint: Arc<Thumbprint>,
    /// What it may verify: its `alg`, or every algorithm of its type and curve if it names none.
    pub(super) algorithms: &'static [Algorithm],
    /// The key as `jsonwebtoken` takes it: an uncompressed point, an Ed25519 key, or modulus and exponent.
    pub(super) decoding: DecodingKey,
}

/// A set whose keys are read one by one, so that a text or a number that cannot be read costs the key that it stands in.
#[derive(Deserialize)]
struct Document<'t> {
    #[serde(borrow)]
    keys: Option<&'t RawValue>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<IgnoredAny>,
}

/// Reads a key set. Keys in it that cannot verify a signature are left out, each by itself (RFC 7517 section 5).
///
/// # Errors
/// [`NotAKeySet`] for a text that is not a JSON object with an array `keys`, or for one with more than [`MAX_KEYS`] members.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Arc<Key>>, NotAKeySet> {
    let Object(document): Object<Document<'_>> = serde_json::from_slice(text)?;
    let keys = document.keys.map(RawValue::get).unwrap_or_default();
    let keys: Vec<&RawValue> = serde_json::from_str(keys).map_err(|_| NotAKeySet::NoList)?;
    if keys.len() > MAX_KEYS {
        return Err(NotAKeySet::TooMany(keys.len()));
    }
    Ok(keys
        .into_iter()
        .filter_map(|key| serde_json::from_str::<Object<Jwk>>(key.get()).ok())
        .filter_map(|Object(jwk)| Key::new(jwk))
        .map(Arc::new)
        .collect())
}

impl Key {
    fn new(jwk: Jwk) -> Option<Self> {
        let for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
            && jwk
                .key_ops
                .as_ref()
                .is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let private = jwk.d.is_some();
        let named = jwk
            .kid
            .as_ref()
            .is_none_or(|kid| !kid.is_empty() && kid.len() <= MAX_KID);
        if !for_signatures || private || !named {
            return None;
        }
        let (able, decoding, canonical) = read(&jwk)?;
        let algorithms = match &jwk.alg {
            None => able,
            Some(alg) => {
                let named = Algorithm::named(alg)?;
                let at = able.iter().position(|a| *a == named)?;
                &able[at..=at]
            }
        };
        let thumbprint: Thumbprint = digest::digest(&digest::SHA256, canonical.as_bytes())
            .as_ref()
            .try_into()
            .expect("SHA-256 has 32 bytes");
        let kid: Option<Arc<str>> = jwk.kid.map(Arc::from);
        let name = kid
            .clone()
            .unwrap_or_else(|| URL_SAFE_NO_PAD.encode_to_string(thumbprint).into());
        Some(Self {
            kid,
            name,
            thumbprint: Arc::new(thumbprint),
            algorithms,
            decoding,
        })
    }

    /// Returns this key for a token whose header, in the form in which it was signed, is not the one that `jsonwebtoken` is given.
    pub(super) fn signed_under(&self, header: &str) -> Option<DecodingKey> {
        signature::signed_under(&self.decoding, header)
    }

    /// Returns whether `signature` is this key's signature of `message` by `algorithm`, which must be one of [`Key::algorithms`].
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        signature::install();
        let signature = URL_SAFE_NO_PAD.encode_to_string(signature);
        self.algorithms.contains(&algorithm)
            && jsonwebtoken::crypto::verify(&signature, message, &self.decoding, library(algorithm))
                .unwrap_or(false)
    }
}

/// Returns the algorithm as `jsonwebtoken` names it.
pub(super) fn library(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    use jsonwebtoken::Algorithm as Library;
    match algorithm {
        Algorithm::ES256 => Library::ES256,
        Algorithm::ES384 => Library::ES384,
        Algorithm::RS256 => Library::RS256,
        Algorithm::RS384 => Library::RS384,
        Algorithm::RS512 => Library::RS512,
        Algorithm::PS256 => Library::PS256,
        Algorithm::PS384 => Library::PS384,
        Algorithm::PS512 => Library::PS512,
        Algorithm::EdDSA => Library::EdDSA,
    }
}

/// Returns the algorithms that the key can verify, the key, and its canonical JSON for the thumbprint (RFC 7638 section 3.2).
fn read(jwk: &Jwk) -> Option<(&'static [Algorithm], DecodingKey, String)> {
    const RSA: &[Algorithm] = &[
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ];
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("EC", Some("P-256")) => {
            let point = point(jwk, 32, &agreement::ECDH_P256)?;
            Some((
                &[Algorithm::ES256],
                DecodingKey::from_ec_der(&point),
                canonical_curve(jwk, "EC", "P-256")?,
            ))
        }
        ("EC", Some("P-384")) => {
            let point = point(jwk, 48, &agreement::ECDH_P384)?;
            Some((
                &[Algorithm::ES384],
                DecodingKey::from_ec_der(&point),
                canonical_curve(jwk, "EC", "P-384")?,
            ))
        }
        ("OKP", Some("Ed25519")) => {
            let key = decode(&jwk.x)?;
            let canonical = canonical_curve(jwk, "OKP", "Ed25519")?;
            (key.len() == 32).then(|| {
                let algorithms: &[Algorithm] = &[Algorithm::EdDSA];
                (algorithms, DecodingKey::from_ed_der(&key), canonical)
            })
        }
        ("RSA", _) => {
            let (n, e) = (
                without_zeros(decode(&jwk.n)?),
                without_zeros(decode(&jwk.e)?),
            );
            let canonical = format!(
                r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
                URL_SAFE_NO_PAD.encode_to_string(&e),
                URL_SAFE_NO_PAD.encode_to_string(&n)
            );
            (RSA_MODULUS.contains(&n.len()) && (1..=5).contains(&e.len())).then(|| {
                let key = DecodingKey::from_rsa_raw_components(&n, &e);
                (RSA, key, canonical)
            })
        }
        _ => None,
    }
}

fn canonical_curve(jwk: &Jwk, kty: &str, crv: &str) -> Option<String> {
    let x = jwk.x.as_deref()?;
    // Both were decoded before, so they are base64url and need no escaping.
    Some(match jwk.y.as_deref().filter(|_| kty == "EC") {
        Some(y) => format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}","y":"{y}"}}"#),
        None => format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}"}}"#),
    })
}

/// Returns the uncompressed point if it lies on its curve.
fn point(jwk: &Jwk, coordinate: usize, curve: &'static agreement::Algorithm) -> Option<Vec<u8>> {
    let (x, y) = (decode(&jwk.x)?, decode(&jwk.y)?);
    if x.len() != coordinate || y.len() != coordinate {
        return None;
    }
    let point = [&[4], x.as_slice(), y.as_slice()].concat();
    let probe = agreement::EphemeralPrivateKey::generate(curve, &rand::SystemRandom::new()).ok()?;
    agreement::agree_ephemeral(
        probe,
        &agreement::UnparsedPublicKey::new(curve, &point),
        |_| (),
    )
    .ok()?;
    Some(point)
}

fn decode(text: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD
        .decode_to_vec(text.as_ref()?.as_bytes())
        .ok()
}

fn without_zeros(bytes: Vec<u8>) -> Vec<u8> {
    bytes
        .iter()
        .position(|b| *b != 0)
        .map_or_else(Vec::new, |at| bytes[at..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

    fn p256() -> Value {
        json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"})
    }

    fn ed25519() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn set(keys: &[Value]) -> Vec<Arc<Key>> {
        parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
    }

    fn verifies(key: &Value, algorithm: Algorithm, message: &str, signature: &str) -> bool {
        let keys = set(std::slice::from_ref(key));
        let signature = URL_SAFE_NO_PAD.decode_to_vec(signature.as_bytes()).unwrap();
        let good = keys[0].verifies(algorithm, message.as_bytes(), &signature);
        let mut bad = signature.clone();
        bad[10] ^= 1;
        assert!(!keys[0].verifies(algorithm, message.as_bytes(), &bad));
        assert!(!keys[0].verifies(algorithm, format!("{message}A").as_bytes(), &signature));
        good
    }

    /// authorization.md 2.4.
    #[test]
    fn what_cannot_be_read_costs_the_key_that_it_stands_in() {
        let good = p256().to_string();
        for (odd, keys) in [
            (r#"{"kty": "EC", "kid": "\ud83d"}"#, 1),
            (r#"{"kty": "EC", "x": 1e400}"#, 1),
            (r#"["EC"]"#, 1),
            ("null", 1),
            // Nobody needs it.
            (
                &good.replacen('{', r#"{"x5t": "\ud83d", "nbf": 1e400, "#, 1),
                2,
            ),
        ] {
            let text = format!(r#"{{"issuer": "\ud83d", "keys": [{odd}, {good}]}}"#);
            assert_eq!(parse(text.as_bytes()).unwrap().len(), keys, "{odd}");
        }
    }

    #[test]
    fn the_rs256_example_of_rfc_7515_a_2_verifies() {
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let key = json!({"kty": "RSA", "n": N, "e": "AQAB"});
        assert!(verifies(
            &key,
            Algorithm::RS256,
            &format!("eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}"),
            signature
        ));
        assert!(!verifies(
            &key,
            Algorithm::PS256,
            &format!("eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}"),
            signature
        ));
    }

    #[test]
    fn the_es256_example_of_rfc_7515_a_3_verifies() {
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        assert!(verifies(
            &p256(),
            Algorithm::ES256,
            &format!("eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}"),
            signature
        ));
    }

    #[test]
    fn the_eddsa_example_of_rfc_8037_a_4_verifies() {
        let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        assert!(verifies(
            &ed25519(),
            Algorithm::EdDSA,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            signature
        ));
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037_a_3() {
        let keys = set(&[ed25519()]);
        assert_eq!(
            &*keys[0].name,
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
        assert_eq!(keys[0].kid, None);
    }

    /// authorization.md 2.4.
    #[test]
    fn only_public_keys_of_supported_signature_algorithms_count() {
        let with = |mut key: Value, name: &str, value: Value| {
            key[name] = value;
            key
        };
        let good = [
            with(p256(), "use", json!("sig")),
            with(p256(), "key_ops", json!(["sign", "verify"])),
            with(p256(), "alg", json!("ES256")),
            with(p256(), "alg", json!("ESP256")),
            with(ed25519(), "kid", json!("k")),
            with(ed25519(), "alg", json!("EdDSA")),
            with(ed25519(), "alg", json!("Ed25519")),
        ];
        let bad = [
            with(p256(), "use", json!("enc")),
            with(p256(), "key_ops", json!(["sign"])),
            with(p256(), "alg", json!("RS256")),
            with(p256(), "alg", json!("HS256")),
            with(p256(), "alg", json!("none")),
            with(p256(), "crv", json!("P-521")),
            with(p256(), "crv", json!("secp256k1")),
            with(
                p256(),
                "d",
                json!("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"),
            ),
            with(p256(), "kid", json!("")),
            with(p256(), "kid", json!("k".repeat(MAX_KID + 1))),
            // Not on the curve.
            with(
                p256(),
                "x",
                json!("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEQ"),
            ),
            with(p256(), "x", json!("f83O")),
            with(ed25519(), "x", json!("11qY")),
            json!({"kty": "RSA", "n": &N[..300], "e": "AQAB"}),
            json!({"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}),
            json!({"kid": "no type"}),
            json!("not an object"),
            json!(["EC", null, null, null, null, "P-256"]),
            with(p256(), "alg", json!("ESP384")),
            with(ed25519(), "alg", json!("Ed448")),
        ];
        for key in good {
            assert_eq!(set(&[key.clone(), bad[0].clone()]).len(), 1, "{key}");
        }
        assert!(set(&bad).is_empty());
    }

    #[test]
    fn an_rsa_key_without_alg_may_verify_all_rsa_algorithms_and_with_one_only_that() {
        let key = json!({"kty": "RSA", "n": N, "e": "AQAB"});
        assert_eq!(set(std::slice::from_ref(&key))[0].algorithms.len(), 6);
        let mut pinned = key;
        pinned["alg"] = json!("PS384");
        assert_eq!(set(&[pinned])[0].algorithms, [Algorithm::PS384]);
    }

    #[test]
    fn a_text_that_is_no_set_or_a_set_that_is_too_long_is_refused() {
        for text in [
            "",
            "[]",
            "[[]]",
            r#"{"keys": [}"#,
            r#"{"keys": [], "keys": []}"#,
        ] {
            assert!(
                matches!(parse(text.as_bytes()), Err(NotAKeySet::Json(_))),
                "{text}"
            );
        }
        for text in ["{}", r#"{"keys": {}}"#, r#"{"keys": null}"#] {
            assert!(
                matches!(parse(text.as_bytes()), Err(NotAKeySet::NoList)),
                "{text}"
            );
        }
        let many = json!({"keys": vec![p256(); MAX_KEYS + 1]}).to_string();
        assert!(matches!(
            parse(many.as_bytes()),
            Err(NotAKeySet::TooMany(65))
        ));
    }
}
