//! The sums: what a load needs of gateways, Redis, PostgreSQL and the network. No IO.

use super::Span;
use super::coefficients as cost;

/// Bytes around a message on the wire: headers of Ethernet, IP and TCP with its time stamps, and of the WebSocket frame.
const AROUND_FRAME: f64 = 70.0;
/// An acknowledgement of TCP.
const ACKNOWLEDGEMENT: f64 = 66.0;
/// A record of TLS 1.3 around it: header, type and tag.
const AROUND_TLS: f64 = 22.0;
/// What `encrypted` adds to the text before it is written in base64, and around that: a tag, and the envelope with its `iv`.
const TAG: f64 = 16.0;
const AROUND_SEALED: f64 = 62.0;
/// What a payload and its command have on Redis beyond the message: `serverId`, `type`, `target`, and the channel.
const AROUND_PAYLOAD: f64 = 170.0;
/// What an event for many users has for each of them on Redis.
const EACH_OF_AUDIENCE: f64 = 25.0;
/// Most gateways of which each reads one message for many users; beyond, each user gets one.
const MOST_FOR_AUDIENCE: f64 = 33.0;
/// From here on records are batched, a second and gateway.
const RECORDS_ALONE: f64 = 500.0;
/// Channels that a connection is subscribed to: its id, the room of its id, its user.
const CHANNELS_OF_CONNECTION: f64 = 3.0;
/// Seconds between two pings of a connection.
const PING: f64 = 25.0;
const DAY: f64 = 86_400.0;

/// What is asked of the system. Rates are a second.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Load {
    pub(super) connections: f64,
    pub(super) instances: f64,
    pub(super) encrypted: bool,
    pub(super) tls: bool,
    pub(super) bytes: f64,
    pub(super) unicast: f64,
    pub(super) rooms: f64,
    pub(super) room_members: f64,
    pub(super) broadcasts: f64,
    pub(super) records: f64,
    pub(super) audiences: f64,
    pub(super) audience: f64,
    pub(super) client_events: f64,
    pub(super) arrivals: f64,
    pub(super) keep_days: f64,
    pub(super) utilization: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            connections: 1_000_000.0,
            instances: 32.0,
            encrypted: false,
            tls: false,
            bytes: 256.0,
            unicast: 0.0,
            rooms: 0.0,
            room_members: 50.0,
            broadcasts: 0.0,
            records: 0.0,
            audiences: 0.0,
            audience: 1000.0,
            client_events: 0.0,
            arrivals: 0.0,
            keep_days: 90.0,
            utilization: 60.0,
        }
    }
}

impl Load {
    /// The one of `docs/scaling.md`: a million connections, encrypted, behind a balancer that ends TLS.
    pub(super) fn example() -> Self {
        Self {
            encrypted: true,
            unicast: 5000.0,
            rooms: 200.0,
            broadcasts: 1.0 / 60.0,
            records: 500.0,
            audiences: 0.1,
            audience: 10_000.0,
            client_events: 10_000.0,
            arrivals: 500.0,
            keep_days: 30.0,
            ..Self::default()
        }
    }

    /// Gateways that hold some of so many members, spread evenly.
    fn gateways_of(&self, members: f64) -> f64 {
        self.instances * (1.0 - (1.0 - 1.0 / self.instances).powf(members))
    }

    /// Whether an event for many users is one message to all gateways.
    fn shares_audience(&self) -> bool {
        self.instances <= MOST_FOR_AUDIENCE && self.audience >= self.instances - 1.0
    }

    /// What a client receives for one message.
    fn frame_bytes(&self) -> f64 {
        let text = match self.encrypted {
            true => (self.bytes + TAG) * 4.0 / 3.0 + AROUND_SEALED,
            false => self.bytes,
        };
        text + AROUND_FRAME + if self.tls { AROUND_TLS } else { 0.0 }
    }

    /// One message to one of many.
    fn delivery(&self) -> Span {
        let (short, long) = match self.encrypted {
            true => (cost::SHORT_ENCRYPTED, cost::LONG_ENCRYPTED),
            false => (cost::SHORT_CLEAR, cost::LONG_CLEAR),
        };
        // What is longer than measured costs more in the same measure; what is shorter costs no less.
        let at = ((self.bytes - 128.0) / (1024.0 - 128.0)).max(0.0);
        let between = |short: f64, long: f64| short + (long - short).max(0.0) * at;
        let (short, long) = (short.value, long.value);
        let clear = Span {
            low: between(short.low, long.low),
            middle: between(short.middle, long.middle),
            high: between(short.high, long.high),
        };
        match self.tls {
            true => clear.by(cost::TLS_FACTOR.value),
            false => clear,
        }
    }

