//! `charts/gitops`: the health checks for Argo CD and Flux are run as these run them, against what the operator writes (`operator/golden/health.yaml`).

use kube::core::cel::cel::{Context, Program, Value as CelValue, to_value};
use mlua::{Lua, LuaSerdeExt as _};
use serde_json::Value;

use crate::kstatus::{Kstatus, compute, has_generation_lag};
use crate::{documents, root};

use Kstatus::{Current, Failed, InProgress, Terminating};

/// Case, and what kstatus, Flux with the expressions, and Argo CD say of it.
const EXPECTED: [(&str, Kstatus, Kstatus, &str); 29] = [
    ("unseen", InProgress, InProgress, "Progressing"),
    ("starting", InProgress, InProgress, "Progressing"),
    ("healthy", Current, Current, "Healthy"),
    ("generation lag", InProgress, InProgress, "Progressing"),
    ("being deleted", Terminating, Current, "Progressing"),
    ("rolling out", InProgress, InProgress, "Progressing"),
    ("stuck rollout", Failed, Failed, "Degraded"),
    // What is mended goes on, although the Deployment still says that it is stuck.
    (
        "stuck rollout with another image",
        InProgress,
        InProgress,
        "Degraded",
    ),
    ("canary", InProgress, InProgress, "Progressing"),
    (
        "canary that awaits approval",
        InProgress,
        InProgress,
        "Suspended",
    ),
    ("failed canary", Failed, Failed, "Degraded"),
    ("awaiting approval", InProgress, InProgress, "Suspended"),
    ("crashing", InProgress, InProgress, "Degraded"),
    ("draining", InProgress, InProgress, "Progressing"),
    ("older live settings", InProgress, InProgress, "Progressing"),
    ("new source", InProgress, InProgress, "Progressing"),
    ("retiring source", Current, Current, "Healthy"),
    ("Secret missing", InProgress, InProgress, "Progressing"),
    ("invalid spec", Failed, Failed, "Degraded"),
    ("unreadable spec", Failed, Failed, "Degraded"),
    ("unreadable record", Failed, Failed, "Degraded"),
    ("migration failed", InProgress, InProgress, "Degraded"),
    ("Ingress refused", Failed, Failed, "Degraded"),
    ("Ingress forbidden", InProgress, InProgress, "Progressing"),
    ("not subscribed", InProgress, InProgress, "Degraded"),
    ("paused", Current, Current, "Suspended"),
    ("paused and invalid", InProgress, Current, "Suspended"),
    ("stopped", InProgress, Current, "Suspended"),
    ("scaled to zero", InProgress, Current, "Suspended"),
];

/// Name and object of every case.
fn recorded() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(root().join("operator/golden/health.yaml")).unwrap();
    let cases = text.split("---\n# ").skip(1);
    cases
        .map(|case| {
            let (name, object) = case.split_once('\n').unwrap();
            (name.to_owned(), serde_yaml_ng::from_str(object).unwrap())
        })
        .collect()
}

fn file(name: &str) -> Vec<Value> {
    documents(&std::fs::read_to_string(root().join("charts/gitops").join(name)).unwrap())
}

/// What a script of the ConfigMap returns for an object, in the Lua that Argo CD has (5.1).
fn lua(script: &str, object: &Value) -> Value {
    let lua = Lua::new();
    let object = lua.to_value(object).unwrap();
    lua.globals().set("obj", object).unwrap();
    let returned: mlua::Value = lua.load(script).eval().unwrap();
    lua.from_value(returned).unwrap()
}

fn health_script() -> String {
    let data = &file("argocd.yaml")[0]["data"];
    let script = &data["resource.customizations.health.signal.dev_SignalCluster"];
    script.as_str().unwrap().to_owned()
}

/// Whether an expression holds of an object, whose members are its variables.
fn holds(expression: &Value, object: &Value) -> bool {
    let expression = expression.as_str().unwrap();
    let program = Program::compile(expression).unwrap_or_else(|why| panic!("{expression}: {why}"));
    let mut context = Context::default();
    for (member, value) in object.as_object().unwrap() {
        context.add_variable_from_value(member.as_str(), to_value(value).unwrap());
    }
    match program.execute(&context).unwrap() {
        CelValue::Bool(holds) => holds,
        other => panic!("{expression} is {other:?}"),
    }
}

