//! Every metric name of the process in one list. Labels have few, known values: no user, room, client or tenant ever.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One label whose values the code lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// An outcome, a reason or a code, as the metric's help says.
    pub kind: String,
}

/// A key source by its configured name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    /// `sources.name`
    pub source: String,
}

/// A key source and an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceKind {
    /// `sources.name`
    pub source: String,
    /// `ok`, `error`
    pub kind: String,
}

/// A partition of a configured topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Partition {
    /// Topic.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
}

/// A REST route by its template.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    /// `/notifications/{id}`; `unmatched` for none.
    pub route: String,
    /// Method.
    pub method: String,
    /// Status code.
    pub status: u16,
}

/// The build.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Build {
    /// The package's version.
    pub version: String,
}

type Float = Gauge<f64, AtomicU64>;

macro_rules! metrics {
    ($($field:ident: $type:ty = $make:expr, $name:literal, $help:literal;)*) => {
        /// The metrics, and the registry that `/metrics` prints.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Metrics {
            /// Makes the metrics with their own registry, so that two gateways in one process share nothing.
            pub fn new() -> Arc<Self> {
                let mut registry = Registry::with_prefix("signal");
                $(let $field: $type = $make; registry.register($name, $help, $field.clone());)*
                let metrics = Self { registry, $($field,)* };
                metrics.build_info.get_or_create(&Build { version: env!("CARGO_PKG_VERSION").into() }).set(1);
                Arc::new(metrics)
            }
        }
    };
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.5, 14))
}

fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 9))
}

