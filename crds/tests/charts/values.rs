//! Values: what each does, and which are refused.

use serde_json::{Value, json};
use signal_services::KubernetesRelease;

use crate::{VARIANTS, documents, helm, kind, kubernetes, pods, render, root, skip};

fn deployment(arguments: &[&str]) -> Option<Value> {
    let text = render("charts/signal-operator", arguments)?;
    documents(&text)
        .into_iter()
        .find(|object| kind(object) == "Deployment")
}

#[test]
fn wrong_values_are_refused_with_their_name() {
    for (set, named) in [
        ("replica=3", "replica"),
        ("replicas=many", "replicas"),
        ("image.digest=latest", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("watchNamespaces={Upper}", "watchNamespaces"),
        ("ports.admin=80", "admin"),
        ("platform=openshift", "platform"),
        ("service.ipFamilies={IPv5}", "ipFamilies"),
        ("concurrency=65", "concurrency"),
        ("networkPolicy.adminFrom[0].podSelectr.a=b", "podSelectr"),
        ("serviceAccount.create=false", "serviceAccount.name"),
    ] {
        let arguments = [
            "template",
            "x",
            "charts/signal-operator",
            "--kube-version",
            kubernetes().version,
            "--set",
            set,
        ];
        let Some(output) = helm(&arguments) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(named),
            "{set}: {said}"
        );
    }
    let Some(output) = helm(&[
        "template",
        "x",
        "charts/signal-crds",
        "--kube-version",
        kubernetes().version,
        "--set",
        "keeep=false",
    ]) else {
        return;
    };
    assert!(!output.status.success());
}

/// `| Kubernetes | 1.33, 1.34; tests run on 1.34.4, ... |`
#[test]
fn the_range_of_kubernetes_names_what_the_charts_take_and_what_tests_run_on() {
    let page = std::fs::read_to_string(root().join("charts/README.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with("| Kubernetes |"));
    let (range, tested) = row.unwrap().split_once(';').unwrap();
    let range: Vec<&str> = range.split(&[' ', '|', ','][..]).collect();
    let chart = std::fs::read_to_string(root().join("charts/signal-operator/Chart.yaml")).unwrap();
    let oldest = range.iter().find(|word| word.starts_with("1.")).unwrap();
    assert!(chart.contains(&format!("kubeVersion: \">={oldest}.0-0\"")));
    for release in KubernetesRelease::ALL {
        assert!(range.contains(&release.minor()), "{}", release.minor());
        assert!(tested.contains(release.version), "{}", release.version);
    }
}

#[test]
fn kubernetes_before_the_supported_range_is_refused() {
    for chart in ["charts/signal-crds", "charts/signal-operator"] {
        let Some(output) = helm(&["template", "x", chart, "--kube-version", "1.32.9"]) else {
            return;
        };
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("kubeVersion"));
    }
}

#[test]
fn images_are_named_by_tag_or_digest_in_any_registry() {
    let image = |arguments: &[&str]| {
        Some(deployment(arguments)?["spec"]["template"]["spec"]["containers"][0]["image"].clone())
    };
    let Some(plain) = image(&[]) else { return };
    assert_eq!(
        plain,
        concat!("signal-operator:", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(
        image(VARIANTS[2]).unwrap(),
        "registry.example.com/signal-operator:9.9.9"
    );
    let digest = format!(
        "mirror.example.com/signal-operator@sha256:{}",
        "0".repeat(64)
    );
    assert_eq!(image(VARIANTS[3]).unwrap(), digest);
    let secrets =
        deployment(VARIANTS[3]).unwrap()["spec"]["template"]["spec"]["imagePullSecrets"].clone();
    assert_eq!(secrets, json!([{"name": "one"}, {"name": "two"}]));
}

#[test]
fn every_setting_of_the_operator_has_a_name_that_it_reads() {
    let Ok(arguments) = std::fs::read_to_string(root().join("operator/src/args.rs")) else {
        return skip("the operator has no arguments yet");
    };
    for variant in VARIANTS {
        let Some(deployment) = deployment(variant) else {
            return;
        };
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["args"], json!(["run"]));
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            assert!(
                name == "A" || arguments.contains(&format!("env = \"{name}\"")),
                "{name}"
            );
        }
    }
}

#[test]
fn addresses_of_both_families_are_written_as_the_operator_reads_them() {
    for (arguments, admin, scaler) in [
        (
            ["--set", "ports.admin=8081"],
            "0.0.0.0:8081",
            "0.0.0.0:9443",
        ),
        (["--set", "listenAddress=::"], "[::]:8080", "[::]:9443"),
        (
            ["--set", "externalScaler.enabled=false"],
            "0.0.0.0:8080",
            "127.0.0.1:9443",
        ),
    ] {
        let Some(deployment) = deployment(&arguments) else {
            return;
        };
        let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
            .as_array()
            .unwrap()
            .clone();
        let value = |name: &str| {
            env.iter()
                .find(|variable| variable["name"] == name)
                .unwrap()["value"]
                .clone()
        };
        for (name, address) in [
            ("SIGNAL_OPERATOR_ADMIN_ADDRESS", admin),
            ("SIGNAL_OPERATOR_SCALER_ADDRESS", scaler),
        ] {
            assert_eq!(value(name), address);
            assert!(address.parse::<std::net::SocketAddr>().is_ok());
        }
    }
}

#[test]
fn all_pods_keep_to_the_restricted_standard() {
    for variant in VARIANTS {
        let Some(text) = render("charts/signal-operator", variant) else {
            return;
        };
        let objects = documents(&text);
        let pods = pods(&objects);
        assert_eq!(pods.len(), 2, "the operator and the test");
        for pod in pods {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"],
                "RuntimeDefault"
            );
            for field in [
                "hostNetwork",
                "hostPID",
                "hostIPC",
                "volumes",
                "initContainers",
            ] {
                assert!(pod.get(field).is_none(), "{field}");
            }
            for container in pod["containers"].as_array().unwrap() {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["readOnlyRootFilesystem"], true);
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                assert!(container["resources"]["limits"]["memory"].is_string());
            }
        }
    }
}

