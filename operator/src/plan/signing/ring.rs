//! The keys that the operator makes, and the Secret in which they are stored.

use std::collections::BTreeMap;
use std::fmt;

use base64_simd::URL_SAFE_NO_PAD as BASE64URL;
use chrono::{DateTime, Utc};
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use signal_contract::{Object, objects};
use signal_crds::status::{SigningKeyStage, SigningKeyStatus};

use crate::observe::bounded;
use crate::plan::record::{PublicKey, SigningRecord};
use crate::time::to_k8s;

/// Key of the Secret with every key and its stage.
pub(super) const RING_JSON: &str = "ring.json";
/// Key of the Secret with the key to sign with, PKCS#8.
pub(super) const CURRENT_PEM: &str = "current.pem";
/// Key of the Secret with what the issuer writes into header and claims.
pub(super) const CURRENT_JSON: &str = "current.json";
/// Key of the Secret with the public set.
pub(super) const JWKS_JSON: &str = "jwks.json";

/// Every key with its stage, oldest first, and the issuer and audiences of their tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRing {
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    pub(super) keys: Vec<Key>,
    /// Keys whose private parts are gone; all of stage VerifyOnly.
    pub(super) lost: Vec<PublicKey>,
    /// The value of [`crate::names::ROTATE_NOW`] that was carried out last.
    pub(super) rotated: Option<String>,
}

/// The Secret does not hold what the operator wrote; the text contains nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("{what}; {}", match ring.as_deref().and_then(KeyRing::signing) {
    Some(key) => format!("key {} continues to sign", key.kid),
    None => "no signing key could be read, another key takes over".to_owned(),
})]
pub struct Damage {
    what: String,
    /// What could be read.
    pub ring: Option<Box<KeyRing>>,
}

#[derive(Clone, PartialEq)]
pub(super) struct Key {
    pub(super) secret: SecretKey,
    pub(super) kid: String,
    /// Coordinates of the public point, base64url.
    pub(super) x: String,
    pub(super) y: String,
    pub(super) stage: SigningKeyStage,
    /// `None` if a damaged Secret lacks it; [`super::plan`] then counts from now.
    pub(super) since: Option<DateTime<Utc>>,
    /// Of VerifyOnly alone; `None` as above.
    pub(super) verify_until: Option<DateTime<Utc>>,
    /// Of Published alone: since when every ready pod serves it.
    pub(super) served_since: Option<DateTime<Utc>>,
    /// Of Published alone: a person asked for it, so it signs as soon as verifiers have it.
    pub(super) asked_for: bool,
    /// The longest life of a token that it may have signed.
    pub(super) token_life: signal_crds::Duration,
}

/// The private part is left out.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("stage", &self.stage)
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

/// One key of `ring.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    kid: String,
    /// RFC 7518, 6.2.2.1.
    pub(super) d: String,
    stage: SigningKeyStage,
    since: Option<DateTime<Utc>>,
    verify_until: Option<DateTime<Utc>>,
    #[serde(default)]
    served_since: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    asked_for: bool,
    #[serde(default)]
    token_life: signal_crds::Duration,
}

/// `ring.json`.
#[derive(Default, Serialize, Deserialize)]
struct Ring {
    keys: Vec<Value>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "objects"
    )]
    lost: Vec<PublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotated: Option<String>,
}

/// `current.json`.
#[derive(Default, Serialize, Deserialize)]
struct Current {
    kid: String,
    alg: String,
    iss: String,
    aud: Vec<String>,
}

impl Key {
    pub(super) fn new(
        secret: SecretKey,
        stage: SigningKeyStage,
        since: Option<DateTime<Utc>>,
    ) -> Self {
        let point = secret.public_key().to_sec1_point(false);
        let (x, y) = point.as_bytes()[1..].split_at(32);
        let (x, y) = (BASE64URL.encode_to_string(x), BASE64URL.encode_to_string(y));
        let kid = thumbprint(&x, &y);
        Self {
            secret,
            kid,
            x,
            y,
            stage,
            since,
            verify_until: None,
            served_since: None,
            asked_for: false,
            token_life: signal_crds::Duration::default(),
        }
    }

