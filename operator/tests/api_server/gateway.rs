//! What the operator renders from Secrets of Strimzi and CloudNativePG starts a gateway: the real binary, with the objects of a real API server laid out as the
//! kubelet would, against a Kafka that demands certificates and a PostgreSQL that demands a password.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;
use signal_contract::StatusReport;
use signal_operator::observe::admin_client::AdminClient;
use signal_services::{
    Authority, Kafka, KafkaInstallation, Postgres, PrivateKey, bound_command, find_program,
    free_port, spawn,
};

use crate::killed::TestOperator;
use crate::operators::{Scene, application_at, of_strimzi, secret, tls_user};
use crate::simulated_pods::SimulatedPods;
use crate::{Stage, skip, until};

/// Of the application's user, with everything that a URL must encode.
const PASSWORD: &str = "p@ss/w:rd %2F";
const TOPIC: &str = "activity-notification";

/// The gateway that was built for the tests, or built here.
fn gateway() -> PathBuf {
    if let Some(path) = std::env::var_os("SIGNAL_TEST_GATEWAY") {
        return path.into();
    }
    // target/debug/deps/api_server-0123456789abcdef
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // With the tests of the workspace: their features, so that nothing is compiled a second time.
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--tests"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.stdin(Stdio::null()).status().unwrap().success());
    profile.join("signal-gateway")
}

/// Lays files out as the kubelet does: a folder of the moment, `..data` that leads to it, and a link for each file.
fn project(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    std::fs::create_dir_all(folder.join("..1")).unwrap();
    std::os::unix::fs::symlink("..1", folder.join("..data")).unwrap();
    for (name, content) in files {
        std::fs::write(folder.join("..1").join(name), content).unwrap();
        std::os::unix::fs::symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
    }
}

