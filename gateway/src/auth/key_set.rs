//! The key sets of all sources: fetched before they are needed, refreshed in the background, kept while an issuer is away.
//!
//! Input: the live settings, each source's JWK Set (over HTTP or from a mounted file), and requests of [`super::token`] for an unknown `kid`.
//! Output: a [`SourceTable`] that verification reads without waiting. One task makes all changes of it. Everything is bounded: sources, keys, bytes,
//! time, the fetches that a stranger's token can cause (one per cooldown), and the memory of unknown `kid`s (authorization.md 2).

mod fetch;
mod table;

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

use super::recent::Recent;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{self, Live, Source};
use crate::metrics::{Metrics, SourceKind, SourceLabel};
use crate::principal::Thumbprint;

use fetch::{FetchError, KeyFetcher, KeySet};
pub(super) use table::{Freshness, SourceTable, SourceView};
use table::{Set, foreign_prefixes};

/// `kid`s per source that are remembered because a fetch did not find them.
const MAX_BAD_KIDS: usize = 1024;
/// For how many cooldowns a `kid` that a fetch did not find causes no other fetch.
const BAD_KID_COOLDOWNS: u32 = 2;
/// Delay after the first failed fetch; it grows, and is never longer than the refresh interval.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// How often the metrics of the sets' age are written.
const AGE_INTERVAL: Duration = Duration::from_secs(10);

/// The state of one source's fetches, shared with the verifications that wait for them.
struct FetchHandle {
    demand: Mutex<FetchDemand>,
    /// The number of finished fetches.
    finished: watch::Sender<u64>,
    fetcher: KeyFetcher,
}

struct FetchDemand {
    /// Whether a fetch is under way or about to start.
    running: bool,
    /// When an unknown `kid` last caused a fetch.
    asked: Option<Instant>,
    last_failed: bool,
    bad_kids: Recent<String, Instant>,
}

/// The answer to a request for an unknown `kid`.
pub(super) enum KeyRequest {
    /// A fetch is under way: try again when it has finished.
    Wait(watch::Receiver<u64>),
    /// The source does not have the key.
    Unknown,
    /// The last fetch failed, so it is not known whether the source has the key.
    Unreachable,
}

