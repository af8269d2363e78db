//! Shared by the tests of this folder: signers with their JWKs, a real HTTP server for key sets, and an authenticator that uses it.
//!
//! `fixture/` holds a certificate for `localhost` with its key and the authority that signed it, made for these tests and valid until 2120.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Authenticator, Revocations, VerifyError};
use crate::clock::{Clock, FixedClock};
use crate::config::{Algorithm, Live, Source};
use crate::metrics::Metrics;
use crate::principal::{Principal, TokenFacts, Via};

/// A key pair that signs tokens.
pub(super) struct Signer {
    kid: Option<String>,
    alg: &'static str,
    pair: Pair,
    jwk: Value,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>, &'static dyn signature::RsaEncoding),
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode_to_string(bytes)
}

impl Signer {
    pub(super) fn es256(kid: &str) -> Self {
        Self::ec(
            kid,
            "ES256",
            "P-256",
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        )
    }

    pub(super) fn es384(kid: &str) -> Self {
        Self::ec(
            kid,
            "ES384",
            "P-384",
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        )
    }

    fn ec(
        kid: &str,
        alg: &'static str,
        crv: &str,
        algorithm: &'static signature::EcdsaSigningAlgorithm,
    ) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
        let jwk = json!({"kty": "EC", "crv": crv, "x": b64(x), "y": b64(y), "kid": kid, "use": "sig", "alg": alg});
        Self {
            kid: Some(kid.into()),
            alg,
            pair: Pair::Ec(pair),
            jwk,
        }
    }

    pub(super) fn ed25519(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key()), "kid": kid, "use": "sig", "alg": "EdDSA"});
        Self {
            kid: Some(kid.into()),
            alg: "EdDSA",
            pair: Pair::Ed(pair),
            jwk,
        }
    }

    /// The key of RFC 7515 appendix A.2; its JWK names no algorithm.
    pub(super) fn rsa(kid: &str, alg: &'static str) -> Self {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode_to_vec(text.as_bytes()).unwrap();
        let part = |name: &str| {
            let all: Value = serde_json::from_str(RFC_7515_A_2).unwrap();
            decode(all[name].as_str().unwrap())
        };
        let components = ring::rsa::KeyPairComponents {
            public_key: ring::rsa::PublicKeyComponents {
                n: part("n"),
                e: part("e"),
            },
            d: part("d"),
            p: part("p"),
            q: part("q"),
            dP: part("dp"),
            dQ: part("dq"),
            qInv: part("qi"),
        };
        let encoding: &'static dyn signature::RsaEncoding = match alg {
            "RS256" => &signature::RSA_PKCS1_SHA256,
            "RS512" => &signature::RSA_PKCS1_SHA512,
            "PS256" => &signature::RSA_PSS_SHA256,
            other => panic!("{other} is not used by a test"),
        };
        let jwk = json!({"kty": "RSA", "n": b64(part("n")), "e": b64(part("e")), "kid": kid, "use": "sig"});
        let pair = RsaKeyPair::from_components(&components).unwrap();
        Self {
            kid: Some(kid.into()),
            alg,
            pair: Pair::Rsa(Box::new(pair), encoding),
            jwk,
        }
    }

    /// The public key as its issuer publishes it.
    pub(super) fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// A token with these claims.
    pub(super) fn sign(&self, claims: &Value) -> String {
        let mut header = json!({"alg": self.alg, "typ": "JWT"});
        if let Some(kid) = &self.kid {
            header["kid"] = json!(kid);
        }
        self.sign_with(&header, claims)
    }

    /// The same with any header.
    pub(super) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// The same with any texts.
    pub(super) fn sign_text(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(payload));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ec(pair) => pair
                .sign(&random, message.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
            Pair::Ed(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
            Pair::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
        };
        format!("{message}.{}", b64(signature))
    }
}

/// An HTTP server for key sets on loopback that counts fetches.
#[derive(Clone)]
pub(super) struct Issuer {
    pub(super) url: String,
    state: Arc<IssuerState>,
}

struct IssuerState {
    answer: Mutex<Answer>,
    /// `Accept-Encoding` of the last fetch.
    accepted: Mutex<String>,
    fetches: AtomicUsize,
    held: tokio::sync::Semaphore,
}

#[derive(Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) location: Option<String>,
    pub(super) encoding: Option<&'static str>,
}

impl Issuer {
    pub(super) async fn start(signers: &[&Signer]) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/certs", listener.local_addr().unwrap());
        let state = Arc::new(IssuerState {
            answer: Mutex::new(Answer {
                status: 200,
                body: vec![],
                location: None,
                encoding: None,
            }),
            accepted: Mutex::default(),
            fetches: AtomicUsize::new(0),
            held: tokio::sync::Semaphore::new(1_000_000),
        });
        let issuer = Self {
            url,
            state: Arc::clone(&state),
        };
        issuer.publish(signers);
        let routes = axum::Router::new()
            .route("/certs", axum::routing::get(serve))
            .with_state(state);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        issuer
    }

    /// Serves the keys of these signers from the next fetch on.
    pub(super) fn publish(&self, signers: &[&Signer]) {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
        self.answer(200, json!({"keys": keys}).to_string());
    }

    pub(super) fn answer(&self, status: u16, body: impl Into<Vec<u8>>) {
        *self.state.answer.lock() = Answer {
            status,
            body: body.into(),
            location: None,
            encoding: None,
        };
    }

    /// Answers with this body, which is compressed.
    pub(super) fn answer_gzip(&self, body: &[u8]) {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut gzip, body).unwrap();
        *self.state.answer.lock() = Answer {
            status: 200,
            body: gzip.finish().unwrap(),
            location: None,
            encoding: Some("gzip"),
        };
    }

    /// Returns the `Accept-Encoding` of the last fetch.
    pub(super) fn accepted(&self) -> String {
        self.state.accepted.lock().clone()
    }

    pub(super) fn redirect(&self, to: &str) {
        *self.state.answer.lock() = Answer {
            status: 302,
            body: vec![],
            location: Some(to.into()),
            encoding: None,
        };
    }

    /// Delays every answer until [`Issuer::release`]; fetches are still counted.
    pub(super) fn hold(&self) {
        self.state.held.forget_permits(usize::MAX);
    }

    pub(super) fn release(&self) {
        self.state.held.add_permits(1_000_000);
    }

    pub(super) fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::SeqCst)
    }
}

