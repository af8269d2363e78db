//! The key sets of all sources: fetched before they are needed, refreshed in the background, kept while an issuer is away.
//!
//! Input: the live settings and, over HTTP or out of a mounted file, each source's JWK Set; from [`super::token`] the wish for a `kid` that nobody holds.
//! Output: a [`Table`] that verification reads without waiting. One task owns all changes of it; everything it does is bounded: sources,
//! keys, bytes, time, fetches that a stranger's token can cause (one per cooldown), and the memory of `kid`s that do not exist.

mod fetch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::{DateTime, SecondsFormat};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use rand::Rng;
use signal_contract::KeySourceReport;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::jwk::Key;
use super::recent::Recent;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{self, Live, Source, SourceState};
use crate::metrics::{Metrics, SourceKind, SourceLabel};
use crate::principal::Thumbprint;

use fetch::{FetchError, Way};

/// Remembered `kid`s that a fetch did not find, per source.
const MAX_BAD_KIDS: usize = 1024;
/// A `kid` that a fetch did not find causes none again for this many cooldowns.
const BAD_KID_COOLDOWNS: u32 = 2;
/// Delay after the first failed fetch; it doubles up to [`RETRY_MAX`] and is never longer than the refresh interval.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often the age of the sets is written into the metrics.
const AGE_INTERVAL: Duration = Duration::from_secs(10);

/// What verification reads: one consistent state of all sources.
pub(super) struct Table {
    pub(super) jwks: config::Jwks,
    /// Allowed difference between clocks, in seconds.
    pub(super) clock_skew_secs: u64,
    pub(super) sources: Vec<View>,
    /// Names of sources whose tokens are refused and whose connections are closed, listed above or not.
    revoked: Vec<String>,
}

/// One source and its keys.
#[derive(Clone)]
pub(super) struct View {
    /// The same pointer as long as the source's settings are the same.
    pub(super) source: Arc<Source>,
    pub(super) name: Arc<str>,
    set: Option<Set>,
    error: Option<String>,
    revoked: bool,
    feed: Arc<Feed>,
}

#[derive(Clone)]
struct Set {
    keys: Arc<[Arc<Key>]>,
    fetched_ms: i64,
}

/// Whether a source's keys may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    NeverFetched,
    Stale,
    Usable,
}

impl View {
    /// Whether its tokens are accepted at all.
    pub(super) fn is_accepted(&self) -> bool {
        !self.revoked
            && matches!(
                self.source.state,
                SourceState::Trusted | SourceState::Retiring
            )
    }

    pub(super) fn was_fetched(&self) -> bool {
        self.set.is_some()
    }

    pub(super) fn freshness(&self, now_ms: i64, max_stale_secs: u64) -> Freshness {
        match &self.set {
            None => Freshness::NeverFetched,
            Some(set)
                if now_ms.saturating_sub(set.fetched_ms)
                    > max_stale_secs.saturating_mul(1000) as i64 =>
            {
                Freshness::Stale
            }
            Some(_) => Freshness::Usable,
        }
    }

    /// The keys that may verify a signature by one of the source's algorithms.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        let keys = self.set.as_ref().map_or(&[][..], |set| &set.keys);
        keys.iter().filter(|key| {
            key.algorithms
                .iter()
                .any(|a| self.source.algorithms.contains(a))
        })
    }

    /// Whether it still has exactly this key.
    pub(super) fn has(&self, thumbprint: &Thumbprint) -> bool {
        self.keys().any(|key| *key.thumbprint == *thumbprint)
    }

    /// Why its keys cannot be used, for a log line and `/readyz`.
    pub(super) fn unusable(&self) -> String {
        format!(
            "key source {}: {}",
            self.name,
            self.problem().unwrap_or_else(|| "not fetched yet".into())
        )
    }

    fn problem(&self) -> Option<String> {
        if self.revoked {
            return Some("its tokens are refused: revoked_sources names it".to_owned());
        }
        let without_keys = self.set.is_some() && self.keys().next().is_none();
        self.error
            .clone()
            .or_else(|| without_keys.then(|| "no key in the set can be used".to_owned()))
    }

    fn is_usable(&self, now_ms: i64, max_stale_secs: u64) -> bool {
        self.freshness(now_ms, max_stale_secs) == Freshness::Usable && self.keys().next().is_some()
    }
}