    /// Messages that leave the gateways a second.
    fn delivered(&self) -> f64 {
        self.unicast
            + self.records
            + self.rooms * self.room_members
            + self.broadcasts * self.connections
            + self.audiences * self.audience
            + self.client_events
    }

    /// Records a second of which each is a batch of its own, and those that are batched with others.
    fn records_alone(&self) -> f64 {
        self.records.min(RECORDS_ALONE * self.instances)
    }
}

/// How a figure is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    Cores,
    Bytes,
    BytesASecond,
    Rows,
    RowsASecond,
    Seconds,
}

impl Unit {
    /// A figure in the unit that suits its size, and that unit's name.
    pub(super) fn scaled(self, value: f64) -> (f64, &'static str) {
        let (units, suffixes): (_, [&str; 5]) = match self {
            Self::Cores => return (value, "cores"),
            Self::Seconds => return (value, "s"),
            Self::Rows => (1000.0, ["", "thousand", "million", "billion", "trillion"]),
            Self::RowsASecond => return (value, "a second"),
            Self::Bytes => (1024.0, ["B", "KiB", "MiB", "GiB", "TiB"]),
            // Networks count bits in thousands.
            Self::BytesASecond => return (value * 8.0 / 1e6, "Mbit/s"),
        };
        let mut value = value;
        let mut size = 0;
        while value >= units && size < 4 {
            value /= units;
            size += 1;
        }
        (value, suffixes[size])
    }
}

/// One line of the answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub(super) of: &'static str,
    pub(super) what: &'static str,
    pub(super) amount: Span,
    pub(super) unit: Unit,
}

/// Computes everything.
pub(super) fn needs(load: &Load) -> Vec<Need> {
    let mut needs = Vec::new();
    gateways(load, &mut needs);
    redis(load, &mut needs);
    postgres(load, &mut needs);
    needs
}

fn cores(microseconds: Span) -> Span {
    microseconds.times(1e-6)
}

