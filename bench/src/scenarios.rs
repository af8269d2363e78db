//! What is measured, a group of figures per module.

mod audience;
mod calls;
mod connect;
mod echo;
mod fanout;
mod idle;
mod instances;
mod pipeline;
mod segments;
mod storm;
mod tls;
mod unicast;
mod workers;

use std::time::Duration;

use anyhow::Result;

use crate::report::Report;
use crate::server::Testbed;

/// How much of everything. `--small` has less: to see that it works, not to measure.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(crate) small: bool,
    /// Rounds in which a server and what it is held against take turns.
    pub(crate) rounds: usize,
    /// The same where a round is short, and so a figure of one moves with whatever else the machine does.
    pub(crate) short_rounds: usize,
    /// And where one person at a time is meant: a server that sleeps in between is woken at a price that changes from second to second.
    pub(crate) single_rounds: usize,
    /// Connections at rest.
    pub(crate) idle: usize,
    /// Between what happened and a look at memory.
    pub(crate) rest: Duration,
    /// How long servers clean up after a crowd has left: a gateway keeps subscriptions two seconds longer, for clients that return at once.
    pub(crate) leave: Duration,
    /// How long CPU at rest is looked at, and how far apart pings are.
    pub(crate) at_rest: Duration,
    pub(crate) pings: Duration,
    /// Connections that come, each time.
    pub(crate) arrivals: usize,
    /// Members of the small and the large crowd.
    pub(crate) crowds: [usize; 2],
    /// And of the largest, of which this process may have two.
    pub(crate) largest: usize,
    /// Messages per round to everyone.
    pub(crate) messages: u64,
    /// Connections, and messages per round, where one person at a time is meant.
    pub(crate) people: usize,
    pub(crate) singles: usize,
    /// Records per round for the gateway and for the consumer it is held against, and in the burst.
    pub(crate) records: usize,
    pub(crate) row_records: usize,
    pub(crate) burst_records: usize,
    /// Gateways that share one Redis, the connections of all of them together, and those of one that come back to the others.
    pub(crate) instances: &'static [usize],
    pub(crate) spread: usize,
    pub(crate) moved: usize,
    /// Gateways that share one Redis Cluster.
    pub(crate) clustered: usize,
}

impl Sizes {
    pub(crate) fn full() -> Self {
        Self {
            small: false,
            rounds: 5,
            short_rounds: 11,
            single_rounds: 33,
            idle: 10_000,
            rest: Duration::from_secs(2),
            leave: Duration::from_millis(3500),
            at_rest: Duration::from_secs(10),
            pings: Duration::from_secs(25),
            arrivals: 3000,
            crowds: [1000, 5000],
            largest: 10_000,
            messages: 40,
            people: 1000,
            singles: 1000,
            records: 10_000,
            row_records: 2000,
            burst_records: 100_000,
            instances: &[2, 8, 32],
            spread: 1024,
            moved: 10_000,
            clustered: 8,
        }
    }

    pub(crate) fn small() -> Self {
        Self {
            small: true,
            rounds: 2,
            short_rounds: 2,
            single_rounds: 2,
            idle: 1000,
            rest: Duration::from_millis(300),
            leave: Duration::from_millis(300),
            at_rest: Duration::from_secs(1),
            pings: Duration::from_secs(1),
            arrivals: 300,
            crowds: [100, 500],
            largest: 1000,
            messages: 4,
            people: 100,
            singles: 300,
            records: 400,
            row_records: 200,
            burst_records: 2000,
            instances: &[2, 4],
            spread: 64,
            moved: 200,
            clustered: 2,
        }
    }

    /// The most sockets that this process has open at a time.
    pub(crate) fn most_sockets(&self) -> usize {
        self.idle.max(self.crowds[1] * 3)
    }
}

/// One group of figures.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// What its table is about.
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Testbed, &mut Report) -> Result<()>,
}

/// In the order they run.
pub(crate) const GROUPS: [Group; 15] = [
    Group {
        name: "idle",
        about: "Authenticated connections at rest. After traffic: five messages of 1 KiB to everyone, then two seconds of rest.",
        run: idle::run,
    },
    Group {
        name: "connect",
        about: "Server CPU of a connection that comes and authenticates with an ES256 token; the floor asks for no token.",
        run: connect::run,
    },
    Group {
        name: "fanout",
        about: "Server CPU per delivered message to everyone in a room, published over Redis; over REST, where it says so.",
        run: fanout::run,
    },
    Group {
        name: "burst",
        about: "The same for ten messages at once: published in one write to Redis or in ten, or asked for by ten REST requests at the same time.",
        run: fanout::run_bursts,
    },
    Group {
        name: "tls",
        about: "The same over TLS 1.3 as in the clear: connections that come and authenticate with tokens seen before, 128 B to everyone, and memory at rest.",
        run: tls::run,
    },
    Group {
        name: "storm",
        about: "Encrypted connections that are cut at once and come back at once, in the clear and over TLS; the times are those of messages to others meanwhile, and before.",
        run: storm::run,
    },
    Group {
        name: "unicast",
        about: "128 B to a random user, published over Redis 1,000 times a second.",
        run: unicast::run,
    },
    Group {
        name: "echo",
        about: "A frame of a client's and its answer, 2,000 times a second.",
        run: echo::run,
    },
    Group {
        name: "pipeline",
        about: "Activity records through Kafka to rows in PostgreSQL to sockets, compared with a consumer that takes one record at a time.",
        run: pipeline::run,
    },
    Group {
        name: "audience",
        about: "One event for many users who are online, each of whom gets a notification of its own: server CPU for each, compared with a broadcast.",
        run: audience::run,
    },
    Group {
        name: "workers",
        about: "128 B to everyone: two workers on two cores compared with one on one; and 1 KiB to a crowd in which one member reads nothing.",
        run: workers::run,
    },
    Group {
        name: "instances",
        about: "Two, eight and 32 gateways on one core that share one Redis: CPU of all of them, and of Redis.",
        run: instances::run,
    },
    Group {
        name: "segments",
        about: "Gateways that share a Redis Cluster of three masters and three replicas, and send each other messages that were asked for over REST: by sharded Pub/Sub, compared with classic.",
        run: segments::run,
    },
    Group {
        name: "token",
        about: "The check of a token, in this process on one thread: wall time of a call, signature included.",
        run: calls::run_token,
    },
    Group {
        name: "seal",
        about: "AES-256-GCM over one message, in this process on one thread: wall time of a call.",
        run: calls::run_seal,
    },
];
