//! What a gateway does with connections: ports, timers, encryption, rooms, limits.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::reference::SecretKey;

/// An entry of `allowedOrigins`, as `signal_contract::is_allowed_origin` reads it.
const ORIGIN: &str =
    r"^(null|loopback|[A-Za-z][A-Za-z0-9+.-]*://[^/\\?#%@*\s]+|https?://\*\.[^/\\?#%@*\s]+)$";

/// What a gateway does with connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// Container port of `/stream` and REST. A change rolls the pods.
    #[schemars(range(min = 1024, max = 65535))]
    pub public_port: u16,
    /// Container port of probes, metrics, status and drain; never on the public Service. A change rolls the pods.
    #[schemars(range(min = 1024, max = 65535))]
    pub admin_port: u16,
    /// Origins that may connect besides the gateway's own, exactly (`https://shop.example.com`, `capacitor://localhost`) or as `https://*.example.com`;
    /// `null` for pages without an origin, `loopback` for every page of the client's own machine. Live.
    #[schemars(length(max = 64), inner(length(min = 1, max = 253), regex(pattern = ORIGIN)))]
    pub allowed_origins: Vec<String>,
    /// Paths that open a WebSocket. None belongs to REST. A change rolls the pods.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 128), regex(pattern = "^/[A-Za-z0-9/._~-]*$"))
    )]
    pub stream_paths: Vec<String>,
    /// Subprotocols: of those that a client asks for, the first that is listed is answered; `*`: any. A change rolls the pods.
    #[schemars(
        length(max = 16),
        inner(length(max = 128), regex(pattern = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"))
    )]
    pub subprotocols: Vec<String>,
    /// Networks (CIDR) whose `X-Forwarded-For` is believed. Live.
    #[schemars(length(max = 64), inner(length(min = 3, max = 49)))]
    pub trusted_proxies: Vec<String>,
    /// Networks (CIDR) whose sockets begin with a header of PROXY protocol version 2, which is demanded there. Live.
    #[schemars(length(max = 64), inner(length(min = 3, max = 49)))]
    pub proxy_protocol_from: Vec<String>,
    /// Sockets that the kernel holds until they are accepted, at most the node's `net.core.somaxconn`. A change rolls the pods.
    #[schemars(range(min = 1, max = 65535))]
    pub listen_backlog: u32,
    /// Longest wait for a whole request head, in whole seconds. A change rolls the pods.
    pub header_read_timeout: Duration,
    /// How long a connection may wait for the next request, in whole seconds; longer than balancers keep theirs. A change rolls the pods.
    pub keep_alive_timeout: Duration,
    /// Pings and silence.
    pub heartbeat: Heartbeat,
    /// Timers of authentication.
    pub auth: Auth,
    /// Encryption of frames per connection, beneath TLS.
    pub encryption: Encryption,
    /// Rooms.
    pub rooms: Rooms,
    /// Addresses that the ports listen on. A change rolls the pods.
    pub address_families: AddressFamilies,
    /// TLS 1.2 and 1.3 on the public port, down to the pods. Without it the port is in the clear, behind whatever ends TLS. Setting or removing it
    /// rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            public_port: 8080,
            admin_port: 9090,
            allowed_origins: Vec::new(),
            stream_paths: vec!["/stream".to_owned()],
            subprotocols: vec!["*".to_owned()],
            trusted_proxies: Vec::new(),
            proxy_protocol_from: Vec::new(),
            listen_backlog: 4096,
            header_read_timeout: Duration::secs(10),
            keep_alive_timeout: Duration::secs(620),
            heartbeat: Heartbeat::default(),
            auth: Auth::default(),
            encryption: Encryption::default(),
            rooms: Rooms::default(),
            address_families: AddressFamilies::default(),
            tls: None,
        }
    }
}

/// Addresses that a pod listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum AddressFamilies {
    /// IPv4 alone.
    #[default]
    IPv4,
    /// IPv4 and IPv6, whichever the pod has; the Services prefer both.
    DualStack,
}

/// TLS on the public port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret of type `kubernetes.io/tls`: `tls.crt` with the certificate and its chain, `tls.key`. New content is used for new connections, without a
    /// restart and without closing one.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// PEM certificates of authorities. Every client must then show a certificate of one of them. New content is followed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_secret_ref: Option<SecretKey>,
    /// The oldest version that is spoken. A change rolls the pods.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

/// Pings and silence. A change rolls the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.timeout) > duration(self.pingInterval) + duration(self.pingInterval)")
    .message("timeout must exceed two ping intervals").field_path(".timeout"))]
pub struct Heartbeat {
    /// How often the gateway pings; `0s`: never.
    #[serde(default = "Heartbeat::ping_interval")]
    pub ping_interval: Duration,
    /// No frame for this long ends a connection (4002).
    #[serde(default = "Heartbeat::timeout")]
    pub timeout: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            ping_interval: Self::ping_interval(),
            timeout: Self::timeout(),
        }
    }
}

impl Heartbeat {
    fn ping_interval() -> Duration {
        Duration::secs(25)
    }

    fn timeout() -> Duration {
        Duration::secs(90)
    }
}