/// The key sets, readable from anywhere.
pub(super) struct KeySets {
    table: ArcSwap<SourceTable>,
    wanted: mpsc::Sender<Arc<FetchHandle>>,
    changed: watch::Sender<u64>,
    started: AtomicBool,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl KeySets {
    /// Starts to fetch; the task ends with `shutdown`. Must be called inside a tokio runtime.
    pub(super) fn start(
        live: watch::Receiver<Arc<Live>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let (wanted, requests) = mpsc::channel(64);
        let settings = Arc::clone(&live.borrow());
        let sets = Arc::new(Self {
            table: ArcSwap::from_pointee(SourceTable {
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
        let (tracked, fetches) = (Vec::new(), FuturesUnordered::new());
        let mut refresher = Refresher {
            sets: Arc::clone(&sets),
            jwks: settings.jwks.clone(),
            clock_skew_secs: settings.auth.clock_skew_secs,
            revoked: Vec::new(),
            tracked,
            fetches,
        };
        refresher.adopt(&settings);
        (sets, tokio::spawn(refresher.run(live, requests, shutdown)))
    }

    /// Returns the current state.
    pub(super) fn table(&self) -> arc_swap::Guard<Arc<SourceTable>> {
        self.table.load()
    }

    /// Returns the counter of changes that may withdraw trust from a token: of sources, their states and their keys.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns the fetch of this source that is under way, if there is one.
    pub(super) fn under_way(&self, view: &SourceView) -> Option<watch::Receiver<u64>> {
        let demand = view.handle.demand.lock();
        demand.running.then(|| view.handle.finished.subscribe())
    }

    /// Requests a key: `unknown` is a `kid` that the source does not have; `None` asks whether the key of a known one, or the only key, was replaced.
    /// `waited` says that the caller has already waited for a fetch.
    ///
    /// All callers during a fetch wait for that one fetch. Requests cause at most one fetch per `min_refresh_interval_secs`, whatever they name
    /// (authorization.md 2.3 and 2.11).
    pub(super) fn request_key(
        &self,
        view: &SourceView,
        unknown: Option<&str>,
        cooldown: Duration,
        waited: bool,
    ) -> KeyRequest {
        let now = Instant::now();
        let mut demand = view.handle.demand.lock();
        if let Some(kid) = unknown
            && demand.bad_kids.get(kid).is_some_and(|until| now < *until)
        {
            return KeyRequest::Unknown;
        }
        if demand.running {
            return KeyRequest::Wait(view.handle.finished.subscribe());
        }
        if demand.asked.is_some_and(|asked| now < asked + cooldown) {
            // A key that is known and does not fit stays the answer while the source is away.
            let Some(kid) = unknown else {
                return KeyRequest::Unknown;
            };
            if demand.last_failed {
                return KeyRequest::Unreachable;
            }
            if waited {
                demand
                    .bad_kids
                    .insert(kid.to_owned(), now + cooldown * BAD_KID_COOLDOWNS);
            }
            return KeyRequest::Unknown;
        }
        if self.wanted.try_send(Arc::clone(&view.handle)).is_err() {
            return if unknown.is_some() {
                KeyRequest::Unreachable
            } else {
                KeyRequest::Unknown
            };
        }
        demand.running = true;
        demand.asked = Some(now);
        KeyRequest::Wait(view.handle.finished.subscribe())
    }

    /// Returns why tokens cannot be verified, or `None` when ready; see [`super::Authenticator::unready_reason`].
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

    /// Returns the status of every source.
    pub(super) fn status(&self) -> Vec<KeySourceReport> {
        let (table, now) = (self.table(), self.clock.now_ms());
        let status = |view: &SourceView| KeySourceReport {
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
struct Refresher {
    sets: Arc<KeySets>,
    jwks: config::Jwks,
    clock_skew_secs: u64,
    revoked: Vec<String>,
    tracked: Vec<TrackedSource>,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

struct TrackedSource {
    view: SourceView,
    due: Instant,
    fetching: bool,
    /// A file of the source may have changed while a fetch was under way, so another fetch follows.
    again: bool,
    backoff: Backoff,
}

type Fetched = (Arc<FetchHandle>, Result<KeySet, FetchError>);

impl Refresher {
    async fn run(
        mut self,
        mut live: watch::Receiver<Arc<Live>>,
        mut requests: mpsc::Receiver<Arc<FetchHandle>>,
        shutdown: CancellationToken,
    ) {
        let mut ages = tokio::time::interval(AGE_INTERVAL);
        ages.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.fetch_what_is_due();
            let next = self
                .tracked
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
                Some(handle) = requests.recv() => {
                    if let Some(kept) = self.tracked.iter_mut().find(|kept| Arc::ptr_eq(&kept.view.handle, &handle)) {
                        kept.due = Instant::now();
                    } else {
                        handle.finish(false);
                    }
                }
                Some((handle, result)) = self.fetches.next(), if !self.fetches.is_empty() => self.finish(&handle, result),
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                _ = ages.tick() => self.sets.write_ages(),
            }
        }
    }

    /// Takes over new settings: unchanged sources keep their keys, new ones are fetched, removed ones go at once. The same settings come again when
    /// the content of a file that they name changes, so every source with a file is fetched.
    fn adopt(&mut self, settings: &Live) {
        self.jwks = settings.jwks.clone();
        self.clock_skew_secs = settings.auth.clock_skew_secs;
        self.revoked = settings.jwks.revoked_sources.clone();
        let mut before = std::mem::take(&mut self.tracked);
        for source in &settings.jwks.sources {
            let kept = before
                .iter()
                .position(|kept| same_keys(&kept.view.source, source))
                .map(|at| before.swap_remove(at));
            let mut kept = kept.unwrap_or_else(|| TrackedSource::new(source));
            let foreign = foreign_prefixes(source, &settings.jwks.sources);
            if *kept.view.source != *source || kept.view.foreign != foreign {
                kept.view.source = Arc::new(source.clone());
                kept.view.foreign = foreign;
            }
            kept.view.revoked = self.revoked.contains(&source.name);
            if source.files().next().is_some() {
                (kept.due, kept.again) = (Instant::now(), kept.fetching);
            }
            self.tracked.push(kept);
        }
        if settings.jwks.sources.is_empty() {
            tracing::warn!("no key source is configured; every token is refused");
        }
        self.publish();
        for gone in before {
            tracing::info!(source = %gone.view.name, "key source removed");
            gone.view.handle.finish(false);
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
            .tracked
            .iter_mut()
            .filter(|kept| !kept.fetching && kept.due <= now)
        {
            kept.fetching = true;
            kept.view.handle.demand.lock().running = true;
            let (handle, source, jwks) = (
                Arc::clone(&kept.view.handle),
                Arc::clone(&kept.view.source),
                self.jwks.clone(),
            );
            self.fetches.push(Box::pin(async move {
                let limit = Duration::from_millis(jwks.request_timeout_ms);
                let fetched =
                    tokio::time::timeout(limit, handle.fetcher.fetch(&source, jwks.max_bytes))
                        .await;
                let result = fetched.unwrap_or(Err(FetchError::TooSlow(jwks.request_timeout_ms)));
                (handle, result)
            }));
        }
    }

    fn finish(&mut self, handle: &Arc<FetchHandle>, result: Result<KeySet, FetchError>) {
        let Some(kept) = self
            .tracked
            .iter_mut()
            .find(|kept| Arc::ptr_eq(&kept.view.handle, handle))
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
        handle.finish(!ok);
        self.sets.write_ages();
    }

    /// Publishes the state for verification, and reports a change that may withdraw trust from a token.
    fn publish(&self) {
        let sources = self.tracked.iter().map(|kept| kept.view.clone()).collect();
        let table = SourceTable {
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
        let trusted = |table: &SourceTable| -> Vec<_> {
            table
                .sources
                .iter()
                .map(|v| {
                    (
                        Arc::clone(&v.name),
                        v.is_accepted(),
                        Arc::clone(&v.foreign),
                        v.keys()
                            .map(|key| *key.thumbprint)
                            .collect::<Vec<Thumbprint>>(),
                    )
                })
                .collect()
        };
        let before = self.sets.table();
        let changed = before.revoked != table.revoked || trusted(&before) != trusted(&table);
        self.sets.table.store(Arc::new(table));
        if changed {
            self.sets.changed.send_modify(|n| *n += 1);
        }
    }
}

/// Returns whether two sources get their keys from the same address or file, with the same authorities, and their secret from the same file.
fn same_keys(a: &Source, b: &Source) -> bool {
    a.name == b.name
        && a.url == b.url
        && a.ca_file == b.ca_file
        && a.keys_file == b.keys_file
        && a.application_secret_file == b.application_secret_file
}

impl TrackedSource {
    fn new(source: &Source) -> Self {
        let demand = FetchDemand {
            running: true,
            asked: None,
            last_failed: false,
            bad_kids: Recent::new(MAX_BAD_KIDS),
        };
        let handle = FetchHandle {
            demand: Mutex::new(demand),
            finished: watch::channel(0).0,
            fetcher: KeyFetcher::default(),
        };
        let view = SourceView {
            name: Arc::from(source.name.as_str()),
            source: Arc::new(source.clone()),
            foreign: Arc::default(),
            payload_key: None,
            set: None,
            error: None,
            revoked: false,
            handle: Arc::new(handle),
        };
        Self {
            view,
            due: Instant::now(),
            fetching: false,
            again: false,
            backoff: Backoff::new(RETRY_FIRST),
        }
    }

    /// Takes the outcome of a fetch: a good set replaces the current one, a failure keeps it.
    fn take(&mut self, result: Result<KeySet, FetchError>, now_ms: i64, jwks: &config::Jwks) {
        self.fetching = false;
        let refresh = Duration::from_secs(jwks.refresh_interval_secs);
        match result {
            Ok(found) => {
                let before = self.backoff.failures();
                self.backoff.reset();
                self.view.set = Some(Set {
                    keys: found.keys.into(),
                    fetched_ms: now_ms,
                });
                if self.view.payload_key != found.payload_key {
                    self.view.payload_key = found.payload_key;
                    self.view.forget_verified();
                }
                self.view.error = None;
                self.due = Instant::now() + refresh.mul_f64(rand::rng().random_range(0.9..=1.0));
                match self.view.problem() {
                    Some(problem) => {
                        tracing::warn!(source = %self.view.name, "key source cannot be used: {problem}")
                    }
                    None if before > 0 => {
                        tracing::info!(source = %self.view.name, "key source recovered; its key set was fetched")
                    }
                    None => tracing::debug!(source = %self.view.name, "key set fetched"),
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.backoff.failures() == 0 || self.view.error.as_ref() != Some(&text) {
                    tracing::warn!(source = %self.view.name, "key set fetch failed; the last good set stays in use: {text}");
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

impl FetchHandle {
    /// Ends a fetch and wakes everyone who waits for it.
    fn finish(&self, failed: bool) {
        {
            let mut demand = self.demand.lock();
            demand.running = false;
            demand.last_failed = failed;
        }
        self.finished.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests;