/// CPU time of the gateways a second, by what it is for.
fn work(load: &Load) -> [(&'static str, Span); 8] {
    let delivery = load.delivery();
    let (rest, event) = match load.encrypted {
        true => (cost::ENCRYPTED_REST, cost::ENCRYPTED_EVENT),
        false => (cost::CLEAR_REST, cost::CLIENT_EVENT),
    };
    let at_rest = rest
        .value
        .times(load.connections)
        .plus(cost::PROCESS.value.times(load.instances));
    let mut arrival = match load.encrypted {
        true => cost::ENCRYPTED_ARRIVAL.value,
        false => cost::ARRIVAL.value,
    };
    if load.tls {
        arrival = arrival.plus(cost::TLS_ARRIVAL.value.minus(cost::KNOWN_ARRIVAL.value));
    }
    // Where others share the wake-up of a gateway, it is paid once for each gateway and message.
    let wake = cost::UNICAST.value.minus(delivery);
    let rooms = delivery
        .times(load.room_members)
        .plus(wake.times(load.gateways_of(load.room_members)));
    let broadcast = delivery
        .times(load.connections)
        .plus(cost::GATEWAY_OF_MANY.value.times(load.instances));
    let audience = match load.shares_audience() {
        true => delivery
            .times(load.audience)
            .plus(cost::GATEWAY_OF_MANY.value.times(load.instances)),
        false => cost::UNICAST.value.times(load.audience),
    };
    let stored = cost::RECORD_THAT_WAITS.value;
    // A record is pushed by the gateway that has the user; where that is the one that stored it, the push is in the figure.
    let elsewhere = 1.0 - 1.0 / load.instances;
    let records = cost::RECORD_ALONE
        .value
        .minus(stored)
        .times(load.records_alone())
        .plus(stored.times(load.records))
        .plus(cost::UNICAST.value.times(load.records * elsewhere));
    [
        ("at rest, with pings", at_rest),
        ("connections that come", arrival.times(load.arrivals)),
        (
            "messages to one user",
            cost::UNICAST.value.times(load.unicast),
        ),
        ("messages to rooms", rooms.times(load.rooms)),
        ("messages to everyone", broadcast.times(load.broadcasts)),
        ("records to one user", records),
        (
            "records to many users",
            audience
                .plus(stored.times(load.audience))
                .times(load.audiences),
        ),
        ("events of clients", event.value.times(load.client_events)),
    ]
}

fn gateways(load: &Load, needs: &mut Vec<Need>) {
    let mut add = |what, amount, unit| {
        needs.push(Need {
            of: "gateways",
            what,
            amount,
            unit,
        });
    };
    let mut all = Span::ZERO;
    for (what, amount) in work(load) {
        if amount.middle > 0.0 {
            add(what, cores(amount), Unit::Cores);
            all = all.plus(cores(amount));
        }
    }
    add("all of it", all, Unit::Cores);
    let provided = all.times(100.0 / load.utilization);
    add("cores to provide", provided, Unit::Cores);
    add(
        "cores of each gateway",
        provided.times(1.0 / load.instances),
        Unit::Cores,
    );

    let memory = gateway_memory(load);
    add("memory", memory, Unit::Bytes);
    add(
        "memory of each gateway",
        memory.times(1.0 / load.instances),
        Unit::Bytes,
    );
    let out = load.delivered() * load.frame_bytes() + load.connections / PING * AROUND_FRAME;
    add("network to clients", Span::exactly(out), Unit::BytesASecond);
    let each_way = load.delivered() * ACKNOWLEDGEMENT
        + load.client_events * load.frame_bytes()
        + load.connections / PING * (AROUND_FRAME + ACKNOWLEDGEMENT);
    add(
        "network from clients",
        Span::exactly(each_way),
        Unit::BytesASecond,
    );
}

fn gateway_memory(load: &Load) -> Span {
    let clear = cost::CLEAR_MEMORY.value;
    let mut each = match load.encrypted {
        true => cost::ENCRYPTED_MEMORY.value,
        false => clear,
    };
    if load.tls {
        each = each.plus(cost::TLS_MEMORY.value.minus(clear));
    }
    each.plus(cost::KERNEL_MEMORY.value)
        .times(load.connections * 1024.0)
        .plus(
            cost::PROCESS_MEMORY
                .value
                .times(load.instances * 1024.0 * 1024.0),
        )
}

/// What is published a second: messages, and the gateways that receive each.
fn published(load: &Load) -> Vec<(f64, f64, f64)> {
    let elsewhere = 1.0 - 1.0 / load.instances;
    let payload = load.bytes + AROUND_PAYLOAD;
    let mut all = vec![
        (load.unicast, 1.0, payload),
        (load.records * elsewhere, 1.0, payload),
        (load.rooms, load.gateways_of(load.room_members), payload),
        (load.broadcasts, load.instances, payload),
    ];
    all.push(match load.shares_audience() {
        true => (
            load.audiences,
            load.instances - 1.0,
            payload + load.audience * EACH_OF_AUDIENCE,
        ),
        false => (load.audiences * load.audience * elsewhere, 1.0, payload),
    });
    all
}

fn redis(load: &Load, needs: &mut Vec<Need>) {
    let mut add = |what, amount, unit| {
        needs.push(Need {
            of: "Redis",
            what,
            amount,
            unit,
        });
    };
    let mut busy = cost::REDIS_REST.value.times(load.instances);
    let (mut received, mut sent) = (0.0, 0.0);
    for (rate, gateways, bytes) in published(load) {
        let first = match gateways > 1.0 {
            true => cost::REDIS_ROOM,
            false => cost::REDIS_MESSAGE,
        };
        let further = cost::REDIS_GATEWAY.value.times((gateways - 2.0).max(0.0));
        busy = busy.plus(first.value.plus(further).times(rate));
        received += rate * bytes;
        sent += rate * gateways * bytes;
    }
    add(
        "cores, of which one server uses one",
        cores(busy),
        Unit::Cores,
    );
    let memory = cost::REDIS_CONNECTION.value.times(load.connections);
    add("memory", memory, Unit::Bytes);
    let again = cost::REDIS_SUBSCRIPTION
        .value
        .times(CHANNELS_OF_CONNECTION * load.connections);
    let what = "CPU time to take all subscriptions after a restart";
    add(what, cores(again), Unit::Seconds);
    add("network in", Span::exactly(received), Unit::BytesASecond);
    add("network out", Span::exactly(sent), Unit::BytesASecond);
}

fn postgres(load: &Load, needs: &mut Vec<Need>) {
    let events = load.records + load.audiences;
    let recipients = load.records + load.audiences * load.audience;
    if recipients == 0.0 {
        return;
    }
    let mut add = |what, amount, unit| {
        needs.push(Need {
            of: "PostgreSQL",
            what,
            amount,
            unit,
        });
    };
    add(
        "notifications stored",
        Span::exactly(recipients),
        Unit::RowsASecond,
    );
    let text = Span::exactly(load.bytes);
    let event = cost::EVENT_ROWS.value.plus(text);
    let log = cost::RECIPIENT_LOG
        .value
        .times(recipients)
        .plus(event.times(events));
    add("log written", log, Unit::BytesASecond);
    let kept = load.keep_days * DAY;
    add(
        "notifications kept",
        Span::exactly(recipients * kept),
        Unit::Rows,
    );
    let space = cost::RECIPIENT_ROW
        .value
        .times(recipients * kept)
        .plus(event.times(events * kept));
    add("space on disk", space, Unit::Bytes);
}
