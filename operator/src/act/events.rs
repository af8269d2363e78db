//! Publishes Events on SignalClusters, which people see in `kubectl describe`. Repeated ones are counted in one object; a lost one is no error.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use signal_crds::SignalCluster;

use crate::act::fence::Fence;
use crate::names::MANAGER;

/// Longest note that the API server takes.
const MAX_NOTE: usize = 1024;
/// Longest time for one event.
const LIMIT: Duration = Duration::from_secs(5);

/// Publishes events under the lease.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    fence: Option<Fence>,
}

impl Events {
    /// Publishes while this fence allows it; `instance` is the name of this process.
    pub fn new(client: Client, instance: String, fence: Fence) -> Self {
        Self {
            fence: Some(fence),
            ..Self::of_the_process(client, instance)
        }
    }

    /// Publishes about this process itself, also without the lease.
    pub fn of_the_process(client: Client, instance: String) -> Self {
        let reporter = Reporter {
            controller: format!("signal.dev/{MANAGER}"),
            instance: Some(instance),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            fence: None,
        }
    }

    /// Publishes an Event on a SignalCluster. The reason is CamelCase and stable.
    pub async fn publish(
        &self,
        cluster: &SignalCluster,
        kind: EventType,
        reason: &str,
        note: &str,
    ) {
        self.publish_on(&cluster.object_ref(&()), kind, reason, note)
            .await;
    }

    /// Publishes an Event on any object.
    pub async fn publish_on(
        &self,
        object: &ObjectReference,
        kind: EventType,
        reason: &str,
        note: &str,
    ) {
        if self.fence.as_ref().is_some_and(|fence| !fence.is_held()) {
            return;
        }
        let end = (0..=MAX_NOTE.min(note.len()))
            .rev()
            .find(|at| note.is_char_boundary(*at))
            .unwrap_or(0);
        let event = Event {
            type_: kind,
            reason: reason.into(),
            note: Some(note[..end].to_owned()),
            action: "Reconcile".into(),
            secondary: None,
        };
        match tokio::time::timeout(LIMIT, self.recorder.publish(&event, object)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                reason,
                "publishing an Event failed"
            ),
            Err(_) => tracing::debug!(reason, "publishing an Event timed out"),
        }
    }
}
