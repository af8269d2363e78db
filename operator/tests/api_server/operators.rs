//! Secrets exactly as the operators of Kafka and PostgreSQL write them are used without editing them, followed when those operators rotate them, and named
//! when something is missing.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::reconcile::reconcile;
use signal_services::{Authority, PrivateKey};

use crate::Stage;
use crate::examples::migrate;
use crate::killed::{FIRST, TestOperator};
use crate::simulated_pods::{SimulatedPods, edge};

/// A Secret with what its operator puts around the data.
pub(crate) fn secret(name: &str, kind: &str, labels: Value, data: Value) -> Secret {
    let object =
        json!({"metadata": {"name": name, "labels": labels}, "type": kind, "stringData": data});
    serde_json::from_value(object).unwrap()
}

/// As Strimzi's user operator writes it for a KafkaUser with `authentication: {type: tls}`.
pub(crate) fn tls_user(name: &str, authority: &Authority, dir: &std::path::Path) -> Secret {
    authority
        .issue(name, Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
        .unwrap();
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let data = json!({
        "ca.crt": read("ca.pem"), "user.crt": read(&format!("{name}.pem")), "user.key": read(&format!("{name}.key")),
        "user.p12": "not read", "user.password": "planted-p12",
    });
    secret(name, "Opaque", of_strimzi("KafkaUser"), data)
}

/// The same with `authentication: {type: scram-sha-512}`.
fn scram_user(name: &str, password: &str) -> Secret {
    let jaas = format!(
        "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"{name}\" password=\"{password}\";"
    );
    let data = json!({"password": password, "sasl.jaas.config": jaas});
    secret(name, "Opaque", of_strimzi("KafkaUser"), data)
}

pub(crate) fn of_strimzi(kind: &str) -> Value {
    json!({"strimzi.io/cluster": "events", "strimzi.io/kind": kind, "app.kubernetes.io/managed-by": "strimzi-cluster-operator"})
}

/// As CloudNativePG writes it for the application.
fn application(password: &str) -> Secret {
    of_cloudnativepg(password, "db-rw", "5432")
}

/// The same of a server that is elsewhere.
pub(crate) fn application_at(password: &str, server: SocketAddr) -> Secret {
    of_cloudnativepg(
        password,
        &server.ip().to_string(),
        &server.port().to_string(),
    )
}

fn of_cloudnativepg(password: &str, host: &str, port: &str) -> Secret {
    let encoded: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
    let uri = |host: &str| format!("postgresql://app:{encoded}@{host}:{port}/app");
    let data = json!({
        "username": "app", "user": "app", "password": password, "host": host, "port": port, "dbname": "app", "uri": uri(host),
        "jdbc-uri": format!("jdbc:postgresql://{host}.realtime:{port}/app?password={encoded}&user=app"),
        "fqdn-uri": uri(&format!("{host}.realtime.svc.cluster.local")),
        "pgpass": format!("{host}:{port}:app:app:{password}\n"),
    });
    let labels =
        json!({"cnpg.io/cluster": "db", "cnpg.io/reload": "true", "cnpg.io/userType": "app"});
    secret("db-app", "kubernetes.io/basic-auth", labels, data)
}

pub(crate) struct Scene<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) operator: TestOperator,
}

