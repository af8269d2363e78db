//! Schemas for kubeconform, made from what an API server says of its own kinds (OpenAPI v2) and from our definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{VARIANTS, check, documents, render, root, server, tool};

const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

/// Writes one file per kind into `dir`, as kubeconform's `{{.ResourceKind}}{{.KindSuffix}}.json` looks for it.
fn write(openapi: &Value, definition: &Value, dir: &Path) {
    let mut definitions: Map<String, Value> = openapi["definitions"].as_object().unwrap().clone();
    for (name, schema) in &mut definitions {
        strict(schema);
        // Written as a number too: `cpu: 1`.
        if name.ends_with(".api.resource.Quantity") {
            *schema = json!({"type": ["string", "number"]});
        }
    }
    for (name, schema) in &definitions {
        let Some([of]) = schema["x-kubernetes-group-version-kind"]
            .as_array()
            .map(Vec::as_slice)
        else {
            continue;
        };
        let [group, version, kind] =
            ["group", "version", "kind"].map(|field| of[field].as_str().unwrap());
        let mut needed = BTreeMap::new();
        gather(name, &definitions, &mut needed);
        needed.insert(name, pinned(schema, group, version, kind));
        let file = json!({"$schema": DRAFT, "allOf": [{"$ref": format!("#/definitions/{name}")}], "definitions": needed});
        put(dir, group, version, kind, &file);
    }
    // The server's own text of it leaves out what OpenAPI v2 has no word for.
    let version = &definition["spec"]["versions"][0];
    let mut schema = version["schema"]["openAPIV3Schema"].clone();
    let metadata = json!({"type": "object"});
    schema["properties"]["metadata"] = metadata;
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    strict(&mut schema);
    let [group, kind] = [
        &definition["spec"]["group"],
        &definition["spec"]["names"]["kind"],
    ]
    .map(|text| text.as_str().unwrap());
    let version = version["name"].as_str().unwrap();
    put(
        dir,
        group,
        version,
        kind,
        &pinned(&schema, group, version, kind),
    );
}

fn put(dir: &Path, group: &str, version: &str, kind: &str, schema: &Value) {
    let suffix = match group.split('.').next() {
        None | Some("") => format!("-{version}"),
        Some(first) => format!("-{first}-{version}"),
    };
    let name = format!("{kind}{suffix}.json").to_lowercase();
    std::fs::write(dir.join(name), schema.to_string()).unwrap();
}

/// With the one `apiVersion` and `kind` that it is for.
fn pinned(schema: &Value, group: &str, version: &str, kind: &str) -> Value {
    let mut schema = schema.clone();
    let api_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    schema["properties"]["apiVersion"] = json!({"const": api_version});
    schema["properties"]["kind"] = json!({"const": kind});
    schema["required"] = json!(["apiVersion", "kind", "metadata"]);
    schema
}

/// Adds a definition and all that it refers to.
fn gather<'a>(name: &'a str, all: &'a Map<String, Value>, into: &mut BTreeMap<&'a str, Value>) {
    if into.contains_key(name) {
        return;
    }
    let schema = &all[name];
    into.insert(name, schema.clone());
    let mut names = BTreeSet::new();
    references(schema, &mut names);
    for name in names {
        gather(name, all, into);
    }
}

fn references<'a>(value: &'a Value, into: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|path| path.strip_prefix("#/definitions/"))
            {
                into.insert(name);
            }
            fields.values().for_each(|value| references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

/// Refuses fields that are not named, as the API server does with `--validate=strict`, and puts Kubernetes' own words into JSON Schema's.
fn strict(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    if fields
        .get("format")
        .is_some_and(|format| format == "int-or-string")
        || fields.contains_key("x-kubernetes-int-or-string")
    {
        fields.remove("format");
        fields.insert("type".into(), json!(["string", "integer"]));
    }
    if fields.get("nullable") == Some(&Value::Bool(true)) {
        match fields.get_mut("type") {
            Some(Value::Array(kinds)) => kinds.push("null".into()),
            Some(kind) => *kind = json!([kind, "null"]),
            None => {}
        }
        if let Some(Value::Array(values)) = fields.get_mut("enum") {
            values.push(Value::Null);
        }
    }
    let open = fields.contains_key("x-kubernetes-preserve-unknown-fields")
        || fields.contains_key("additionalProperties");
    if fields.contains_key("properties") && !open {
        fields.insert("additionalProperties".into(), Value::Bool(false));
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(strict);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(inner) {
            strict(inner);
        }
    }
}

#[tokio::test]
async fn kubeconform_accepts_all_that_is_shipped_and_refuses_what_is_misspelt() {
    let Some(conform) = tool("SIGNAL_TEST_KUBECONFORM", "kubeconform") else {
        return;
    };
    let Some(client) = server::client().await else {
        return;
    };
    let request = http::Request::get("/openapi/v2")
        .header("accept", "application/json")
        .body(Vec::new())
        .unwrap();
    let openapi: Value = client.request(request).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    write(
        &openapi,
        &documents(&signal_crds::crd_yaml())[0],
        dir.path(),
    );

    let location = format!(
        "{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
        dir.path().display()
    );
    // Its definition belongs to the Prometheus Operator, whose schemas no server here has.
    let arguments = [
        "-strict",
        "-verbose",
        "-skip",
        "ServiceMonitor",
        "-schema-location",
        &location,
        "-",
    ];
    let mut texts = Vec::new();
    for variant in VARIANTS {
        let Some(text) = render("charts/signal-operator", variant) else {
            return;
        };
        texts.push(text);
    }
    texts.push(render("charts/signal-crds", &[]).unwrap());
    for folder in ["deploy", "charts/examples"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            // The Compose file is no Kubernetes object; a test of its own loads it.
            let is_object = path.file_name().is_some_and(|name| name != "compose.yaml");
            if is_object
                && path
                    .extension()
                    .is_some_and(|extension| extension == "yaml")
            {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    assert!(texts.len() >= VARIANTS.len() + 7);
    for text in &texts {
        let (content, said) = check(&conform, &arguments, text);
        assert!(content, "{said}\n{text}");
    }
    let minimal = std::fs::read_to_string(root().join("charts/examples/minimal.yaml")).unwrap();
    for (text, right, wrong) in [
        (&texts[0], "serviceAccountName:", "serviceAccountNaem:"),
        (
            &texts[0],
            "readOnlyRootFilesystem: true",
            "readOnlyRootFilesystem: maybe",
        ),
        (
            &texts[0],
            "apiVersion: policy/v1\n",
            "apiVersion: policy/v1beta1\n",
        ),
        (&minimal, "replicas: 2", "replicas: -2"),
        (&minimal, "brokers:", "borkers:"),
    ] {
        assert!(text.contains(right));
        let (content, said) = check(&conform, &arguments, &text.replace(right, wrong));
        assert!(!content, "{wrong}: {said}");
    }
}