metrics! {
    build_info: Family<Build, Gauge> = Family::default(), "build_info", "Version of the running gateway; always 1";
    connections: Gauge = Gauge::default(), "connections", "Open WebSocket connections";
    authenticated: Gauge = Gauge::default(), "connections_authenticated", "Open connections past authentication";
    encrypted: Gauge = Gauge::default(), "connections_encrypted", "Open connections that are encrypted";
    queued: Gauge = Gauge::default(), "connections_queued", "Opening handshakes that wait for their turn, since more come than limits.accepts_per_second";
    opened: Counter = Counter::default(), "connections_opened", "WebSocket connections accepted";
    tls_handshakes: Family<Kind, Counter> = Family::default(), "tls_handshakes", "TLS handshakes of the public listener, by outcome: full, resumed, failed, timeout, plain_http";
    tls_not_after: Gauge = Gauge::default(), "tls_certificate_not_after_seconds", "Unix time at which the certificate of the public listener ends; 0 without TLS";
    refused: Family<Kind, Counter> = Family::default(), "connections_refused", "Upgrades refused, by reason";
    http_closed: Family<Kind, Counter> = Family::default(), "http_connections_closed", "Sockets that the gateway closed before they were WebSockets, by reason: full, network_full, evicted, head_late, answer_late, idle, proxy_header";
    closed: Family<Kind, Counter> = Family::default(), "connections_closed", "Connections ended, by close code; 1006 if neither side sent a Close frame";
    authentications: Family<Kind, Counter> = Family::default(), "authentications", "Tokens verified, by outcome";
    handshake: Histogram = seconds(), "handshake_seconds", "Time from authenticate to connected";
    frames_in: Counter = Counter::default(), "frames_received", "Text and binary messages from clients";
    frames_out: Counter = Counter::default(), "frames_sent", "Messages queued to connections";
    bytes_out: Counter = Counter::default(), "sent_bytes", "Bytes written to sockets";
    writes_out: Counter = Counter::default(), "socket_writes", "Times that what waited for a connection was written; several messages that wait leave in one";
    outbox_bytes: Gauge = Gauge::default(), "outbox_bytes", "Bytes waiting to be written to sockets";
    fan_out: Histogram = sizes(), "fan_out_members", "Local connections that a message was queued to";
    fan_out_time: Histogram = seconds(), "fan_out_seconds", "Time a shard took to queue one batch of messages to its connections";
    messages_refused: Family<Kind, Counter> = Family::default(), "messages_refused", "Messages longer than limits.message_bytes, by where they entered: rest, redis, notification";
    bus_published: Family<Kind, Counter> = Family::default(), "bus_published", "Dispatches given to Redis, by outcome";
    bus_received: Family<Kind, Counter> = Family::default(), "bus_received", "Payloads received from Redis, by outcome";
    bus_subscriptions: Gauge = Gauge::default(), "bus_subscriptions", "Clients, users and rooms subscribed for";
    bus_lag: Float = Float::default(), "bus_lag_seconds", "Time from publishing to receiving of the last self-ping";
    bus_stalled: Gauge = Gauge::default(), "bus_stalled", "1 while the subscriber is stalled and pushes from other instances may be missed";
    bus_switches: Family<Kind, Counter> = Family::default(), "bus_switches", "Switches to another Redis server or login, by kind: server, login, failed";
    bus_bridged: Gauge = Gauge::default(), "bus_bridged", "1 while the previous Redis is bridged: published to and subscribed to as well";
    bus_segments: Gauge = Gauge::default(), "bus_segments", "Segments of a Redis Cluster whose subscriptions are confirmed: 16 with redis.sharded_pubsub";
    bus_sharded: Gauge = Gauge::default(), "bus_sharded", "1 while messages to other instances are published on segments, because all of them receive there";
    bus_late_subscriptions: Counter = Counter::default(), "bus_late_subscriptions", "Connections and joins that were told to sync because Redis confirmed their subscriptions late";
    bus_resyncs: Counter = Counter::default(), "bus_resyncs", "Times resync was sent to local clients, because pushes may have been missed";
    records: Family<Kind, Counter> = Family::default(), "kafka_records", "Activity records finished, by outcome";
    rows: Counter = Counter::default(), "notifications_stored", "Notification rows written";
    dead_letters: Family<Kind, Counter> = Family::default(), "kafka_dead_letters", "Records sent to the dead-letter topic, by reason";
    values_dropped: Family<Kind, Counter> = Family::default(), "kafka_values_dropped", "Invalid values that were passed over while their record was used, by member: actorId, organizerId, merchantId, recipientIds, locale, occurredAt, time; and member, an id in the platform's policy table that is no user id";
    lag: Family<Partition, Gauge> = Family::default(), "kafka_lag_records", "Records between the committed offset and the end of the partition";
    stuck: Family<Partition, Gauge> = Family::default(), "kafka_stuck_seconds", "Time since a partition that has records advanced; 0 until that is longer than kafka.stuck_after_secs";
    fetch_errors: Family<Partition, Counter> = Family::default(), "kafka_fetch_errors", "Errors of fetching that kept a partition where it was";
    kafka_errors: Family<Kind, Counter> = Family::default(), "kafka_consumer_errors", "Errors that the Kafka consumer reported, by librdkafka's code";
    missed: Family<Partition, Counter> = Family::default(), "kafka_missed_records", "Records that could no longer be had: deleted before they were read";
    missing_topics: Gauge = Gauge::default(), "kafka_dead_letter_topics_missing", "Dead-letter topics that cannot be used";
    member_left: Counter = Counter::default(), "kafka_group_left", "Times that this instance left the group, because it could not work and another one could";
    batch: Histogram = sizes(), "kafka_batch_records", "Records stored in one transaction";
    store_time: Histogram = seconds(), "store_seconds", "Time of one storing transaction";
    pipeline_memory: Gauge = Gauge::default(), "kafka_memory_bytes", "Bytes held by activity records between Kafka and the database, and by their pushes; bounded by kafka.memory_bytes";
    pipeline_retries: Counter = Counter::default(), "kafka_retries", "Batches retried because a dependency was not available";
    key_age: Family<SourceLabel, Gauge> = Family::default(), "key_set_age_seconds", "Time since the last good fetch of a key source";
    key_fetches: Family<SourceKind, Counter> = Family::default(), "key_set_fetches", "Fetches of key sets, by source and outcome";
    revocations_age: Float = Float::default(), "revocations_age_seconds", "Time since revocations were last read from the database; about 30 s at most while it answers";
    requests: Family<Route, Counter> = Family::default(), "http_requests", "REST requests, by route template, method and status";
    request_time: Histogram = seconds(), "http_request_seconds", "Time of one REST request";
    config_reloads: Family<Kind, Counter> = Family::default(), "config_reloads", "Live settings and catalogs read again, by outcome";
    policy_rows_unread: Family<Kind, Gauge> = Family::default(), "policy_rows_unread", "Rows of the platform's policy table that are not understood, by reason: variant, subject, target, permission, effect, domain, custom";
    unready: Family<Kind, Gauge> = Family::default(), "unready", "1 while this part is not ready: settings, redis, database, keys, revocations, pipeline, shards, drain";
    draining: Gauge = Gauge::default(), "draining", "1 from SIGTERM or POST /drain until a held drain is taken back";
}

impl Metrics {
    /// Returns all metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a String takes every write");
        text
    }

    /// Makes a label with this value.
    pub fn kind(kind: impl Into<String>) -> Kind {
        Kind { kind: kind.into() }
    }
}