    pub(super) fn generate(
        random: &mut impl rand::CryptoRng,
        stage: SigningKeyStage,
        now: DateTime<Utc>,
    ) -> Self {
        loop {
            let mut bytes = [0; 32];
            random.fill_bytes(&mut bytes);
            // Zero, or not below the order of the group: one in 2^32 draws.
            if let Ok(secret) = SecretKey::from_slice(&bytes) {
                return Self::new(secret, stage, Some(now));
            }
        }
    }

    pub(super) fn entry(&self) -> Entry {
        let d = BASE64URL.encode_to_string(self.secret.to_bytes());
        let Self {
            stage,
            since,
            verify_until,
            served_since,
            asked_for,
            token_life,
            ..
        } = *self;
        Entry {
            kid: self.kid.clone(),
            d,
            stage,
            since,
            verify_until,
            served_since,
            asked_for,
            token_life,
        }
    }

    /// Without its private part; `None` until its time is known.
    fn public(&self) -> Option<PublicKey> {
        Some(PublicKey {
            kid: self.kid.clone(),
            x: self.x.clone(),
            y: self.y.clone(),
            stage: self.stage,
            since: self.since?,
            verify_until: self.verify_until,
            token_life: self.token_life,
        })
    }

    /// `None` if the entry is no key, or its `kid` is not that of the key.
    fn read(value: Value) -> Option<Self> {
        let Object(entry): Object<Entry> = serde_json::from_value(value).ok()?;
        let secret = SecretKey::from_slice(&BASE64URL.decode_to_vec(&entry.d).ok()?).ok()?;
        let Entry {
            verify_until,
            served_since,
            asked_for,
            token_life,
            ..
        } = entry;
        let key = Self {
            verify_until,
            served_since,
            asked_for,
            token_life,
            ..Self::new(secret, entry.stage, entry.since)
        };
        (key.kid == entry.kid).then_some(key)
    }

    pub(super) fn turn(
        &mut self,
        stage: SigningKeyStage,
        since: Option<DateTime<Utc>>,
        verify_until: Option<DateTime<Utc>>,
    ) {
        (self.stage, self.since, self.verify_until, self.served_since) =
            (stage, since, verify_until, None);
        self.asked_for = false;
    }
}

/// RFC 7638: SHA-256 of the members that make the key, by name and without blanks.
pub(super) fn thumbprint(x: &str, y: &str) -> String {
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    BASE64URL.encode_to_string(Sha256::digest(members.as_bytes()))
}

impl KeyRing {
    /// Reads the Secret; `None` if it is empty.
    ///
    /// # Errors
    /// When it does not hold what [`KeyRing::to_secret`] wrote. A readable signing key continues to sign, whatever else is lost.
    pub fn from_secret(data: &BTreeMap<String, Vec<u8>>) -> Result<Option<Self>, Damage> {
        if data.is_empty() {
            return Ok(None);
        }
        let (mut keys, mut rest, mut what) = read_ring(data.get(RING_JSON).map(Vec::as_slice));
        rest.lost
            .retain(|lost| keys.iter().all(|key| key.kid != lost.kid) && is_whole(lost));
        let current = data
            .get(CURRENT_PEM)
            .and_then(|pem| SecretKey::from_pkcs8_pem(std::str::from_utf8(pem).ok()?).ok());
        let signing = keys
            .iter()
            .filter(|key| key.stage == SigningKeyStage::Signing)
            .count();
        let held = current
            .as_ref()
            .map(|secret| Key::new(secret.clone(), SigningKeyStage::Signing, None).kid);
        let other = held.is_some_and(|held| {
            keys.iter()
                .any(|key| key.stage == SigningKeyStage::Signing && key.kid != held)
        });
        if signing != 1 {
            what.get_or_insert_with(|| format!("{RING_JSON} has {signing} signing keys"));
            choose_signing(&mut keys, current);
        } else if other {
            what.get_or_insert_with(|| {
                format!("{CURRENT_PEM} is not the signing key of {RING_JSON}")
            });
            choose_signing(&mut keys, current);
        }
        // Only the issuer reads it; a plan rewrites it.
        let current_json: Current = data
            .get(CURRENT_JSON)
            .and_then(|json| read_bounded(json))
            .map(|Object(current)| current)
            .unwrap_or_default();
        let ring = (!keys.is_empty() || !rest.lost.is_empty()).then_some(Self {
            issuer: current_json.iss,
            audiences: current_json.aud,
            keys,
            lost: rest.lost,
            rotated: rest.rotated,
        });
        match what {
            Some(what) => Err(Damage {
                what,
                ring: ring.map(Box::new),
            }),
            None => Ok(ring),
        }
    }

