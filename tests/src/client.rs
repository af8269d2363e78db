//! A client of `docs/protocol.md`, written from that page and sharing no code with the gateway.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use aes_gcm::aead::{Aead as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use base64_simd::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::{PublicKey, SecretKey, ecdh};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
pub use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::wait::{LIMIT, within};

/// protocol.md 6.3.
const INFO: &[u8] = b"ignis-ecdh-p256-aes-256-gcm-v1";

/// One envelope from the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// Its event.
    pub event: String,
    /// Its data; `null` where it has none.
    pub data: Value,
    /// Its id.
    pub id: Option<String>,
    /// Whether it came inside `encrypted`.
    pub sealed: bool,
}

/// What the server does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// It sends an envelope.
    Envelope(Envelope),
    /// It closes with this code and reason.
    Closed(u16, String),
    /// The connection ends without a Close frame.
    Lost,
}

/// The name under which the client's public key travels, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyMember {
    /// No key: in the clear.
    None,
    /// `clientPublicKey`.
    ClientPublicKey,
    /// `publicKey`, as the package's own docs call it.
    PublicKey,
}

/// The data of `connected`.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The connection's id.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// All of it.
    pub data: Value,
}

/// The client's half of a key agreement, for whoever reads its socket itself.
pub struct Agreement(SecretKey);

impl Agreement {
    /// With a fresh key.
    pub fn fresh() -> Self {
        Self(fresh_secret())
    }

    /// The client's public key as the protocol carries it.
    pub fn public_key(&self) -> String {
        STANDARD.encode_to_string(self.0.public_key().to_sec1_point(false).as_bytes())
    }

    /// What opens the messages of a connection, from the data of its `connected`.
    ///
    /// # Panics
    /// When that holds no key and salt.
    pub fn opener(&self, connected: &Value) -> Opener {
        let text = |name: &str| connected[name].as_str().unwrap_or_default().to_owned();
        Opener(self.derive(&text("serverPublicKey"), &text("salt")))
    }

    fn derive(&self, server_public_key: &str, salt: &str) -> Aes256Gcm {
        let point = STANDARD.decode_to_vec(server_public_key).expect("base64");
        assert_eq!((point.len(), point[0]), (65, 4), "a raw uncompressed point");
        let public = PublicKey::from_sec1_bytes(&point).expect("a point of P-256");
        let salt = STANDARD.decode_to_vec(salt).expect("base64");
        assert_eq!(salt.len(), 32);
        derive_key(&self.0, &public, &salt)
    }
}

/// Opens what was sealed for one connection.
pub struct Opener(Aes256Gcm);

impl Opener {
    /// The envelope in a text frame, opened where it is sealed.
    ///
    /// # Panics
    /// When it is no envelope, or not sealed for this connection.
    pub fn open(&self, text: &str) -> Envelope {
        open_envelope(Some(&self.0), text)
    }
}

/// What carries a connection: a socket, or TLS on one.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An open connection.
pub struct Client {
    socket: WebSocketStream<Box<dyn Duplex>>,
    agreement: Agreement,
    cipher: Option<Aes256Gcm>,
    /// Envelopes that came while another was waited for.
    waiting: VecDeque<Envelope>,
    /// The Close frame that came, until the stream has ended.
    closed: Option<(u16, String)>,
    id: String,
}

impl Client {
    /// Connects to `/stream`, sending no Origin.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address, &[])
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Connects with further header fields.
    ///
    /// # Errors
    /// When the server refuses; [`Error::Http`] carries its answer.
    pub async fn try_connect(
        address: SocketAddr,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let stream = within("connect", TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, "ws", address, headers).await
    }

