//! The enforcer of NetworkPolicies itself: what a policy allows passes, on one node and between two; nothing else does; and with the policy its effect goes.

use std::time::Duration;

use serde_json::{Value, json};
use signal_services::Level;
use signal_tests::cluster::{OwnCluster, own_cluster};
use signal_tests::wait::until_within;

use crate::network_policy::Enforcer;

/// How long it may take until a policy has its effect.
const SOON: Duration = Duration::from_secs(60);

/// Pods `near` and `far` that answer, on nodes 1 and 2; on node 1 also a `client`, and a `stranger` in another namespace. `far` gives the name of its port
/// to another number than the one that it answers on.
struct Scene {
    cluster: OwnCluster,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Asking {
    Client,
    Stranger,
    /// A client outside of the cluster, by the node port: it may reach any of the two.
    Outside,
}

fn pod(namespace: &str, name: &str, node: &str, port: Option<u16>) -> Value {
    let mut container =
        json!({"name": "c", "image": "localhost/signal-echo:1", "imagePullPolicy": "Never"});
    match port {
        Some(port) => {
            container["ports"] = json!([{"name": "http", "containerPort": port}]);
            container["readinessProbe"] = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
        }
        None => {
            container["image"] = json!("localhost/signal-shell:1");
            container["args"] = json!(["-c", "sleep 3600"]);
        }
    }
    let kind = if port.is_some() { "echo" } else { name };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": kind}},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container]},
    })
}

impl Scene {
    fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.cluster.kubectl().args(arguments).output();
        let output = output.expect("kubectl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let dir = signal_tests::services::scratch();
        let file = dir.path().join("objects.json");
        std::fs::write(&file, list.to_string()).expect("a file");
        let file = file.to_str().expect("a name in Unicode");
        self.kubectl(&["apply", "-f", file])
            .expect("it is accepted");
    }

    /// Makes the pods, and a Service of those that answer, and waits until all of them run.
    fn set(&self) {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", "namespace": "default"},
            "spec": {"type": "NodePort", "selector": {"app": "echo"}, "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]},
        });
        self.apply(&[
            namespace,
            service,
            pod("default", "near", "node1", Some(8080)),
            pod("default", "far", "node2", Some(9999)),
            pod("default", "client", "node1", None),
            pod("other", "stranger", "node1", None),
        ]);
        for namespace in ["default", "other"] {
            let wait = [
                "wait",
                "-n",
                namespace,
                "--for=condition=Ready",
                "pods",
                "--all",
                "--timeout=90s",
            ];
            self.kubectl(&wait).expect("pods run");
        }
    }

    /// Sets the only policy.
    fn policy(&self, spec: &Value) {
        let metadata = json!({"name": "p", "namespace": "default"});
        let api_version = "networking.k8s.io/v1";
        self.apply(&[json!({"apiVersion": api_version, "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})]);
    }

    fn ip(&self, pod: &str) -> String {
        let path = "jsonpath={.status.podIP}";
        self.kubectl(&["get", "pod", pod, "-o", path])
            .expect("a pod")
    }

    /// Who answers there, if somebody does.
    fn answer(&self, asking: Asking, to: &str) -> Option<String> {
        let url = format!("http://{to}/");
        let (namespace, pod) = match asking {
            Asking::Client => ("default", "client"),
            Asking::Stranger => ("other", "stranger"),
            Asking::Outside => {
                let to = to.to_owned();
                let network = self.cluster.outside_network();
                return network.run(|| get(&to)).expect("the switch").ok();
            }
        };
        let asked = ["exec", "-n", namespace, pod, "--", "/echo", "get", &url];
        self.kubectl(&asked).ok()
    }

    /// Waits until it is as expected whether the client reaches `near` and `far`, and whether the stranger does; by the pods' addresses.
    async fn passes(&self, what: &str, expected: [bool; 4]) {
        let ways = [
            (Asking::Client, "near"),
            (Asking::Client, "far"),
            (Asking::Stranger, "near"),
            (Asking::Stranger, "far"),
        ];
        let ways = ways.map(|(asking, pod)| (asking, format!("{}:8080", self.ip(pod))));
        // At once: each that is not let through takes two seconds to see it.
        let passes = || {
            std::thread::scope(|scope| {
                let ask = |(asking, to): &(Asking, String)| self.answer(*asking, to).is_some();
                let asked = ways.each_ref().map(|way| scope.spawn(move || ask(way)));
                asked.map(|one| one.join().expect("an answer"))
            })
        };
        until_within(SOON, what, async || (passes() == expected).then_some(())).await;
        // It is no moment between two tables.
        assert_eq!(passes(), expected, "{what}");
    }
}

/// One plain GET.
fn get(address: &str) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let address = address.parse().map_err(std::io::Error::other)?;
    let mut socket = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ingress(rule: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "echo"}}, "ingress": [rule]})
}