/// As Flux's kustomize-controller evaluates them: `fluxcd/pkg`, `runtime/cel`, `StatusEvaluator`.
fn flux(checks: &Value, object: &Value) -> Kstatus {
    if has_generation_lag(object) {
        return InProgress;
    }
    let order = [
        ("inProgress", InProgress),
        ("failed", Failed),
        ("current", Current),
    ];
    let mut order = order.into_iter();
    order
        .find(|(field, _)| holds(&checks[field], object))
        .map_or(InProgress, |(_, status)| status)
}

#[test]
fn kstatus_flux_and_argo_cd_tell_work_from_failure_and_success() {
    let script = health_script();
    let flux_objects = file("flux.yaml");
    let kustomization = flux_objects
        .iter()
        .find(|object| object["kind"] == "Kustomization")
        .unwrap();
    assert_eq!(kustomization["spec"]["wait"], true);
    let checks = &kustomization["spec"]["healthCheckExprs"][0];
    assert_eq!(
        (&checks["apiVersion"], &checks["kind"]),
        (&"signal.dev/v1alpha1".into(), &"SignalCluster".into())
    );
    let found: Vec<_> = recorded()
        .into_iter()
        .map(|(name, object)| {
            let health = lua(&script, &object);
            let health = health["status"].as_str().unwrap().to_owned();
            (name, compute(&object), flux(checks, &object), health)
        })
        .collect();
    let expected =
        EXPECTED.map(|(name, kstatus, flux, argo)| (name.into(), kstatus, flux, argo.into()));
    assert_eq!(found, expected);
}

#[test]
fn argo_cd_shows_the_reason_and_bears_an_object_of_an_older_definition() {
    let script = health_script();
    let cases = recorded();
    let message = |case: &str| {
        let (_, object) = cases.iter().find(|(name, _)| name == case).unwrap();
        lua(&script, object)["message"].as_str().unwrap().to_owned()
    };
    assert!(message("invalid spec").starts_with("InvalidSpec: "));
    assert!(message("stuck rollout").contains("ImagePullBackOff"));
    assert!(message("Secret missing").starts_with("SecretMissing: "));
    assert_eq!(message("healthy"), "2 of 2 pods serve");
    let bare = serde_json::json!({"metadata": {"generation": 1}});
    assert_eq!(lua(&script, &bare)["status"], "Progressing");
}

#[test]
fn argo_cds_action_asks_for_a_restart() {
    let data = &file("argocd.yaml")[0]["data"];
    let text = &data["resource.customizations.actions.signal.dev_SignalCluster"];
    let actions: Value = serde_yaml_ng::from_str(text.as_str().unwrap()).unwrap();
    let object = serde_json::json!({"metadata": {"name": "edge"}});
    let discovered = lua(actions["discovery.lua"].as_str().unwrap(), &object);
    assert!(discovered["restart"].is_object() || discovered["restart"].is_array());
    let action = &actions["definitions"][0];
    assert_eq!(action["name"], "restart");
    let after = lua(action["action.lua"].as_str().unwrap(), &object);
    let time = &after["metadata"]["annotations"]["signal.dev/restarted-at"];
    let time = time.as_str().unwrap();
    assert!(
        time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
        "{time}"
    );
}

#[test]
fn the_paths_of_the_charts_are_those_of_this_repository() {
    let mut paths = Vec::new();
    for object in file("argocd.yaml").iter().chain(&file("flux.yaml")) {
        let of_argo = &object["spec"]["source"]["path"];
        let of_flux = &object["spec"]["chart"]["spec"]["chart"];
        let named = [of_argo, of_flux].into_iter().filter_map(Value::as_str);
        paths.extend(
            named
                .filter(|path| path.starts_with("charts/"))
                .map(str::to_owned),
        );
    }
    assert_eq!(paths.len(), 4, "{paths:?}");
    for path in paths {
        assert!(root().join(&path).join("Chart.yaml").exists(), "{path}");
    }
}