    /// Data of the Secret.
    pub fn to_secret(&self) -> BTreeMap<String, Vec<u8>> {
        let entry =
            |key: &Key| serde_json::to_value(key.entry()).expect("texts and times are plain data");
        let ring = Ring {
            keys: self.keys.iter().map(entry).collect(),
            lost: self.lost.clone(),
            rotated: self.rotated.clone(),
        };
        let mut data = BTreeMap::from([
            (
                RING_JSON.to_owned(),
                serde_json::to_vec(&ring).expect("texts and times are plain data"),
            ),
            (JWKS_JSON.to_owned(), self.jwks().into_bytes()),
        ]);
        if let Some(key) = self.signing() {
            let pem = key
                .secret
                .to_pkcs8_pem(LineEnding::LF)
                .expect("a key of a named curve has a PKCS#8 form");
            let current = Current {
                kid: key.kid.clone(),
                alg: "ES256".into(),
                iss: self.issuer.clone(),
                aud: self.audiences.clone(),
            };
            data.insert(CURRENT_PEM.to_owned(), pem.as_bytes().to_vec());
            data.insert(
                CURRENT_JSON.to_owned(),
                serde_json::to_vec(&current).expect("texts are plain data"),
            );
        }
        data
    }

    /// The public set, RFC 7517. A change of stage alone does not change it.
    pub fn jwks(&self) -> String {
        let public = |kid: &str, x: &str, y: &str| json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": "ES256", "use": "sig"});
        let keys = self.keys.iter().map(|key| public(&key.kid, &key.x, &key.y));
        let lost = self.lost.iter().map(|key| public(&key.kid, &key.x, &key.y));
        json!({"keys": keys.chain(lost).collect::<Vec<_>>()}).to_string()
    }

    /// What the record keeps of it: of keys that the Secret held, as `observed` says, and of those that are lost.
    pub fn record(&self, observed: Option<&Self>) -> SigningRecord {
        let held = |key: &&Key| observed.is_some_and(|ring| ring.has(&key.kid));
        let keys = self.keys.iter().filter(held).filter_map(Key::public);
        SigningRecord {
            keys: keys.chain(self.lost.iter().cloned()).collect(),
        }
    }

    /// Keys whose private parts are gone.
    pub fn lost(&self) -> &[PublicKey] {
        &self.lost
    }