    /// Upgrades a stream to `address` of this scheme.
    ///
    /// # Errors
    /// As [`Client::try_connect`].
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        scheme: &str,
        address: SocketAddr,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("{scheme}://{address}/stream").into_client_request()?;
        for &(name, value) in headers {
            request
                .headers_mut()
                .insert(name, value.parse().expect("a header value"));
        }
        let stream: Box<dyn Duplex> = Box::new(stream);
        let (socket, _) = within("upgrade", client_async(request, stream)).await?;
        Ok(Self {
            socket,
            agreement: Agreement::fresh(),
            cipher: None,
            waiting: VecDeque::new(),
            closed: None,
            id: String::new(),
        })
    }

    /// Connects and authenticates in the clear.
    ///
    /// # Panics
    /// When either fails.
    pub async fn open(address: SocketAddr, token: &str) -> Self {
        let mut client = Self::connect(address).await;
        client.authenticate(token, KeyMember::None).await;
        client
    }

    /// Connects and authenticates with encryption.
    ///
    /// # Panics
    /// When either fails.
    pub async fn open_encrypted(address: SocketAddr, token: &str) -> Self {
        let mut client = Self::connect(address).await;
        client.authenticate(token, KeyMember::ClientPublicKey).await;
        client
    }

    /// The connection's id, once authenticated.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The client's public key as the protocol carries it.
    pub fn public_key(&self) -> String {
        self.agreement.public_key()
    }

    /// Sends `authenticate` and nothing else.
    pub async fn send_authenticate(&mut self, token: &str, key: KeyMember) {
        let mut data = json!({"type": "Bearer", "token": token});
        match key {
            KeyMember::None => {}
            KeyMember::ClientPublicKey => data["clientPublicKey"] = self.public_key().into(),
            KeyMember::PublicKey => data["publicKey"] = self.public_key().into(),
        }
        self.send("authenticate", data).await;
    }

    /// Sends `authenticate` and takes `connected`, which must come first and in the clear.
    ///
    /// # Panics
    /// When anything else comes, or a key was sent and no session key can be derived.
    pub async fn authenticate(&mut self, token: &str, key: KeyMember) -> Connected {
        self.send_authenticate(token, key).await;
        let envelope = self.next_envelope().await;
        assert_eq!(envelope.event, "connected", "{envelope:?}");
        assert!(
            !envelope.sealed,
            "`connected` carries what the key is made from, so it is in the clear"
        );
        let text = |name: &str| envelope.data[name].as_str().unwrap_or_default().to_owned();
        self.id = text("id");
        if key != KeyMember::None && !text("serverPublicKey").is_empty() {
            self.cipher = Some(
                self.agreement
                    .derive(&text("serverPublicKey"), &text("salt")),
            );
        }
        Connected {
            id: self.id.clone(),
            user_id: text("userId"),
            data: envelope.data,
        }
    }

    /// Whether a session key was agreed on.
    pub fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// Sends an event in the clear.
    pub async fn send(&mut self, event: &str, data: Value) {
        self.send_text(&envelope(event, data)).await;
    }

    /// Sends an event inside `encrypted`.
    ///
    /// # Panics
    /// When the connection is not encrypted.
    pub async fn send_sealed(&mut self, event: &str, data: Value) {
        let inner = envelope(event, data);
        let sealed = self.seal(inner.as_bytes());
        self.send("encrypted", sealed).await;
    }

    /// The data of an `encrypted` event around any plaintext.
    ///
    /// # Panics
    /// When the connection is not encrypted.
    pub fn seal(&self, plaintext: &[u8]) -> Value {
        seal(
            self.cipher.as_ref().expect("an encrypted connection"),
            plaintext,
        )
    }

    /// Sends a text frame as it is.
    pub async fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.send_message(Message::binary(bytes.to_vec())).await;
    }

    /// Sends any frame. That the server may already be gone is left to the next read to find out.
    pub async fn send_message(&mut self, message: Message) {
        let _ = within("send a frame", self.socket.send(message)).await;
    }

    /// The next thing the server does.
    ///
    /// # Panics
    /// When nothing comes in time.
    pub async fn next(&mut self) -> Incoming {
        match self.waiting.pop_front() {
            Some(envelope) => Incoming::Envelope(envelope),
            None => self
                .read(LIMIT)
                .await
                .unwrap_or_else(|| panic!("nothing came from the server in {LIMIT:?}")),
        }
    }

    /// The next thing the server does, if it does anything within `limit`.
    pub async fn next_within(&mut self, limit: Duration) -> Option<Incoming> {
        match self.waiting.pop_front() {
            Some(envelope) => Some(Incoming::Envelope(envelope)),
            None => self.read(limit).await,
        }
    }

    /// The next envelope.
    ///
    /// # Panics
    /// When the connection ends instead.
    pub async fn next_envelope(&mut self) -> Envelope {
        match self.next().await {
            Incoming::Envelope(envelope) => envelope,
            other => panic!("want an envelope, got {other:?}"),
        }
    }

    /// The next envelope of this event; others before it are kept for later calls.
    ///
    /// # Panics
    /// When the connection ends first, or it does not come in time.
    pub async fn expect(&mut self, event: &str) -> Envelope {
        self.expect_where(event, |envelope| envelope.event == event)
            .await
    }

    /// The next envelope that `wanted` accepts; others before it are kept for later calls.
    ///
    /// # Panics
    /// When the connection ends first, or it does not come in time.
    pub async fn expect_where(
        &mut self,
        what: &str,
        wanted: impl Fn(&Envelope) -> bool,
    ) -> Envelope {
        if let Some(envelope) = self
            .waiting
            .iter()
            .position(&wanted)
            .and_then(|at| self.waiting.remove(at))
        {
            return envelope;
        }
        let begun = Instant::now();
        loop {
            match self.read(LIMIT.saturating_sub(begun.elapsed())).await {
                Some(Incoming::Envelope(envelope)) if wanted(&envelope) => return envelope,
                Some(Incoming::Envelope(envelope)) => self.waiting.push_back(envelope),
                Some(end) => panic!("want {what}, got {end:?}; before it {:?}", self.waiting),
                None => panic!(
                    "want {what}, nothing came in {LIMIT:?}; before it {:?}",
                    self.waiting
                ),
            }
        }
    }

    /// Everything up to and without the first envelope of this event: how a test shows that nothing else came.
    ///
    /// # Panics
    /// When the connection ends first, or the event does not come in time.
    pub async fn all_before(&mut self, event: &str) -> Vec<Envelope> {
        let mut before = Vec::new();
        loop {
            let envelope = self.next_envelope().await;
            if envelope.event == event {
                return before;
            }
            before.push(envelope);
        }
    }

    /// The error text of an `error` event, which must be next.
    ///
    /// # Panics
    /// When something else comes.
    pub async fn expect_error(&mut self) -> String {
        let envelope = self.next_envelope().await;
        assert_eq!(envelope.event, "error", "{envelope:?}");
        envelope.data["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The code and reason the server closes with; envelopes before it are kept for later calls.
    ///
    /// # Panics
    /// When it does not close, or ends without a Close frame.
    pub async fn expect_closed(&mut self) -> (u16, String) {
        self.expect_closed_within(LIMIT).await
    }

    /// [`Client::expect_closed`] with another limit.
    ///
    /// # Panics
    /// As above.
    pub async fn expect_closed_within(&mut self, limit: Duration) -> (u16, String) {
        let begun = Instant::now();
        loop {
            match self.read(limit.saturating_sub(begun.elapsed())).await {
                Some(Incoming::Envelope(envelope)) => self.waiting.push_back(envelope),
                Some(Incoming::Closed(code, reason)) => return (code, reason),
                Some(Incoming::Lost) => panic!(
                    "the connection was lost without a Close frame; before it {:?}",
                    self.waiting
                ),
                None => panic!("not closed in {limit:?}; before it {:?}", self.waiting),
            }
        }
    }

    /// Reads until the connection ends, however it does, and gives what came.
    pub async fn drain(&mut self) -> Vec<Envelope> {
        while let Some(Incoming::Envelope(envelope)) = self.read(LIMIT).await {
            self.waiting.push_back(envelope);
        }
        self.waiting.drain(..).collect()
    }

    /// Says goodbye and waits for the server's answer.
    pub async fn close(mut self) {
        let _ = within("close", self.socket.close(None)).await;
        while let Some(Incoming::Envelope(_)) = self.read(LIMIT).await {}
    }

    /// `None` when nothing came within the limit.
    async fn read(&mut self, limit: Duration) -> Option<Incoming> {
        let text = timeout(limit, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text),
                    Some(Ok(Message::Close(frame))) => {
                        // Reading on sends the reply and waits for the end of the stream; a limit that passes meanwhile forgets nothing.
                        self.closed = Some(frame.map_or((1005, String::new()), |frame| {
                            (frame.code.into(), frame.reason.to_string())
                        }));
                    }
                    Some(Ok(Message::Binary(bytes))) => {
                        panic!("the server sent a binary frame: {bytes:?}")
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => {
                        return Err(self.closed.take().map_or(Incoming::Lost, |(code, reason)| {
                            Incoming::Closed(code, reason)
                        }));
                    }
                }
            }
        });
        match text.await {
            Err(_) => None,
            Ok(Err(end)) => Some(end),
            Ok(Ok(text)) => Some(Incoming::Envelope(open_envelope(
                self.cipher.as_ref(),
                &text,
            ))),
        }
    }
}

