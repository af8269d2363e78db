use std::collections::BTreeSet;
use std::path::Path;

use http::Method;
use serde_json::Value;

use super::fixture::{Call, TestGateway};
use crate::api::{asyncapi, clients, extract, messages, openapi, routes};
use crate::protocol::bounds::{MAX_READ_IDS, MAX_ROOM_CHARS};

/// Compares the text with the committed file, or writes the file where `SIGNAL_UPDATE_DOCS` is set.
fn is_committed(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    if std::env::var_os("SIGNAL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "docs/{name} is out of date: run the tests once with SIGNAL_UPDATE_DOCS=1 and commit it"
    );
}

#[test]
fn no_route_of_rest_can_be_a_stream_path() {
    for (route, _) in routes() {
        assert!(!signal_contract::is_stream_path(route), "{route}");
    }
}

#[test]
fn the_committed_documents_are_the_generated_ones() {
    is_committed("openapi.json", &openapi::TEXT);
    is_committed("asyncapi.json", &asyncapi::TEXT);
}

/// The derive macros take only literals, so this compares them with the constants that are checked.
#[test]
fn documented_bounds_are_the_ones_that_are_checked() {
    let document: Value = serde_json::from_str(&openapi::TEXT).unwrap();
    for (bound, expected) in [
        ("MarkRead/oneOf/0/properties/ids/maxItems", MAX_READ_IDS),
        ("RoomsBody/properties/rooms/maxItems", clients::MAX_ROOMS),
        (
            "BroadcastMessage/properties/exclude/maxItems",
            messages::MAX_EXCLUDED,
        ),
        ("EventName/maxLength", messages::MAX_EVENT),
        ("Name/maxLength", extract::MAX_NAME),
        ("RoomName/maxLength", MAX_ROOM_CHARS),
    ] {
        let pointer = format!("/components/schemas/{bound}");
        assert_eq!(
            document.pointer(&pointer).and_then(Value::as_u64),
            Some(expected as u64),
            "{pointer}"
        );
    }
}

#[tokio::test]
async fn every_route_and_method_is_documented_and_no_other() {
    let gateway = TestGateway::new().await;
    let document: Value = serde_json::from_str(&openapi::TEXT).unwrap();
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .keys()
                .map(move |method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let mut served = BTreeSet::new();
    for (path, _) in routes()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("/docs/"))
    {
        let concrete = path.replace("{id}", "abc").replace("{room}", "abc");
        let answer = gateway
            .send(Call::new(Method::TRACE, &concrete))
            .await
            .problem(405, "method_not_allowed");
        let methods = answer
            .header("allow")
            .split(',')
            .map(str::trim)
            .filter(|method| *method != "HEAD")
            .map(str::to_owned)
            .collect::<Vec<_>>();
        served.extend(methods.into_iter().map(|method| (path.to_owned(), method)));
    }
    assert_eq!(served, documented);
}

#[tokio::test]
async fn everyone_may_read_the_documents_and_the_page_loads_only_its_own_files() {
    let gateway = TestGateway::new().await;
    for (path, media_type) in [
        ("/openapi.json", "application/json"),
        ("/asyncapi.json", "application/json"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/page.js", "text/javascript; charset=utf-8"),
        ("/docs/page.css", "text/css; charset=utf-8"),
    ] {
        let answer = gateway.send(Call::new(Method::GET, path)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-type")),
            (200, media_type),
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "public, max-age=300");
        let policy = answer.header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'")
                && !policy.contains("unsafe")
                && !policy.contains("http"),
            "{policy}"
        );
    }
    let page = gateway.send(Call::new(Method::GET, "/docs")).await.text;
    assert!(
        !page.contains("http://")
            && !page.contains("https://")
            && !page.contains("<script>")
            && !page.contains("style="),
        "{page}"
    );
}

#[test]
fn every_reference_resolves() {
    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    for text in [&*openapi::TEXT, &*asyncapi::TEXT] {
        let document: Value = serde_json::from_str(text).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