/// What one source's fetches share with those who wait for them.
struct Feed {
    demand: Mutex<Demand>,
    /// Counts finished fetches.
    finished: watch::Sender<u64>,
    way: Way,
}

struct Demand {
    /// A fetch is under way or about to begin.
    running: bool,
    /// When an unknown `kid` last caused a fetch.
    asked: Option<Instant>,
    last_failed: bool,
    bad_kids: Recent<String, Instant>,
}

/// What an unknown `kid` leads to.
pub(super) enum Wish {
    /// A fetch will finish: look again then.
    Wait(watch::Receiver<u64>),
    /// The source does not have it.
    Unknown,
    /// The last fetch failed, so nobody can say.
    Unreachable,
}

/// The key sets, readable from anywhere.
pub(super) struct KeySets {
    table: ArcSwap<Table>,
    wanted: mpsc::Sender<Arc<Feed>>,
    changed: watch::Sender<u64>,
    started: AtomicBool,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl KeySets {
    /// Begins to fetch; the task ends with `shutdown`. Must be called inside a tokio runtime.
    pub(super) fn start(
        live: watch::Receiver<Arc<Live>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        // Fails when a provider is installed already: then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (wanted, requests) = mpsc::channel(64);
        let settings = Arc::clone(&live.borrow());
        let sets = Arc::new(Self {
            table: ArcSwap::from_pointee(Table {
                jwks: settings.jwks.clone(),
                clock_skew_secs: settings.auth.clock_skew_secs,
                sources: Vec::new(),
                revoked: Vec::new(),
            }),
            wanted,
            changed: watch::channel(0).0,
            started: AtomicBool::new(false),
            clock,
            metrics,
        });
        let (feeds, fetches) = (Vec::new(), FuturesUnordered::new());
        let mut keeper = Keeper {
            sets: Arc::clone(&sets),
            jwks: settings.jwks.clone(),
            clock_skew_secs: settings.auth.clock_skew_secs,
            revoked: Vec::new(),
            feeds,
            fetches,
        };
        keeper.adopt(&settings);
        (sets, tokio::spawn(keeper.run(live, requests, shutdown)))
    }

    /// The current state.
    pub(super) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// Counts changes after which a token may no longer stand: another source, another state of one, another key.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A fetch of this source that is under way.
    pub(super) fn under_way(&self, view: &View) -> Option<watch::Receiver<u64>> {
        let demand = view.feed.demand.lock();
        demand.running.then(|| view.feed.finished.subscribe())
    }

    /// Asks for a `kid` that the source does not have. `waited` says that the caller has waited for a fetch already.
    ///
    /// Single flight: whoever asks while a fetch is under way waits for that one. At most one fetch per `min_refresh_interval_secs` is caused this way,
    /// whatever the `kid`s are.
    pub(super) fn wish(&self, view: &View, kid: &str, cooldown: Duration, waited: bool) -> Wish {
        let now = Instant::now();
        let mut demand = view.feed.demand.lock();
        if demand.bad_kids.get(kid).is_some_and(|until| now < *until) {
            return Wish::Unknown;
        }
        if demand.running {
            return Wish::Wait(view.feed.finished.subscribe());
        }
        if demand.asked.is_some_and(|asked| now < asked + cooldown) {
            if demand.last_failed {
                return Wish::Unreachable;
            }
            if waited {
                demand
                    .bad_kids
                    .insert(kid.to_owned(), now + cooldown * BAD_KID_COOLDOWNS);
            }
            return Wish::Unknown;
        }
        if self.wanted.try_send(Arc::clone(&view.feed)).is_err() {
            return Wish::Unreachable;
        }
        demand.running = true;
        demand.asked = Some(now);
        Wish::Wait(view.feed.finished.subscribe())
    }

    /// Why no token can be verified yet; `None` when some can.
    ///
    /// Until every accepted source was fetched once, any of them is a reason. From then on only the loss of all of them is: a source that is
    /// added later, or away, must not take every instance out of service.
    pub(super) fn unready(&self) -> Option<String> {
        let (table, now) = (self.table(), self.clock.now_ms());
        let (usable, unusable): (Vec<_>, Vec<_>) = table
            .sources
            .iter()
            .filter(|v| v.is_accepted())
            .partition(|v| v.is_usable(now, table.jwks.max_stale_secs));
        if unusable.is_empty() || (self.started.load(Ordering::Relaxed) && !usable.is_empty()) {
            return None;
        }
        Some(
            unusable
                .iter()
                .map(|v| v.unusable())
                .collect::<Vec<_>>()
                .join("; "),
        )
    }

    /// Every source as it stands.
    pub(super) fn status(&self) -> Vec<KeySourceReport> {
        let (table, now) = (self.table(), self.clock.now_ms());
        let status = |view: &View| KeySourceReport {
            name: view.source.name.clone(),
            state: Some(view.source.state),
            keys: view.keys().map(|key| key.name.to_string()).collect(),
            refreshed_at: view
                .set
                .as_ref()
                .and_then(|set| DateTime::from_timestamp_millis(set.fetched_ms))
                .map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
            error: match view.freshness(now, table.jwks.max_stale_secs) {
                Freshness::NeverFetched => {
                    Some(view.problem().unwrap_or_else(|| "not fetched yet".into()))
                }
                Freshness::Stale => Some(format!(
                    "its keys are too old: {}",
                    view.problem().unwrap_or_else(|| "not fetched since".into())
                )),
                Freshness::Usable => view.problem(),
            },
        };
        table.sources.iter().map(status).collect()
    }

    fn write_ages(&self) {
        let now = self.clock.now_ms();
        for view in &self.table().sources {
            if let Some(set) = &view.set {
                let label = SourceLabel {
                    source: view.source.name.clone(),
                };
                self.metrics
                    .key_age
                    .get_or_create(&label)
                    .set(now.saturating_sub(set.fetched_ms) / 1000);
            }
        }
    }
}

/// The task behind [`KeySets`].
struct Keeper {
    sets: Arc<KeySets>,
    jwks: config::Jwks,
    clock_skew_secs: u64,
    revoked: Vec<String>,
    feeds: Vec<Kept>,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

struct Kept {
    view: View,
    due: Instant,
    fetching: bool,
    /// A file it comes from or by may have changed while a fetch was under way.
    again: bool,
    backoff: Backoff,
}

type Fetched = (Arc<Feed>, Result<Vec<Arc<Key>>, FetchError>);

impl Keeper {
    async fn run(
        mut self,
        mut live: watch::Receiver<Arc<Live>>,
        mut requests: mpsc::Receiver<Arc<Feed>>,
        shutdown: CancellationToken,
    ) {
        let mut ages = tokio::time::interval(AGE_INTERVAL);
        ages.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.fetch_what_is_due();
            let next = self
                .feeds
                .iter()
                .filter(|kept| !kept.fetching)
                .map(|kept| kept.due)
                .min();
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = live.changed() => {
                    let settings = Arc::clone(&live.borrow_and_update());
                    self.adopt(&settings);
                }
                Some(feed) = requests.recv() => {
                    if let Some(kept) = self.feeds.iter_mut().find(|kept| Arc::ptr_eq(&kept.view.feed, &feed)) {
                        kept.due = Instant::now();
                    } else {
                        feed.finish(false);
                    }
                }
                Some((feed, result)) = self.fetches.next(), if !self.fetches.is_empty() => self.finish(&feed, result),
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                _ = ages.tick() => self.sets.write_ages(),
            }
        }
    }

