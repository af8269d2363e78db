//! A whole platform: servers at the switch of a cluster, images in its nodes, both charts, one SignalCluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use signal_services::{
    Component, Guarded, Image, Kafka, KafkaInstallation, Level, Postgres, Redis, Server, Tool,
};
use signal_tests::cluster::{OwnCluster, own_cluster};
use signal_tests::services::scratch;
use signal_tests::wait::{until, until_within};
use signal_tests::{Issuer, Policies, Producer, gateway, skip};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::more::SigningKey;

/// This checkout.
pub(crate) const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The tag of both images of this checkout.
pub(crate) const TAG: &str = "test";

const REDIS_USER: &str = "signal";
const REDIS_PASSWORD: &str = "of-the-edge-alone";

/// A cluster with both images, and servers at its switch.
pub(crate) struct Lab {
    pub(crate) cluster: OwnCluster,
    redis: Server,
    other_redis: Guarded,
    postgres: Server,
    kafka: Server,
    helm: PathBuf,
    _dir: TempDir,
}

impl Lab {
    /// Starts one. `None` where this machine cannot; the test then reports that it was skipped.
    pub(crate) async fn start() -> Option<Self> {
        let Some(kafka_installation) = KafkaInstallation::find() else {
            skip("Kafka is not in the cache folder: run `cargo xtask setup`");
            return None;
        };
        if !Redis::is_installed() || Postgres::programs().is_none() {
            skip("redis-server or PostgreSQL's programs are not installed");
            return None;
        }
        let Some(helm) = std::env::var_os("SIGNAL_TEST_HELM")
            .map(PathBuf::from)
            .or_else(|| Tool::Helm.find())
        else {
            skip("helm is not in the cache folder: run `cargo xtask setup`");
            return None;
        };
        let cluster = own_cluster(Level::C { nodes: 3 }).await?;
        let gateway = gateway::binary().await;
        let dir = scratch();
        let network = cluster.outside_network();
        import_release(&cluster, &gateway, TAG).await;
        // Another version, as far as Kubernetes can tell.
        import(&cluster, "gateway", &gateway, "next").await;
        let start = |name: &str| dir.path().join(name);
        Some(Self {
            redis: Redis::start_in(&network, &start("redis"), &[]).expect("Redis starts"),
            other_redis: Redis::start_guarded_in(
                &network,
                &start("other-redis"),
                REDIS_USER,
                REDIS_PASSWORD,
            )
            .expect("the other Redis starts"),
            postgres: Postgres::start_in(&network, &start("postgres"), false)
                .expect("PostgreSQL starts"),
            kafka: Kafka::start_in(&network, &kafka_installation, &start("kafka"))
                .expect("Kafka starts"),
            cluster,
            helm,
            _dir: dir,
        })
    }
}

/// Gives every node both images, with this tag. The operator's program lies beside the gateway's.
pub(crate) async fn import_release(cluster: &OwnCluster, gateway: &Path, tag: &str) {
    import(cluster, "gateway", gateway, tag).await;
    let operator = gateway.with_file_name("signal-operator");
    import(cluster, "operator", &operator, tag).await;
}

async fn import(cluster: &OwnCluster, name: &str, binary: &Path, tag: &str) {
    let program = format!("/usr/bin/signal-{name}");
    let dir = scratch();
    let archive = dir.path().join("image.tar");
    Image::new(&format!("localhost/signal-{name}:{tag}"))
        .program(binary, &program)
        .expect("the binary")
        .nonroot()
        .expect("authorities")
        .entrypoint(&[&program])
        .write(&archive)
        .expect("an archive");
    cluster
        .does(move |cluster| cluster.import_image(&archive))
        .await;
}

/// Signal on the cluster.
pub(crate) struct Edge {
    pub(crate) issuer: Issuer,
    lab: Lab,
    address: std::sync::OnceLock<SocketAddr>,
}

/// A source of `spec.jwks.sources`.
pub(crate) fn source(name: &str, issuer: &Issuer) -> Value {
    json!({"name": name, "issuer": issuer.name(), "url": issuer.certs_url(), "audiences": ["signal"], "allowInsecureHTTP": true})
}

impl Edge {
    /// Installs both charts.
    pub(crate) async fn install(lab: Lab) -> Self {
        let edge = Self::begin(lab).await;
        edge.charts("install", Path::new(REPOSITORY), TAG);
        edge
    }

