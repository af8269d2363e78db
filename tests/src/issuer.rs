//! An issuer of tokens on loopback: signs what it is told to, and serves its public keys at `/certs`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::wait::now_secs;

/// The audience in tokens that name no other.
pub const AUDIENCE: &str = "signal";

/// ring makes no RSA keys, so the folder of this file has one for tests.
const RSA_KEY: &[u8] = include_bytes!("rsa-test-key.pk8");

/// A signature algorithm of RFC 7518 or RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256.
    ES256,
    /// RSASSA-PKCS1-v1_5. Every RS256 key of every issuer is the same one.
    RS256,
    /// Ed25519.
    EdDSA,
}

/// How `/certs` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With the published keys.
    Keys,
    /// By dropping the connection.
    Drop,
    /// With the published keys, after this long.
    Late(Duration),
    /// With this status and no body.
    Status(u16),
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
    Ed25519(Ed25519KeyPair),
}

struct SigningKey {
    kid: String,
    algorithm: Algorithm,
    pair: Pair,
    published: bool,
}

struct State {
    keys: Mutex<Vec<SigningKey>>,
    answer: Mutex<Answer>,
    fetches: AtomicUsize,
}

/// A running issuer; its listener goes when it is dropped.
pub struct Issuer {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Issuer {
    /// An issuer with one published ES256 key, `key-1`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST).await
    }

    /// The same on another address of the network that the caller is in.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start_at(ip: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let state = Arc::new(State {
            keys: Mutex::default(),
            answer: Mutex::new(Answer::Keys),
            fetches: AtomicUsize::new(0),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&state)));
        let issuer = Self {
            address,
            state,
            task,
        };
        issuer.add_key("key-1", Algorithm::ES256);
        issuer
    }

    /// The `iss` of its tokens.
    pub fn name(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Where its keys are.
    pub fn certs_url(&self) -> String {
        format!("http://{}/certs", self.address)
    }

    /// Makes and publishes a key.
    pub fn add_key(&self, kid: &str, algorithm: Algorithm) {
        self.add_unpublished_key(kid, algorithm);
        self.publish(kid, true);
    }

    /// Makes a key that signs and is not published.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub fn add_unpublished_key(&self, kid: &str, algorithm: Algorithm) {
        let key = SigningKey {
            kid: kid.to_owned(),
            algorithm,
            pair: Pair::generate(algorithm),
            published: false,
        };
        self.state.keys.lock().push(key);
    }

    /// Publishes a key, or withdraws it; it signs either way.
    pub fn publish(&self, kid: &str, published: bool) {
        for key in self
            .state
            .keys
            .lock()
            .iter_mut()
            .filter(|key| key.kid == kid)
        {
            key.published = published;
        }
    }

    /// The JWK Set of its published keys, for a mounted file.
    pub fn key_set(&self) -> String {
        key_set(&self.state)
    }

    /// Changes how `/certs` answers.
    pub fn answer(&self, answer: Answer) {
        *self.state.answer.lock() = answer;
    }

    /// How often `/certs` was asked for.
    pub fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::SeqCst)
    }

    /// The claims of an ordinary token of `subject`: an hour long, for [`AUDIENCE`].
    pub fn claims(&self, subject: &str) -> Value {
        let now = now_secs();
        let jti = format!("{:016x}", rand::random::<u64>());
        json!({"iss": self.name(), "aud": AUDIENCE, "sub": subject, "jti": jti, "iat": now, "nbf": now, "exp": now + 3600})
    }

    /// An ordinary token of `subject`, signed by `key-1`.
    pub fn token(&self, subject: &str) -> String {
        self.sign("key-1", &self.claims(subject))
    }

    /// A token of `subject` that carries these roles.
    pub fn token_with_roles(&self, subject: &str, roles: Value) -> String {
        let mut claims = self.claims(subject);
        claims["roles"] = roles;
        self.sign("key-1", &claims)
    }

    /// Signs `claims` with the key `kid`.
    ///
    /// # Panics
    /// When there is no such key.
    pub fn sign(&self, kid: &str, claims: &Value) -> String {
        let algorithm = self.with_key(kid, |key| key.algorithm);
        self.sign_with_header(
            kid,
            &json!({"alg": format!("{algorithm:?}"), "kid": kid, "typ": "JWT"}),
            claims,
        )
    }

    /// Signs with the key `kid` whatever the header says: for tokens that lie.
    ///
    /// # Panics
    /// When there is no such key.
    pub fn sign_with_header(&self, kid: &str, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            base64url(header.to_string()),
            base64url(claims.to_string())
        );
        let signature = self.with_key(kid, |key| key.pair.sign(signed.as_bytes()));
        format!("{signed}.{}", base64url(signature))
    }

    fn with_key<T>(&self, kid: &str, act: impl FnOnce(&SigningKey) -> T) -> T {
        let keys = self.state.keys.lock();
        act(keys
            .iter()
            .find(|key| key.kid == kid)
            .unwrap_or_else(|| panic!("the issuer has no key {kid:?}")))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pair {
    fn generate(algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        match algorithm {
            Algorithm::ES256 => {
                let way = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let document = EcdsaKeyPair::generate_pkcs8(way, &random).expect("randomness");
                Self::Ecdsa(
                    EcdsaKeyPair::from_pkcs8(way, document.as_ref(), &random)
                        .expect("a key made a moment ago"),
                )
            }
            Algorithm::EdDSA => {
                let document = Ed25519KeyPair::generate_pkcs8(&random).expect("randomness");
                Self::Ed25519(
                    Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key made a moment ago"),
                )
            }
            Algorithm::RS256 => Self::Rsa(Box::new(
                RsaKeyPair::from_pkcs8(RSA_KEY).expect("the key in the folder of this file"),
            )),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(pair) => pair
                .sign(&random, message)
                .expect("randomness")
                .as_ref()
                .to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .expect("a buffer of the modulus' length");
                signature
            }
        }
    }

    /// The public members of its JWK (RFC 7518 section 6, RFC 8037 section 2).
    fn jwk(&self) -> Value {
        match self {
            Self::Ecdsa(pair) => {
                // 0x04, then both coordinates.
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": base64url(&point[1..33]), "y": base64url(&point[33..])})
            }
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key().as_ref())})
            }
            Self::Rsa(pair) => {
                let public: RsaPublicKeyComponents<Vec<u8>> = pair.public().into();
                json!({"kty": "RSA", "n": base64url(public.n), "e": base64url(public.e)})
            }
        }
    }
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode_to_string(bytes.as_ref())
}