async fn serve(State(state): State<Arc<IssuerState>>, headers: http::HeaderMap) -> Response {
    let accepted = headers
        .get("accept-encoding")
        .map_or("", |value| value.to_str().unwrap());
    accepted.clone_into(&mut state.accepted.lock());
    state.fetches.fetch_add(1, Ordering::SeqCst);
    let _released = state.held.acquire().await.unwrap();
    let answer = state.answer.lock().clone();
    let mut response = Response::builder().status(answer.status);
    if let Some(encoding) = answer.encoding {
        response = response.header("content-encoding", encoding);
    }
    if let Some(location) = answer.location {
        response = response.header("location", location);
    }
    response.body(Body::from(answer.body)).unwrap()
}

/// A source with audience `signal` that allows every algorithm.
pub(super) fn source(name: &str, issuer: &Issuer) -> Source {
    source_at(name, &issuer.url)
}

pub(super) fn source_at(name: &str, url: &str) -> Source {
    Source {
        name: name.into(),
        issuer: format!("https://{name}.test/"),
        url: Some(url.parse().unwrap()),
        audiences: vec!["signal".into()],
        algorithms: vec![
            Algorithm::ES256,
            Algorithm::ES384,
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
            Algorithm::EdDSA,
        ],
        allow_insecure_http: true,
        ..Source::default()
    }
}

/// The time of a [`Rig`]'s clock: 2026-11-23T08:00:00Z.
pub(super) const NOW: i64 = 1_795_420_800;

/// Claims that the source `name` accepts for an hour.
pub(super) fn claims(name: &str) -> Value {
    json!({"iss": format!("https://{name}.test/"), "aud": "signal", "sub": "17", "jti": "t1", "iat": NOW, "exp": NOW + 3600})
}

/// An authenticator and what it needs, controlled by a test.
pub(super) struct Rig {
    pub(super) auth: Authenticator,
    pub(super) clock: FixedClock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) task: tokio::task::JoinHandle<()>,
    pub(super) shutdown: CancellationToken,
    live: watch::Sender<Arc<Live>>,
}

impl Rig {
    /// Starts an authenticator and waits until it is ready.
    pub(super) async fn start(sources: Vec<Source>) -> Self {
        let rig = Self::start_unready(sources, |_| {}).await;
        until(|| rig.auth.unready_reason().is_none()).await;
        rig
    }

    pub(super) async fn start_unready(
        sources: Vec<Source>,
        change: impl FnOnce(&mut Live),
    ) -> Self {
        let mut settings = Live::defaults();
        settings.jwks.sources = sources;
        change(&mut settings);
        let clock = FixedClock::new(chrono::DateTime::from_timestamp(NOW, 0).unwrap());
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let (metrics, revocations, shutdown) = (
            Metrics::new(),
            Revocations::new(Arc::clone(&shared)),
            CancellationToken::new(),
        );
        revocations.follow();
        let (live, followed) = watch::channel(Arc::new(settings));
        let (auth, task) = Authenticator::start(
            followed,
            shared,
            Arc::clone(&metrics),
            Arc::clone(&revocations),
            shutdown.clone(),
        );
        Self {
            auth,
            clock,
            metrics,
            revocations,
            task,
            shutdown,
            live,
        }
    }

    /// Changes the live settings.
    pub(super) fn change(&self, change: impl FnOnce(&mut Live)) {
        self.live.send_modify(|live| change(Arc::make_mut(live)));
    }

    pub(super) async fn verify(&self, token: &str) -> Result<Arc<Principal>, VerifyError> {
        tokio::time::timeout(Duration::from_secs(20), self.auth.verify(token))
            .await
            .expect("an outcome in time")
    }

    /// Returns how many verifications with this outcome were counted.
    pub(super) fn outcomes(&self, outcome: &str) -> u64 {
        self.metrics
            .authentications
            .get_or_create(&Metrics::kind(outcome))
            .get()
    }
}

/// Returns the facts of a verified token.
pub(super) fn facts(principal: &Principal) -> &TokenFacts {
    match &principal.via {
        Via::Token(facts) => facts,
        Via::Basic => panic!("not a token's principal"),
    }
}

/// Waits until a condition is true, at most ten seconds.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("the condition becomes true");
}

/// Advances tokio's clock, as if the process had waited.
pub(super) async fn wait(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

/// The private key of RFC 7515 appendix A.2.
const RFC_7515_A_2: &str = r#"{"kty":"RSA",
"n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
"e":"AQAB",
"d":"Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
"p":"4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
"q":"uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
"dp":"BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
"dq":"h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
"qi":"IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U"}"#;
