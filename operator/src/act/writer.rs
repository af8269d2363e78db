//! The one door through which the operator writes: nothing is sent unless the lease is held, everything is counted, nothing hangs for ever.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use kube::Client;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;

use crate::act::fence::Fence;
use crate::metrics::{Metrics, WriteLabel};
use crate::names::MANAGER;
use crate::objects::compare::Difference;

/// Longest time that one write may take. A request that the API server carries out late is caught by its precondition.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Why a write did not happen, or nobody knows whether it did.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another operator may hold the lease by now.
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
        /// What the API server said.
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

/// What the API server made of an object that differs from what was applied, although nobody else wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settled {
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
    settled: Mutex<HashMap<Key, Settled>>,
}

impl Writer {
    /// Writes through this client while this fence stands.
    pub fn new(client: Client, fence: Fence, metrics: Metrics) -> Self {
        Self {
            client,
            fence,
            metrics,
            settled: Mutex::default(),
        }
    }

    /// For requests that are given to [`Writer::write`], and for reads.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether writes go out now.
    pub fn may_write(&self) -> bool {
        self.fence.is_held()
    }

    /// Server-side apply as the operator does it.
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

    /// Carries out one write. The request is a future that has not begun: it is dropped unsent if the lease is not held.
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

    pub(crate) fn settled(&self, key: &Key) -> Option<Settled> {
        self.settled.lock().get(key).cloned()
    }

    pub(crate) fn settle(&self, key: Key, settled: Settled) {
        if settled.differences.is_empty() {
            self.settled.lock().remove(&key);
        } else {
            self.settled.lock().insert(key, settled);
        }
    }

    pub(crate) fn forget(&self, key: &Key) {
        self.settled.lock().remove(key);
    }
}

impl WriteError {
    /// What the API server said, if it said something.
    pub fn api(&self) -> Option<&kube::Error> {
        match self {
            WriteError::Api { source, .. } => Some(source.as_ref()),
            WriteError::NotHeld | WriteError::TimedOut { .. } => None,
        }
    }

    /// Someone else wrote in between: look again, soon.
    pub fn is_conflict(&self) -> bool {
        matches!(self.api(), Some(kube::Error::Api(status)) if status.code == 409)
    }

    /// There is no such object.
    pub fn is_gone(&self) -> bool {
        matches!(self.api(), Some(kube::Error::Api(status)) if status.code == 404)
    }
}
