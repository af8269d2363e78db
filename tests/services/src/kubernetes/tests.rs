//! Clusters of each level start, do what they are for, break, and go without a trace.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::tests::{Scratch, skip};
use crate::{Image, Kafka, KafkaInstallation, Postgres, Redis};

const DEFINITION: &str = "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: fleets.test.example}
spec:
  group: test.example
  scope: Namespaced
  names: {plural: fleets, singular: fleet, kind: Fleet}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations: [{rule: 'self.least <= self.most', message: least is above most}]
            required: [least, most]
            properties: {least: {type: integer}, most: {type: integer}}
";

fn fleet(least: u32, most: u32) -> String {
    format!(
        "apiVersion: test.example/v1\nkind: Fleet\nmetadata: {{name: f}}\nspec: {{least: {least}, most: {most}}}\n"
    )
}

fn deployment(replicas: u32) -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: echo}}}}
  template:
    metadata: {{labels: {{app: echo}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: echo}}}}}}
      containers:
      - name: echo
        image: localhost/signal-echo:1
        imagePullPolicy: Never
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec: {{type: NodePort, selector: {{app: echo}}, ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]}}
"
    )
}

fn installation(test: &str, level: Level) -> Option<KubernetesInstallation> {
    KubernetesInstallation::find(level)
        .map_err(|reason| skip(test, &format!("{reason:#}")))
        .ok()
}

/// What a command said on standard output, or on standard error if it failed.
fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn kubectl(cluster: &Kubernetes, arguments: &[&str]) -> Result<String, String> {
    said(cluster.kubectl().args(arguments))
}

fn apply(cluster: &Kubernetes, scratch: &Scratch, yaml: &str) -> Result<String, String> {
    let file = scratch.0.join("apply.yaml");
    fs::write(&file, yaml).unwrap();
    kubectl(
        cluster,
        &["apply", "--server-side", "-f", file.to_str().unwrap()],
    )
}

