//! What was migrated is remembered by the status, whatever becomes of the Job; and the Job's pod is made as the user's pods are.

use std::sync::Arc;

use signal_crds::SignalCluster;
use signal_crds::status::Status;

use super::*;
use crate::fixture::{changed, example, pod as ready_pod};
use crate::plan::validate::validate;

/// The status of an operator that has seen this migration end.
fn remember(observed: &mut Observed, version: Option<i64>) {
    let cluster = validate(observed).unwrap();
    let database = DatabaseStatus {
        version,
        migrated_image: Some(cluster.spec.image.reference()),
        migrated_database: Some(identity(&cluster)),
        migrated_version: version,
    };
    Arc::make_mut(&mut observed.cluster).status = Some(Status {
        database: Some(database),
        ..Status::default()
    });
}

fn look(observed: &Observed) -> Migration {
    migration(&validate(observed).unwrap(), observed)
}

fn is_done(observed: &Observed) -> bool {
    look(observed).lets_pods_start()
}

fn wanted(observed: &Observed) -> Option<Job> {
    let cluster = validate(observed).unwrap();
    job(
        &cluster,
        &Children::of("edge"),
        observed,
        DateTime::UNIX_EPOCH,
    )
}

fn set_url(observed: &mut Observed, url: &str) {
    let database = observed.secrets.get_mut("database").unwrap().as_mut();
    database.unwrap().insert("url".into(), url.into());
}

#[test]
fn what_was_migrated_is_run_once_whatever_becomes_of_its_job_and_its_login() {
    let mut observed = example("production");
    assert!(!is_done(&observed) && wanted(&observed).is_some());
    remember(&mut observed, None);
    assert!(is_done(&observed));
    assert_eq!(
        wanted(&observed),
        None,
        "it was deleted, or its time was over"
    );
    set_url(
        &mut observed,
        "postgres://other:secret@db:5432/signal?sslmode=require",
    );
    let authorities = observed.secrets.get_mut("authorities").unwrap().as_mut();
    authorities.unwrap().get_mut("ca.crt").unwrap().push(b'\n');
    Arc::make_mut(&mut observed.cluster)
        .spec
        .database
        .as_mut()
        .unwrap()
        .max_connections = 7;
    assert!(is_done(&observed), "another login is the same database");

    let other = |change: fn(&mut Observed)| {
        let mut observed = observed.clone();
        change(&mut observed);
        assert!(matches!(look(&observed), Migration::Pending { .. }));
        wanted(&observed).unwrap().metadata.name.unwrap()
    };
    let image = other(|observed| {
        Arc::make_mut(&mut observed.cluster).spec.image.digest =
            Some(format!("sha256:{}", "2".repeat(64)));
    });
    let server = other(|observed| set_url(observed, "postgres://signal@db2:5432/signal"));
    let name = other(|observed| set_url(observed, "postgres://signal@db/other"));
    assert!(image != server && server != name);
    assert!(
        is_done(&{
            let mut observed = observed.clone();
            set_url(&mut observed, "postgres://signal@db/signal");
            observed
        }),
        "5432 is the default"
    );
}

#[test]
fn a_job_that_is_there_stays_until_another_one_is_wanted() {
    let mut observed = example("production");
    let made = wanted(&observed).unwrap();
    observed.jobs = vec![made.clone()];
    remember(&mut observed, None);
    assert_eq!(wanted(&observed).unwrap().metadata.name, made.metadata.name);
}

#[test]
fn a_database_that_went_back_is_migrated_again() {
    let mut observed = example("production");
    remember(&mut observed, Some(4));
    let reports = |observed: &mut Observed, version: i64| {
        let mut pod = ready_pod("a");
        pod.report.as_mut().unwrap().database.version = Some(version);
        observed.fleet.pods = vec![pod];
    };
    reports(&mut observed, 5);
    let Migration::Complete(done) = look(&observed) else {
        panic!("it is complete")
    };
    assert_eq!(done.version, Some(5), "another migration since");
    reports(&mut observed, 3);
    assert!(!is_done(&observed));
    let first = job_name(
        &validate(&example("production")).unwrap(),
        &example("production"),
    );
    let again = wanted(&observed).unwrap();
    assert_ne!(
        again.metadata.name, first,
        "the first Job may still be there"
    );
    observed.fleet.pods.clear();
    assert!(is_done(&observed), "nobody says that it went back");
}