    /// Takes over new settings: unchanged sources keep their keys, new ones are fetched, removed ones go at once. The live settings are told again
    /// when a file that they name has other content: sources with a file are looked at again.
    fn adopt(&mut self, settings: &Live) {
        self.jwks = settings.jwks.clone();
        self.clock_skew_secs = settings.auth.clock_skew_secs;
        self.revoked = settings.jwks.revoked_sources.clone();
        let mut before = std::mem::take(&mut self.feeds);
        for source in &settings.jwks.sources {
            let kept = before
                .iter()
                .position(|kept| same_keys(&kept.view.source, source))
                .map(|at| before.swap_remove(at));
            let mut kept = kept.unwrap_or_else(|| Kept::new(source));
            if *kept.view.source != *source {
                kept.view.source = Arc::new(source.clone());
            }
            kept.view.revoked = self.revoked.contains(&source.name);
            if source.files().next().is_some() {
                (kept.due, kept.again) = (Instant::now(), kept.fetching);
            }
            self.feeds.push(kept);
        }
        if settings.jwks.sources.is_empty() {
            tracing::warn!("no key source is configured: every token is refused");
        }
        self.publish();
        for gone in before {
            tracing::info!(source = %gone.view.name, "key source removed");
            gone.view.feed.finish(false);
            if !settings
                .jwks
                .sources
                .iter()
                .any(|source| source.name == *gone.view.name)
            {
                self.sets.metrics.key_age.remove(&SourceLabel {
                    source: gone.view.name.to_string(),
                });
            }
        }
    }

