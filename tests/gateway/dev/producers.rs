//! "Any Kafka producer" of the README: client libraries of other makes than librdkafka, unmodified, against the embedded broker.

use std::process::{Command, Stdio};

use serde_json::json;
use signal_services::{KafkaInstallation, Packages, bound_command, find_program};
use signal_tests::Client;
use signal_tests::services::{scratch, skip};

use tokio::time::timeout;

use super::Dev;

const TOPIC: &str = "activity-notification";
/// Java, or Node with a client, takes seconds to start on a busy machine.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

fn record(order: &str) -> String {
    json!({"type": "PAYMENT_SUCCESS", "actorId": "17", "recipientType": "merchant", "merchantId": "42",
           "data": {"amount": 1, "currency": "VND", "orderId": order}})
    .to_string()
}

/// Runs a program of this folder with Node, where the packages of npm are installed.
pub(crate) async fn run_node(name: &str, text: &str, arguments: Vec<String>) -> Option<()> {
    let packages = match Packages::Npm.find() {
        Ok(packages) => packages,
        Err(reason) => {
            skip(&format!("{reason:#}"));
            return None;
        }
    };
    let dir = scratch();
    let program = dir.path().join(name);
    std::fs::write(&program, text).expect("a writable folder");
    // Modules are found beside the program.
    std::os::unix::fs::symlink(
        packages.join("node_modules"),
        dir.path().join("node_modules"),
    )
    .expect("a writable folder");
    let mut node = bound_command(&Packages::Npm.program().expect("found above"), None);
    node.arg(&program).args(arguments).current_dir(dir.path());
    run(node).await;
    Some(())
}

async fn run(mut command: Command) {
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = timeout(LIMIT, output).await.expect("it ends in time");
    let output = output.expect("no panic").expect("it starts");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn expect_orders(client: &mut Client, orders: &[&str]) {
    for order in orders {
        let created = client.expect("notification:created").await;
        assert_eq!(created.data["notification"]["data"]["orderId"], *order);
    }
}

#[tokio::test]
async fn a_producer_in_pure_javascript_asks_for_versions_that_the_mock_does_not_speak() {
    let dev = Dev::start().await;
    let mut client = dev.client("17").await;
    let orders = ["platformatic", "framework"];
    let mut arguments = vec![dev.address("kafka"), TOPIC.to_owned()];
    arguments.extend(orders.map(record));
    let text = include_str!("../programs/platformatic.mjs");
    if run_node("platformatic.mjs", text, arguments)
        .await
        .is_some()
    {
        expect_orders(&mut client, &orders).await;
    }
}

#[tokio::test]
async fn kafkajs_produces_to_the_embedded_broker() {
    let dev = Dev::start().await;
    let mut client = dev.client("17").await;
    let orders = ["kafkajs"];
    let mut arguments = vec![dev.address("kafka"), TOPIC.to_owned()];
    arguments.extend(orders.map(record));
    let text = include_str!("../programs/kafkajs.mjs");
    if run_node("kafkajs.mjs", text, arguments).await.is_some() {
        expect_orders(&mut client, &orders).await;
    }
}

#[tokio::test]
async fn apache_kafkas_own_client_produces_to_the_embedded_broker() {
    let Some(kafka) = KafkaInstallation::find() else {
        return skip("the jars of Apache Kafka are not installed (`cargo xtask setup`)");
    };
    if find_program(&["javac"]).is_none() {
        return skip("javac is not installed, which compiles the program");
    }
    let dev = Dev::start().await;
    let mut client = dev.client("17").await;
    let dir = scratch();
    let program = dir.path().join("Produce.java");
    std::fs::write(&program, include_str!("../programs/Produce.java")).expect("a writable folder");
    let mut java = kafka.java().expect("found above");
    java.arg(&program)
        .args([&dev.address("kafka"), TOPIC, &record("java")]);
    run(java).await;
    expect_orders(&mut client, &["java"]).await;
}
