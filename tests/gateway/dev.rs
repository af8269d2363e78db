//! Dev mode as a person meets it: started, read, pasted from, ended and started again.

pub(crate) mod producers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use signal_tests::producer::{Producer, payment};
use signal_tests::services::{scratch, skip};
use signal_tests::wait::{until, until_within, within};
use signal_tests::{Client, Gateway, rest};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const START_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// A running `signal-gateway dev`; killed when dropped.
pub(crate) struct Dev {
    dir: TempDir,
    environment: Vec<(&'static str, String)>,
    child: Child,
}

impl Dev {
    pub(crate) async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    async fn start_with(environment: Vec<(&'static str, String)>) -> Self {
        let dir = scratch();
        let child = spawn(&dir, &environment).await;
        let dev = Self {
            dir,
            environment,
            child,
        };
        dev.expect_sheet().await;
        dev
    }

    /// Ctrl-C.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        signal_services::signal(self.child.id(), "INT");
        let child = Mutex::new(&mut self.child);
        until("it ends", || async {
            child.lock().expect("no panic").try_wait().expect("a child")
        })
        .await
    }

    /// The same folder again, on other ports.
    async fn start_again(&mut self) {
        self.child = spawn(&self.dir, &self.environment).await;
        self.expect_sheet().await;
    }

