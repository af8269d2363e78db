//! Every re-read is met by a failure first: it must go on until it has succeeded, and nothing may be accepted blindly meanwhile.

use std::sync::atomic::AtomicUsize;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use super::*;
use crate::auth::MAX_BLIND;
use crate::bus::{Answers, Ask, BusStatus, Interest, SubscriberState};
use crate::clock::FixedClock;
use crate::dispatch::Dispatch;
use crate::revocation::Revocation;
use crate::store::testing::unavailable;
use crate::store::{ChangedRevocation, StoreFuture};

const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The database.
#[derive(Default)]
struct Table {
    rows: Mutex<Vec<ChangedRevocation>>,
    reads: AtomicUsize,
    /// How many of the next questions fail.
    fails: AtomicUsize,
}

impl Table {
    fn insert(&self, name: &str) {
        let mut rows = self.rows.lock();
        let version = rows.last().map_or(1, |last| last.version + 1);
        rows.push(ChangedRevocation {
            version,
            revocation: of(name),
        });
    }

    fn answer<T>(&self, value: impl FnOnce() -> T) -> Result<T, StoreError> {
        let failing = self
            .fails
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        match failing {
            Ok(_) => Err(unavailable("the database is away")),
            Err(_) => Ok(value()),
        }
    }
}

impl RevocationStore for Table {
    fn add<'a>(
        &'a self,
        revocations: &'a [Revocation],
        _: u64,
        _: DateTime<Utc>,
    ) -> StoreFuture<'a, Added> {
        let added = self.answer(|| {
            for revocation in revocations {
                self.insert(revocation.user_id.as_deref().unwrap());
            }
            Added::Stored
        });
        ready(added).boxed()
    }

    fn changed(
        &self,
        after: i64,
        limit: u32,
        _: DateTime<Utc>,
    ) -> StoreFuture<'_, Vec<ChangedRevocation>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let read = self.answer(|| {
            let rows = self.rows.lock().clone();
            let newer = rows.into_iter().filter(|row| row.version > after);
            newer.take(limit as usize).collect()
        });
        ready(read).boxed()
    }

    fn purge_ended(&self, _: DateTime<Utc>, _: u32) -> StoreFuture<'_, u64> {
        ready(Ok(0)).boxed()
    }
}

/// Redis, as far as the reader looks at it.
#[derive(Default)]
struct Redis {
    gaps: AtomicU64,
    is_down: AtomicBool,
    pinged: Mutex<Option<Instant>>,
    shared: Mutex<Vec<Revocation>>,
    /// How many of the next questions fail.
    fails: AtomicUsize,
}

impl Bus for Redis {
    fn publish<'a>(&'a self, _: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn subscribe(&self, _: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn unsubscribe(&self, _: Vec<Interest>) {}

    fn ask<'a>(&'a self, _: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        ready(Ok(Answers::default())).boxed()
    }

    fn last_seen(&self) -> Vec<String> {
        Vec::new()
    }

