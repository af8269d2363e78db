//! A plain HTTP client for REST, probes and metrics.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

use crate::wait::LIMIT;

/// The client every test shares. It keeps no connections: each test has a runtime of its own.
///
/// # Panics
/// When it cannot be built.
pub fn http() -> Client {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder()
        .timeout(LIMIT)
        .pool_max_idle_per_host(0)
        .connect_timeout(Duration::from_secs(5))
        .no_proxy()
        .build()
        .expect("a client")
}

/// The Argon2id hash of a password, with parameters that are quick to check.
///
/// # Panics
/// When the system has no randomness.
pub fn argon2id(password: &str) -> String {
    use argon2::password_hash::{PasswordHasher as _, SaltString};
    let parameters = argon2::Params::new(64, 1, 1, None).expect("good parameters");
    let hasher = argon2::Argon2::new(
        argon2::Algorithm::Argon2id,
        argon2::Version::V0x13,
        parameters,
    );
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).expect("16 bytes");
    hasher
        .hash_password(password.as_bytes(), &salt)
        .expect("a hash")
        .to_string()
}

/// An answer, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON; `null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// One header field as text; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Panics with the whole answer unless the status is this one.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// Sends it and reads the answer.
///
/// # Panics
/// When there is no whole answer in time.
pub async fn ask(request: RequestBuilder) -> Answer {
    try_ask(request).await.expect("an HTTP answer")
}

/// Sends it and reads the answer, if there is one.
///
/// # Errors
/// When there is no whole answer in time.
pub async fn try_ask(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await?,
    })
}

/// A request with a bearer token and, where there is one, a JSON body.
///
/// # Panics
/// When `method` is no method.
pub fn request(method: &str, url: &str, token: &str, body: Option<&Value>) -> RequestBuilder {
    let mut request = http().request(
        Method::from_bytes(method.as_bytes()).expect("a method"),
        url,
    );
    if !token.is_empty() {
        request = request.bearer_auth(token);
    }
    match body {
        Some(body) => request.json(body),
        None => request,
    }
}
