//! The OpenAPI document against a running gateway: Schemathesis, a public property tester, makes requests that the document allows, which must not
//! be refused, and requests that it forbids, which must not be accepted.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use signal_services::Packages;
use signal_tests::services::skip;
use tokio::time::timeout;

use crate::Stage;

const LIMIT: Duration = Duration::from_secs(300);
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,negative_data_rejection,positive_data_acceptance,ignored_auth,unsupported_method";

async fn schemathesis(packages: &Path, url: &str, token: &str, dir: &Path) -> Output {
    std::fs::write(
        dir.join("hooks.py"),
        include_str!("programs/schemathesis_hooks.py"),
    )
    .expect("a writable folder");
    let python = Packages::PyPi.program().expect("found above");
    let mut command = signal_services::bound_command(&python, None);
    command
        .args(["-m", "schemathesis.cli", "run", url, "--no-color"])
        .args(["--checks", CHECKS, "--mode", "all"])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", "50", "--generation-deterministic"])
        .arg("--continue-on-failure")
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .current_dir(dir)
        .stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || Command::output(&mut command));
    let run = timeout(LIMIT, run).await.expect("it ends in time");
    run.expect("no panic").expect("Python starts")
}

#[tokio::test]
async fn the_document_allows_exactly_what_the_gateway_accepts() {
    let packages = match Packages::PyPi.find() {
        Ok(packages) => packages,
        Err(reason) => return skip(&format!("{reason:#}")),
    };
    let stage = Stage::new().await;
    // Requests may revoke the tokens of any user with a short name.
    let mut claims = stage.issuer.claims("someone-whom-no-generator-names");
    claims["roles"] = json!([{"id": "r1", "identifier": "super-admin", "priority": 0}]);
    let token = stage.issuer.sign("key-1", &claims);
    let _connected = stage.client("17").await;
    let url = format!("http://{}/openapi.json", stage.gateway.address());
    let dir = signal_tests::services::scratch();
    let output = schemathesis(&packages, &url, &token, dir.path()).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let document = stage.gateway.rest("GET", "/openapi.json", "", None).await;
    // The tester leaves out the operation that gave it the document.
    let operations = operations(&document.expect(200).json()) - 1;
    assert!(
        operations >= 20 && text.contains(&format!("Tested: {operations}")),
        "not every one of {operations} operations was tested:\n{text}"
    );
}

fn operations(document: &Value) -> usize {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .values()
        .filter_map(Value::as_object)
        .map(|path| path.len())
        .sum()
}