/// Timers of authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Auth {
    /// Longest time from connecting to `authenticate` (4001). A change rolls the pods.
    pub connect_timeout: Duration,
    /// Longest time from `authenticate` to its answer (4001). A change rolls the pods.
    pub finish_timeout: Duration,
    /// Allowed difference between the clocks of issuers and gateways. Live.
    pub clock_skew: Duration,
    /// How long before the end of a token its connection gets `expiring`. A change rolls the pods.
    pub expiring_lead: Duration,
    /// JSON file of users for `Authorization: Basic` on REST: `[{"name", "hash": "$argon2id$...", "subject"}]`. Without it Basic is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_users_secret_ref: Option<SecretKey>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::secs(5),
            finish_timeout: Duration::secs(15),
            clock_skew: Duration::secs(30),
            expiring_lead: Duration::secs(60),
            basic_users_secret_ref: None,
        }
    }
}

/// Encryption of frames per connection, beneath TLS. A change rolls the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Encryption {
    /// Whether connections are sealed: never, when the client gives a key, or always.
    pub mode: EncryptionMode,
    /// Whether clear frames of clients are accepted on a sealed connection.
    pub client_frames: ClientFrames,
}

/// Whether connections are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum EncryptionMode {
    /// Never.
    Disabled,
    /// When the client gives a key.
    #[default]
    Optional,
    /// Always; clients without a key are closed with 4004.
    Required,
}

/// Which frames of clients are accepted on a sealed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ClientFrames {
    /// Clear and sealed ones.
    #[default]
    Any,
    /// Sealed ones only, but for `heartbeat`.
    Encrypted,
}

/// Rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rooms {
    /// What happens to a room name that no rule knows. A change rolls the pods.
    pub unmatched: Unmatched,
    /// Rooms of one connection. Live.
    #[schemars(range(min = 1, max = 10000))]
    pub max_per_connection: u32,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            unmatched: Unmatched::Deny,
            max_per_connection: 1024,
        }
    }
}

/// What happens to a room name that no rule knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Unmatched {
    /// Nobody may join it.
    #[default]
    Deny,
    /// Everybody may join it.
    Allow,
}

/// Bounds of one gateway pod. Live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Open connections of one pod; more get 503 with Retry-After.
    #[schemars(range(min = 1, max = 10000000))]
    pub connections_per_pod: u32,
    /// Connections of one user on one pod (4010); 0: no limit.
    #[schemars(range(min = 0, max = 100000))]
    pub connections_per_user: u32,
    /// Connections that a pod accepts per second, and how many more may come at once.
    #[schemars(range(min = 1, max = 1000000))]
    pub accepts_per_second: u32,
    /// How many connections above the rate may come at once.
    #[schemars(range(min = 0, max = 1000000))]
    pub accept_burst: u32,
    /// Sockets of one pod that are no WebSockets: unfinished requests, answers, idle connections. Beyond it the oldest idle one goes, then the oldest
    /// unfinished request.
    #[schemars(range(min = 16, max = 1000000))]
    pub http_connections_per_pod: u32,
    /// Those of one network, an IPv4 address or an IPv6 /64, that is neither in `trustedProxies` nor in `proxyProtocolFrom`.
    #[schemars(range(min = 16, max = 1000000))]
    pub http_connections_per_network: u32,
    /// Longest message of a client in bytes (1009).
    #[schemars(range(min = 1024, max = 16777216))]
    pub frame_bytes: u32,
    /// Longest message to clients in bytes. What is longer is refused where it enters.
    #[schemars(range(min = 65536, max = 33554432))]
    pub message_bytes: u32,
    /// Frames per second of one connection (4010); 0: no limit.
    #[schemars(range(min = 0, max = 1000000))]
    pub inbound_frames_per_second: u32,
    /// How many frames above the rate may come at once.
    #[schemars(range(min = 0, max = 1000000))]
    pub inbound_burst: u32,
    /// What may wait to be written.
    pub send_queue: SendQueue,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_pod: 50_000,
            connections_per_user: 20,
            accepts_per_second: 500,
            accept_burst: 500,
            http_connections_per_pod: 4096,
            http_connections_per_network: 2048,
            frame_bytes: 131_072,
            message_bytes: 8_388_608,
            inbound_frames_per_second: 50,
            inbound_burst: 2048,
            send_queue: SendQueue::default(),
        }
    }
}

/// What may wait to be written. Beyond it a connection is closed with 4008.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SendQueue {
    /// Bytes for one connection.
    #[schemars(range(min = 65536, max = 268435456))]
    pub bytes: u32,
    /// Frames for one connection.
    #[schemars(range(min = 16, max = 1000000))]
    pub frames: u32,
    /// Bytes of one whole pod; beyond it new connections get 503.
    #[schemars(range(min = 1048576, max = 1099511627776_i64))]
    pub total_bytes: u64,
    /// How long a socket may take nothing while something waits.
    pub write_timeout: Duration,
}

impl Default for SendQueue {
    fn default() -> Self {
        Self {
            bytes: 1_048_576,
            frames: 1024,
            total_bytes: 536_870_912,
            write_timeout: Duration::secs(10),
        }
    }
}