/// Asks until the answer is as wanted, for at most two minutes.
fn until(
    what: &str,
    mut ask: impl FnMut() -> Result<String, String>,
    wanted: impl Fn(&str) -> bool,
) -> String {
    let begun = Instant::now();
    loop {
        let answer = ask();
        match &answer {
            Ok(text) if wanted(text) => return text.clone(),
            _ if begun.elapsed() > Duration::from_secs(120) => {
                panic!("waited in vain for {what}; last: {answer:?}")
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Processes whose command lines name a folder, and have `word` in them.
fn processes_of(dir: &Path, word: &str) -> Vec<u32> {
    let name = dir.to_string_lossy().into_owned();
    let running = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            (line.contains(&name) && line.contains(word)).then_some(pid)
        });
    running.collect()
}

#[test]
fn an_api_server_keeps_rules_survives_its_death_and_goes_without_a_trace() {
    let Some(installation) = installation(
        "an_api_server_keeps_rules_survives_its_death_and_goes_without_a_trace",
        Level::A,
    ) else {
        return;
    };
    let scratch = Scratch::new();
    let cluster = Kubernetes::start(&installation, &scratch.0.join("cluster"), Level::A).unwrap();
    apply(&cluster, &scratch, DEFINITION).unwrap();
    kubectl(
        &cluster,
        &[
            "wait",
            "--for=condition=Established",
            "crd/fleets.test.example",
            "--timeout=30s",
        ],
    )
    .unwrap();
    until(
        "a fleet",
        || apply(&cluster, &scratch, &fleet(1, 3)),
        |_| true,
    );
    let refused = apply(&cluster, &scratch, &fleet(4, 3)).unwrap_err();
    assert!(refused.contains("least is above most"), "{refused}");

    cluster.stop_component(Component::ApiServer, true).unwrap();
    kubectl(
        &cluster,
        &["get", "--raw", "/readyz", "--request-timeout=2s"],
    )
    .unwrap_err();
    cluster.start_component(Component::ApiServer).unwrap();
    let most = || {
        kubectl(
            &cluster,
            &["get", "fleet", "f", "-o", "jsonpath={.spec.most}"],
        )
    };
    until("the fleet after a restart", most, |answer| answer == "3");

    let dir = cluster.dir.clone();
    assert!(!processes_of(&dir, "kube-apiserver").is_empty());
    drop(cluster);
    assert_eq!((processes_of(&dir, ""), dir.exists()), (vec![], false));
}

#[test]
fn a_cluster_ends_with_the_process_that_held_it_or_when_the_next_one_starts() {
    const NAME: &str = "a_cluster_ends_with_the_process_that_held_it_or_when_the_next_one_starts";
    const HOLD: &str = "SIGNAL_TEST_HOLD";
    let Some(installation) = installation(NAME, Level::A) else {
        return;
    };
    // This same test in a process of its own holds a cluster until it is killed.
    if let Some(dir) = std::env::var_os(HOLD) {
        let _cluster = Kubernetes::start(&installation, Path::new(&dir), Level::A).unwrap();
        fs::write(Path::new(&dir).join("held"), "").unwrap();
        std::thread::park();
    }
    for keeper_dies_too in [false, true] {
        let scratch = Scratch::new();
        let dir = scratch.0.join("cluster");
        let mut holder = Command::new(std::env::current_exe().unwrap());
        holder
            .args(["--exact", &format!("kubernetes::tests::{NAME}")])
            .env(HOLD, &dir)
            .stdout(Stdio::null());
        let mut holder = holder.spawn().unwrap();
        until(
            "the cluster of another process",
            || fs::read_to_string(dir.join("held")).map_err(|error| error.to_string()),
            |_| true,
        );
        if keeper_dies_too {
            processes_of(&dir, "keep.sh")
                .into_iter()
                .for_each(|keeper| crate::signal(keeper, "KILL"));
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
        if keeper_dies_too {
            assert!(
                !processes_of(&dir, "kube-apiserver").is_empty(),
                "nobody is left to end it"
            );
            Kubernetes::end_left_behind().unwrap();
        }
        until(
            "the end of what it started",
            || Ok(format!("{:?} {}", processes_of(&dir, ""), dir.exists())),
            |left| left == "[] false",
        );
    }
}

#[test]
fn two_clusters_with_controllers_stand_side_by_side_and_make_pods_of_deployments() {
    let name = "two_clusters_with_controllers_stand_side_by_side_and_make_pods_of_deployments";
    let Some(installation) = installation(name, Level::B) else {
        return;
    };
    let scratch = Scratch::new();
    let (one, two) = (scratch.0.join("one"), scratch.0.join("two"));
    let one = Kubernetes::start(&installation, &one, Level::B).unwrap();
    let two = Kubernetes::start(&installation, &two, Level::B).unwrap();
    for (cluster, replicas) in [(&one, 2), (&two, 3)] {
        apply(cluster, &scratch, &deployment(replicas)).unwrap();
        let pods = || kubectl(cluster, &["get", "pods", "-l", "app=echo", "-o", "name"]);
        until("the pods", pods, |answer| {
            answer.lines().count() == replicas as usize
        });
    }
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one course of events, in its order: a cluster is started once"
)]
fn pods_run_are_reached_from_outside_and_reach_servers_there() {
    let level = Level::C { nodes: 1 };
    let Some(installation) = installation(
        "pods_run_are_reached_from_outside_and_reach_servers_there",
        level,
    ) else {
        return;
    };
    let scratch = Scratch::new();
    let cluster = Kubernetes::start(&installation, &scratch.0.join("cluster"), level).unwrap();
    apply(&cluster, &scratch, &deployment(2)).unwrap();
    kubectl(
        &cluster,
        &["rollout", "status", "deployment/echo", "--timeout=90s"],
    )
    .unwrap();
    let outside = cluster.outside();
    let node_port = format!("{}:30080", cluster.node_ip(1));
    let answer = outside
        .run(|| until("an answer", || http(&node_port), |_| true))
        .unwrap();
    assert!(answer.contains("pod=echo-"), "{answer}");
    let api = outside.command({
        let mut command = Command::new(installation.kubectl());
        command
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig_outside())
            .args(["get", "--raw", "/readyz"]);
        command
    });
    assert_eq!(said(&mut { api }), Ok("ok".to_owned()));

    let shell = "apiVersion: v1\nkind: Pod\nmetadata: {name: shell}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: shell, \
                 image: localhost/signal-shell:1, imagePullPolicy: Never, args: [-c, sleep 3600]}]}\n";
    apply(&cluster, &scratch, shell).unwrap();
    kubectl(
        &cluster,
        &[
            "wait",
            "--for=condition=Ready",
            "pod/shell",
            "--timeout=60s",
        ],
    )
    .unwrap();
    let in_pod = |words: &[&str]| kubectl(&cluster, &[&["exec", "shell", "--"], words].concat());
    let by_name = until(
        "a service by its name",
        || in_pod(&["/echo", "get", "http://echo.default.svc.cluster.local/"]),
        |_| true,
    );
    assert!(by_name.contains("pod=echo-"), "{by_name}");

    let reaches = |server: SocketAddr| {
        in_pod(&[
            "nc",
            "-w",
            "2",
            &server.ip().to_string(),
            &server.port().to_string(),
            "-e",
            "/bin/true",
        ])
    };
    if Redis::is_installed() {
        let redis = Redis::start_in(&outside, &scratch.0.join("redis"), &[]).unwrap();
        let (ip, port) = (
            redis.address().ip().to_string(),
            redis.address().port().to_string(),
        );
        let ping = format!("printf 'PING\\r\\n' | nc -w 2 {ip} {port}");
        assert_eq!(in_pod(&["sh", "-c", &ping]), Ok("+PONG".to_owned()));
    }
    if Postgres::programs().is_some() {
        let postgres = Postgres::start_in(&outside, &scratch.0.join("postgres"), false).unwrap();
        let address = postgres.address();
        reaches(address).unwrap();
        let mut psql = Command::new(Postgres::programs().unwrap().join("psql"));
        psql.args([&Postgres::url(&postgres, "postgres"), "-qtAc", "select 42"]);
        assert_eq!(said(&mut outside.command(psql)), Ok("42".to_owned()));
    }
    if let Some(kafka) = KafkaInstallation::find() {
        let broker = Kafka::start_in(&outside, &kafka, &scratch.0.join("kafka")).unwrap();
        reaches(broker.address()).unwrap();
    }

    let dir = cluster.dir.clone();
    drop(cluster);
    assert_eq!((processes_of(&dir, ""), dir.exists()), (vec![], false));
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one course of events, in its order: a cluster is started once"
)]
fn three_nodes_spread_pods_and_survive_the_death_of_one() {
    let level = Level::C { nodes: 3 };
    let Some(installation) = installation(
        "three_nodes_spread_pods_and_survive_the_death_of_one",
        level,
    ) else {
        return;
    };
    let scratch = Scratch::new();
    let cluster = Kubernetes::start(&installation, &scratch.0.join("cluster"), level).unwrap();

    // An image of the test's own, of a program that needs shared libraries.
    let archive = scratch.0.join("own.tar");
    let shell = Image::new("localhost/own:1")
        .program(Path::new("/bin/ls"), "/bin/ls")
        .unwrap()
        .entrypoint(&["/bin/ls"]);
    shell.nonroot().unwrap().write(&archive).unwrap();
    cluster.import_image(&archive).unwrap();
    kubectl(
        &cluster,
        &[
            "run",
            "own",
            "--image=localhost/own:1",
            "--image-pull-policy=Never",
            "--restart=Never",
            "--",
            "/etc/passwd",
        ],
    )
    .unwrap();
    kubectl(
        &cluster,
        &[
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "pod/own",
            "--timeout=60s",
        ],
    )
    .unwrap();
    assert_eq!(
        kubectl(&cluster, &["logs", "own"]),
        Ok("/etc/passwd".to_owned())
    );

    apply(&cluster, &scratch, &deployment(3)).unwrap();
    kubectl(
        &cluster,
        &["rollout", "status", "deployment/echo", "--timeout=90s"],
    )
    .unwrap();
    let nodes = || {
        kubectl(
            &cluster,
            &[
                "get",
                "pods",
                "-l",
                "app=echo",
                "-o",
                "jsonpath={.items[*].spec.nodeName}",
            ],
        )
    };
    let on: std::collections::BTreeSet<String> =
        nodes().unwrap().split(' ').map(str::to_owned).collect();
    assert_eq!(on.len(), 3, "{on:?}");

    let kubelet = SocketAddr::from((cluster.node_ip(2), 10250));
    let answers = || {
        cluster
            .outside()
            .run(|| {
                std::net::TcpStream::connect_timeout(&kubelet, Duration::from_millis(500)).is_ok()
            })
            .unwrap()
    };
    assert!(answers());
    cluster.cut_off(2).unwrap();
    assert!(!answers());
    cluster.reconnect(2).unwrap();
    until(
        "the way to a node whose cable is back",
        || Ok(answers().to_string()),
        |answer| answer == "true",
    );

    cluster.kill_node(3).unwrap();
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    until(
        "the dead node to be missed",
        || kubectl(&cluster, &["get", "node", "node3", "-o", ready]),
        |status| status == "Unknown",
    );
    let available = || {
        kubectl(
            &cluster,
            &[
                "get",
                "deployment",
                "echo",
                "-o",
                "jsonpath={.status.availableReplicas}",
            ],
        )
    };
    until("three pods on two nodes", available, |count| count == "3");
    cluster.up().unwrap();
    until(
        "the node's return",
        || kubectl(&cluster, &["get", "node", "node3", "-o", ready]),
        |status| status == "True",
    );
}

/// One plain GET.
fn http(address: &str) -> Result<String, String> {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<String> {
        let mut socket = std::net::TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().map_err(|error| error.to_string())
}
