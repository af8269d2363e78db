//! What one of everything costs, as it was measured: the one table that the model computes with and that `docs/scaling.md` shows.
//!
//! A test holds each coefficient against the line of `docs/performance.md` that it comes from, so that new figures there are new figures here.

use super::Span;

/// Where a coefficient comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// A row of the table of figures in `docs/performance.md`: its group and its figure, as measured.
    Figure(&'static str, &'static str),
    /// The same, of which the ratio counts.
    Ratio(&'static str, &'static str),
    /// A row of the table of many gateways in `docs/performance.md`: the number that stands first or second in each cell. The last cell counts; the
    /// smallest and the largest are the error.
    ManyGateways(&'static str, usize),
    /// The same: how much a cell grows from one gateway to the next, between the first cell and the last, with neighbours as the error.
    EachGateway(&'static str, usize),
    /// A sentence of this page, which gives no error.
    Sentence(&'static str, &'static str),
    /// Counted once, in this way.
    Counted(&'static str),
}

/// What one of something costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficient {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) value: Span,
    pub(crate) source: Source,
}

const fn of(name: &'static str, unit: &'static str, value: Span, source: Source) -> Coefficient {
    Coefficient {
        name,
        unit,
        value,
        source,
    }
}

const fn span(middle: f64, low: f64, high: f64) -> Span {
    Span { low, middle, high }
}

const US: &str = "us";
const KIB: &str = "KiB";
const BYTES: &str = "bytes";
const TO_ONE: &str = "to one user: all gateways, Redis";
const TO_ROOM: &str = "to a room with members on two: all gateways, Redis";
const TO_EVERYONE: &str = "to everyone: all gateways, Redis";

pub(crate) const PROCESS_MEMORY: Coefficient = of(
    "memory of a gateway without connections, a burst of its pipeline included",
    "MiB",
    span(63.0, 63.0, 63.0),
    Source::Figure("pipeline", "a burst of 100000 records: most memory in all"),
);
pub(crate) const CLEAR_MEMORY: Coefficient = of(
    "memory of a connection",
    KIB,
    span(1.56, 1.56, 1.57),
    Source::Figure("idle", "10000 at rest, clear"),
);
pub(crate) const ENCRYPTED_MEMORY: Coefficient = of(
    "memory of a connection that is encrypted",
    KIB,
    span(2.19, 2.18, 2.2),
    Source::Figure("idle", "10000 at rest, encrypted"),
);
pub(crate) const TLS_MEMORY: Coefficient = of(
    "memory of a connection over TLS",
    KIB,
    span(5.23, 5.21, 5.24),
    Source::Figure("tls", "10000 at rest"),
);
pub(crate) const KERNEL_MEMORY: Coefficient = of(
    "memory of the kernel for a connection",
    KIB,
    span(4.8, 4.7, 4.9),
    Source::Counted(
        "half of what 4,500 connections over loopback added to `Slab` of /proc/meminfo, three times (Linux 6.18). It counts in the limit of a pod",
    ),
);
pub(crate) const PROCESS: Coefficient = of(
    "a gateway without connections, a second",
    US,
    span(676.0, 622.0, 762.0),
    Source::Figure("idle", "the gateway without connections"),
);
pub(crate) const CLEAR_REST: Coefficient = of(
    "a connection at rest, with a ping every 25 s, a second",
    US,
    span(0.6, 0.59, 0.6),
    Source::Figure("idle", "10000 at rest, clear, a ping every 25 s"),
);
pub(crate) const ENCRYPTED_REST: Coefficient = of(
    "the same, encrypted",
    US,
    span(0.64, 0.58, 0.69),
    Source::Figure("idle", "10000 at rest, encrypted, a ping every 25 s"),
);
pub(crate) const ARRIVAL: Coefficient = of(
    "a connection that comes, with a new token",
    US,
    span(71.1, 69.4, 73.3),
    Source::Figure("connect", "a new token"),
);
pub(crate) const ENCRYPTED_ARRIVAL: Coefficient = of(
    "the same, with the encryption handshake",
    US,
    span(112.1, 111.0, 121.3),
    Source::Figure("connect", "a new token, encryption handshake"),
);
pub(crate) const KNOWN_ARRIVAL: Coefficient = of(
    "a connection that comes, with a token seen before",
    US,
    span(33.6, 33.2, 34.5),
    Source::Figure("connect", "a token seen before"),
);
pub(crate) const TLS_ARRIVAL: Coefficient = of(
    "the same, with a full handshake of TLS",
    US,
    span(140.6, 137.6, 151.3),
    Source::Figure("tls", "a full handshake"),
);
pub(crate) const UNICAST: Coefficient = of(
    "a message to one user, in a gateway that waits for it",
    US,
    span(75.0, 32.0, 75.0),
    Source::ManyGateways(TO_ONE, 0),
);
pub(crate) const SHORT_CLEAR: Coefficient = of(
    "128 B to one of many",
    US,
    span(5.57, 5.5, 6.62),
    Source::Figure("fanout", "128 B to 5000, clear"),
);
pub(crate) const LONG_CLEAR: Coefficient = of(
    "1024 B to one of many",
    US,
    span(5.87, 5.52, 6.58),
    Source::Figure("fanout", "1024 B to 5000, clear"),
);
pub(crate) const SHORT_ENCRYPTED: Coefficient = of(
    "128 B to one of many, encrypted",
    US,
    span(5.97, 5.81, 7.02),
    Source::Figure("fanout", "128 B to 5000, encrypted"),
);
pub(crate) const LONG_ENCRYPTED: Coefficient = of(
    "1024 B to one of many, encrypted",
    US,
    span(6.21, 6.01, 7.21),
    Source::Figure("fanout", "1024 B to 5000, encrypted"),
);
pub(crate) const TLS_FACTOR: Coefficient = of(
    "a message to one of many over TLS, as a multiple of a clear one",
    "x",
    span(1.14, 1.11, 1.21),
    Source::Ratio("tls", "128 B to 5000, clear frames"),
);
pub(crate) const GATEWAY_OF_MANY: Coefficient = of(
    "a message to everyone, for each further gateway",
    US,
    span(80.0, 16.7, 95.8),
    Source::EachGateway(TO_EVERYONE, 0),
);
pub(crate) const CLIENT_EVENT: Coefficient = of(
    "an event of a client and its answer",
    US,
    span(14.91, 13.55, 21.55),
    Source::Figure("echo", "an event and its answer, clear"),
);
pub(crate) const ENCRYPTED_EVENT: Coefficient = of(
    "the same with an encrypted answer",
    US,
    span(15.93, 13.66, 35.52),
    Source::Figure("echo", "a clear event and its encrypted answer"),
);
pub(crate) const RECORD_THAT_WAITS: Coefficient = of(
    "a record to one user, stored and pushed, where records wait",
    US,
    span(16.43, 16.11, 16.87),
    Source::Figure("pipeline", "a record that waits, to one user"),
);
pub(crate) const RECORD_ALONE: Coefficient = of(
    "the same at 500 a second, where each is a batch of its own",
    US,
    span(173.7, 153.4, 240.3),
    Source::Figure("pipeline", "500 records a second, to one user each"),
);
pub(crate) const REDIS_MESSAGE: Coefficient = of(
    "a message to one gateway, in Redis",
    US,
    span(22.0, 22.0, 25.0),
    Source::ManyGateways(TO_ONE, 1),
);
pub(crate) const REDIS_ROOM: Coefficient = of(
    "a message to two gateways, in Redis",
    US,
    span(24.0, 24.0, 40.0),
    Source::ManyGateways(TO_ROOM, 1),
);
pub(crate) const REDIS_GATEWAY: Coefficient = of(
    "a message to everyone, for each further gateway, in Redis",
    US,
    span(7.0, 6.7, 8.3),
    Source::EachGateway(TO_EVERYONE, 1),
);
pub(crate) const REDIS_REST: Coefficient = of(
    "a gateway at rest, in Redis, a second",
    US,
    span(200.0, 200.0, 200.0),
    Source::Sentence(
        "docs/performance.md",
        "0.5 ms a second each, and 0.2 ms of Redis",
    ),
);
pub(crate) const REDIS_CONNECTION: Coefficient = of(
    "channels of a connection, in Redis",
    BYTES,
    span(700.0, 640.0, 710.0),
    Source::Counted(
        "`used_memory` of Redis 7.0 for 20,000 and 100,000 connections of three channels each, with ids of 12 and users of up to 10 characters",
    ),
);
pub(crate) const REDIS_SUBSCRIPTION: Coefficient = of(
    "a channel that is subscribed to, in Redis",
    US,
    span(1.7, 1.6, 2.0),
    Source::Counted(
        "CPU time of Redis 7.0 while 32 connections subscribed to 300,000 channels, 510 in a command",
    ),
);
pub(crate) const RECIPIENT_ROW: Coefficient = of(
    "a notification of one recipient, with its indexes",
    BYTES,
    span(128.0, 128.0, 180.0),
    Source::Counted(
        "tables of 200,000 events to one recipient each, in PostgreSQL 15; 180 bytes are the bound of database.md, which a test holds",
    ),
);
pub(crate) const RECIPIENT_LOG: Coefficient = of(
    "the same in PostgreSQL's log",
    BYTES,
    span(450.0, 450.0, 450.0),
    Source::Sentence("docs/database.md", "at most 450 bytes of PostgreSQL's log"),
);
pub(crate) const EVENT_ROWS: Coefficient = of(
    "an event and its text without the text's own bytes, with indexes",
    BYTES,
    span(470.0, 440.0, 520.0),
    Source::Counted(
        "the same tables, with 512 bytes of data for each event (`pg_total_relation_size`)",
    ),
);

/// All of them, in the order of the page.
pub(crate) const ALL: [Coefficient; 32] = [
    PROCESS_MEMORY,
    CLEAR_MEMORY,
    ENCRYPTED_MEMORY,
    TLS_MEMORY,
    KERNEL_MEMORY,
    PROCESS,
    CLEAR_REST,
    ENCRYPTED_REST,
    ARRIVAL,
    ENCRYPTED_ARRIVAL,
    KNOWN_ARRIVAL,
    TLS_ARRIVAL,
    UNICAST,
    SHORT_CLEAR,
    LONG_CLEAR,
    SHORT_ENCRYPTED,
    LONG_ENCRYPTED,
    TLS_FACTOR,
    GATEWAY_OF_MANY,
    CLIENT_EVENT,
    ENCRYPTED_EVENT,
    RECORD_THAT_WAITS,
    RECORD_ALONE,
    REDIS_MESSAGE,
    REDIS_ROOM,
    REDIS_GATEWAY,
    REDIS_REST,
    REDIS_CONNECTION,
    REDIS_SUBSCRIPTION,
    RECIPIENT_ROW,
    RECIPIENT_LOG,
    EVENT_ROWS,
];
