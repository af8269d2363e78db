use std::path::Path;

use crate::http::{asyncapi, openapi};

/// Compares with the committed file, or writes it where `SIGNAL_UPDATE_DOCS` is set.
fn is_committed(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("SIGNAL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "docs/{name} is out of date: run the tests once with SIGNAL_UPDATE_DOCS=1 and commit it");
}

#[test]
fn the_committed_documents_are_the_generated_ones() {
    is_committed("openapi.json", &openapi::TEXT);
    is_committed("asyncapi.json", &asyncapi::TEXT);
}