/// The worker number in a client id (protocol.md 11.1).
pub fn worker_of(id: &str) -> u16 {
    ((number_of(id) >> 12) & 1023) as u16
}

/// When a client id was made, in seconds since the Unix epoch.
pub fn made_at(id: &str) -> i64 {
    (number_of(id) >> 22) as i64 / 1000 + 1_735_689_600
}

fn number_of(id: &str) -> u128 {
    const DIGITS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    id.chars().fold(0, |number, c| {
        number * 62 + DIGITS.find(c).expect("a digit of base62") as u128
    })
}

fn seal(cipher: &Aes256Gcm, plaintext: &[u8]) -> Value {
    let iv: [u8; 12] = rand::random();
    let ct = cipher
        .encrypt(&Nonce::from(iv), plaintext)
        .expect("AES-GCM seals");
    json!({"iv": STANDARD.encode_to_string(iv), "ct": STANDARD.encode_to_string(ct)})
}

fn open_envelope(cipher: Option<&Aes256Gcm>, text: &str) -> Envelope {
    let value: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"));
    if value["event"] != "encrypted" {
        return typed(value, false);
    }
    let cipher =
        cipher.unwrap_or_else(|| panic!("`encrypted` on a connection without a key: {text}"));
    let bytes = |name: &str| {
        STANDARD
            .decode_to_vec(value["data"][name].as_str().unwrap_or_default())
            .expect("base64")
    };
    let iv: [u8; 12] = bytes("iv").try_into().expect("an IV of 12 bytes");
    let plaintext = cipher
        .decrypt(&Nonce::from(iv), bytes("ct").as_slice())
        .expect("a message sealed for this connection");
    typed(
        serde_json::from_slice(&plaintext).expect("an inner envelope"),
        true,
    )
}