#[tokio::test]
async fn a_policy_lets_through_what_it_allows_until_it_is_taken_away() {
    let Some(cluster) = own_cluster(Level::C { nodes: 2 }).await else {
        return;
    };
    let enforcer = Enforcer::start(&cluster).expect("tables on every node");
    let scene = Scene { cluster };
    scene.set();
    scene.passes("all without a policy", [true; 4]).await;

    // Nobody: but the probes of the kubelet pass, or no pod would be ready.
    scene.policy(&json!({"podSelector": {"matchLabels": {"app": "echo"}}}));
    scene.passes("nobody", [false; 4]).await;
    let ready = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    let ready = scene.kubectl(&["get", "pods", "-l", "app=echo", "-o", ready]);
    assert_eq!(ready.as_deref(), Ok("True True"), "probes pass");
    let node_port = format!("{}:30080", scene.cluster.node_ip(1));
    assert_eq!(scene.answer(Asking::Outside, &node_port), None);

    let client = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    scene.policy(&ingress(json!({"from": client, "ports": [{"port": 8080}]})));
    let by_number = [true, true, false, false];
    scene.passes("the client, by number", by_number).await;
    let service = scene.answer(Asking::Client, "echo.default.svc.cluster.local");
    assert!(service.is_some(), "a Service leads to the same pods");
    let service = scene.answer(Asking::Stranger, "echo.default.svc.cluster.local");
    assert_eq!(service, None);

    scene.policy(&ingress(
        json!({"from": client, "ports": [{"port": "http"}]}),
    ));
    let by_name = [true, false, false, false];
    scene
        .passes("the client, where the name is that port", by_name)
        .await;

    let other =
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}});
    scene.policy(&ingress(
        json!({"from": [other], "ports": [{"port": 8000, "endPort": 8100}]}),
    ));
    let of_namespace = [false, false, true, true];
    scene
        .passes("those of a namespace, by a range", of_namespace)
        .await;

    // The far pod sees the node that its client came by.
    let outside = json!([{"ipBlock": {"cidr": "10.240.0.0/24"}}]);
    scene.policy(&ingress(json!({"from": outside})));
    scene.passes("none of the pods", [false; 4]).await;
    let answer = scene.answer(Asking::Outside, &node_port);
    assert!(answer.is_some_and(|text| text.contains("pod=")));

    let names = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
    let near = json!({"to": [{"podSelector": {"matchLabels": {"app": "echo"}}}], "ports": [{"port": "http"}]});
    let client = json!({"matchLabels": {"app": "client"}});
    scene.policy(
        &json!({"podSelector": client, "policyTypes": ["Egress"], "egress": [names, near]}),
    );
    let egress = [true, false, true, true];
    scene.passes("what a pod may send, by name", egress).await;

    scene
        .kubectl(&["delete", "networkpolicy", "p"])
        .expect("it goes");
    scene
        .passes("all, when the policy is gone", [true; 4])
        .await;
    assert_eq!(enforcer.failures(), [].into());
    scene.policy(&json!({"podSelector": {}}));
    scene.passes("nobody again", [false; 4]).await;
    drop(enforcer);
    scene.passes("all, without an enforcer", [true; 4]).await;
}
