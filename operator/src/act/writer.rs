//! Every write to the API server: sent only while the lease is held, counted, and bounded in time.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use kube::Client;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::act::fence::Fence;
use crate::act::repeats::Repeats;
use crate::metrics::{Metrics, WriteLabel};
use crate::names::MANAGER;
use crate::objects::compare::Difference;

/// Longest time for one write. A request that the API server carries out later fails by its precondition.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Why a write failed, or its result is unknown.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another process may hold the lease.
    #[error("the lease is not held")]
    NotHeld,
    /// The API server refused, or did not answer.
    #[error("{verb} {kind} {name}")]
    Api {
        /// `apply`, `patch`, `delete`, ...
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{verb} {kind} {name}: no answer within {} s", WRITE_LIMIT.as_secs())]
    TimedOut {
        /// `apply`, `patch`, `delete`, ...
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// How the API server's own changes made an object differ from what was applied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServerChanges {
    pub(crate) uid: String,
    pub(crate) hash: String,
    pub(crate) differences: Vec<Difference>,
}

/// Kind, namespace and name.
pub(crate) type Key = (&'static str, String, String);

/// Writes under the lease.
pub struct Writer {
    client: Client,
    fence: Fence,
    metrics: Metrics,
    server_changes: Mutex<HashMap<Key, ServerChanges>>,
    repeats: Mutex<Repeats>,
}

impl Writer {
    /// Writes through this client while this fence allows it.
    pub fn new(client: Client, fence: Fence, metrics: Metrics) -> Self {
        Self {
            client,
            fence,
            metrics,
            server_changes: Mutex::default(),
            repeats: Mutex::default(),
        }
    }

    /// For requests that are given to [`Writer::write`], and for reads.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether writes may be sent now.
    pub fn may_write(&self) -> bool {
        self.fence.is_held()
    }

    /// Parameters of every server-side apply.
    pub fn apply_params(force: bool) -> PatchParams {
        PatchParams {
            force,
            ..PatchParams::apply(MANAGER)
        }
    }

    /// Parameters of every other patch.
    pub fn patch_params() -> PatchParams {
        PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        }
    }

    /// Carries out one write. The request is a future that has not started: it is dropped unsent if the lease is not held.
    ///
    /// # Errors
    /// When the lease is not held, the API server refuses, or it does not answer in time.
    pub async fn write<T>(
        &self,
        verb: &'static str,
        kind: &str,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        if !self.fence.is_held() {
            return Err(WriteError::NotHeld);
        }
        self.metrics
            .writes
            .get_or_create(&WriteLabel {
                kind: kind.to_owned(),
                verb,
            })
            .inc();
        match tokio::time::timeout(WRITE_LIMIT, request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(source)) => Err(WriteError::Api {
                verb,
                kind: kind.to_owned(),
                name: name.to_owned(),
                source: Box::new(source),
            }),
            Err(_) => Err(WriteError::TimedOut {
                verb,
                kind: kind.to_owned(),
                name: name.to_owned(),
            }),
        }
    }

    /// A JSON merge patch of metadata, a subresource or anything else that is not applied as a whole.
    ///
    /// # Errors
    /// As [`Writer::write`]; 409 where the patch names a `resourceVersion` that has passed.
    pub async fn merge<K>(
        &self,
        api: &kube::Api<K>,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<K, WriteError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        self.write(
            "patch",
            &K::kind(&()),
            name,
            api.patch(name, &Self::patch_params(), &Patch::Merge(patch)),
        )
        .await
    }

    pub(crate) fn server_changes(&self, key: &Key) -> Option<ServerChanges> {
        self.server_changes.lock().get(key).cloned()
    }

    pub(crate) fn keep_server_changes(&self, key: Key, server_changes: ServerChanges) {
        if server_changes.differences.is_empty() {
            self.server_changes.lock().remove(&key);
        } else {
            self.server_changes.lock().insert(key, server_changes);
        }
    }

    /// Whether an object may be applied with this content now: who changes it back at once would otherwise be answered as fast as the API server is.
    pub(crate) fn may_repeat(&self, key: &Key, hash: &str) -> bool {
        self.repeats.lock().may(key, hash, Instant::now())
    }

    /// An object that was there was applied with this content.
    pub(crate) fn count_repeat(&self, key: &Key, hash: &str) {
        self.repeats.lock().count(key, hash, Instant::now());
    }

    /// Drops what is known of one object.
    pub(crate) fn forget(&self, key: &Key) {
        self.server_changes.lock().remove(key);
        self.repeats.lock().retain(|known| known != key);
    }

    /// Drops what is known of the objects of a SignalCluster, whose names begin with its own. Those of another whose name begins so are dropped as well: each
    /// may be written once more.
    pub(crate) fn forget_cluster(&self, namespace: &str, name: &str) {
        let is_of_it = |(_, of, child): &Key| {
            let rest = child.strip_prefix(name);
            of == namespace && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        self.server_changes.lock().retain(|key, _| !is_of_it(key));
        self.repeats.lock().retain(|key| !is_of_it(key));
    }
}

impl WriteError {
    /// The API server's answer, if there is one.
    pub fn api(&self) -> Option<&kube::Error> {
        match self {
            WriteError::Api { source, .. } => Some(source.as_ref()),
            WriteError::NotHeld | WriteError::TimedOut { .. } => None,
        }
    }

    /// Whether another client wrote in between: read again soon.
    pub fn is_conflict(&self) -> bool {
        matches!(self.api(), Some(kube::Error::Api(status)) if status.code == 409)
    }

    /// Whether the object does not exist.
    pub fn is_gone(&self) -> bool {
        matches!(self.api(), Some(kube::Error::Api(status)) if status.code == 404)
    }
}
