//! The development issuer: one ES256 key in the data folder, its key set over HTTP, tokens for any user.
//!
//! Input: a user's id. Output: tokens, and `/certs`, from which the gateway fetches the key set as from any issuer.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use base64_simd::URL_SAFE_NO_PAD as BASE64;
use chrono::{DateTime, TimeDelta, Utc};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::folder::Folder;

/// The `iss` of every token. It contains no address, so tokens stay valid when ports change.
pub(super) const NAME: &str = "signal-dev";
/// The `aud` of every token.
pub(super) const AUDIENCE: &str = "signal";
/// How long a token is valid, in hours.
pub(super) const TOKEN_HOURS: i64 = 12;
/// The same as a duration.
pub(super) const TOKEN_LIFE: TimeDelta = TimeDelta::hours(TOKEN_HOURS);
const KEY_FILE: &str = "issuer-key.pk8";

/// Signs tokens.
pub(super) struct Issuer {
    pair: EcdsaKeyPair,
    kid: String,
    jwk: Value,
    random: SystemRandom,
}

impl Issuer {
    /// Opens the issuer whose key is in the folder; makes the key the first time.
    ///
    /// # Errors
    /// The key file cannot be read, written or used.
    pub(super) fn open(folder: &Folder) -> anyhow::Result<Self> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = folder.secret(KEY_FILE, || {
            let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random)
                .map_err(|_| anyhow::anyhow!("the system cannot provide randomness"))?;
            Ok(made.as_ref().to_vec())
        })?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &key, &random).map_err(|error| {
            anyhow::anyhow!(
                "{} is not an ES256 key: {error}",
                folder.file(KEY_FILE).display()
            )
        })?;
        // 0x04, then both coordinates (SEC 1 section 2.3.3).
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (base64(x), base64(y));
        // RFC 7638 section 3: these members, in this order, without white space.
        let kid = base64(Sha256::digest(format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#
        )));
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "use": "sig", "alg": "ES256"});
        Ok(Self {
            pair,
            kid,
            jwk,
            random,
        })
    }

    /// Makes a token for this user that is valid for `life`.
    pub(super) fn token(
        &self,
        user: &str,
        now: DateTime<Utc>,
        life: TimeDelta,
    ) -> anyhow::Result<String> {
        let no_randomness = |_| anyhow::anyhow!("the system cannot provide randomness");
        let mut jti = [0; 12];
        self.random.fill(&mut jti).map_err(no_randomness)?;
        let header = json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"});
        let claims = json!({
            "iss": NAME, "aud": AUDIENCE, "sub": user, "jti": base64(jti),
            "iat": now.timestamp(), "exp": (now + life).timestamp(),
        });
        let message = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims.to_string())
        );
        let signature = self
            .pair
            .sign(&self.random, message.as_bytes())
            .map_err(no_randomness)?;
        Ok(format!("{message}.{}", base64(signature)))
    }

    /// Returns the route `/certs`, like that of a production issuer.
    pub(super) fn router(&self) -> Router {
        let body = json!({"keys": [self.jwk]}).to_string();
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (
                header::CACHE_CONTROL,
                "public, max-age=3600, stale-while-revalidate=86400",
            ),
        ];
        Router::new().route("/certs", get(async move || (headers, body)))
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode_to_string(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_same_after_a_restart_and_its_tokens_verify() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        let token = Issuer::open(&folder)
            .unwrap()
            .token(
                "17",
                DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
                TOKEN_LIFE,
            )
            .unwrap();
        let again = Issuer::open(&folder).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let key = ring::signature::UnparsedPublicKey::new(
            &ring::signature::ECDSA_P256_SHA256_FIXED,
            again.pair.public_key(),
        );
        key.verify(
            message.as_bytes(),
            &BASE64.decode_to_vec(signature).unwrap(),
        )
        .unwrap();
        let claims = BASE64
            .decode_to_vec(message.split_once('.').unwrap().1)
            .unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(
            (claims["sub"].as_str(), claims["exp"].as_i64()),
            (Some("17"), Some(1_800_043_200))
        );
    }
}