    /// All that a SignalCluster needs but for the definition and the operator.
    pub(crate) async fn begin(lab: Lab) -> Self {
        let issuer = Issuer::start_at(lab.cluster.outside_network().ip()).await;
        let edge = Self {
            issuer,
            lab,
            address: std::sync::OnceLock::new(),
        };
        edge.producer()
            .create_topic("activity-notification", 2)
            .await
            .expect("a topic");
        // The tables of the platform.
        edge.policies().await;
        edge.name_servers();
        edge
    }

    /// Installs or upgrades both charts of a checkout, in the order of charts/README.md, with an operator of this tag.
    pub(crate) fn charts(&self, command: &str, checkout: &Path, tag: &str) {
        let chart = |name: &str| checkout.join("charts").join(name).display().to_string();
        self.helm(&[command, "signal-crds", &chart("signal-crds")]);
        // A policy is checked against the port behind the Service.
        let values = format!(
            "image.repository=localhost/signal-operator,image.tag={tag},image.pullPolicy=Never,networkPolicy.apiServerPorts={{443,{}}}",
            self.api_server_port()
        );
        let mut arguments = vec![command, "signal-operator"];
        let chart = chart("signal-operator");
        arguments.extend([&chart, "--namespace", "signal-system", "--set", &values]);
        arguments.push(match command {
            "install" => "--create-namespace",
            _ => "--wait",
        });
        self.helm(&arguments);
    }

    /// The chart's own test of the operator.
    pub(crate) fn test_chart(&self) {
        self.helm(&["test", "signal-operator", "--namespace", "signal-system"]);
    }

    /// The operators' pods.
    pub(crate) fn operators(&self) -> Vec<Value> {
        let labels = "app.kubernetes.io/name=signal-operator";
        self.list(&["pods", "--namespace", "signal-system", "-l", labels])
    }

