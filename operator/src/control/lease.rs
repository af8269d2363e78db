//! Leader election: only the holder of a `coordination.k8s.io` Lease writes, and only until its own clock reaches the deadline.
//!
//! The clocks of two machines are never compared. A holder counts from the moment it sent its last successful renewal and stops writing at two
//! thirds of the duration; another process takes over once it has seen the same record for the whole duration. So there is at most one writer even
//! if a process is suspended and continues later; a write that was already sent then fails by its `resourceVersion`.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::act::fence::Fence;
use crate::names::MANAGER;
use crate::time::{about, now};

/// The lease and how it is held.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Unique for each process: a restarted container of the same pod has another one.
    pub identity: String,
    /// How long an unchanged record keeps others from taking over. At least 3 s.
    pub duration: Duration,
}

impl Settings {
    /// How long after a renewal the holder may write.
    fn term(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// Between two reads or renewals.
    fn pause(&self) -> Duration {
        self.duration / 6
    }
}

/// What another holder wrote, and since when it has not changed.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    record: Option<LeaseSpec>,
    since: Instant,
}

/// One candidate.
pub struct Lease {
    api: Api<LeaseObject>,
    settings: Settings,
    fence: Fence,
    /// The object as we wrote it last, while it is ours.
    own: Option<LeaseObject>,
    seen: Option<Seen>,
}

impl Lease {
    /// A candidate for this lease.
    pub fn new(client: Client, settings: Settings, fence: Fence) -> Self {
        Self {
            api: Api::namespaced(client, &settings.namespace),
            settings,
            fence,
            own: None,
            seen: None,
        }
    }

    /// Takes and renews the lease whenever it can, and publishes in `leading` whether it is held; at `stop` it releases the lease and returns.
    pub async fn run(mut self, leading: watch::Sender<bool>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let limit = self.fence.remaining().unwrap_or(self.settings.term());
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(limit, self.round()) => outcome,
                () = stop.cancelled() => break,
            };
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    lease = self.settings.name,
                    "lease read or renewal failed; trying again"
                ),
                Err(_) => tracing::warn!(
                    lease = self.settings.name,
                    "lease read or renewal timed out; trying again"
                ),
            }
            let held = self.fence.is_held();
            if leading.send_replace(held) != held {
                let (lease, identity) = (&self.settings.name, &self.settings.identity);
                if held {
                    tracing::info!(lease, identity, "lease acquired; this process leads");
                } else {
                    tracing::warn!(lease, identity, "lease lost; this process stops writing");
                }
            }
            // A failed renewal is tried again before the term ends. Standbys read at different times.
            let pause = about(self.settings.pause());
            let pause = self.fence.remaining().map_or(pause, |left| pause.min(left));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.release().await;
        leading.send_replace(false);
    }

    /// One read, or one renewal.
    async fn round(&mut self) -> kube::Result<()> {
        let started = Instant::now();
        if let Some(own) = self.own.clone().filter(|_| self.fence.is_held()) {
            match self.renew(own, started).await {
                // Another process wrote in between, or the object is gone: read who holds it.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    self.own = None
                }
                done => return done,
            }
        }
        let Some(lease) = self.api.get_opt(&self.settings.name).await? else {
            self.fence.drop_now();
            return self.create(started).await;
        };
        if self.is_own(&lease) {
            return self.renew(lease, started).await;
        }
        self.fence.drop_now();
        if self.is_free(&lease) {
            self.take_over(lease, started).await
        } else {
            Ok(())
        }
    }

    async fn renew(&mut self, lease: LeaseObject, started: Instant) -> kube::Result<()> {
        let spec = LeaseSpec {
            renew_time: Some(wall()),
            ..lease.spec.clone().unwrap_or_default()
        };
        let written = self.put(lease, spec).await?;
        self.holds(written, started);
        Ok(())
    }

    fn is_own(&self, lease: &LeaseObject) -> bool {
        lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            == Some(&self.settings.identity)
    }

    /// Whether it has no holder, or its record has not changed for the duration that it names.
    fn is_free(&mut self, lease: &LeaseObject) -> bool {
        let record = lease.spec.clone();
        if record
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            .is_none_or(str::is_empty)
        {
            return true;
        }
        let given = record
            .as_ref()
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|secs| u64::try_from(secs).ok());
        match &self.seen {
            Some(seen) if seen.record == record => {
                seen.since.elapsed() >= given.map_or(self.settings.duration, Duration::from_secs)
            }
            _ => {
                self.seen = Some(Seen {
                    record,
                    since: Instant::now(),
                });
                false
            }
        }
    }

    async fn create(&mut self, started: Instant) -> kube::Result<()> {
        let lease = LeaseObject {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(self.new_spec(0)),
        };
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        match self.api.create(&params, &lease).await {
            Ok(written) => {
                self.holds(written, started);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn take_over(&mut self, lease: LeaseObject, started: Instant) -> kube::Result<()> {
        let spec = self.new_spec(
            lease
                .spec
                .as_ref()
                .and_then(|spec| spec.lease_transitions)
                .unwrap_or(0)
                .saturating_add(1),
        );
        match self.put(lease, spec).await {
            Ok(written) => {
                self.holds(written, started);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn new_spec(&self, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: Some(wall()),
            renew_time: Some(wall()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Replaces the object that was read; its `resourceVersion` is the precondition.
    async fn put(&self, mut lease: LeaseObject, spec: LeaseSpec) -> kube::Result<LeaseObject> {
        lease.metadata.managed_fields = None;
        lease.spec = Some(spec);
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        self.api.replace(&self.settings.name, &params, &lease).await
    }

    fn holds(&mut self, written: LeaseObject, started: Instant) {
        self.own = Some(written);
        self.seen = None;
        self.fence.hold_until(started + self.settings.term());
    }

    /// Lets another process take it at once. Nothing may be written after this call.
    async fn release(&mut self) {
        let held = self.fence.is_held();
        self.fence.drop_now();
        if !held {
            return;
        }
        let give_up = async {
            let Some(lease) = self
                .api
                .get_opt(&self.settings.name)
                .await?
                .filter(|lease| self.is_own(lease))
            else {
                return Ok(());
            };
            let spec = lease.spec.clone().unwrap_or_default();
            let spec = LeaseSpec {
                holder_identity: Some(String::new()),
                renew_time: Some(wall()),
                lease_duration_seconds: Some(1),
                ..spec
            };
            self.put(lease, spec).await.map(|_| ())
        };
        match tokio::time::timeout(self.settings.pause(), give_up).await {
            Ok(Ok(())) => tracing::info!(lease = self.settings.name, "lease released"),
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "lease release failed; the lease expires by itself"
            ),
            Err(_) => tracing::warn!("lease release timed out; the lease expires by itself"),
        }
    }
}

/// For people who read the object; no decision depends on it.
fn wall() -> MicroTime {
    MicroTime(
        Timestamp::from_microsecond(now().timestamp_micros()).unwrap_or(Timestamp::UNIX_EPOCH),
    )
}