    /// Whether it holds this key with its private part.
    fn has(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid == kid)
    }

    /// Adds keys that the record has and the Secret has not: some tokens of them may still be valid. Returns those that it did not know as lost.
    pub(super) fn recover(
        &mut self,
        recorded: &SigningRecord,
        until: impl Fn(&PublicKey) -> DateTime<Utc>,
    ) -> Vec<PublicKey> {
        let is_new = |ring: &Self, key: &PublicKey| {
            // Nothing was signed with a key that was only published.
            key.stage != SigningKeyStage::Published
                && is_whole(key)
                && !ring.has(&key.kid)
                && ring.lost.iter().all(|lost| lost.kid != key.kid)
        };
        let mut new = Vec::new();
        for key in &recorded.keys {
            if is_new(self, key) {
                let lost = PublicKey {
                    stage: SigningKeyStage::VerifyOnly,
                    verify_until: Some(key.verify_until.unwrap_or_else(|| until(key))),
                    ..key.clone()
                };
                self.lost.push(lost.clone());
                new.push(lost);
            }
        }
        new
    }

    /// As the status of the SignalCluster shows it.
    pub fn status(&self) -> Vec<SigningKeyStatus> {
        let shown = |key: &Key| SigningKeyStatus {
            kid: key.kid.clone(),
            state: key.stage,
            since: to_k8s(key.since.unwrap_or_default()),
        };
        let lost = self.lost.iter().map(|key| SigningKeyStatus {
            kid: key.kid.clone(),
            state: key.stage,
            since: to_k8s(key.since),
        });
        self.keys.iter().map(shown).chain(lost).collect()
    }

    pub(super) fn at(&self, stage: SigningKeyStage) -> Option<usize> {
        self.keys.iter().position(|key| key.stage == stage)
    }

    fn signing(&self) -> Option<&Key> {
        self.at(SigningKeyStage::Signing).map(|at| &self.keys[at])
    }
}

/// Reads what others may have written into the Secret.
fn read_bounded<T: serde::de::DeserializeOwned>(json: &[u8]) -> Option<T> {
    bounded::count(json).ok()?;
    serde_json::from_slice(json).ok()
}

/// Whether its name is that of its point.
fn is_whole(key: &PublicKey) -> bool {
    key.kid == thumbprint(&key.x, &key.y)
}

/// The readable keys of `ring.json`, the rest of it, and what is wrong with it.
fn read_ring(json: Option<&[u8]>) -> (Vec<Key>, Ring, Option<String>) {
    let nothing = |what: &str| {
        (
            Vec::new(),
            Ring::default(),
            Some(format!("{RING_JSON} {what}")),
        )
    };
    let Some(json) = json else {
        return nothing("is missing");
    };
    // An error of serde may contain a private key.
    let Some(Object(mut ring)) = read_bounded::<Object<Ring>>(json) else {
        return nothing("cannot be read");
    };
    let (mut keys, mut what) = (Vec::<Key>::new(), None);
    for (at, value) in std::mem::take(&mut ring.keys).into_iter().enumerate() {
        match Key::read(value) {
            Some(key) if keys.iter().all(|known| known.kid != key.kid) => keys.push(key),
            _ => {
                what = what.or_else(|| {
                    Some(format!(
                        "{RING_JSON}: key {at} cannot be read, or is a duplicate"
                    ))
                })
            }
        }
    }
    (keys, ring, what)
}

/// Leaves one signing key: the one that the issuer holds, else the newest one.
fn choose_signing(keys: &mut Vec<Key>, current: Option<SecretKey>) {
    let current = current.map(|secret| Key::new(secret, SigningKeyStage::Signing, None));
    let newest = keys
        .iter()
        .filter(|key| key.stage == SigningKeyStage::Signing)
        .max_by_key(|key| key.since)
        .map(|key| key.kid.clone());
    let Some(chosen) = current.as_ref().map(|key| key.kid.clone()).or(newest) else {
        return;
    };
    for key in keys.iter_mut() {
        if key.kid == chosen {
            let since = key.since.filter(|_| key.stage == SigningKeyStage::Signing);
            key.turn(SigningKeyStage::Signing, since, None);
        } else if key.stage == SigningKeyStage::Signing {
            key.turn(SigningKeyStage::VerifyOnly, None, None);
        }
    }
    if keys.iter().all(|key| key.kid != chosen) {
        keys.extend(current);
    }
}
