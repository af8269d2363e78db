//! How clients of librdkafka log in to brokers with OAUTHBEARER (RFC 7628): by a token that the gateway gets with its own credentials.
//!
//! Input: `[kafka.security.auth]`. Output: a [`Login`] in the context of each client, which hands out the current token.
//!
//! librdkafka can ask a token endpoint itself, through libcurl with OpenSSL. That stays out: requests go through the one HTTP client of the
//! process. One task keeps one token fresh for all clients, so that none of them ever waits for an issuer but for the first token.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::bindings as sys;
use rdkafka::client::{Client, OAuthToken};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use serde::Deserialize;
use signal_contract::Object;
use tokio::sync::watch;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{KafkaAuth, KafkaMechanism, KafkaSecurity, read_secret, read_username};
use crate::outgoing::{self, BodyError};

/// Longest time for one answer of the issuer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest answer of the issuer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// How long a client waits for the first token.
const FIRST_TOKEN_LIMIT: Duration = Duration::from_secs(10);
/// The same after a token has ended.
const NEXT_TOKEN_LIMIT: Duration = Duration::from_secs(1);
/// How often it looks.
const TOKEN_POLL: Duration = Duration::from_millis(20);
/// Delay after a first failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The life of a token whose issuer names none (`expires_in` is only recommended by RFC 6749, section 5.1).
const UNSAID_LIFE: Duration = Duration::from_secs(60);
/// How long a consumer that was just made is served, so that it has its token before it is asked for anything.
const SERVE: Duration = Duration::from_millis(200);
/// Longest text of an error of librdkafka, in bytes.
const MAX_ERROR_BYTES: usize = 512;

/// Hands out tokens, where clients log in by them.
#[derive(Clone, Default)]
pub(super) struct Login(Option<Arc<Tokens>>);

/// The token that clients log in with, or why there is none; `None` before the first answer.
type Current = Option<Result<Token, String>>;

struct Tokens {
    principal: String,
    clock: Arc<dyn Clock>,
    current: watch::Receiver<Current>,
}

#[derive(Clone)]
struct Token {
    text: String,
    expires_ms: i64,
}

impl Login {
    /// Begins to keep a token fresh, if the settings ask for one. Must be called inside a tokio runtime.
    pub(super) fn new(security: &KafkaSecurity, clock: Arc<dyn Clock>) -> Self {
        if security.auth.mechanism != KafkaMechanism::OAuthBearer {
            return Self::default();
        }
        let auth = security.auth.clone();
        let (sender, current) = watch::channel(None);
        let tokens = Tokens {
            // Only for logs of librdkafka: what counts is read for each token.
            principal: read_username(&auth.username, &auth.username_file).unwrap_or_default(),
            clock: clock.clone(),
            current,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = keep_fresh(auth, clock, &sender) => {}
            }
        });
        Self(Some(Arc::new(tokens)))
    }

    /// The current token; waits for the first one, and a moment for one that follows a token that has ended: a client that gets none asks again
    /// only after ten seconds.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self.0.as_ref().ok_or("the settings ask for no token")?;
        let started = Instant::now();
        loop {
            let limit = match &*tokens.current.borrow() {
                None => FIRST_TOKEN_LIMIT,
                Some(Ok(token)) if token.expires_ms <= tokens.clock.now_ms() => NEXT_TOKEN_LIMIT,
                Some(_) => break,
            };
            if started.elapsed() >= limit {
                break;
            }
            std::thread::sleep(TOKEN_POLL);
        }
        let current = tokens.current.borrow().clone();
        let token = current.ok_or("the token endpoint does not answer")??;
        Ok(OAuthToken {
            token: token.text,
            principal_name: tokens.principal.clone(),
            lifetime_ms: token.expires_ms,
        })
    }

    /// Lets a consumer that was just made take its token: it does so only while it is polled, and cannot log in before.
    pub(super) fn serve<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) {
        self.serve_for(consumer, SERVE);
    }

    /// Lets a consumer that is polled seldom take another token, if the one that it has is about to end.
    pub(super) fn renew<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) {
        self.serve_for(consumer, Duration::ZERO);
    }

    /// Whether brokers that refuse a login may accept the next one, with another token.
    pub(super) fn changes(&self) -> bool {
        self.0.is_some()
    }

    fn serve_for<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, time: Duration) {
        if self.0.is_some()
            && let Some(Err(error)) = consumer.poll(time)
        {
            tracing::debug!(%error, "error of a Kafka client that logs in");
        }
    }

    /// Hands its token to a client that never asks for one: `rdkafka` polls an administrator's own queue alone, and librdkafka asks on another. The
    /// client can log in for as long as this token lives.
    ///
    /// # Errors
    /// There is no token, or librdkafka refuses it.
    #[expect(
        unsafe_code,
        reason = "rdkafka has no safe call that sets the token of a client"
    )]
    pub(super) fn hand_to<C: ClientContext>(
        &self,
        client: &Client<C>,
    ) -> Result<(), Box<dyn Error>> {
        if self.0.is_none() {
            return Ok(());
        }
        let OAuthToken {
            token,
            principal_name,
            lifetime_ms,
        } = self.token()?;
        let (token, principal) = (CString::new(token)?, CString::new(principal_name)?);
        let mut why = [0_u8; MAX_ERROR_BYTES];
        // SAFETY: the client is alive, librdkafka copies both texts, there are no extensions, and the text of an error ends within `why`.
        let result = unsafe {
            sys::rd_kafka_oauthbearer_set_token(
                client.native_ptr(),
                token.as_ptr(),
                lifetime_ms,
                principal.as_ptr(),
                std::ptr::null_mut(),
                0,
                why.as_mut_ptr().cast(),
                why.len(),
            )
        };
        if result == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        let why = CStr::from_bytes_until_nul(&why)?;
        Err(why.to_string_lossy().into())
    }
}

