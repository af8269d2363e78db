//! The charts, the plain manifests, the examples and the image's contents.
//!
//! Helm, kubeconform and kube-score are found by `SIGNAL_TEST_HELM`, `SIGNAL_TEST_KUBECONFORM`, `SIGNAL_TEST_KUBE_SCORE` or on the path, a
//! cluster by `SIGNAL_TEST_KUBECONFIG`. A test that lacks one reports itself skipped.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do the functions it calls"
)]

mod examples;
mod gitops;
mod image;
mod kstatus;
mod manifests;
mod rights;
mod schemas;
mod server;
mod values;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize as _;
use serde_json::Value;
use signal_services::{KubernetesRelease, find_program};

/// Renderings of the chart signal-operator that between them take every branch of its templates.
const VARIANTS: [&[&str]; 4] = [
    &[],
    &["--set", "watchNamespaces={realtime,staging}"],
    &[
        "--set",
        "replicas=1,image.registry=registry.example.com,image.tag=9.9.9,externalScaler.enabled=false,networkPolicy.enabled=false",
        "--set",
        "rbac.gatewayAPI=false,rbac.prometheusOperator=false,serviceAccount.create=false,serviceAccount.name=own,priorityClassName=high",
        "--set",
        "nodeSelector.disk=fast,tolerations[0].operator=Exists,affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=a,affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    ],
    &[
        "--set",
        "global.imageRegistry=mirror.example.com,global.imagePullSecrets={one},image.pullSecrets={one,two}",
        "--set",
        "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "--set",
        "serviceMonitor.enabled=true,serviceMonitor.labels.release=prometheus,commonLabels.team=edge,commonAnnotations.note=x,podLabels.a=b,podAnnotations.c=d",
        "--set",
        "networkPolicy.adminFrom[0].namespaceSelector.matchLabels.name=monitoring,networkPolicy.apiServerTo[0].ipBlock.cidr=10.0.0.1/32,extraEnv[0].name=A,extraEnv[0].value=b",
    ],
];

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Says that the running test did nothing, and why. Written past the runner's capture, so that it is seen.
fn skip(reason: &str) {
    let thread = std::thread::current();
    let _ = writeln!(
        std::io::stdout(),
        "skipped: {}: {reason}",
        thread.name().unwrap_or("a test")
    );
}

/// A program that a variable names, or that is on the path.
fn tool(variable: &str, name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let found = named.or_else(|| find_program(&[name]));
    if found.is_none() {
        skip(&format!(
            "{name} is neither on the path nor named by {variable}"
        ));
    }
    found
}

/// The Kubernetes that tests run on.
fn kubernetes() -> KubernetesRelease {
    KubernetesRelease::chosen().unwrap()
}

fn helm(arguments: &[&str]) -> Option<Output> {
    let helm = tool("SIGNAL_TEST_HELM", "helm")?;
    Some(
        Command::new(helm)
            .args(arguments)
            .current_dir(root())
            .output()
            .unwrap(),
    )
}

/// What a chart renders to, as the release `signal-operator` in the namespace `signal-system` of the Kubernetes that tests run on.
fn render(chart: &str, arguments: &[&str]) -> Option<String> {
    let output = helm(
        &[
            &[
                "template",
                "signal-operator",
                chart,
                "-n",
                "signal-system",
                "--kube-version",
                kubernetes().version,
            ],
            arguments,
        ]
        .concat(),
    )?;
    assert!(
        output.status.success(),
        "{chart} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Runs a checker over a text and gives whether it was content, and all it said.
fn check(program: &Path, arguments: &[&str], text: &str) -> (bool, String) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    (output.status.success(), said)
}

/// The documents of a YAML file.
fn documents(text: &str) -> Vec<Value> {
    let read = serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap());
    read.filter(|document| !document.is_null()).collect()
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap()
}

/// The pod specs of Deployments and Pods.
fn pods(objects: &[Value]) -> Vec<&Value> {
    let spec = |object| match kind(object) {
        "Deployment" => Some(&object["spec"]["template"]["spec"]),
        "Pod" => Some(&object["spec"]),
        _ => None,
    };
    objects.iter().filter_map(spec).collect()
}