#[test]
fn what_an_earlier_operator_remembered_counts_if_it_said_so() {
    let mut observed = example("production");
    remember(&mut observed, None);
    let cluster = Arc::make_mut(&mut observed.cluster);
    let status = cluster.status.as_mut().unwrap();
    status.database.as_mut().unwrap().migrated_database = None;
    assert!(!is_done(&observed));
    let said = serde_json::json!({"type": "DatabaseMigrated", "status": "True", "reason": "Migrated", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let cluster = Arc::make_mut(&mut observed.cluster);
    cluster.status.as_mut().unwrap().conditions = vec![serde_json::from_value(said).unwrap()];
    assert!(is_done(&observed));
}

/// The Job of the production example after this change, and its pod.
fn made_with(change: impl FnOnce(&mut SignalCluster)) -> (Value, Value) {
    let job = wanted(&changed("production", change)).unwrap();
    let job = serde_json::to_value(job).unwrap();
    let template = job["spec"]["template"].clone();
    (job, template)
}

#[test]
fn the_pod_of_the_job_is_made_like_those_of_gateways() {
    let (job, template) = made_with(|cluster| {
        let template = &mut cluster.spec.pod_template;
        template.spec = serde_json::from_value(json!({
            "priorityClassName": "critical", "tolerations": [{"key": "dedicated"}], "nodeSelector": {"a": "b"}, "runtimeClassName": "r",
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
            "initContainers": [
                {"name": "proxy", "image": "p", "restartPolicy": "Always", "volumeMounts": [{"name": "spool", "mountPath": "/s"}]},
                {"name": "reads", "image": "q", "volumeMounts": [{"name": "live", "mountPath": "/l"}]},
            ],
            "containers": [
                {"name": "shipper", "image": "s"},
                {"name": "gateway", "resources": {"limits": {"memory": "4Gi"}}, "env": [
                    {"name": "SIGNAL__WORKERS__SHARDS", "value": "4"}, {"name": "TZ", "value": "UTC"},
                    {"name": "SIGNAL__DATABASE__CONNECT_TIMEOUT_MS", "value": "1"}]},
            ],
            "volumes": [{"name": "spool", "emptyDir": {}}, {"name": "other", "emptyDir": {}}],
        }))
        .unwrap();
    });
    let pod = &template["spec"];
    for field in [
        "priorityClassName",
        "tolerations",
        "nodeSelector",
        "runtimeClassName",
        "hostAliases",
    ] {
        assert!(!pod[field].is_null(), "{field}");
    }
    assert!(
        pod["affinity"]["podAntiAffinity"].is_null() && pod["topologySpreadConstraints"].is_null()
    );
    let names = |list: &Value| -> Vec<String> {
        let names = list.as_array().unwrap().iter();
        names
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&pod["containers"]), ["migrate"]);
    assert_eq!(
        names(&pod["initContainers"]),
        ["proxy"],
        "the other one reads what a Job does not have"
    );
    assert_eq!(names(&pod["volumes"]), ["database", "spool"]);
    let dropped = &pod["initContainers"][0]["securityContext"]["capabilities"]["drop"];
    assert_eq!(*dropped, json!(["ALL"]));
    let container = &pod["containers"][0];
    assert_eq!(container["resources"], json!({"limits": {"memory": "4Gi"}}));
    let mut variables = names(&container["env"]);
    variables.sort();
    assert_eq!(
        variables,
        [
            "SIGNAL__DATABASE__CONNECT_TIMEOUT_MS",
            "SIGNAL__DATABASE__URL_FILE",
            "TZ"
        ]
    );
    assert_eq!(
        (
            &job["spec"]["backoffLimit"],
            &job["spec"]["activeDeadlineSeconds"]
        ),
        (&json!(4), &json!(1800))
    );
}

#[test]
fn meshes_stay_out_of_the_job_unless_the_spec_lets_them_in() {
    let (_, template) = made_with(|cluster| {
        let labels = &mut cluster.spec.pod_template.metadata.labels;
        labels.insert("sidecar.istio.io/inject".into(), "true".into());
    });
    let metadata = &template["metadata"];
    assert_eq!(metadata["labels"]["team"], "realtime");
    assert_eq!(metadata["annotations"]["example.com/owner"], "realtime");
    assert_eq!(metadata["labels"]["sidecar.istio.io/inject"], "false");
    assert_eq!(metadata["annotations"]["linkerd.io/inject"], "disabled");
    assert_eq!(metadata["labels"]["app.kubernetes.io/component"], MIGRATION);
    let (job, template) = made_with(|cluster| {
        let job = &mut cluster.spec.database.as_mut().unwrap().migration_job;
        job.deadline = signal_crds::Duration::secs(60);
        job.retries = 0;
        let labels = &mut job.metadata.labels;
        labels.insert("sidecar.istio.io/inject".into(), "true".into());
        labels.insert("app.kubernetes.io/component".into(), "gateway".into());
    });
    let labels = &template["metadata"]["labels"];
    assert_eq!(labels["sidecar.istio.io/inject"], "true");
    assert_eq!(
        labels["app.kubernetes.io/component"], MIGRATION,
        "no Service selects it"
    );
    assert_eq!(
        (
            &job["spec"]["backoffLimit"],
            &job["spec"]["activeDeadlineSeconds"]
        ),
        (&json!(0), &json!(60))
    );
}

#[test]
fn a_pending_job_whose_pod_has_to_be_another_one_is_another_job() {
    let name = |change: fn(&mut SignalCluster)| {
        let observed = changed("production", change);
        job_name(&validate(&observed).unwrap(), &observed).unwrap()
    };
    let before = name(|_| {});
    assert_eq!(before, name(|cluster| cluster.spec.replicas = 9));
    let tolerates = name(|cluster| {
        let tolerations = json!([{"operator": "Exists"}]);
        cluster
            .spec
            .pod_template
            .spec
            .insert("tolerations".into(), tolerations);
    });
    assert_ne!(before, tolerates);
}
