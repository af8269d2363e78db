//! The Job that migrates the database to the image's schema before pods of that image start.

use std::borrow::Cow;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use signal_crds::SignalClusterSpec;
use signal_crds::data::{Database, Migrations};
use signal_crds::status::DatabaseStatus;

use super::deployment::{
    container_security, pod_security, pull_policy, pull_secrets, restrict_further_containers,
    user_and_groups,
};
use super::merge::lay_over;
use crate::names::{CONTAINER, Children, LIVE_DIR, MIGRATION};
use crate::observe::observed::Observed;
use crate::plan::validate::{DATABASE_CA, DATABASE_URL, ValidCluster};
use crate::time::from_k8s;

/// Its container.
const MIGRATE: &str = "migrate";
/// How long a failed Job is kept for inspection before it is created again. Its cause may be gone by then: a database that was down, a right that was
/// missing.
const AGAIN_AFTER: TimeDelta = TimeDelta::minutes(1);
/// How long a Job may have no pod: its controller makes it at once, if it may.
const FIRST_POD_WITHIN: TimeDelta = TimeDelta::seconds(10);

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
    Complete(Migrated),
    /// Nobody has approved the template with the image, so no Job is made for it.
    AwaitsApproval,
}

impl Migration {
    /// Whether pods of the wanted image may start.
    pub fn lets_pods_start(&self) -> bool {
        matches!(self, Self::NotWanted | Self::Complete(_))
    }

    /// The failed Job that will be created again; none while the SignalCluster is paused or stopped.
    pub fn tried_again(&self, spec: &SignalClusterSpec) -> Option<&str> {
        match self {
            Self::Failed { job, .. } if !spec.paused && !spec.stopped => Some(job),
            _ => None,
        }
    }
}

/// What was migrated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The image whose schema the database has.
    pub image: String,
    /// Which database, by what tells it from others.
    pub database: String,
    /// Number of the newest migration that pods have reported since.
    pub version: Option<i64>,
}

/// Which database a URL is about, and never with which login: eight hexadecimal digits of a hash.
fn identity(cluster: &ValidCluster) -> String {
    let url = cluster.files.get(DATABASE_URL).map(Vec::as_slice);
    let text = std::str::from_utf8(url.unwrap_or_default()).unwrap_or_default();
    let mut hash = Sha256::new();
    for host in signal_contract::one_url_per_host(text) {
        let Ok(url) = host.parse::<url::Url>() else {
            continue;
        };
        let named = |(name, _): &(Cow<'_, str>, _)| {
            ["host", "hostaddr", "port", "dbname"].contains(&name.as_ref())
        };
        let by_query: Vec<_> = url.query_pairs().filter(named).collect();
        let port = url.port().unwrap_or(5432);
        let host = url.host_str().unwrap_or_default();
        hash.update(format!("{host}:{port}{}{by_query:?}\n", url.path()));
    }
    short(&hash.finalize())
}

fn short(digest: &[u8]) -> String {
    digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn by_job(cluster: &ValidCluster) -> Option<&Database> {
    let database = cluster.spec.database.as_ref();
    database.filter(|database| matches!(database.migrations, Migrations::Job))
}

/// `NAME-migrate-HASH8`: another image, another database, or another pod is another Job; so is one after the database went back. `None` where no Job
/// migrates.
pub fn job_name(cluster: &ValidCluster, observed: &Observed) -> Option<String> {
    let made = made(cluster, &Children::of(&cluster.name))?;
    let mut hash = Sha256::new();
    for part in [
        cluster.spec.image.reference(),
        identity(cluster),
        format!("{:?}", went_back(cluster, observed)),
        // Not its namespace and owner: a SignalCluster that is made again has the Job that it had.
        super::compare::hash(&serde_json::to_value(made.spec).expect("a Job is plain data")),
    ] {
        hash.update(Sha256::digest(part));
    }
    Some(format!(
        "{}-migrate-{}",
        cluster.name,
        short(&hash.finalize())
    ))
}

/// What the status remembers of this database.
fn remembered<'a>(cluster: &ValidCluster, observed: &'a Observed) -> Option<&'a DatabaseStatus> {
    let status = observed.cluster.status.as_ref()?;
    let database = status.database.as_ref()?;
    let is_of_it = match &database.migrated_database {
        Some(migrated) => *migrated == identity(cluster),
        // An earlier operator remembered the image alone.
        None => status
            .conditions
            .iter()
            .any(|one| one.type_ == "DatabaseMigrated" && one.status == "True"),
    };
    is_of_it.then_some(database)
}