/// What the pods of the Deployment mount, below `root` in place of `/etc/signal`; a later source wins.
async fn mount(stage: &Stage, root: &Path) {
    let deployment: Deployment = stage.api().get("edge").await.unwrap();
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    let text = |content: Vec<u8>| match String::from_utf8(content) {
        Ok(text) => text
            .replace("/etc/signal", root.to_str().unwrap())
            .into_bytes(),
        Err(binary) => binary.into_bytes(),
    };
    let of_map = async |name: &str| {
        let map: ConfigMap = stage.api().get(name).await.unwrap();
        let data = map.data.unwrap_or_default().into_iter();
        data.map(|(name, content)| (name, text(content.into_bytes())))
            .collect::<BTreeMap<_, _>>()
    };
    let of_secret = async |name: &str| {
        let secret: Secret = stage.api().get(name).await.unwrap();
        let data = secret.data.unwrap_or_default().into_iter();
        data.map(|(name, content)| (name, text(content.0)))
            .collect::<BTreeMap<_, _>>()
    };
    for volume in pod.volumes.unwrap() {
        let mut files = BTreeMap::new();
        if let Some(map) = volume.config_map {
            files.extend(of_map(&map.name).await);
        }
        let sources = volume.projected.and_then(|it| it.sources);
        for source in sources.into_iter().flatten() {
            if let Some(map) = source.config_map {
                files.extend(of_map(&map.name).await);
            }
            if let Some(secret) = source.secret {
                files.extend(of_secret(&secret.name).await);
            }
        }
        project(&root.join(volume.name), &files);
    }
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A role with a password that the server asks for, and its database.
fn make_application(programs: &Path, data: &Path, server: SocketAddr) {
    let sql = |sql: &str| {
        let mut psql = Command::new(programs.join("psql"));
        let url = format!("postgres://postgres@{server}/postgres");
        run(psql.args([&url, "-v", "ON_ERROR_STOP=1", "-qc", sql]));
    };
    sql(&format!("create role app login password '{PASSWORD}'"));
    sql("create database app owner app");
    let rules = "host all app all scram-sha-256\nhost all all all trust\nlocal all all trust\n";
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
    sql("select pg_reload_conf()");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_gateway_runs_with_what_is_rendered_of_secrets_of_operators() {
    let test = "a_gateway_runs_with_what_is_rendered_of_secrets_of_operators";
    let (Some(installation), Some(programs)) = (KafkaInstallation::find(), Postgres::programs())
    else {
        return skip(test, "Kafka or PostgreSQL is not installed");
    };
    let (Some(_), Some(kcat)) = (find_program(&["openssl"]), find_program(&["kcat"])) else {
        return skip(test, "openssl or kcat is not installed");
    };
    let Some(stage) = Stage::new(test).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    std::fs::create_dir(dir("ca")).unwrap();
    let authority = Authority::new(&dir("ca")).unwrap();
    let issued = |name: &str| {
        authority
            .issue(name, Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
            .unwrap();
        [format!("{name}.key"), format!("{name}.pem")]
            .map(|file| std::fs::read_to_string(dir("ca").join(file)).unwrap())
            .concat()
    };
    std::fs::write(dir("identity.pem"), issued("broker")).unwrap();
    let ca = dir("ca").join("ca.pem");
    let (broker, secured) =
        Kafka::start_tls(&installation, &dir("kafka"), &dir("identity.pem"), &ca).unwrap();
    // Whoever may produce and asks for a topic makes it.
    let clear = broker.address().to_string();
    run(Command::new(kcat).args(["-L", "-b", &clear, "-t", TOPIC]));
    let database = Postgres::start(&dir("postgres"), false).unwrap();
    make_application(&programs, &dir("postgres").join("data"), database.address());

    let _secrets = SimulatedPods::around(&stage).await;
    let scene = Scene {
        stage: &stage,
        operator: TestOperator::begin(&stage, None).await,
    };
    let of_cluster = json!({"ca.crt": std::fs::read_to_string(&ca).unwrap()});
    for one in [
        tls_user("signal", &authority, &dir("ca")),
        secret(
            "events-cluster-ca-cert",
            "Opaque",
            of_strimzi("Kafka"),
            of_cluster,
        ),
        application_at(PASSWORD, database.address()),
    ] {
        scene.write(&one).await;
    }
    scene
        .apply_with(
            json!({"protocol": "SSL", "user": {"secretName": "signal"}}),
            |spec| {
                spec["kafka"]["brokers"] = json!([secured.to_string()]);
                // No operator completes Jobs with real work here.
                spec["database"] = json!({"connection": {"secretName": "db-app"}, "sslMode": "Disable", "migrations": "Startup"});
                spec.as_object_mut().unwrap().remove("redis");
            },
        )
        .await;
    assert_eq!(scene.resolved().await.0, "True");
    let root = dir("etc");
    mount(&stage, &root).await;
    let port = free_port().unwrap();
    let mut command = bound_command(&gateway(), None);
    command
        .args(["serve", "--config"])
        .arg(root.join("static/gateway.toml"))
        .env("SIGNAL__SERVER__INSTANCE_NAME", "edge-1")
        .env("SIGNAL__SERVER__PUBLIC_ADDRESS", "127.0.0.1:0")
        .env("SIGNAL__SERVER__ADMIN_ADDRESS", format!("127.0.0.1:{port}"))
        .stdin(Stdio::null());
    let _running = Running(spawn(command).unwrap());
    let token = std::fs::read_to_string(root.join("live/admin-token")).unwrap();
    let pods = AdminClient::new().unwrap();
    let reported = async || -> Option<StatusReport> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        pods.status(address, port, token.trim()).await.ok()
    };
    until(
        "the gateway has its partition and the schema",
        Duration::from_secs(90),
        async || {
            let report = reported().await;
            report.is_some_and(|report| {
                let kafka = report.kafka.is_some_and(|kafka| kafka.partitions == 1);
                kafka && report.database.version.is_some()
            })
        },
    )
    .await;
}