#[test]
fn on_openshift_no_pod_names_a_user_or_a_group() {
    let fields = ["runAsUser", "runAsGroup", "fsGroup"];
    let named = |arguments: &[&str]| {
        let objects = documents(&render("charts/signal-operator", arguments)?);
        let mut named = Vec::new();
        for pod in pods(&objects) {
            let containers = pod["containers"].as_array().unwrap().iter();
            let contexts = containers.map(|container| &container["securityContext"]);
            for security in contexts.chain([&pod["securityContext"]]) {
                assert_eq!(security["runAsNonRoot"], true);
                let found = fields.iter().filter(|field| security[**field].is_number());
                named.extend(found.map(|field| (*field).to_owned()));
            }
        }
        Some(named)
    };
    let Some(without) = named(&["--set", "platform=OpenShift"]) else {
        return;
    };
    assert_eq!(without, [""; 0]);
    assert_eq!(
        named(&[]).unwrap().len(),
        10,
        "of two pods and their containers"
    );
}

#[test]
fn the_service_has_the_families_that_are_named() {
    let arguments = [
        "--set",
        "service.ipFamilyPolicy=RequireDualStack,service.ipFamilies={IPv6,IPv4}",
    ];
    let service = |arguments: &[&str]| {
        let objects = documents(&render("charts/signal-operator", arguments)?);
        let mut services = objects
            .into_iter()
            .filter(|object| kind(object) == "Service");
        Some(services.next().unwrap()["spec"].take())
    };
    let Some(dual) = service(&arguments) else {
        return;
    };
    assert_eq!(dual["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(dual["ipFamilies"], json!(["IPv6", "IPv4"]));
    let plain = service(&[]).unwrap();
    assert!(plain["ipFamilyPolicy"].is_null() && plain["ipFamilies"].is_null());
}

#[test]
fn labels_and_annotations_reach_every_object_and_take_no_label_of_ours() {
    let Some(text) = render(
        "charts/signal-operator",
        &[
            VARIANTS[3],
            &["--set", "commonLabels.app\\.kubernetes\\.io/name=mine"],
        ]
        .concat(),
    ) else {
        return;
    };
    for object in documents(&text) {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["team"], "edge", "{object}");
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/name"], "signal-operator",
            "{object}"
        );
        assert_eq!(metadata["annotations"]["note"], "x", "{object}");
    }
    let template = deployment(VARIANTS[3]).unwrap()["spec"]["template"]["metadata"].clone();
    assert_eq!(template["labels"]["a"], "b");
    assert_eq!(template["annotations"]["c"], "d");
}

#[test]
fn the_service_and_the_policies_select_the_pods() {
    let Some(text) = render("charts/signal-operator", &[]) else {
        return;
    };
    let objects = documents(&text);
    let labels = objects
        .iter()
        .find(|object| kind(object) == "Deployment")
        .unwrap()["spec"]["template"]["metadata"]["labels"]
        .clone();
    let named = |kind: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind)
            .unwrap()["spec"]
            .clone()
    };
    for selector in [
        &named("Service")["selector"],
        &named("NetworkPolicy")["podSelector"]["matchLabels"],
        &named("PodDisruptionBudget")["selector"]["matchLabels"],
        &named("Deployment")["selector"]["matchLabels"],
    ] {
        for (key, value) in selector.as_object().unwrap() {
            assert_eq!(&labels[key], value);
        }
    }
}