/// Number of the newest migration that pods report.
fn reported(observed: &Observed) -> Option<i64> {
    let reports = observed.fleet.ready().filter_map(|pod| pod.report());
    reports.filter_map(|report| report.database.version).max()
}

/// The version that pods report, if it is lower than one before: somebody has restored the database.
fn went_back(cluster: &ValidCluster, observed: &Observed) -> Option<i64> {
    let before = remembered(cluster, observed)?.migrated_version?;
    reported(observed).filter(|version| *version < before)
}

/// How far the schema is: as the status remembers it, and otherwise by the Jobs in the cluster.
pub fn migration(cluster: &ValidCluster, observed: &Observed) -> Migration {
    let Some(job) = job_name(cluster, observed) else {
        return Migration::NotWanted;
    };
    let image = cluster.spec.image.reference();
    let remembered = remembered(cluster, observed);
    let went_back = went_back(cluster, observed).is_some();
    let is_done = remembered.is_some_and(|it| it.migrated_image.as_ref() == Some(&image));
    let complete = || {
        let before = remembered.and_then(|it| it.migrated_version);
        Migration::Complete(Migrated {
            image: image.clone(),
            database: identity(cluster),
            version: match went_back {
                true => reported(observed),
                false => reported(observed).max(before),
            },
        })
    };
    if is_done && !went_back {
        return complete();
    }
    let jobs = &mut observed.jobs.iter();
    let there = jobs.find(|there| there.metadata.name.as_ref() == Some(&job));
    let conditions = there
        .and_then(|job| job.status.as_ref()?.conditions.as_ref())
        .map_or(&[][..], Vec::as_slice);
    let ended = |kind: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == "True")
    };
    if ended("Complete").is_some() {
        return complete();
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

/// The wanted Job. It is created and never changed, because the template of a Job is immutable. One that is there stays, to be looked at, until another
/// one is wanted; what was migrated is remembered without it. While stopped none is created. One that failed long enough ago is not wanted, so it is pruned;
/// the next reconcile creates it again.
///
/// Its settings come from the environment and the credentials Secret, not from `gateway.toml`, which belongs to the pods' image and may be older.
pub(super) fn job(
    cluster: &ValidCluster,
    children: &Children,
    observed: &Observed,
    now: DateTime<Utc>,
) -> Option<Job> {
    let name = job_name(cluster, observed)?;
    let is_there = has(observed, &name);
    let migration = migration(cluster, observed);
    let is_needed = !migration.lets_pods_start() && !cluster.spec.stopped;
    if !is_needed && !is_there {
        return None;
    }
    if let Migration::Failed { again_at, .. } = migration
        && again_at <= now
        && !cluster.spec.stopped
    {
        return None;
    }
    let mut made = made(cluster, children)?;
    made.metadata.name = Some(name);
    Some(made)
}

/// Whether this Job is in the cluster.
pub(super) fn is_there(job: &Job, observed: &Observed) -> bool {
    let name = job.metadata.name.as_deref();
    name.is_some_and(|name| has(observed, name))
}

/// Until when the Job of this name may have no pod; `None` where it has or had one, or has not begun.
pub fn without_pods_until(observed: &Observed, name: &str) -> Option<DateTime<Utc>> {
    let mut jobs = observed.jobs.iter();
    let job = jobs.find(|job| job.metadata.name.as_deref() == Some(name))?;
    let status = job.status.as_ref()?;
    let pods = [status.active, status.succeeded, status.failed];
    if pods.into_iter().flatten().any(|pods| pods > 0) {
        return None;
    }
    let began = status.start_time.as_ref().map(from_k8s)?;
    Some(began + FIRST_POD_WITHIN)
}

fn has(observed: &Observed, name: &str) -> bool {
    let names = observed.jobs.iter().map(|job| job.metadata.name.as_deref());
    names.flatten().any(|there| there == name)
}

/// The Job without its name.
fn made(cluster: &ValidCluster, children: &Children) -> Option<Job> {
    let settings = &by_job(cluster)?.migration_job;
    let mut metadata = super::meta(cluster, "");
    let own = metadata.labels.get_or_insert_default();
    own.insert("app.kubernetes.io/component".into(), MIGRATION.into());
    let own = own.clone();
    let given = &cluster.spec.pod_template.metadata;
    let chosen = &settings.metadata;
    let no_sidecar = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut labels = given.labels.clone();
    labels.extend([no_sidecar("sidecar.istio.io/inject", "false")]);
    labels.extend(chosen.labels.clone());
    labels.extend(own);
    let mut annotations = given.annotations.clone();
    annotations.extend([
        no_sidecar("sidecar.istio.io/inject", "false"),
        no_sidecar("linkerd.io/inject", "disabled"),
    ]);
    annotations.extend(chosen.annotations.clone());
    let deadline = settings.deadline.as_secs().max(1);
    Some(Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(i32::try_from(settings.retries).unwrap_or(i32::MAX)),
            active_deadline_seconds: Some(i64::try_from(deadline).unwrap_or(i64::MAX)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(cluster, children)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    })
}

/// Parts of a pod that belong to gateways alone: what spreads them, names them, or runs with them without an end.
const NOT_FOR_JOBS: [&str; 9] = [
    "affinity",
    "containers",
    "hostname",
    "initContainers",
    "readinessGates",
    "subdomain",
    "terminationGracePeriodSeconds",
    "topologySpreadConstraints",
    "volumes",
];
/// Variables of the container `gateway` with this beginning are settings of a gateway.
const SETTING: &str = "SIGNAL__";
/// Those of its database belong to the Job as well.
const DATABASE_SETTING: &str = "SIGNAL__DATABASE__";

/// What the Job's pod takes from `spec.podTemplate`: everything but what belongs to gateways alone. Of the container `gateway` its resources, its security
/// context and its environment; init containers, native sidecars among them, with the volumes that they mount.
fn inherited(cluster: &ValidCluster, children: &Children) -> Value {
    let given = &cluster.spec.pod_template.spec;
    let mut user = json!({
        "serviceAccountName": children.name,
        "securityContext": user_and_groups(cluster),
    });
    let mut taken = given.clone();
    taken.retain(|field, _| !NOT_FOR_JOBS.contains(&field.as_str()));
    if let Some(nodes) = given.get("affinity").and_then(|it| it.get("nodeAffinity")) {
        taken.insert("affinity".into(), json!({"nodeAffinity": nodes}));
    }
    let list = |field: &str| {
        given
            .get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let mut container =
        json!({"name": MIGRATE, "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}});
    if let Some(gateway) = list("containers").find(|one| one["name"] == CONTAINER) {
        if gateway["resources"].is_object() {
            container["resources"] = gateway["resources"].clone();
        }
        container["securityContext"] = gateway["securityContext"].clone();
        let variables = gateway["env"].as_array().into_iter().flatten();
        let variables = variables.filter(|variable| {
            let name = variable["name"].as_str().unwrap_or_default();
            !name.starts_with(SETTING) || name.starts_with(DATABASE_SETTING)
        });
        container["env"] = variables.cloned().collect();
    }
    let volumes: Vec<&Value> = list("volumes").collect();
    let mounts = |container: &Value| -> Vec<Value> {
        let all = container["volumeMounts"].as_array().into_iter().flatten();
        all.map(|mount| mount["name"].clone()).collect()
    };
    let is_given = |name: &Value| volumes.iter().any(|volume| volume["name"] == *name);
    let first: Vec<&Value> = list("initContainers")
        .filter(|container| mounts(container).iter().all(is_given))
        .collect();
    let used: Vec<Value> = first
        .iter()
        .flat_map(|container| mounts(container))
        .collect();
    let volumes = volumes
        .into_iter()
        .filter(|volume| used.contains(&volume["name"]));
    taken.insert("volumes".into(), volumes.cloned().collect());
    taken.insert(
        "initContainers".into(),
        first.into_iter().cloned().collect(),
    );
    taken.insert("containers".into(), json!([container]));
    user = lay_over(user, Value::Object(taken));
    user
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
            "name": MIGRATE,
            "image": cluster.spec.image.reference(),
            "imagePullPolicy": pull_policy(cluster),
            "args": ["migrate"],
            "env": [{"name": "SIGNAL__DATABASE__URL_FILE", "value": format!("{LIVE_DIR}/{DATABASE_URL}")}],
            // The last lines of a container that ends badly reach the status of the SignalCluster.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": container_security(),
            "volumeMounts": [{"name": "database", "mountPath": LIVE_DIR, "readOnly": true}],
        }],
        "volumes": [{"name": "database", "secret": {"secretName": children.credentials, "defaultMode": 0o440, "items": items}}],
    });
    let mut spec = lay_over(inherited(cluster, children), ours);
    restrict_further_containers(&mut spec, MIGRATE);
    serde_json::from_value(spec).expect("validated to be a PodSpec")
}

#[cfg(test)]
mod tests;