    fn share_revocation<'a>(&'a self, _: &'a Revocation) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        let failing = self
            .fails
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        let shared = match failing {
            Ok(_) => Err(BusError::Unavailable("a dead connection".into())),
            Err(_) => Ok(self.shared.lock().clone()),
        };
        ready(shared).boxed()
    }

    fn subscriber(&self) -> SubscriberState {
        SubscriberState::Live
    }

    fn reception(&self) -> Option<Reception> {
        (!self.is_down.load(Ordering::SeqCst)).then(|| Reception {
            gaps: self.gaps.load(Ordering::SeqCst),
            until: self.pinged.lock().unwrap_or_else(Instant::now),
        })
    }

    fn lag(&self) -> Option<Duration> {
        None
    }

    fn lease_lapsed(&self) -> bool {
        false
    }

    fn status(&self) -> BusStatus {
        BusStatus::default()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

fn of(name: &str) -> Revocation {
    Revocation {
        user_id: Some(name.into()),
        jti: None,
        issued_before_ms: 1,
        until_ms: i64::MAX,
    }
}

/// A reader, and what it works on.
struct Rig {
    table: Arc<Table>,
    redis: Arc<Redis>,
    known: Arc<Revocations>,
    lifecycle: Arc<Lifecycle>,
    prompt: Arc<Prompt>,
    clock: FixedClock,
}

impl Rig {
    fn new() -> Self {
        let clock = FixedClock::new(DateTime::UNIX_EPOCH);
        Self {
            table: Arc::default(),
            redis: Arc::default(),
            known: Revocations::new(Arc::new(clock.clone())),
            lifecycle: Arc::default(),
            prompt: Arc::default(),
            clock,
        }
    }

    fn parts(&self) -> ReaderParts {
        ReaderParts {
            store: self.table.clone(),
            bus: self.redis.clone(),
            revocations: self.known.clone(),
            prompt: self.prompt.clone(),
            lifecycle: self.lifecycle.clone(),
            metrics: Metrics::new(),
            clock: Arc::new(self.clock.clone()),
            ping_interval: PING_INTERVAL,
        }
    }

    /// Starts a reader, which has read everything.
    async fn start(&self) -> RevocationReader {
        RevocationReader::start(self.parts()).await
    }

    fn knows(&self, name: &str) -> bool {
        self.known.covers(&of(name))
    }

    fn is_ready(&self) -> bool {
        self.lifecycle.unready().is_empty()
    }
}

/// Lets time pass, as the task does; returns whether anything was learnt.
async fn pass(reader: &mut RevocationReader, duration: Duration) -> bool {
    let until = Instant::now() + duration;
    let mut has_learnt = reader.step().await;
    while Instant::now() < until {
        tokio::time::advance(TICK).await;
        has_learnt |= reader.step().await;
    }
    has_learnt
}

const SECOND: Duration = Duration::from_secs(1);

/// authorization.md 3.5.
#[tokio::test(start_paused = true)]
async fn at_the_start_it_reads_until_it_has_succeeded_and_no_token_is_accepted_before() {
    let rig = Rig::new();
    rig.table.insert("17");
    rig.table.fails.store(4, Ordering::SeqCst);
    rig.redis.fails.store(2, Ordering::SeqCst);
    let starting = tokio::spawn(RevocationReader::start(rig.parts()));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!rig.known.is_current() && !rig.knows("17"));
    assert_eq!(rig.lifecycle.unready()[0].0, "revocations");
    starting.await.unwrap();
    assert!(rig.known.is_current() && rig.knows("17") && rig.is_ready());
    assert_eq!(
        (
            rig.table.fails.load(Ordering::SeqCst),
            rig.redis.fails.load(Ordering::SeqCst)
        ),
        (0, 0)
    );
}

/// authorization.md 3.4: the subscriber is back at once, while whatever else is needed fails for a while longer.
#[tokio::test(start_paused = true)]
async fn after_a_gap_it_reads_until_it_has_succeeded_and_is_not_ready_before() {
    let rig = Rig::new();
    let mut reader = rig.start().await;
    assert!(!pass(&mut reader, SECOND).await);
    rig.table.insert("17");
    rig.table.fails.store(2, Ordering::SeqCst);
    rig.redis.gaps.fetch_add(1, Ordering::SeqCst);
    assert!(!reader.step().await);
    assert!(!rig.is_ready() && !rig.knows("17"));
    assert!(
        rig.known.is_current(),
        "what was known a moment ago is good enough for a while"
    );
    assert!(pass(&mut reader, 2 * SECOND).await);
    assert!(rig.is_ready() && rig.knows("17"));

    // The same where Redis itself answers late: what it holds for the release before is part of it.
    rig.redis.shared.lock().push(of("18"));
    rig.redis.fails.store(2, Ordering::SeqCst);
    rig.redis.gaps.fetch_add(1, Ordering::SeqCst);
    reader.step().await;
    assert!(!rig.is_ready() && !rig.knows("18"));
    assert!(pass(&mut reader, 3 * SECOND).await);
    assert!(rig.is_ready() && rig.knows("18"));
    let stored = rig.table.rows.lock().last().unwrap().revocation.clone();
    assert_eq!(stored, of("18"), "and the table holds it from here on");
}

#[tokio::test(start_paused = true)]
async fn what_a_read_learnt_before_it_failed_is_applied_as_well() {
    let rig = Rig::new();
    let mut reader = rig.start().await;
    rig.table.insert("17");
    rig.redis.fails.store(1, Ordering::SeqCst);
    rig.redis.gaps.fetch_add(1, Ordering::SeqCst);
    assert!(reader.step().await, "its connections are closed now");
    assert!(rig.knows("17") && !rig.is_ready());
}

/// authorization.md 3.4 and 3.5.
#[tokio::test(start_paused = true)]
async fn without_redis_it_reads_every_two_seconds_and_without_both_no_new_token_is_accepted() {
    let rig = Rig::new();
    let mut reader = rig.start().await;
    rig.redis.is_down.store(true, Ordering::SeqCst);
    pass(&mut reader, SECOND).await;
    for round in 0..30 {
        let name = round.to_string();
        rig.table.insert(&name);
        assert!(pass(&mut reader, 2 * SECOND).await);
        assert!(rig.knows(&name) && rig.known.is_current() && rig.is_ready());
    }
    let reads = rig.table.reads.load(Ordering::SeqCst);
    assert!((30..=34).contains(&reads), "{reads} reads in a minute");

    rig.table.fails.store(usize::MAX, Ordering::SeqCst);
    pass(&mut reader, MAX_BLIND - 3 * SECOND).await;
    assert!(rig.known.is_current());
    pass(&mut reader, 4 * SECOND).await;
    assert!(!rig.known.is_current() && !rig.is_ready());
    rig.table.insert("late");
    rig.table.fails.store(0, Ordering::SeqCst);
    assert!(pass(&mut reader, 2 * SECOND).await);
    assert!(rig.known.is_current() && rig.is_ready() && rig.knows("late"));

    // Redis comes back, and what was made in between is read at once.
    rig.table.insert("between");
    rig.redis.gaps.fetch_add(1, Ordering::SeqCst);
    rig.redis.is_down.store(false, Ordering::SeqCst);
    assert!(reader.step().await && rig.knows("between"));
    assert!(rig.known.is_current() && rig.is_ready());
}

