//! The key set that this gateway serves at `/.well-known/jwks.json` (authorization.md 2.10): public keys and never anything else.
//!
//! Input: the text of the mounted file. Output: the document that is served, built from those members that are public by their specification
//! (RFC 7517 section 4, RFC 7518 section 6, RFC 8037), or what is wrong with the file. An error names a key only by its index.

use ring::digest;
use serde_json::{Map, Value};
use signal_contract::JwksFileReport;

use super::jwk::{MAX_KEYS, MAX_KID};

/// Members that describe a key and are public for every type: strings and lists of strings.
const OF_EVERY_TYPE: [&str; 8] = [
    "kty", "use", "key_ops", "alg", "kid", "x5c", "x5t", "x5t#S256",
];
/// Members that hold secrets: RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1, and `priv` of later types.
const SECRET: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// Why a file is not served. Nothing of the key is in the message but its index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPublic {
    /// The file is not JSON.
    #[error("it is not JSON: line {line}, column {column}")]
    Json {
        /// From 1.
        line: usize,
        /// From 0.
        column: usize,
    },
    /// The file is JSON, but not a key set.
    #[error("it is not a JWK Set: an object whose `keys` is a list of objects")]
    Shape,
    /// The file has more keys than a key set may have.
    #[error("it holds {0} keys, more than {MAX_KEYS}")]
    TooMany(usize),
    /// A key has a secret member: it is compromised.
    #[error(
        "keys[{at}] holds the secret member `{member}`: nothing of this file is served; replace the key"
    )]
    Secret {
        /// The key's index, from 0.
        at: usize,
        /// The member's name.
        member: &'static str,
    },
    /// A key is symmetric, so all of it is secret.
    #[error("keys[{at}] is symmetric: nothing of this file is served; replace the key")]
    Symmetric {
        /// The key's index, from 0.
        at: usize,
    },
    /// A key is not EC, RSA or OKP, or lacks a member that these need.
    #[error("keys[{at}] is not a public key of type EC, RSA or OKP with a kid: {reason}")]
    Key {
        /// The key's index, from 0.
        at: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// The key set that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedKeys {
    /// The revision of the file's text, as [`crate::files::revision_of`] makes it.
    pub revision: String,
    /// The `kid` of each key, in the file's order.
    pub keys: Vec<String>,
    /// The document.
    pub body: String,
    /// Its entity tag (RFC 9110 section 8.8.3), quotes included.
    pub etag: String,
}