/// Never ends by itself.
async fn keep_fresh(auth: KafkaAuth, clock: Arc<dyn Clock>, sender: &watch::Sender<Current>) {
    let mut backoff = Backoff::new(FIRST_RETRY);
    loop {
        let asked_ms = clock.now_ms();
        match ask(auth.clone()).await {
            Ok(granted) => {
                backoff.reset();
                let life_ms = i64::try_from(granted.life.as_millis()).unwrap_or(i64::MAX);
                let token = Token {
                    text: granted.token,
                    expires_ms: asked_ms.saturating_add(life_ms),
                };
                tracing::debug!(life_secs = granted.life.as_secs(), "got a Kafka token");
                sender.send_replace(Some(Ok(token)));
                // A client takes another one after four fifths of what is left of a life, and gets one with half of its life at least.
                tokio::time::sleep(granted.life.mul_f64(0.5).max(Duration::from_secs(1))).await;
            }
            Err(error) => {
                let now_ms = clock.now_ms();
                sender.send_if_modified(|current| {
                    let holds = matches!(current, Some(Ok(token)) if token.expires_ms > now_ms);
                    if !holds {
                        *current = Some(Err(error.to_string()));
                    }
                    !holds
                });
                backoff.pause_after("getting a Kafka token", &error).await;
            }
        }
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("kafka.security.auth.token_url is no URL")]
    Url,
    #[error("kafka.security.auth.username_file cannot be read: {0}")]
    Username(String),
    #[error("kafka.security.auth.password_file cannot be read: {0}")]
    Secret(String),
    #[error("kafka.security.auth.token_ca_file cannot be used: {0}")]
    Authorities(String),
    #[error("the token endpoint cannot be reached: {0}")]
    Request(String),
    #[error("the token endpoint answers {status}{}", .code.as_ref().map(|code| format!(", {code}")).unwrap_or_default())]
    Refused {
        status: u16,
        /// `error` of RFC 6749, section 5.2.
        code: Option<String>,
    },
    #[error("the token endpoint's answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    #[error("the token endpoint's answer has no access_token")]
    NoToken,
}

struct Granted {
    token: String,
    life: Duration,
}

/// RFC 6749, sections 5.1 and 5.2.
#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    expires_in: Option<Seconds>,
    error: Option<String>,
}

/// Some issuers write the number as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