fn key_set(state: &State) -> String {
    let keys = state.keys.lock();
    let published = keys.iter().filter(|key| key.published).map(|key| {
        let mut jwk = key.pair.jwk();
        jwk["kid"] = key.kid.clone().into();
        jwk["use"] = "sig".into();
        jwk["alg"] = format!("{:?}", key.algorithm).into();
        jwk
    });
    json!({"keys": published.collect::<Vec<_>>()}).to_string()
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((socket, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let _ = respond(socket, &state).await;
        });
    }
}

/// One request, one response, then the end: all that a fetch of keys needs of HTTP.
async fn respond(mut socket: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match socket.read(&mut buffer).await? {
            0 => return Ok(()),
            length => head.extend_from_slice(&buffer[..length]),
        }
    }
    if !head.starts_with(b"GET /certs ") {
        return socket
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    }
    state.fetches.fetch_add(1, Ordering::SeqCst);
    let answer = *state.answer.lock();
    let (status, body) = match answer {
        Answer::Drop => return Ok(()),
        Answer::Status(status) => (status, String::new()),
        Answer::Keys => (200, key_set(state)),
        Answer::Late(by) => {
            sleep(by).await;
            (200, key_set(state))
        }
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\nCache-Control: public, max-age=3600, \
         stale-while-revalidate=86400\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    socket.write_all(text.as_bytes()).await?;
    socket.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::http;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    };

    async fn fetch(issuer: &Issuer) -> Vec<Value> {
        let set: Value = http()
            .get(issuer.certs_url())
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        set["keys"].as_array().unwrap().clone()
    }

    fn decode(text: &Value) -> Vec<u8> {
        URL_SAFE_NO_PAD
            .decode_to_vec(text.as_str().unwrap())
            .unwrap()
    }

    #[tokio::test]
    async fn published_keys_verify_what_the_issuer_signs() {
        let issuer = Issuer::start().await;
        issuer.add_key("rsa", Algorithm::RS256);
        issuer.add_key("ed", Algorithm::EdDSA);
        for jwk in fetch(&issuer).await {
            let token = issuer.sign(jwk["kid"].as_str().unwrap(), &issuer.claims("17"));
            let (message, signature) = token.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode_to_vec(signature).unwrap();
            let message = message.as_bytes();
            match jwk["alg"].as_str().unwrap() {
                "ES256" => {
                    let point = [vec![4], decode(&jwk["x"]), decode(&jwk["y"])].concat();
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                        .verify(message, &signature)
                        .unwrap();
                }
                "EdDSA" => UnparsedPublicKey::new(&ED25519, decode(&jwk["x"]))
                    .verify(message, &signature)
                    .unwrap(),
                "RS256" => {
                    let key = RsaPublicKeyComponents {
                        n: decode(&jwk["n"]),
                        e: decode(&jwk["e"]),
                    };
                    key.verify(&RSA_PKCS1_2048_8192_SHA256, message, &signature)
                        .unwrap();
                }
                other => panic!("unexpected {other}"),
            }
        }
        assert_eq!(issuer.fetches(), 1);
    }

    #[tokio::test]
    async fn withdrawn_keys_are_gone_and_a_dropping_issuer_cannot_be_reached() {
        let issuer = Issuer::start().await;
        issuer.add_key("two", Algorithm::EdDSA);
        issuer.publish("key-1", false);
        let keys = fetch(&issuer).await;
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0]["kid"], "two");
        issuer.answer(Answer::Drop);
        assert!(http().get(issuer.certs_url()).send().await.is_err());
        issuer.answer(Answer::Status(503));
        assert_eq!(
            http()
                .get(issuer.certs_url())
                .send()
                .await
                .unwrap()
                .status(),
            503
        );
        assert_eq!(issuer.fetches(), 3);
    }
}