impl Scene<'_> {
    pub(crate) async fn write(&self, secret: &Secret) {
        let api = self.stage.api::<Secret>();
        let _ = api.delete(&secret.name_any(), &Default::default()).await;
        api.create(&PostParams::default(), secret).await.unwrap();
    }

    async fn apply(&self, security: Value) {
        self.apply_with(security, |_| {}).await;
    }

    /// The same after a change of the spec.
    pub(crate) async fn apply_with(&self, security: Value, change: impl FnOnce(&mut Value)) {
        let mut cluster = edge(1, FIRST);
        cluster["spec"]["kafka"] =
            json!({"brokers": ["events-kafka-bootstrap:9093"], "security": security});
        cluster["spec"]["kafka"]["security"]["caSecretRef"] =
            json!({"name": "events-cluster-ca-cert", "key": "ca.crt"});
        cluster["spec"]["database"] = json!({
            "connection": {"secretName": "db-app"},
            "caSecretRef": {"name": "db-ca", "key": "ca.crt"},
        });
        change(&mut cluster["spec"]);
        let api = self.stage.api::<SignalCluster>();
        let params = PatchParams::apply("test").force();
        api.patch("edge", &params, &Patch::Apply(&cluster))
            .await
            .unwrap();
        self.reconcile().await;
    }

    async fn reconcile(&self) {
        let api = self.stage.api::<SignalCluster>();
        for _ in 0..3 {
            let cluster = api.get("edge").await.unwrap();
            reconcile(&self.operator.context, &cluster).await.unwrap();
            migrate(self.stage).await;
        }
    }

    /// Status and message of SecretsResolved.
    pub(crate) async fn resolved(&self) -> (String, String) {
        let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
        let mut conditions = cluster.status.unwrap().conditions.into_iter();
        let found = conditions
            .find(|one| one.type_ == "SecretsResolved")
            .unwrap();
        (found.status, found.message)
    }

    async fn files(&self) -> BTreeMap<String, String> {
        let secret = self
            .stage
            .api::<Secret>()
            .get("edge-credentials")
            .await
            .unwrap();
        let data = secret.data.unwrap().into_iter();
        data.map(|(name, content)| (name, String::from_utf8(content.0).unwrap()))
            .collect()
    }

    async fn template(&self) -> Value {
        let deployment: Deployment = self.stage.api().get("edge").await.unwrap();
        serde_json::to_value(deployment.spec.unwrap().template).unwrap()
    }

    /// Everything in the namespace but Secrets.
    async fn in_the_clear(&self) -> String {
        let all = ListParams::default();
        let maps = self
            .stage
            .api::<ConfigMap>()
            .list(&all)
            .await
            .unwrap()
            .items;
        let clusters = self
            .stage
            .api::<SignalCluster>()
            .list(&all)
            .await
            .unwrap()
            .items;
        let events = self
            .stage
            .api::<k8s_openapi::api::events::v1::Event>()
            .list(&all)
            .await
            .unwrap()
            .items;
        format!(
            "{} {} {} {}",
            serde_json::to_string(&maps).unwrap(),
            serde_json::to_string(&clusters).unwrap(),
            serde_json::to_string(&events).unwrap(),
            self.template().await
        )
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn secrets_of_strimzi_and_cloudnativepg_are_used_as_they_are() {
    let Some(stage) = Stage::new("operators").await else {
        return;
    };
    let _secrets = SimulatedPods::around(&stage).await;
    let scene = Scene {
        stage: &stage,
        operator: TestOperator::begin(&stage, None).await,
    };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let ca = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    let ca_key = std::fs::read_to_string(dir.path().join("ca.key")).unwrap();
    let of_cluster = json!({"ca.crt": ca, "ca.p12": "not read", "ca.password": "planted-p12"});
    let of_database = json!({"ca.crt": ca, "ca.key": ca_key});
    for one in [
        tls_user("signal", &authority, dir.path()),
        secret(
            "events-cluster-ca-cert",
            "Opaque",
            of_strimzi("Kafka"),
            of_cluster,
        ),
        secret(
            "db-ca",
            "Opaque",
            json!({"cnpg.io/cluster": "db"}),
            of_database,
        ),
        application("planted/first"),
    ] {
        scene.write(&one).await;
    }
    scene
        .apply(json!({"protocol": "SSL", "user": {"secretName": "signal"}}))
        .await;
    assert_eq!(scene.resolved().await.0, "True");
    let files = scene.files().await;
    assert_eq!(
        files["kafka-client.crt"],
        std::fs::read_to_string(dir.path().join("signal.pem")).unwrap()
    );
    assert_eq!(
        files["kafka-client.key"],
        std::fs::read_to_string(dir.path().join("signal.key")).unwrap()
    );
    assert_eq!(
        files["database-url"],
        "postgres://app:planted%2Ffirst@db-rw:5432/app?sslmode=verify-full&sslrootcert=/etc/signal/live/database-ca.crt"
    );
    assert!(
        !files
            .values()
            .any(|text| text.contains("planted-p12") || *text == ca_key)
    );
    let template = scene.template().await;

    // Both are rotated: the pods get other files, and stay.
    scene.write(&application("planted-second")).await;
    scene
        .write(&tls_user("signal", &authority, dir.path()))
        .await;
    scene.reconcile().await;
    let rotated = scene.files().await;
    assert!(rotated["database-url"].contains(":planted-second@"));
    assert_ne!(rotated["kafka-client.key"], files["kafka-client.key"]);
    assert_eq!(scene.template().await, template);

    // Another kind of user is another login: that rolls the pods.
    scene.write(&scram_user("signal", "planted-password")).await;
    scene.reconcile().await;
    let (status, message) = scene.resolved().await;
    assert_eq!(status, "False");
    assert_eq!(
        message,
        "spec.kafka.security.user: Secret signal has no key user.crt; spec.kafka.security.user: Secret signal has no key user.key"
    );
    scene
        .apply(json!({"protocol": "SASL_SSL", "user": {"secretName": "signal"}}))
        .await;
    assert_eq!(scene.resolved().await.0, "True");
    assert_eq!(scene.files().await["kafka-password"], "planted-password");
    assert_ne!(scene.template().await, template);
    let text = scene.in_the_clear().await;
    assert!(text.contains("username = \\\"signal\\\""));
    assert!(
        !text.contains("planted") && !text.contains("PRIVATE KEY"),
        "{text}"
    );

    let secrets = stage.api::<Secret>();
    secrets.delete("db-app", &Default::default()).await.unwrap();
    scene.reconcile().await;
    let (status, message) = scene.resolved().await;
    assert_eq!(status, "False");
    assert_eq!(
        message,
        "spec.database.connection: Secret db-app does not exist"
    );
}