/// Asks for a token (RFC 6749, section 4.4), with the secret and the authorities as their files are now.
async fn ask(auth: KafkaAuth) -> Result<Granted, TokenError> {
    let scope = auth.scope.clone();
    let prepared = tokio::task::spawn_blocking(move || prepare(&auth)).await;
    let request = prepared.map_err(|error| TokenError::Secret(error.to_string()))??;
    let failed = |error| TokenError::Request(outgoing::failure(error));
    let answer = request
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(form(&scope))
        .send()
        .await
        .map_err(failed)?;
    let status = answer.status().as_u16();
    let text = outgoing::body(answer, MAX_ANSWER_BYTES)
        .await
        .map_err(|error| match error {
            BodyError::Request(error) => failed(error),
            BodyError::TooLong => TokenError::TooLong,
        })?;
    let parsed = serde_json::from_slice::<Object<Answer>>(&text).ok();
    granted(status, parsed.map(|Object(answer)| answer))
}

fn form(scope: &str) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    if !scope.is_empty() {
        form.append_pair("scope", scope);
    }
    form.finish()
}

fn granted(status: u16, answer: Option<Answer>) -> Result<Granted, TokenError> {
    if status != 200 {
        let is_code =
            |code: &String| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_graphic());
        let code = answer.and_then(|answer| answer.error).filter(is_code);
        return Err(TokenError::Refused { status, code });
    }
    let answer = answer.ok_or(TokenError::NoToken)?;
    let seconds = match answer.expires_in {
        Some(Seconds::Number(seconds)) => Some(seconds),
        Some(Seconds::Text(text)) => text.parse().ok(),
        None => None,
    };
    let life = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let token = answer.access_token.filter(|token| !token.is_empty());
    Ok(Granted {
        token: token.ok_or(TokenError::NoToken)?,
        life: life.unwrap_or(UNSAID_LIFE),
    })
}

/// Reads files, and begins the request.
fn prepare(auth: &KafkaAuth) -> Result<reqwest::RequestBuilder, TokenError> {
    let url: Url = auth.token_url.parse().map_err(|_| TokenError::Url)?;
    let secret = read_secret(&auth.password_file)
        .map_err(|error| TokenError::Secret(error.to_string()))?
        .ok_or_else(|| TokenError::Secret("it is not set".into()))?;
    let client = outgoing::client(&url, &auth.token_ca_file)
        .map_err(TokenError::Authorities)?
        .timeout(ANSWER_LIMIT)
        .build()
        .map_err(|error| TokenError::Request(outgoing::failure(error)))?;
    // RFC 6749, section 2.3.1: both are encoded before they become name and password.
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let username = read_username(&auth.username, &auth.username_file)
        .map_err(|error| TokenError::Username(error.to_string()))?;
    let (id, secret) = (encoded(&username), encoded(secret.expose()));
    Ok(client.post(url).basic_auth(id, Some(secret)))
}

/// The context of clients that log in, log, and do nothing else by themselves.
#[derive(Clone)]
pub(super) struct Quiet {
    pub(super) login: Login,
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.login.token()
    }

    /// librdkafka tries again by itself.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "a Kafka client reports an error");
    }
}

impl ConsumerContext for Quiet {}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Option<Answer> {
        serde_json::from_str(text).ok()
    }

    #[test]
    fn a_token_lives_as_long_as_its_issuer_says_and_a_minute_if_it_says_nothing() {
        for (text, seconds) in [
            (r#"{"access_token":"t","expires_in":300}"#, 300),
            (r#"{"access_token":"t","expires_in":"300"}"#, 300),
            (r#"{"access_token":"t"}"#, 60),
            (r#"{"access_token":"t","expires_in":-1}"#, 60),
        ] {
            let granted = granted(200, answer(text)).unwrap();
            assert_eq!(
                (granted.token.as_str(), granted.life.as_secs()),
                ("t", seconds),
                "{text}"
            );
        }
    }

    #[test]
    fn a_refusal_says_its_code_and_quotes_nothing_else() {
        let refused = granted(401, answer(r#"{"error":"invalid_client","hint":"s3cret"}"#));
        assert_eq!(
            refused.err().unwrap().to_string(),
            "the token endpoint answers 401, invalid_client"
        );
        let refused = granted(503, None);
        assert_eq!(
            refused.err().unwrap().to_string(),
            "the token endpoint answers 503"
        );
        for empty in [r#"{"access_token":""}"#, "{}"] {
            assert!(granted(200, answer(empty)).is_err(), "{empty}");
        }
    }
}