    /// What it printed once it was ready.
    async fn expect_sheet(&self) -> String {
        until_within(START_LIMIT, "the lines to paste", || async {
            Some(self.read("stdout")).filter(|text| text.contains("Ctrl-C"))
        })
        .await
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn address(&self, part: &str) -> String {
        let addresses: Value =
            serde_json::from_str(&self.read("data dir/addresses.json")).expect("JSON");
        addresses[part].as_str().expect(part).to_owned()
    }

    pub(crate) fn token(&self, of: &str) -> String {
        self.read(&format!("data dir/{of}.token"))
    }

    async fn client(&self, user: &str) -> Client {
        let address: SocketAddr = self
            .address("rest")
            .trim_start_matches("http://")
            .parse()
            .expect("an address");
        Client::open_encrypted(address, &self.token(&format!("user-{user}"))).await
    }

    async fn produce(&self, record: &Value, headers: &[(&str, &str)]) {
        let producer = Producer::new(&self.address("kafka")).expect("good settings");
        producer
            .send_raw(
                "activity-notification",
                "42",
                record.to_string().as_bytes(),
                headers,
            )
            .await
            .expect("acknowledged");
    }

    async fn inbox(&self, token: &str) -> Value {
        rest::ask(rest::request(
            "GET",
            &format!("{}/notifications", self.address("rest")),
            token,
            None,
        ))
        .await
        .expect(200)
        .json()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn spawn(dir: &TempDir, environment: &[(&'static str, String)]) -> Child {
    let program = PathBuf::from(Gateway::build().program().await.get_program());
    let mut command = signal_services::bound_command(&program, None);
    command
        .arg("dev")
        .arg("--data-dir")
        .arg(dir.path().join("data dir"));
    command.args([
        "--public",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--kafka-port",
        "0",
        "--issuer-port",
        "0",
    ]);
    let file =
        |name: &str| std::fs::File::create(dir.path().join(name)).expect("a writable folder");
    command
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"));
    signal_services::spawn(command).expect("it starts")
}

/// Runs a line as a person's shell does.
async fn paste(line: &str) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    within("a pasted line ends", output)
        .await
        .expect("no panic")
        .expect("a shell")
}

/// An activity that names no id, as people write them.
fn anonymous(amount: u64) -> Value {
    let mut record = payment("x", "42", amount);
    record.as_object_mut().expect("an object").remove("id");
    record
}

#[tokio::test]
async fn an_activity_appears_and_the_inbox_survives_a_restart() {
    let mut dev = Dev::start().await;
    let (mut first, mut second) = (dev.client("17").await, dev.client("18").await);
    dev.produce(&anonymous(1), &[]).await;
    for client in [&mut first, &mut second] {
        let created = client.expect("notification:created").await;
        assert!(created.sealed);
        assert_eq!(
            (
                created.data["unreadCount"].as_i64(),
                created.data["notification"]["merchantId"].as_str()
            ),
            (Some(1), Some("42"))
        );
    }
    let token = dev.token("user-17");
    assert!(dev.end().await.success());
    assert_eq!(first.expect_closed().await.0, 1001);

    dev.start_again().await;
    assert_eq!(
        dev.inbox(&token).await["data"].as_array().unwrap().len(),
        1,
        "the inbox is kept, and the token still good"
    );
    // The broker counts from 0 again, and this record names no id either: it is another one all the same.
    let mut client = dev.client("17").await;
    dev.produce(&anonymous(1), &[]).await;
    let created = client.expect("notification:created").await;
    assert_eq!(
        (
            created.data["unreadCount"].as_i64(),
            created.data["notification"]["seq"].as_i64()
        ),
        (Some(2), Some(2))
    );
    assert!(dev.end().await.success());
}

#[tokio::test]
async fn everything_it_prints_can_be_pasted() {
    let dev = Dev::start().await;
    let sheet = dev.expect_sheet().await;
    let line = |part: &str| {
        let line = sheet
            .lines()
            .find(|line| line.starts_with("  ") && line.contains(part));
        line.unwrap_or_else(|| panic!("no line has {part:?}:\n{sheet}"))
            .trim()
            .to_owned()
    };
    let watched = dev.file("watched");
    let mut watch = Command::new("sh");
    // `exec`, so that what is killed in the end is the watcher and not its shell.
    watch
        .arg("-c")
        .arg(format!("exec {}", line(" dev watch ")))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&watched).unwrap());
    let mut watch = signal_services::spawn(watch).unwrap();
    let shown = async |what: &str| {
        until(what, || async {
            Some(dev.read("watched")).filter(|text| text.contains(what))
        })
        .await
    };
    shown("encrypted").await;

    let produced = paste(&line(" dev produce ")).await;
    assert!(produced.status.success(), "{produced:?}");
    let text = shown("(unread: 1)").await;
    assert!(
        text.contains("notification:created  Thanh toán thành công: Đơn hàng DH-1001"),
        "{text}"
    );

    let has = async |tool: &str| paste(&format!("command -v {tool}")).await.status.success();
    if has("kcat").await {
        assert!(paste(&line("kcat")).await.status.success());
        shown("(unread: 2)").await;
    } else {
        skip("part of it: kcat is not installed");
    }
    if has("curl").await {
        for (part, expected) in [
            ("/notifications", "Thanh toán"),
            ("/socket/websocket/clients", "\"userId\":\"17\""),
            ("/status", "\"ready\":true"),
        ] {
            let answer = paste(&line(part)).await;
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(
                answer.status.success() && text.contains(expected),
                "{part}: {text}"
            );
        }
    } else {
        skip("part of it: curl is not installed");
    }
    for user in ["user 17", "user 18", "administrator, user 1"] {
        let token = sheet
            .lines()
            .skip_while(|line| line.trim() != user)
            .nth(1)
            .unwrap()
            .trim();
        let answer = rest::try_ask(rest::request(
            "GET",
            &format!("{}/notifications", dev.address("rest")),
            token,
            None,
        ))
        .await
        .unwrap();
        answer.expect(200);
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[tokio::test]
async fn it_is_reached_from_this_machine_alone_unless_told_otherwise() {
    let dir = scratch();
    let mut command = Gateway::build().program().await;
    command
        .arg("dev")
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--public", "0.0.0.0:0"])
        .stdin(Stdio::null());
    let output = within(
        "it ends",
        tokio::task::spawn_blocking(move || command.output()),
    )
    .await
    .unwrap()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("--allow-non-loopback"),
        "{text}"
    );
}

#[tokio::test]
async fn one_trace_leads_from_the_records_header_to_the_socket() {
    let (collector, bodies) = collect().await;
    let mut dev = Dev::start_with(vec![(
        "SIGNAL__OBSERVABILITY__TRACING__ENDPOINT",
        format!("http://{collector}/v1/traces"),
    )])
    .await;
    let mut client = dev.client("17").await;
    // The example of W3C Trace Context.
    dev.produce(
        &anonymous(1),
        &[(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )],
    )
    .await;
    client.expect("notification:created").await;
    assert!(dev.end().await.success());
    let sent = bodies.lock().unwrap().clone();
    let count = |part: &[u8]| {
        sent.windows(part.len())
            .filter(|window| *window == part)
            .count()
    };
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    assert_eq!(count(&trace), 3, "the record, its rows, its push");
    assert_eq!(
        count(&0xb7ad_6b71_6920_3331_u64.to_be_bytes()),
        1,
        "the producer's span is the parent of one"
    );
    // Protocol Buffers: a span's name is field 5, with its length.
    for name in ["activity", "store", "push"] {
        let field = [&[5 << 3 | 2, name.len() as u8], name.as_bytes()].concat();
        assert!(count(&field) >= 1, "{name}");
    }
}

/// Takes what is posted to it, over HTTP.
async fn collect() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let address = listener.local_addr().expect("a bound address");
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&bodies);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut read = Vec::new();
                loop {
                    let mut buffer = [0; 4096];
                    let Some(end) = read
                        .windows(4)
                        .position(|window| window == b"\r\n\r\n")
                        .map(|at| at + 4)
                    else {
                        match socket.read(&mut buffer).await {
                            Ok(length) if length > 0 => read.extend_from_slice(&buffer[..length]),
                            _ => return,
                        }
                        continue;
                    };
                    let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "))
                        .and_then(|n| n.trim().parse().ok())
                        .unwrap_or(0);
                    while read.len() < end + length {
                        match socket.read(&mut buffer).await {
                            Ok(length) if length > 0 => read.extend_from_slice(&buffer[..length]),
                            _ => return,
                        }
                    }
                    all.lock()
                        .expect("no panic")
                        .extend(read.drain(..end + length).skip(end));
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n").await;
                }
            });
        }
    });
    (address, bodies)
}

#[tokio::test]
async fn a_bad_record_goes_to_the_dead_letters_of_the_embedded_broker() {
    let dev = Dev::start().await;
    dev.produce(&json!({"no": "type"}), &[]).await;
    let metrics = format!("{}/metrics", dev.address("admin"));
    until("the dead letter is counted", || async {
        let text = rest::try_ask(rest::http().get(&metrics)).await.ok()?.text;
        text.lines()
            .any(|line| {
                line.contains("dead_letters")
                    && line.contains("missing_field")
                    && line.ends_with(" 1")
            })
            .then_some(())
    })
    .await;
}
