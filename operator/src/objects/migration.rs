//! The Job that migrates the database to the image's schema before pods of that image start.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use sha2::{Digest, Sha256};
use signal_crds::SignalClusterSpec;
use signal_crds::data::Migrations;

use super::deployment::{USER, container_security, pod_security, pull_policy, pull_secrets};
use super::merge::lay_over;
use crate::names::{Children, LIVE_DIR, MIGRATION, labels};
use crate::plan::validate::{DATABASE_CA, DATABASE_URL, ValidCluster};
use crate::time::from_k8s;

/// Attempts after the first, and how long all of them may take, in seconds.
const RETRIES: i32 = 4;
const DEADLINE_SECS: i64 = 1800;
/// How long a failed Job is kept for inspection before it is created again. Its cause may be gone by then: a database that was down, a right that was
/// missing.
const AGAIN_AFTER: TimeDelta = TimeDelta::minutes(1);

/// How far the schema is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Migration {
    /// No Job is wanted: there is no database, or the operator does not migrate it.
    NotWanted,
    /// The Job has not ended, or does not exist yet.
    Pending {
        /// Its name.
        job: String,
    },
    /// The Job failed.
    Failed {
        /// Its name.
        job: String,
        /// The message of Kubernetes.
        message: String,
        /// When it is created again.
        again_at: DateTime<Utc>,
    },
    /// The schema is that of the image.
    Complete {
        /// The Job's name.
        job: String,
    },
}

impl Migration {
    /// Whether pods of the wanted image may start.
    pub fn lets_pods_start(&self) -> bool {
        matches!(self, Self::NotWanted | Self::Complete { .. })
    }

    /// The failed Job that will be created again; none while the SignalCluster is paused or stopped.
    pub fn tried_again(&self, spec: &SignalClusterSpec) -> Option<&str> {
        match self {
            Self::Failed { job, .. } if !spec.paused && !spec.stopped => Some(job),
            _ => None,
        }
    }
}

/// `NAME-migrate-HASH8`: another image, another database or another login is another Job. `None` where no Job migrates.
pub fn job_name(cluster: &ValidCluster) -> Option<String> {
    let database = cluster
        .spec
        .database
        .as_ref()
        .filter(|database| matches!(database.migrations, Migrations::Job))?;
    let mut hash = Sha256::new();
    let file = |name: &str| cluster.files.get(name).map_or(&[][..], Vec::as_slice);
    for part in [
        cluster.spec.image.reference().as_bytes(),
        file(DATABASE_URL),
        file(DATABASE_CA),
        &database.max_connections.to_be_bytes(),
    ] {
        hash.update(Sha256::digest(part));
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Some(format!("{}-migrate-{hash}", cluster.name))
}

/// How far the wanted Job is, from the Jobs in the cluster.
pub fn migration(cluster: &ValidCluster, jobs: &[Job]) -> Migration {
    let Some(job) = job_name(cluster) else {
        return Migration::NotWanted;
    };
    let there = jobs
        .iter()
        .find(|there| there.metadata.name.as_ref() == Some(&job));
    let conditions = there
        .and_then(|job| job.status.as_ref()?.conditions.as_ref())
        .map_or(&[][..], Vec::as_slice);
    let ended = |kind: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == "True")
    };
    if ended("Complete").is_some() {
        return Migration::Complete { job };
    }
    match ended("Failed") {
        Some(failed) => {
            let message = failed
                .message
                .clone()
                .or_else(|| failed.reason.clone())
                .unwrap_or_default();
            let since = failed
                .last_transition_time
                .as_ref()
                .map_or(DateTime::UNIX_EPOCH, from_k8s);
            Migration::Failed {
                job,
                message,
                again_at: since + AGAIN_AFTER,
            }
        }
        None => Migration::Pending { job },
    }
}

/// The wanted Job. It is created and never changed, because the template of a Job is immutable. While stopped none is created, and an existing one is
/// kept. One that failed long enough ago is not wanted, so it is pruned; the next reconcile creates it again.
///
/// Its settings come from the environment and the credentials Secret, not from `gateway.toml`, which belongs to the pods' image and may be older.
pub(super) fn job(
    cluster: &ValidCluster,
    children: &Children,
    jobs: &[Job],
    now: DateTime<Utc>,
) -> Option<Job> {
    let name = job_name(cluster)?;
    let is_there = jobs
        .iter()
        .any(|job| job.metadata.name.as_ref() == Some(&name));
    if cluster.spec.stopped && !is_there {
        return None;
    }
    if let Migration::Failed { again_at, .. } = migration(cluster, jobs)
        && again_at <= now
        && !cluster.spec.stopped
    {
        return None;
    }
    let mut labels = labels(&cluster.name);
    labels.insert("app.kubernetes.io/component".into(), MIGRATION.into());
    let mut metadata = super::meta(cluster, &name);
    metadata.labels = Some(labels.clone());
    Some(Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(RETRIES),
            active_deadline_seconds: Some(DEADLINE_SECS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(cluster, children)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    })
}

fn pod(cluster: &ValidCluster, children: &Children) -> PodSpec {
    let mut items = vec![json!({"key": DATABASE_URL, "path": DATABASE_URL})];
    if cluster.files.contains_key(DATABASE_CA) {
        items.push(json!({"key": DATABASE_CA, "path": DATABASE_CA}));
    }
    let ours = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "restartPolicy": "Never",
        "imagePullSecrets": pull_secrets(cluster),
        "securityContext": pod_security(),
        "containers": [{
            "name": "migrate",
            "image": cluster.spec.image.reference(),
            "imagePullPolicy": pull_policy(cluster),
            "args": ["migrate"],
            "env": [{"name": "SIGNAL__DATABASE__URL_FILE", "value": format!("{LIVE_DIR}/{DATABASE_URL}")}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "securityContext": container_security(),
            "volumeMounts": [{"name": "database", "mountPath": LIVE_DIR, "readOnly": true}],
        }],
        "volumes": [{"name": "database", "secret": {"secretName": children.credentials, "defaultMode": 0o440, "items": items}}],
    });
    // It runs on the same nodes and as the same user as gateways.
    let mut user = json!({
        "serviceAccountName": children.name,
        "securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
    });
    for field in [
        "nodeSelector",
        "tolerations",
        "securityContext",
        "serviceAccountName",
    ] {
        if let Some(given) = cluster.spec.pod_template.spec.get(field) {
            user = lay_over(user, json!({ field: given }));
        }
    }
    let spec = lay_over(user, ours);
    serde_json::from_value(spec).expect("validated to be a PodSpec")
}