    fn fetch_what_is_due(&mut self) {
        let now = Instant::now();
        for kept in self
            .feeds
            .iter_mut()
            .filter(|kept| !kept.fetching && kept.due <= now)
        {
            kept.fetching = true;
            kept.view.feed.demand.lock().running = true;
            let (feed, source, jwks) = (
                Arc::clone(&kept.view.feed),
                Arc::clone(&kept.view.source),
                self.jwks.clone(),
            );
            self.fetches.push(Box::pin(async move {
                let limit = Duration::from_millis(jwks.request_timeout_ms);
                let fetched =
                    tokio::time::timeout(limit, feed.way.fetch(&source, jwks.max_bytes)).await;
                let result = fetched.unwrap_or(Err(FetchError::TooSlow(jwks.request_timeout_ms)));
                (feed, result)
            }));
        }
    }

    fn finish(&mut self, feed: &Arc<Feed>, result: Result<Vec<Arc<Key>>, FetchError>) {
        let Some(kept) = self
            .feeds
            .iter_mut()
            .find(|kept| Arc::ptr_eq(&kept.view.feed, feed))
        else {
            return;
        };
        let ok = result.is_ok();
        let label = SourceKind {
            source: kept.view.source.name.clone(),
            kind: if ok { "ok" } else { "error" }.into(),
        };
        self.sets.metrics.key_fetches.get_or_create(&label).inc();
        kept.take(result, self.sets.clock.now_ms(), &self.jwks);
        self.publish();
        feed.finish(!ok);
        self.sets.write_ages();
    }

    /// Shows the state to verification, and tells of it if a token may no longer stand after it.
    fn publish(&self) {
        let sources = self.feeds.iter().map(|kept| kept.view.clone()).collect();
        let table = Table {
            jwks: self.jwks.clone(),
            clock_skew_secs: self.clock_skew_secs,
            sources,
            revoked: self.revoked.clone(),
        };
        let now = self.sets.clock.now_ms();
        let all = table
            .sources
            .iter()
            .filter(|v| v.is_accepted())
            .all(|v| v.is_usable(now, table.jwks.max_stale_secs));
        if all {
            self.sets.started.store(true, Ordering::Relaxed);
        }
        let standing = |table: &Table| -> Vec<(Arc<str>, bool, Vec<Thumbprint>)> {
            table
                .sources
                .iter()
                .map(|v| {
                    (
                        Arc::clone(&v.name),
                        v.is_accepted(),
                        v.keys().map(|key| *key.thumbprint).collect(),
                    )
                })
                .collect()
        };
        let before = self.sets.table();
        let other = before.revoked != table.revoked || standing(&before) != standing(&table);
        self.sets.table.store(Arc::new(table));
        if other {
            self.sets.changed.send_modify(|n| *n += 1);
        }
    }
}

