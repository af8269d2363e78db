//! The producers: a record after the other, at a rate, each key with one codec, so that the order of a key is that of one producer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::{Instant, sleep};

use crate::ledger::{Ledger, Made};
use crate::run_state::RunState;

/// Every codec that a producer may use.
pub(crate) const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// Each codec has three of them.
const KEYS: u64 = 15;
/// More records than this do not wait for the broker.
const MOST_WAITING: i64 = 2000;

/// What all tasks share of the producers.
pub(crate) struct Load {
    run: RunState,
    topic: String,
    producers: Vec<FutureProducer>,
    pub(crate) ledger: Mutex<Ledger>,
    paused: AtomicBool,
    waiting: AtomicI64,
    /// Acknowledged, by codec.
    sent: [AtomicU64; CODECS.len()],
}

impl Load {
    pub(crate) fn new(run: RunState, brokers: &str, topic: &str) -> Result<Arc<Self>> {
        let producer = |codec: &str| {
            let mut config = ClientConfig::new();
            config
                .set("bootstrap.servers", brokers)
                .set("enable.idempotence", "true")
                .set("compression.codec", codec)
                .set("linger.ms", "5")
                // However long the broker is away.
                .set("message.timeout.ms", "0")
                .set("reconnect.backoff.max.ms", "500");
            config.create::<FutureProducer>()
        };
        Ok(Arc::new(Self {
            run,
            topic: topic.to_owned(),
            producers: CODECS.into_iter().map(producer).collect::<Result<_, _>>()?,
            ledger: Mutex::default(),
            paused: AtomicBool::new(false),
            waiting: AtomicI64::new(0),
            sent: Default::default(),
        }))
    }

    /// Produces `rate` records a second until the run ends.
    pub(crate) async fn run(self: Arc<Self>, seed: u64, rate: f64) {
        let mut random = StdRng::seed_from_u64(seed ^ 0x0010_ad00);
        let interval = Duration::from_secs_f64(1.0 / rate);
        let mut due = Instant::now();
        while !self.run.is_ending() {
            let is_held = self.paused.load(Ordering::SeqCst)
                || self.waiting.load(Ordering::SeqCst) > MOST_WAITING;
            if is_held {
                sleep(Duration::from_millis(20)).await;
                due = Instant::now();
                continue;
            }
            let key = random.random_range(0..KEYS);
            let made = self.ledger.lock().make(key, &mut random);
            for _ in 0..made.times {
                self.send(usize::try_from(key).unwrap_or_default(), &made)
                    .await;
            }
            // A machine that is late catches up a second at most.
            due = (due + interval).max(Instant::now() - Duration::from_secs(1));
            tokio::time::sleep_until(due).await;
        }
    }

    async fn send(self: &Arc<Self>, key: usize, made: &Made) {
        let codec = key % CODECS.len();
        let mut record = FutureRecord::to(&self.topic)
            .key(&made.key)
            .payload(&made.value);
        let delivery = loop {
            match self.producers[codec].send_result(record) {
                Ok(delivery) => break delivery,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    sleep(Duration::from_millis(20)).await;
                }
                Err((error, _)) => {
                    return self.run.fail(format!("a record cannot be sent: {error}"));
                }
            }
        };
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let load = Arc::clone(self);
        tokio::spawn(async move {
            match delivery.await {
                Ok(Ok(_)) => {
                    load.sent[codec].fetch_add(1, Ordering::Relaxed);
                }
                Ok(Err((error, _))) => load
                    .run
                    .fail(format!("the broker refused a record: {error}")),
                Err(_) => load.run.fail("a delivery was forgotten".into()),
            }
            load.waiting.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Holds the next record back, until [`Load::resume`], and waits until the broker has acknowledged every one before it. Returns false if it does not.
    pub(crate) async fn pause(&self, limit: Duration) -> bool {
        self.paused.store(true, Ordering::SeqCst);
        // The record in hand is counted first.
        sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        while self.waiting.load(Ordering::SeqCst) > 0 {
            if begun.elapsed() > limit {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// Acknowledged records by codec.
    pub(crate) fn sent(&self) -> [(&'static str, u64); CODECS.len()] {
        let mut sent = CODECS.map(|codec| (codec, 0));
        for (entry, count) in sent.iter_mut().zip(&self.sent) {
            entry.1 = count.load(Ordering::Relaxed);
        }
        sent
    }
}