impl PublishedKeys {
    /// Returns what `/status` reports of this key set.
    pub fn report(&self) -> JwksFileReport {
        JwksFileReport {
            revision: self.revision.clone(),
            keys: self.keys.clone(),
        }
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// The first fault of the file; secrets come before all others.
    pub fn read(text: &str) -> Result<Self, NotPublic> {
        let document: Value = serde_json::from_str(text).map_err(|error| NotPublic::Json {
            line: error.line(),
            column: error.column(),
        })?;
        let keys = document
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(NotPublic::Shape)?;
        let keys: Vec<&Map<String, Value>> = keys
            .iter()
            .map(Value::as_object)
            .collect::<Option<_>>()
            .ok_or(NotPublic::Shape)?;
        for (at, key) in keys.iter().enumerate() {
            refuse_secrets(at, key)?;
        }
        if keys.len() > MAX_KEYS {
            return Err(NotPublic::TooMany(keys.len()));
        }
        let public = keys
            .iter()
            .enumerate()
            .map(|(at, key)| public(at, key))
            .collect::<Result<Vec<_>, _>>()?;
        let names = public
            .iter()
            .filter_map(|key| key["kid"].as_str().map(str::to_owned))
            .collect();
        let body = serde_json::json!({ "keys": public }).to_string();
        let hash = digest::digest(&digest::SHA256, body.as_bytes());
        let etag = format!(
            "\"{}\"",
            base64_simd::URL_SAFE_NO_PAD.encode_to_string(&hash.as_ref()[..16])
        );
        Ok(Self {
            revision: crate::files::revision_of(text),
            keys: names,
            body,
            etag,
        })
    }
}

fn refuse_secrets(at: usize, key: &Map<String, Value>) -> Result<(), NotPublic> {
    if key
        .get("kty")
        .and_then(Value::as_str)
        .is_some_and(|kty| kty.eq_ignore_ascii_case("oct"))
    {
        return Err(NotPublic::Symmetric { at });
    }
    match SECRET.into_iter().find(|member| key.contains_key(*member)) {
        Some(member) => Err(NotPublic::Secret { at, member }),
        None => Ok(()),
    }
}

/// Returns the key with only its public members.
fn public(at: usize, key: &Map<String, Value>) -> Result<Value, NotPublic> {
    let wrong = |reason| NotPublic::Key { at, reason };
    let needed: &[&str] = match key.get("kty").and_then(Value::as_str) {
        Some("EC") => &["crv", "x", "y"],
        Some("OKP") => &["crv", "x"],
        Some("RSA") => &["n", "e"],
        _ => return Err(wrong("its kty is not one of these")),
    };
    let has = |member: &str| {
        key.get(member)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    if !needed.iter().all(|member| has(member)) {
        return Err(wrong("a required member is missing"));
    }
    if !has("kid") || key["kid"].as_str().is_none_or(|kid| kid.len() > MAX_KID) {
        return Err(wrong("its kid is missing or too long"));
    }
    let is_text = |value: &Value| {
        value.is_string()
            || value
                .as_array()
                .is_some_and(|list| list.iter().all(Value::is_string))
    };
    let kept = key.iter().filter(|(name, _)| {
        OF_EVERY_TYPE.contains(&name.as_str()) || needed.contains(&name.as_str())
    });
    let kept: Map<String, Value> = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if kept.values().all(is_text) {
        Ok(Value::Object(kept))
    } else {
        Err(wrong("a member is neither a string nor a list of strings"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ec() -> Value {
        json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
               "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0", "kid": "ec-1", "use": "sig", "alg": "ES256"})
    }

    fn with(mut key: Value, member: &str, value: Value) -> Value {
        key[member] = value;
        key
    }

    fn read(keys: &[Value]) -> Result<PublishedKeys, NotPublic> {
        PublishedKeys::read(&json!({ "keys": keys }).to_string())
    }

    /// authorization.md 2.10.
    #[test]
    fn keys_are_served_with_their_public_members_only() {
        let rsa = json!({"kty": "RSA", "kid": "rsa-1", "n": "AQAB", "e": "AQAB", "key_ops": ["verify"], "x5c": ["MII"], "note": "for us", "iat": 1});
        let okp = json!({"kty": "OKP", "kid": "ed-1", "crv": "Ed25519", "x": "11qY"});
        let set = json!({"keys": [ec(), rsa, okp], "owner": "platform"}).to_string();
        let published = PublishedKeys::read(&set).unwrap();
        assert_eq!(published.keys, ["ec-1", "rsa-1", "ed-1"]);
        assert_eq!(published.revision, crate::files::revision_of(&set));
        let body: Value = serde_json::from_str(&published.body).unwrap();
        let rsa = json!({"kty": "RSA", "kid": "rsa-1", "n": "AQAB", "e": "AQAB", "key_ops": ["verify"], "x5c": ["MII"]});
        assert_eq!(
            body,
            json!({"keys": [ec(), rsa, {"kty": "OKP", "kid": "ed-1", "crv": "Ed25519", "x": "11qY"}]})
        );
        assert!(
            published.etag.starts_with('"')
                && published.etag.ends_with('"')
                && published.etag.len() == 24
        );
        assert_ne!(read(&[ec()]).unwrap().etag, published.etag);
        assert_eq!(read(&[]).unwrap().body, r#"{"keys":[]}"#);
    }

    /// authorization.md 2.10.
    #[test]
    fn a_secret_member_or_a_symmetric_key_blocks_the_whole_file() {
        for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"] {
            for value in [json!("hunter2"), json!([{"r": "hunter2"}]), Value::Null] {
                let error = read(&[ec(), with(ec(), member, value)]).unwrap_err();
                assert!(
                    matches!(error, NotPublic::Secret { at: 1, member: found } if found == member),
                    "{error}"
                );
                assert!(!error.to_string().contains("hunter2"));
            }
        }
        for kty in ["oct", "OCT"] {
            assert_eq!(
                read(&[json!({"kty": kty, "kid": "s"}), ec()]).unwrap_err(),
                NotPublic::Symmetric { at: 0 }
            );
        }
        let many = [vec![ec(); MAX_KEYS], vec![with(ec(), "d", json!("x"))]].concat();
        assert!(
            matches!(read(&many).unwrap_err(), NotPublic::Secret { .. }),
            "a secret is reported first"
        );
    }

    #[test]
    fn a_text_that_is_no_key_set_is_refused_without_repeating_it() {
        for text in [
            "",
            "hunter2",
            "{\"keys\": [\"hunter2\"",
            "[]",
            "{}",
            r#"{"keys": "hunter2"}"#,
            r#"{"keys": ["hunter2"]}"#,
        ] {
            let error = PublishedKeys::read(text).unwrap_err();
            assert!(
                matches!(error, NotPublic::Json { .. } | NotPublic::Shape),
                "{text}"
            );
            assert!(!error.to_string().contains("hunter2"));
        }
        assert_eq!(
            read(&vec![ec(); MAX_KEYS + 1]).unwrap_err(),
            NotPublic::TooMany(MAX_KEYS + 1)
        );
        let without = |member: &str| {
            let mut key = ec();
            key.as_object_mut().unwrap().remove(member);
            key
        };
        let wrong = [
            without("kid"),
            without("y"),
            without("kty"),
            with(ec(), "kid", json!("k".repeat(MAX_KID + 1))),
            with(ec(), "kty", json!("AKP")),
            with(ec(), "x", json!(5)),
            with(ec(), "use", json!({"d": "hunter2"})),
        ];
        for key in wrong {
            assert!(matches!(
                read(&[ec(), key]).unwrap_err(),
                NotPublic::Key { at: 1, .. }
            ));
        }
    }
}
