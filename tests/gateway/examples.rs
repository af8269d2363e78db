//! The programs of `examples/` do what they are examples of, with a gateway in dev mode.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use signal_tests::chaos::Proxy;
use signal_tests::gateway::example;
use signal_tests::rest;
use signal_tests::services::scratch;
use signal_tests::wait::{until, within};
use tempfile::TempDir;

use crate::dev::Dev;

/// The running client of user 17; killed when dropped.
struct Client {
    dir: TempDir,
    child: Mutex<Child>,
}

impl Client {
    /// Connects through `gateway` with the token in a file.
    async fn start(gateway: SocketAddr, token: &Path) -> Self {
        let dir = scratch();
        let output = std::fs::File::create(dir.path().join("output")).expect("a writable folder");
        let errors = output.try_clone().expect("a second handle");
        let mut command = signal_services::bound_command(&example("example-client").await, None);
        command
            .args(["--url", &format!("ws://{gateway}/stream"), "--token-file"])
            .arg(token)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = signal_services::spawn(command).expect("it starts");
        Self {
            dir,
            child: Mutex::new(child),
        }
    }

    /// All that it printed.
    fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("output")).expect("its output")
    }

    /// Waits until it has printed `text` so many times.
    async fn expect(&self, text: &str, times: usize) {
        until(&format!("{text:?}, {times} times"), || async {
            let output = self.output();
            (output.matches(text).count() >= times).then_some(())
        })
        .await;
    }

    /// Waits until it has ended by itself, and gives whether it ended well.
    async fn end(&self) -> bool {
        let status = until("the client ends", || async {
            let mut child = self.child.lock().expect("no panic");
            child.try_wait().expect("a child")
        });
        status.await.success()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("no panic");
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Runs the producer to its end and gives what it printed.
async fn produce(dev: &Dev, order: &str) -> String {
    let mut command = Command::new(example("example-producer").await);
    command.args(["--brokers", &dev.address("kafka"), "--order", order]);
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    let output = within("the producer ends", output).await;
    let output = output.expect("no panic").expect("it starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stream(dev: &Dev) -> SocketAddr {
    let url = dev.address("rest");
    url.trim_start_matches("http://")
        .parse()
        .expect("an address")
}

/// protocol.md 9.5.
#[tokio::test]
async fn the_activity_of_the_producer_is_printed_by_the_encrypted_client_once() {
    let dev = Dev::start().await;
    let proxy = Proxy::to(stream(&dev)).await;
    let token = dev.file("data dir/user-17.token");
    let client = Client::start(proxy.address(), &token).await;
    client.expect("encrypted: true", 1).await;
    let said = produce(&dev, "DH-1").await;
    assert!(
        said.starts_with("payment-DH-1 is in activity-notification, partition "),
        "{said}"
    );
    client.expect("1. Thanh toán thành công: ", 1).await;

    // What comes while the connection is lost is printed after the next one, in order, and nothing twice.
    proxy.cut();
    client.expect("the connection ended", 1).await;
    for order in ["DH-2", "DH-1", "DH-3"] {
        produce(&dev, order).await;
    }
    // Its inbox has them before it connects again.
    let inbox = format!("{}/notifications", dev.address("rest"));
    until("the inbox has all three", || async {
        let answer = rest::request("GET", &inbox, &dev.token("user-17"), None);
        let answer = rest::try_ask(answer).await.ok()?;
        (answer.json()["unreadCount"] == 3).then_some(())
    })
    .await;
    proxy.restore();
    client.expect("encrypted: true", 2).await;
    client.expect("3. Thanh", 1).await;
    produce(&dev, "DH-4").await;
    client.expect("4. Thanh", 1).await;
    let output = client.output();
    let orders: Vec<&str> = ["DH-1", "DH-2", "DH-3", "DH-4"]
        .into_iter()
        .filter(|order| output.matches(order).count() == 1)
        .collect();
    assert_eq!(orders, ["DH-1", "DH-2", "DH-3", "DH-4"], "{output}");
}

/// protocol.md 7.9 and 7.13.
#[tokio::test]
async fn the_client_ends_where_another_connection_would_not_help() {
    let dev = Dev::start().await;
    let token = dev.file("data dir/user-17.token");
    let client = Client::start(stream(&dev), &token).await;
    client.expect("connected", 1).await;
    let clients = format!("{}/socket/websocket/users/17/clients", dev.address("rest"));
    rest::ask(rest::request("DELETE", &clients, &dev.token("admin"), None)).await;
    assert!(!client.end().await);
    let output = client.output();
    assert!(
        output.contains("4007 Disconnected by administrator"),
        "{output}"
    );

    let bad = dev.file("bad.token");
    std::fs::write(&bad, "no token").expect("a writable folder");
    let client = Client::start(stream(&dev), &bad).await;
    assert!(!client.end().await);
    let output = client.output();
    assert!(
        output.contains("4003") && output.contains("another token is needed"),
        "{output}"
    );
}

#[tokio::test]
async fn the_examples_explain_their_arguments() {
    for name in ["example-client", "example-producer"] {
        let mut command = Command::new(example(name).await);
        let output = tokio::task::spawn_blocking(move || command.arg("--help").output());
        let output = within("help is printed", output).await;
        let text = String::from_utf8(output.expect("no panic").expect("it starts").stdout);
        let text = text.expect("UTF-8");
        assert!(text.contains("Usage: example-"), "{text}");
    }
}
