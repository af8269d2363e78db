//! What the pipeline of this instance and those of the others know of each other.
//!
//! Input: the pipeline's state, the bus and the database. Output: the part `pipeline` of the readiness, the answer to the question whether the pipeline works, and
//! that question to the others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use crate::activity::{PipelineStatus, Surroundings};
use crate::bus::{Ask, Bus, Reply};
use crate::config::Kafka;
use crate::lifecycle::Lifecycle;
use crate::store::NotificationStore;

/// The part of `/readyz?verbose`.
const PART: &str = "pipeline";
/// Longest wait for the database when this instance says whether it can work.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// The pipeline's state, and what it depends on.
#[derive(Clone)]
pub(super) struct PipelineState {
    pub(super) status: Arc<PipelineStatus>,
    group: Arc<str>,
    stuck_is_unready: bool,
    bus: Arc<dyn Bus>,
    notifications: Arc<dyn NotificationStore>,
}

impl PipelineState {
    /// `None` where no pipeline runs.
    pub(super) fn new(
        kafka: &Kafka,
        bus: &Arc<dyn Bus>,
        notifications: &Arc<dyn NotificationStore>,
    ) -> Option<Self> {
        let stuck_after = Duration::from_secs(kafka.stuck_after_secs);
        kafka.enabled.then(|| Self {
            status: Arc::new(PipelineStatus::new(stuck_after)),
            group: kafka.group_id.as_str().into(),
            stuck_is_unready: kafka.stuck_is_unready,
            bus: Arc::clone(bus),
            notifications: Arc::clone(notifications),
        })
    }

    /// Writes what stands still into the readiness.
    pub(super) fn report(&self, lifecycle: &Lifecycle) {
        let why = self.status.standstill();
        if self.stuck_is_unready {
            lifecycle.set(PART, why);
        } else {
            lifecycle.set_notice(PART, why);
        }
    }

    /// Returns whether another instance may leave partitions of the group to this one.
    pub(super) async fn works(&self, group: &str) -> bool {
        *self.group == *group && self.status.is_working() && self.able().await.is_ok()
    }

    async fn able(&self) -> Result<(), String> {
        match tokio::time::timeout(PING_LIMIT, self.notifications.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("the database does not answer".into()),
        }
    }

    /// An instance that does not answer does not count.
    async fn others_work(&self) -> bool {
        let group = self.group.to_string();
        let answers = self.bus.ask(&Ask::Pipeline { group }).await;
        answers.is_ok_and(|answers| {
            answers
                .replies
                .iter()
                .any(|(_, reply)| matches!(reply, Reply::Count { count: 1 }))
        })
    }

    /// What the pipeline asks.
    pub(super) fn around(&self) -> Surroundings {
        let (able, others) = (self.clone(), self.clone());
        Surroundings {
            able: Arc::new(move || {
                let state = able.clone();
                async move { state.able().await }.boxed()
            }),
            others_work: Arc::new(move || {
                let state = others.clone();
                async move { state.others_work().await }.boxed()
            }),
        }
    }
}