fn derive_key(secret: &SecretKey, public: &PublicKey, salt: &[u8]) -> Aes256Gcm {
    let shared = ecdh::diffie_hellman(secret.to_nonzero_scalar(), public.as_affine());
    let mut key = [0; 32];
    hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), shared.raw_secret_bytes())
        .expand(INFO, &mut key)
        .expect("32 bytes are not too many");
    Aes256Gcm::new(&key.into())
}

fn fresh_secret() -> SecretKey {
    // All but about one in 2^32 numbers of 32 bytes are below the order of the curve.
    loop {
        if let Ok(secret) = SecretKey::from_slice(&rand::random::<[u8; 32]>()) {
            return secret;
        }
    }
}

fn envelope(event: &str, data: Value) -> String {
    match data {
        Value::Null => json!({"event": event}),
        data => json!({"event": event, "data": data}),
    }
    .to_string()
}

fn typed(mut value: Value, sealed: bool) -> Envelope {
    let event = value["event"]
        .as_str()
        .unwrap_or_else(|| panic!("an envelope without `event`: {value}"))
        .to_owned();
    let id = value["id"].as_str().map(str::to_owned);
    Envelope {
        event,
        data: value["data"].take(),
        id,
        sealed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;

    /// A server of the protocol's encryption in a few lines: answers `authenticate`, then echoes what it opens, sealed.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = accept_async(stream).await.unwrap();
            let mut cipher = None;
            while let Some(Ok(Message::Text(text))) = socket.next().await {
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["event"] == "authenticate" {
                    let (secret, salt): (_, [u8; 32]) = (fresh_secret(), rand::random());
                    let key = value["data"]["clientPublicKey"]
                        .as_str()
                        .or(value["data"]["publicKey"].as_str())
                        .unwrap();
                    let public =
                        PublicKey::from_sec1_bytes(&STANDARD.decode_to_vec(key).unwrap()).unwrap();
                    let own = STANDARD
                        .encode_to_string(secret.public_key().to_sec1_point(false).as_bytes());
                    let data = json!({"id": "c1", "userId": "17", "serverPublicKey": own, "salt": STANDARD.encode_to_string(salt)});
                    cipher = Some(derive_key(&secret, &public, &salt));
                    socket
                        .send(Message::text(envelope("connected", data)))
                        .await
                        .unwrap();
                } else {
                    let opened = open_envelope(cipher.as_ref(), &text);
                    let sealed = seal(
                        cipher.as_ref().unwrap(),
                        envelope(&opened.event, opened.data).as_bytes(),
                    );
                    socket
                        .send(Message::text(envelope("encrypted", sealed)))
                        .await
                        .unwrap();
                    socket.close(None).await.unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn both_names_of_the_key_lead_to_a_session_that_opens_what_the_peer_seals() {
        for key in [KeyMember::ClientPublicKey, KeyMember::PublicKey] {
            let mut client = Client::connect(server().await).await;
            let connected = client.authenticate("token", key).await;
            assert_eq!(
                (connected.id.as_str(), connected.user_id.as_str()),
                ("c1", "17")
            );
            client.send_sealed("hello", json!({"n": 1})).await;
            let back = client.expect("hello").await;
            assert!(back.sealed);
            assert_eq!(back.data, json!({"n": 1}));
            assert_eq!(client.expect_closed().await.0, 1005);
        }
    }

    #[tokio::test]
    async fn events_before_the_one_waited_for_are_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut socket = accept_async(listener.accept().await.unwrap().0)
                .await
                .unwrap();
            for event in ["a", "b", "c"] {
                socket
                    .send(Message::text(envelope(event, Value::Null)))
                    .await
                    .unwrap();
            }
        });
        let mut client = Client::connect(address).await;
        client.expect("b").await;
        assert_eq!(client.next_envelope().await.event, "a");
        assert!(client.all_before("c").await.is_empty());
        assert_eq!(client.next().await, Incoming::Lost);
    }

    #[test]
    fn hkdf_matches_rfc_5869_test_case_1() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let mut out = [0; 42];
        hkdf::Hkdf::<sha2::Sha256>::new(Some(&salt), &[0x0b; 22])
            .expand(&info, &mut out)
            .unwrap();
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
    }
}
