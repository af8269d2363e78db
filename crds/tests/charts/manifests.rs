//! Renderings as a whole: the same twice, valid, clean, and equal to what is committed.

use serde_json::Value;

use crate::{VARIANTS, check, documents, helm, kubernetes, render, root, tool};

/// The namespace that the plain manifests bring along; a chart leaves namespaces to whoever installs it.
const NAMESPACE: &str = "\
# The operator without Helm: apply crds/signalclusters.yaml, then this. Written from charts/signal-operator; not edited by hand.
apiVersion: v1
kind: Namespace
metadata:
  name: signal-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
";

#[test]
fn rendering_twice_is_identical() {
    for variant in VARIANTS {
        let (Some(once), Some(again)) = (
            render("charts/signal-operator", variant),
            render("charts/signal-operator", variant),
        ) else {
            return;
        };
        assert_eq!(once, again, "{variant:?}");
    }
    assert_eq!(
        render("charts/signal-crds", &[]),
        render("charts/signal-crds", &[])
    );
}

#[test]
fn helm_lint_has_nothing_to_say() {
    for chart in ["charts/signal-crds", "charts/signal-operator"] {
        let Some(output) = helm(&[
            "lint",
            "--strict",
            "--quiet",
            "--kube-version",
            kubernetes().version,
            chart,
        ]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !said.contains("[WARNING]") && !said.contains("[ERROR]"),
            "{said}"
        );
    }
}

#[test]
fn charts_and_crates_have_one_version() {
    for chart in ["charts/signal-crds", "charts/signal-operator"] {
        let text = std::fs::read_to_string(root().join(chart).join("Chart.yaml")).unwrap();
        let chart: Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn the_chart_ships_exactly_the_definition() {
    let Some(text) = render(
        "charts/signal-crds",
        &["--set", "labels.a=b,annotations.c=d"],
    ) else {
        return;
    };
    let mut shipped = documents(&text);
    assert_eq!(shipped.len(), 1);
    let metadata = shipped[0]["metadata"].as_object_mut().unwrap();
    let annotations = metadata.remove("annotations").unwrap();
    assert_eq!(annotations["helm.sh/resource-policy"], "keep");
    assert_eq!(annotations["c"], "d");
    assert_eq!(metadata.remove("labels").unwrap()["a"], "b");
    assert_eq!(shipped, documents(&signal_crds::crd_yaml()));

    let unkept = documents(&render("charts/signal-crds", &["--set", "keep=false"]).unwrap());
    assert!(unkept[0]["metadata"].get("annotations").is_none());
}

#[test]
fn the_plain_manifests_are_those_of_the_chart() {
    let Some(text) = render("charts/signal-operator", &["--skip-tests"]) else {
        return;
    };
    let own = |line: &&str| {
        !line.contains("helm.sh/chart:")
            && !line.contains("managed-by: Helm")
            && !line.starts_with("# Source:")
    };
    let text = text
        .lines()
        .filter(own)
        .fold(NAMESPACE.to_owned(), |text, line| text + line + "\n");
    let path = root().join("deploy/operator.yaml");
    if std::env::var_os("SIGNAL_UPDATE_MANIFESTS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed, text,
        "SIGNAL_UPDATE_MANIFESTS=1 cargo test -p signal-crds --test charts rewrites it"
    );
}

#[test]
fn kube_score_finds_nothing() {
    let Some(score) = tool("SIGNAL_TEST_KUBE_SCORE", "kube-score") else {
        return;
    };
    let version = format!("v{}", kubernetes().minor());
    // Images are named by version or digest: pulling them each time would add a way to fail and nothing else.
    let arguments = [
        "score",
        "--exit-one-on-warning",
        "--ignore-test",
        "container-image-pull-policy",
        "--kubernetes-version",
        &version,
        "-",
    ];
    for variant in [VARIANTS[0], VARIANTS[1], VARIANTS[3]] {
        let Some(text) = render("charts/signal-operator", variant) else {
            return;
        };
        let (content, said) = check(&score, &arguments, &text);
        assert!(content, "{variant:?}\n{said}");
        let (content, _) = check(
            &score,
            &arguments,
            &text.replace(
                "readOnlyRootFilesystem: true",
                "readOnlyRootFilesystem: false",
            ),
        );
        assert!(!content, "it would not have found anything");
    }
}