    fn run(&self, mut command: Command, input: Option<&str>) -> Result<String, String> {
        use std::io::Write as _;
        command.env("KUBECONFIG", self.lab.cluster.kubeconfig_outside());
        let mut child = command
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).expect("it reads");
        }
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text + &String::from_utf8_lossy(&output.stderr))
        }
    }

    /// Runs Helm, which must succeed.
    pub(crate) fn helm(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.lab.helm);
        command.args(arguments);
        self.run(command, None)
            .unwrap_or_else(|error| panic!("helm {arguments:?}: {error}"));
    }

    fn api_server_port(&self) -> String {
        let path = "jsonpath={.clusters[0].cluster.server}";
        let server = self.kubectl(&["config", "view", "-o", path]);
        let port = server.trim().rsplit(':').next();
        port.expect("an address with a port").to_owned()
    }

    /// What makes commands of kubectl for the switch.
    pub(crate) fn kubectl_at(&self) -> impl Fn() -> Command + Send + 'static {
        let program = self.lab.cluster.kubectl().get_program().to_owned();
        let kubeconfig = self.lab.cluster.kubeconfig_outside();
        move || {
            let mut command = Command::new(&program);
            command.env("KUBECONFIG", &kubeconfig);
            command
        }
    }

    fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
        let mut command = self.kubectl_at()();
        command.args(arguments);
        self.run(command, input)
    }

    /// What kubectl prints.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, None)
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// `charts/examples/minimal.yaml` with the image and issuer of this test, short times, and these members over it. Its Redis and Kafka,
    /// and PostgreSQL, are the Services that [`Edge::name_servers`] makes.
    pub(crate) fn manifest(&self, over: Value) -> Value {
        let example = include_str!("../../charts/examples/minimal.yaml");
        self.manifest_of(example, over)
    }

    /// The same of another example.
    pub(crate) fn manifest_of(&self, example: &str, over: Value) -> Value {
        let mut object: Value = serde_yaml_ng::from_str(example).expect("YAML");
        let lab = json!({
            "image": {"repository": "localhost/signal-gateway", "tag": TAG, "pullPolicy": "Never"},
            "jwks": {"sources": [source("main", &self.issuer)]},
            "service": {"type": "NodePort"},
            "drain": {"endpointPropagation": "8s", "window": "5s", "batchInterval": "500ms"},
            "rollout": {"minReady": "1s"},
            // Connections stay while their issuer is replaced by another, and put back.
            "gateway": {"auth": {"expiringLead": "30m"}},
        });
        for members in [lab, over] {
            for (key, value) in members.as_object().cloned().unwrap_or_default() {
                object["spec"][key] = value;
            }
        }
        object
    }

    /// Services for the servers at the switch, by the names and ports that the example uses.
    fn name_servers(&self) {
        for (name, port, server) in [
            ("redis", 6379, &self.lab.redis),
            ("kafka", 9092, &self.lab.kafka),
            ("postgres", 5432, &self.lab.postgres),
        ] {
            let address = server.address();
            self.apply(&json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"ports": [{"port": port, "targetPort": address.port()}]},
            }));
            self.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-outside"), "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"port": address.port()}], "endpoints": [{"addresses": [address.ip()]}],
            }));
        }
    }

    /// Applies an object. Returns the API server's error if it refuses.
    pub(crate) fn try_apply(&self, object: &Value) -> Result<String, String> {
        self.try_kubectl(&["apply", "-f", "-"], Some(&object.to_string()))
    }

    /// Applies an object.
    pub(crate) fn apply(&self, object: &Value) {
        self.try_apply(object).expect("it is accepted");
    }

    /// Changes the spec.
    pub(crate) fn patch(&self, spec: Value) {
        self.kubectl(&[
            "patch",
            "sigc",
            "edge",
            "--type=merge",
            "-p",
            &json!({"spec": spec}).to_string(),
        ]);
    }

    /// Changes an object, such as `pdb/edge`. Returns the API server's error if it refuses.
    pub(crate) fn try_patch(&self, object: &str, patch: &Value) -> Result<String, String> {
        let patch = patch.to_string();
        self.try_kubectl(&["patch", object, "--type=merge", "-p", &patch], None)
    }

    /// The Secret that the SignalCluster names.
    pub(crate) fn make_secret(&self) {
        let url = self.url_of_service();
        self.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge-database"}, "stringData": {"url": url}}));
    }

    /// The same with an authority of the database's certificate, over TLS alone.
    pub(crate) fn make_secret_of(&self, authority: &str) {
        let url = self.url_of_service() + "?sslmode=verify-ca";
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge-database"},
            "stringData": {"url": url, "ca.crt": authority},
        }));
    }

    /// Lets the database speak TLS as well. Returns the authority of its certificate.
    pub(crate) fn encrypt_database(&self) -> String {
        Postgres::encrypt(&self.lab.postgres).expect("it has a certificate")
    }

    /// A file of the Secret that gateways of all revisions follow.
    pub(crate) fn credential(&self, file: &str) -> String {
        let path = format!("jsonpath={{.data.{}}}", file.replace('.', "\\."));
        let text = self.kubectl(&["get", "secret", "edge-credentials", "-o", &path]);
        let decoded = base64_simd::STANDARD.decode_to_vec(text).expect("base64");
        String::from_utf8(decoded).expect("text")
    }

    fn url_of_service(&self) -> String {
        let address = self.lab.postgres.address().to_string();
        self.database_url().replace(&address, "postgres:5432")
    }

    fn database_url(&self) -> String {
        Postgres::url(&self.lab.postgres, "postgres")
    }

    /// The platform's policy tables.
    pub(crate) async fn policies(&self) -> Policies {
        Policies::create(&self.database_url())
            .await
            .expect("the platform's tables")
    }

    /// A producer of records.
    pub(crate) fn producer(&self) -> Producer {
        Producer::new(&self.lab.kafka.address().to_string()).expect("a producer")
    }

    /// The address that servers at the switch listen on.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.lab.cluster.outside_network().ip()
    }

    /// Kills every operator at once, with SIGKILL.
    pub(crate) fn kill_operators(&self) {
        let all = [
            "delete",
            "pods",
            "--namespace",
            "signal-system",
            "--all",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ];
        self.kubectl(&all);
    }

    /// Stops the API server for so long.
    pub(crate) async fn without_api(&self, time: Duration) {
        self.lab
            .cluster
            .does(|cluster| cluster.stop_component(Component::ApiServer, true))
            .await;
        tokio::time::sleep(time).await;
        self.lab
            .cluster
            .does(|cluster| cluster.start_component(Component::ApiServer))
            .await;
        until_within(Duration::from_secs(60), "the API server", async || {
            self.try_kubectl(&["get", "--raw", "/readyz"], None).ok()
        })
        .await;
    }

    /// The key that the platform's issuer is to sign with.
    pub(crate) fn signing_key(&self) -> Option<SigningKey> {
        let text = self
            .try_kubectl(&["get", "secret", "edge-signing-keys", "-o", "json"], None)
            .ok()?;
        let secret: Value = serde_json::from_str(&text).ok()?;
        SigningKey::of_secret(|key| {
            String::from_utf8(
                base64_simd::STANDARD
                    .decode_to_vec(secret["data"][key].as_str()?)
                    .ok()?,
            )
            .ok()
        })
    }

    /// The `kid`s that gateways publish.
    pub(crate) async fn published_keys(&self) -> Vec<String> {
        let url = format!("http://{}/.well-known/jwks.json", self.address());
        let set = signal_tests::rest::ask(signal_tests::rest::http().get(url))
            .await
            .json();
        set["keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|key| key["kid"].as_str().map(str::to_owned))
            .collect()
    }

    /// The number of a node with a gateway on it, and the name of that pod. No gateway may be on its way out.
    pub(crate) fn node_of_a_gateway_that_is_not(&self, node: usize) -> (usize, String) {
        let placed = |pod: &Value| {
            let node = pod["spec"]["nodeName"]
                .as_str()?
                .strip_prefix("node")?
                .parse()
                .ok()?;
            Some((node, pod["metadata"]["name"].as_str()?.to_owned()))
        };
        let pods: Vec<_> = self.gateways().iter().filter_map(placed).collect();
        pods.iter()
            .find(|(other, _)| *other != node)
            .cloned()
            .unwrap_or_else(|| panic!("no gateway elsewhere: {pods:?}"))
    }

    /// All pods of gateways.
    pub(crate) fn gateways(&self) -> Vec<Value> {
        self.pods_of("gateway")
    }

    /// All pods of a component of the SignalCluster.
    pub(crate) fn pods_of(&self, component: &str) -> Vec<Value> {
        let labels =
            format!("app.kubernetes.io/instance=edge,app.kubernetes.io/component={component}");
        self.list(&["pods", "-l", &labels])
    }

    fn list(&self, what: &[&str]) -> Vec<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], what].concat());
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        let items = list["items"].as_array_mut().map(std::mem::take);
        items.unwrap_or_default()
    }

    /// Makes pods that ask for what is left of each node's processors, so that none has room for another pod that asks for `milli` thousandths of one.
    pub(crate) async fn fill_nodes(&self, milli: u64) {
        let pods = self.list(&["pods", "--all-namespaces"]);
        for node in self.list(&["nodes"]) {
            let name = node["metadata"]["name"].as_str().expect("a name");
            let of_node = pods.iter().filter(|pod| pod["spec"]["nodeName"] == name);
            let containers = of_node.flat_map(|pod| {
                let containers = pod["spec"]["containers"].as_array();
                containers.into_iter().flatten()
            });
            let used: u64 = containers
                .map(|container| thousandths(&container["resources"]["requests"]["cpu"]))
                .sum();
            let left = thousandths(&node["status"]["allocatable"]["cpu"]).saturating_sub(used);
            let cpu = format!("{}m", left.saturating_sub(milli / 2));
            let container = json!({
                "name": "c", "image": "localhost/signal-shell:1", "imagePullPolicy": "Never", "args": ["-c", "sleep 3600"],
                "resources": {"requests": {"cpu": cpu}},
            });
            self.apply(&json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("ballast-{name}"), "labels": {"app": "ballast"}},
                "spec": {"terminationGracePeriodSeconds": 0, "nodeSelector": {"kubernetes.io/hostname": name}, "containers": [container]},
            }));
        }
        let all = [
            "wait",
            "--for=condition=Ready",
            "pods",
            "-l",
            "app=ballast",
            "--timeout=60s",
        ];
        self.kubectl(&all);
    }

    /// Waits until the Service's port is open: a node's proxy learns of a Service a moment after everybody else.
    pub(crate) async fn is_reachable(&self) {
        until("the Service's port", async || {
            TcpStream::connect(self.address()).await.ok()
        })
        .await;
    }

    /// Waits until no gateway is on its way out.
    pub(crate) async fn none_is_going(&self, limit: Duration) {
        until_within(limit, "no pod is going", async || {
            self.gateways()
                .iter()
                .all(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .then_some(())
        })
        .await;
    }

    /// Kills a node, with all that runs on it.
    pub(crate) async fn kill_node(&self, node: usize) {
        self.lab
            .cluster
            .does(move |cluster| cluster.kill_node(node))
            .await;
    }

    /// Boots the nodes that were killed.
    pub(crate) async fn boot_nodes(&self) {
        self.lab.cluster.does(|cluster| cluster.up()).await;
    }

    /// The second Redis, which no gateway uses at first; for emitters, in the clear.
    pub(crate) fn other_redis(&self) -> SocketAddr {
        self.lab.other_redis.server.address()
    }

    /// The same Redis for gateways: over TLS, with a user and password of its own. Makes the Secret for them.
    pub(crate) fn guarded_redis(&self) -> Value {
        let data = json!({"user": REDIS_USER, "password": REDIS_PASSWORD, "ca": self.lab.other_redis.authority});
        self.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge-redis"}, "stringData": data}));
        let secret = |key: &str| json!({"name": "edge-redis", "key": key});
        json!({
            "nodes": [self.lab.other_redis.address.to_string()],
            "auth": {"usernameSecretRef": secret("user"), "passwordSecretRef": secret("password")},
            "tls": {"caSecretRef": secret("ca")},
        })
    }

    /// The public Service, by its port on the node.
    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.get_or_init(|| {
            let port = self.kubectl(&[
                "get",
                "service",
                "edge",
                "-o",
                "jsonpath={.spec.ports[0].nodePort}",
            ]);
            SocketAddr::from((
                self.lab.cluster.node_ip(1),
                port.trim().parse().expect("a node port"),
            ))
        })
    }

    /// The status; null where there is none.
    pub(crate) fn status(&self) -> Value {
        let text = self.kubectl(&["get", "sigc", "edge", "-o", "json"]);
        serde_json::from_str::<Value>(&text).expect("JSON")["status"].take()
    }

    /// Whether the status is about the newest spec.
    pub(crate) fn is_observed(&self) -> bool {
        let text = self.kubectl(&[
            "get",
            "sigc",
            "edge",
            "-o",
            "jsonpath={.metadata.generation} {.status.observedGeneration}",
        ]);
        text.split_once(' ')
            .is_some_and(|(generation, observed)| generation == observed)
    }

    /// Status, reason and message of a condition.
    pub(crate) fn condition(&self, kind: &str) -> Option<(String, String, String)> {
        let status = self.status();
        let condition = status["conditions"]
            .as_array()?
            .iter()
            .find(|condition| condition["type"] == kind)?;
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Waits for condition Ready.
    pub(crate) async fn ready(&self, limit: Duration) {
        until_within(limit, "condition Ready", async || {
            (self.condition("Ready")?.0 == "True").then_some(())
        })
        .await;
    }

    /// Waits until there are exactly so many pods, all of them ready, none starting and none stopping.
    pub(crate) async fn settled(&self, pods: i64, limit: Duration) {
        until_within(limit, "the number of pods", async || {
            let status = self.status();
            let as_wanted = status["replicas"] == pods
                && status["readyReplicas"] == pods
                && status["scaling"].is_null();
            (as_wanted && self.pods().len() == usize::try_from(pods).unwrap_or_default())
                .then_some(())
        })
        .await;
    }

    /// Takes away what [`Edge::fill_nodes`] made.
    pub(crate) fn empty_nodes(&self) {
        self.kubectl(&["delete", "pods", "-l", "app=ballast"]);
    }

    /// Names of the gateway pods that do not stop, sorted, each with the number of restarts of its container.
    pub(crate) fn pods(&self) -> Vec<String> {
        let name = |pod: &Value| {
            format!(
                "{} {}",
                pod["metadata"]["name"].as_str().unwrap_or_default(),
                pod["status"]["containerStatuses"][0]["restartCount"]
            )
        };
        let gateways = self.gateways();
        let mut names: Vec<String> = gateways
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(name)
            .collect();
        names.sort();
        names
    }
}

/// An amount of processors, in thousandths of one; nothing where none is asked for.
fn thousandths(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap_or("0");
    match text.strip_suffix('m') {
        Some(milli) => milli.parse().expect("a number"),
        None => 1000 * text.parse::<u64>().expect("a number"),
    }
}
