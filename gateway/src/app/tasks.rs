//! The tasks that follow something until the process ends: the bus, readiness, files, and the age of notifications.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::epoch;
use super::inbound::Inbound;
use super::probe::Probe;
use super::revocations::RevocationReader;
use super::settings::LiveSettings;
use super::start::{Running, Start};
use crate::activity::Catalogs;
use crate::backoff::Backoff;
use crate::bus;
use crate::metrics::Metrics;
use crate::notification::Epoch;
use crate::store::{self, Misread, PolicyStore, PolicySurvey};
use crate::telemetry::Telemetry;

impl Start<'_> {
    /// Delivers what the bus receives, closes connections whose trust is withdrawn, and keeps the revocations whole.
    pub(super) fn follow_bus(
        &mut self,
        running: &Running,
        events: bus::Events,
        runtime: &Handle,
        reader: RevocationReader,
    ) {
        let inbound = Inbound {
            hub: running.hub.clone(),
            prompt: reader.prompt(),
            revocations: Arc::clone(&running.identity.revocations),
            authenticator: running.identity.authenticator.clone(),
            metrics: Arc::clone(self.metrics),
            pipeline: running.pipeline.clone(),
            control: Handle::current(),
        };
        self.supervisor
            .spawn_forever("trust", follow_trust(inbound.clone(), self.stop.clone()));
        self.supervisor.spawn_forever(
            "revocations",
            reader.run(inbound.clone(), self.stop.clone()),
        );
        let announcer = Arc::clone(&running.announcer);
        self.supervisor
            .spawn_forever("announcements", announcer.run(self.stop.clone()));
        self.supervisor
            .spawn_forever_on(runtime, "bus events", inbound.run(events));
    }

    /// Follows what readiness depends on. The returned flag is set while no new connections may be accepted.
    pub(super) fn follow_readiness(&mut self, running: &Running) -> Arc<AtomicBool> {
        let closed = Arc::new(AtomicBool::new(false));
        let probe = Probe {
            lifecycle: Arc::clone(self.lifecycle),
            authenticator: running.identity.authenticator.clone(),
            bus: Arc::clone(&running.bus),
            hub: running.hub.clone(),
            metrics: Arc::clone(self.metrics),
            closed: Arc::clone(&closed),
            ids: running.ids.clone(),
            pipeline: running.pipeline.clone(),
        };
        self.supervisor
            .spawn_forever("readiness", probe.run(self.stop.clone()));
        closed
    }

    /// Follows the live settings and the catalogs.
    pub(super) fn follow_files(&mut self, catalogs: &Arc<Catalogs>, telemetry: Option<Telemetry>) {
        if !self.config.live_file.as_os_str().is_empty() {
            let settings = Arc::clone(&self.settings);
            self.supervisor.spawn_forever(
                "live settings",
                settings.follow(Arc::clone(self.metrics), self.stop.clone()),
            );
        }
        self.supervisor.spawn_forever(
            "log filter",
            follow_log_filter(Arc::clone(&self.settings), telemetry, self.stop.clone()),
        );
        if let Some(tls) = &self.tls {
            self.supervisor.spawn_forever(
                "TLS files",
                Arc::clone(tls).follow(Arc::clone(self.metrics), self.stop.clone()),
            );
        }
        if !self.config.notifications.catalog_dir.as_os_str().is_empty() {
            self.supervisor.spawn_forever(
                "catalogs",
                Arc::clone(catalogs).watch(Arc::clone(self.metrics), self.stop.clone()),
            );
        }
    }

    /// Follows what the tables hold: the age of notifications, whether they went back in time, and policy rows that are not understood. `epoch` is what the
    /// start saw.
    pub(super) fn follow_tables(&mut self, running: &Running, epoch: Option<Epoch>) {
        let follow = epoch::follow(
            Arc::clone(&running.notifications),
            running.hub.clone(),
            epoch,
            self.stop.clone(),
        );
        self.supervisor.spawn_forever("epoch", follow);
        self.purge_notifications(running);
        self.survey_policies(running);
    }

    /// Deletes notifications that are older than the settings keep them, and revocations that have ended.
    fn purge_notifications(&mut self, running: &Running) {
        let purge = store::purge_loop(
            Arc::clone(&running.notifications),
            Arc::clone(&running.revocations),
            self.config.database.clone(),
            Arc::clone(&self.clock),
            self.stop.clone(),
        );
        self.supervisor.spawn_forever("purge", purge);
    }

    /// Says which rows of the platform's table are not understood, and counts them.
    fn survey_policies(&mut self, running: &Running) {
        let survey = survey_policies(
            Arc::clone(&running.policies),
            Arc::clone(self.metrics),
            self.stop.clone(),
        );
        self.supervisor.spawn_forever("policy survey", survey);
    }
}

/// How often the platform's table is looked at as a whole.
const SURVEY_INTERVAL: Duration = Duration::from_secs(3600);
/// The first delay after a look that failed.
const SURVEY_RETRY: Duration = Duration::from_secs(1);

/// Surveys the platform's table at the start and then every hour. A failure is tried again; what is not understood is logged when it changes.
async fn survey_policies(
    policies: Arc<dyn PolicyStore>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(SURVEY_RETRY);
    let mut said = Vec::new();
    let mut failed = false;
    loop {
        let looked = tokio::select! {
            looked = policies.survey() => looked,
            () = stop.cancelled() => return,
        };
        let wait = match looked {
            Ok(survey) => {
                count_unread(&survey, &metrics);
                if survey.unread != said {
                    say_unread(&survey);
                    said = survey.unread;
                }
                failed = false;
                backoff.reset();
                SURVEY_INTERVAL
            }
            Err(error) => {
                if !failed {
                    tracing::warn!(%error, "the policy tables cannot be read; nobody has permissions meanwhile, trying again");
                }
                failed = true;
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn count_unread(survey: &PolicySurvey, metrics: &Metrics) {
    for why in Misread::ALL {
        let rows: u64 = survey
            .unread
            .iter()
            .filter(|unread| unread.why == why)
            .map(|unread| unread.count)
            .sum();
        metrics
            .policy_rows_unread
            .get_or_create(&Metrics::kind(why.as_str()))
            .set(i64::try_from(rows).unwrap_or(i64::MAX));
    }
}

fn say_unread(survey: &PolicySurvey) {
    if survey.unread.is_empty() {
        tracing::info!(table = %survey.table, "every policy row is understood");
        return;
    }
    let rows: Vec<String> = survey.unread.iter().map(ToString::to_string).collect();
    tracing::warn!(table = %survey.table, rows = ?rows, "policy rows are not understood: they grant nothing, and those that deny deny their target");
}

/// Looks at every connection's trust whenever key sets or sources change.
async fn follow_trust(inbound: Inbound, stop: CancellationToken) {
    let mut changes = inbound.authenticator.changes();
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => inbound.close_withdrawn().await,
                Err(_) => return stop.cancelled().await,
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Sets the log filter to the one of the live settings whenever they change.
async fn follow_log_filter(
    settings: Arc<LiveSettings>,
    telemetry: Option<Telemetry>,
    stop: CancellationToken,
) {
    let mut live = settings.subscribe();
    loop {
        tokio::select! {
            Ok(()) = live.changed() => {
                let filter = live.borrow_and_update().observability.log_filter.clone();
                if let Some(telemetry) = &telemetry {
                    telemetry.set_filter(&filter);
                }
            }
            () = stop.cancelled() => return,
        }
    }
}