/// authorization.md 3.4: a connection that stays open and says nothing.
#[tokio::test(start_paused = true)]
async fn late_pings_are_enough_to_read_every_two_seconds() {
    let rig = Rig::new();
    let mut reader = rig.start().await;
    *rig.redis.pinged.lock() = Some(Instant::now());
    pass(&mut reader, PING_INTERVAL + 2 * SECOND).await;
    for name in ["a", "b", "c"] {
        rig.table.insert(name);
        assert!(pass(&mut reader, 2 * SECOND).await && rig.knows(name));
        assert!(rig.is_ready() && rig.known.is_current());
    }
    rig.table.fails.store(usize::MAX, Ordering::SeqCst);
    pass(&mut reader, MAX_BLIND + SECOND).await;
    assert!(!rig.known.is_current());
    *rig.redis.pinged.lock() = None;
    pass(&mut reader, TICK).await;
    assert!(
        rig.known.is_current(),
        "there was no gap: what was announced meanwhile has come in"
    );
}

/// authorization.md 3.4: the announcer died between storing and announcing.
#[tokio::test(start_paused = true)]
async fn what_was_never_announced_is_read_within_half_a_minute() {
    let rig = Rig::new();
    let mut reader = rig.start().await;
    pass(&mut reader, 40 * SECOND).await;
    let reads = rig.table.reads.load(Ordering::SeqCst);
    assert!((2..=3).contains(&reads), "{reads}");
    rig.table.insert("17");
    assert!(pass(&mut reader, 36 * SECOND).await && rig.knows("17"));
    // The database is away for long: Redis announces, so nothing is refused and the instance stays ready.
    rig.table.fails.store(usize::MAX, Ordering::SeqCst);
    pass(&mut reader, 120 * SECOND).await;
    assert!(rig.known.is_current() && rig.is_ready());
}

#[tokio::test(start_paused = true)]
async fn reported_losses_are_read_until_it_has_succeeded() {
    let rig = Rig::new();
    let mut reader = rig.start().await;
    rig.table.insert("17");
    rig.table.fails.store(3, Ordering::SeqCst);
    rig.prompt.lost();
    reader.step().await;
    assert!(!rig.is_ready() && !rig.knows("17"));
    assert!(pass(&mut reader, 3 * SECOND).await);
    assert!(rig.is_ready() && rig.knows("17"));
}

/// During an upgrade the release before stores revocations in Redis and announces them so.
#[tokio::test(start_paused = true)]
async fn a_revocation_of_the_release_before_is_taken_over_into_the_table() {
    let rig = Rig::new();
    rig.redis.shared.lock().push(of("old"));
    let mut reader = rig.start().await;
    assert!(rig.knows("old"));
    assert_eq!(rig.table.rows.lock().len(), 1);
    rig.redis.shared.lock().push(of("newer"));
    rig.table.fails.store(2, Ordering::SeqCst);
    rig.prompt.adopt();
    pass(&mut reader, 3 * SECOND).await;
    assert!(rig.knows("newer") && rig.is_ready());
    assert_eq!(rig.table.rows.lock().len(), 2, "each once");
}

#[tokio::test(start_paused = true)]
async fn many_are_read_page_by_page_and_a_table_that_counts_from_below_as_well() {
    let rig = Rig::new();
    for n in 0..=2 * PAGE {
        rig.table.insert(&n.to_string());
    }
    let mut reader = rig.start().await;
    assert_eq!(rig.known.len(), 2 * PAGE as usize + 1);
    assert_eq!(rig.table.reads.load(Ordering::SeqCst), 3);
    // The database was replaced by an older copy.
    rig.table.rows.lock().clear();
    rig.table.insert("17");
    pass(&mut reader, 36 * SECOND).await;
    rig.redis.is_down.store(true, Ordering::SeqCst);
    rig.table.insert("new");
    pass(&mut reader, 2 * SECOND).await;
    assert!(rig.knows("new"));
}