/// Whether two sources have their keys from the same place by the same way.
fn same_keys(a: &Source, b: &Source) -> bool {
    a.name == b.name && a.url == b.url && a.ca_file == b.ca_file && a.keys_file == b.keys_file
}

impl Kept {
    fn new(source: &Source) -> Self {
        let demand = Demand {
            running: true,
            asked: None,
            last_failed: false,
            bad_kids: Recent::new(MAX_BAD_KIDS),
        };
        let feed = Feed {
            demand: Mutex::new(demand),
            finished: watch::channel(0).0,
            way: Way::default(),
        };
        let view = View {
            name: Arc::from(source.name.as_str()),
            source: Arc::new(source.clone()),
            set: None,
            error: None,
            revoked: false,
            feed: Arc::new(feed),
        };
        Self {
            view,
            due: Instant::now(),
            fetching: false,
            again: false,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
        }
    }

    /// Takes the outcome of a fetch: a good set replaces the one before, a failure leaves it.
    fn take(
        &mut self,
        result: Result<Vec<Arc<Key>>, FetchError>,
        now_ms: i64,
        jwks: &config::Jwks,
    ) {
        self.fetching = false;
        let refresh = Duration::from_secs(jwks.refresh_interval_secs);
        match result {
            Ok(found) => {
                let before = self.backoff.failures();
                self.backoff.reset();
                self.view.set = Some(Set {
                    keys: found.into(),
                    fetched_ms: now_ms,
                });
                self.view.error = None;
                self.due = Instant::now() + refresh.mul_f64(rand::rng().random_range(0.9..=1.0));
                match self.view.problem() {
                    Some(problem) => {
                        tracing::warn!(source = %self.view.name, "key source cannot be used: {problem}")
                    }
                    None if before > 0 => {
                        tracing::info!(source = %self.view.name, "key source is back")
                    }
                    None => tracing::debug!(source = %self.view.name, "key set fetched"),
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.backoff.failures() == 0 || self.view.error.as_ref() != Some(&text) {
                    tracing::warn!(source = %self.view.name, "key set could not be fetched: {text}");
                }
                self.due = Instant::now() + self.backoff.next_delay_within(refresh);
                self.view.error = Some(text);
            }
        }
        if std::mem::take(&mut self.again) {
            self.due = Instant::now();
        }
    }
}

impl Feed {
    /// Wakes whoever waits for a fetch.
    fn finish(&self, failed: bool) {
        {
            let mut demand = self.demand.lock();
            demand.running = false;
            demand.last_failed = failed;
        }
        self.finished.send_modify(|n| *n += 1);
    }
}

impl Table {
    /// The accepted sources that a token of this issuer may come from: first those with exactly this issuer, then those that waive it.
    pub(super) fn candidates<'t>(
        &'t self,
        issuer: Option<&'t str>,
    ) -> impl Iterator<Item = &'t View> {
        let named = move |view: &&View| {
            view.is_accepted()
                && !view.source.skip_issuer_check
                && issuer == Some(view.source.issuer.as_str())
        };
        let waived = |view: &&View| view.is_accepted() && view.source.skip_issuer_check;
        self.sources
            .iter()
            .filter(named)
            .chain(self.sources.iter().filter(waived))
    }

    /// Whether a token of this issuer could come from a source that is listed and revoked.
    pub(super) fn is_of_revoked(&self, issuer: Option<&str>) -> bool {
        self.sources.iter().any(|view| {
            view.revoked
                && (view.source.skip_issuer_check || issuer == Some(view.source.issuer.as_str()))
        })
    }

    /// Whether connections that rest on this source are to be closed.
    pub(super) fn is_revoked(&self, source: &str) -> bool {
        self.revoked.iter().any(|name| name == source)
    }
}

#[cfg(test)]
mod tests;
