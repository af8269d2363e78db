//! `signal-gateway serve` as real processes: configured in a folder of their own, watched through their log and probes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;
use toml::Table;

use crate::issuer::{AUDIENCE, Issuer};
use crate::policy::Policies;
use crate::rest::{self, Answer};
use crate::services::{Database, scratch, unique};
use crate::wait::{LIMIT, until, until_within};

/// The token of the admin listener's guarded routes.
pub const ADMIN_TOKEN: &str = "admin-token-of-the-tests";

/// How long the process may take from its start to ready.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Settings of a gateway to be started; [`Gateway::build`] begins with small, quick and local ones.
#[derive(Clone)]
pub struct Builder {
    fixed: Table,
    live: Table,
    environment: Vec<(String, String)>,
    dir: Arc<TempDir>,
}

impl Builder {
    fn new() -> Self {
        let dir = Arc::new(scratch());
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(dir.path().join("admin-token"), ADMIN_TOKEN).expect("a writable folder");
        let builder = Self {
            fixed: Table::new(),
            live: Table::new(),
            environment: Vec::new(),
            dir: Arc::clone(&dir),
        };
        builder
            .set("server.public_address", "127.0.0.1:0")
            .set("server.admin_address", "127.0.0.1:0")
            .set("server.admin_token_file", path("admin-token"))
            .set("workers.shards", 2)
            .set("policy.url", format!("sqlite://{}", path("policy.db")))
            .set("policy.cache_secs", 1)
            .set("drain.endpoint_propagation_ms", 0)
            .set("drain.window_ms", 300)
            .set("drain.batch_interval_ms", 50)
            .set("drain.flush_ms", 1000)
            .live("observability.log_filter", "info,signal_gateway=debug")
    }

    /// Sets a static setting by its dotted name.
    pub fn set(mut self, name: &str, value: impl Into<toml::Value>) -> Self {
        insert(&mut self.fixed, name, value.into());
        self
    }

    /// Sets a live setting by its dotted name.
    pub fn live(mut self, name: &str, value: impl Into<toml::Value>) -> Self {
        insert(&mut self.live, name, value.into());
        self
    }

    /// Sets a variable of the process' environment.
    pub fn environment(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Trusts an issuer and its roles; it may be given several times, and the people of all of them are the same.
    pub fn trust(self, issuer: &Issuer) -> Self {
        let earlier = self
            .live
            .get("jwks")
            .and_then(|jwks| jwks.get("sources")?.as_array());
        let names: Vec<toml::Value> = earlier
            .into_iter()
            .flatten()
            .map(|source| source["name"].clone())
            .collect();
        let mut source = source(issuer);
        source.insert("same_subjects_as".into(), names.into());
        self.source(source)
    }

    /// Adds a key source as it is.
    pub fn source(mut self, source: Table) -> Self {
        let jwks = self
            .live
            .entry("jwks")
            .or_insert_with(|| toml::Value::Table(Table::new()));
        let sources = jwks
            .as_table_mut()
            .expect("a section")
            .entry("sources")
            .or_insert_with(|| toml::Value::Array(Vec::new()));
        sources
            .as_array_mut()
            .expect("an array of sources")
            .push(toml::Value::Table(source));
        self
    }

    /// Routes through a standalone Redis.
    pub fn redis(self, address: SocketAddr) -> Self {
        self.set("redis.mode", "standalone")
            .set("redis.nodes", vec![address.to_string()])
            .set("redis.self_ping_interval_ms", 300)
            .set("redis.stalled_after_ms", 2000)
    }

    /// Routes through the Redis that these sentinels watch as `mymaster`.
    pub fn sentinels(self, sentinels: Vec<String>) -> Self {
        self.redis(SocketAddr::from(([127, 0, 0, 1], 0)))
            .set("redis.mode", "sentinel")
            .set("redis.nodes", sentinels)
    }

    /// Routes through a Redis cluster with these nodes.
    pub fn cluster(self, nodes: &[SocketAddr]) -> Self {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        self.redis(SocketAddr::from(([127, 0, 0, 1], 0)))
            .set("redis.mode", "cluster")
            .set("redis.nodes", nodes)
    }

    /// Consumes a topic; every gateway of one builder is in one group.
    pub fn kafka(self, brokers: &str, topic: &str) -> Self {
        let group = unique("group");
        self.set("kafka.enabled", true)
            .set("kafka.brokers", vec![brokers.to_owned()])
            .set("kafka.topics", vec![topic.to_owned()])
            .set("kafka.group_id", group)
            .set("kafka.session_timeout_ms", 6000)
            .set("kafka.retry_initial_ms", 100)
            .set("kafka.retry_max_ms", 1000)
    }

    /// Stores in this PostgreSQL database.
    pub fn postgres(self, database: &Database) -> Self {
        self.postgres_url(&database.url)
    }

    /// Stores in PostgreSQL at this URL, with the policy tables in the same database.
    pub fn postgres_url(self, url: &str) -> Self {
        self.set("database.url", url).set("policy.url", url)
    }

    /// The folder of its configuration, for files that settings name.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The policy tables it reads, made where they are missing.
    ///
    /// # Panics
    /// When the database refuses.
    pub async fn policies(&self) -> Policies {
        let url = self.fixed["policy"]["url"].as_str().expect("a URL");
        Policies::create(url).await.expect("the policy tables")
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready within a minute; its log is shown.
    pub async fn start(self) -> Gateway {
        self.start_number(0).await
    }

    /// Starts several with the same settings, each with its own listeners and files.
    ///
    /// # Panics
    /// As [`Builder::start`].
    pub async fn start_many(self, count: usize) -> Vec<Gateway> {
        let mut gateways = Vec::new();
        for number in 0..count {
            gateways.push(Gateway::spawn(self.clone(), number).await);
        }
        for gateway in &mut gateways {
            gateway.listen().await;
        }
        for gateway in &gateways {
            gateway.expect_ready().await;
        }
        gateways
    }

    /// Starts it as the instance of this number, for a cluster whose members differ in a setting.
    ///
    /// # Panics
    /// As [`Builder::start`].
    pub async fn start_number(self, number: usize) -> Gateway {
        let mut gateway = Gateway::spawn(self, number).await;
        gateway.listen().await;
        gateway.expect_ready().await;
        gateway
    }

    /// Starts it and waits until it listens, ready or not.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn start_unready(self) -> Gateway {
        let mut gateway = Gateway::spawn(self, 0).await;
        gateway.listen().await;
        gateway
    }

    /// The gateway's program, without arguments.
    pub async fn program(&self) -> Command {
        Command::new(binary().await)
    }

    /// Writes the configuration and runs it to its end with these arguments before `--config FILE`: for settings that are wrong
    /// and for subcommands. Gives the exit status and all it wrote.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn run_to_end(self, arguments: &[&str]) -> (ExitStatus, String) {
        let files = Files::write(&self, 0);
        let mut command = Command::new(binary().await);
        command.args(arguments).arg("--config").arg(&files.config);
        run_to_end(command).await
    }
}

async fn run_to_end(mut command: Command) -> (ExitStatus, String) {
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    let output = timeout(START_LIMIT, output)
        .await
        .expect("the process ends within a minute");
    let output = output.expect("no panic").expect("the gateway starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// A source that trusts an issuer and its roles.
pub fn source(issuer: &Issuer) -> Table {
    let text = format!(
        "name = {name:?}\nissuer = {iss:?}\nurl = {url:?}\naudiences = [{AUDIENCE:?}]\nalgorithms = [\"ES256\", \"RS256\", \"EdDSA\"]\n\
         trust_roles = true\nallow_insecure_http = true",
        name = format!(
            "issuer-{}",
            issuer
                .name()
                .trim_matches('/')
                .rsplit(':')
                .next()
                .unwrap_or_default()
        ),
        iss = issuer.name(),
        url = issuer.certs_url(),
    );
    text.parse().expect("valid TOML")
}

/// A running process; killed when dropped.
pub struct Gateway {
    settings: Builder,
    files: Files,
    number: usize,
    /// How often it was started.
    starts: usize,
    child: Option<Child>,
    public: SocketAddr,
    admin: SocketAddr,
}

#[derive(Clone)]
struct Files {
    config: PathBuf,
    live: PathBuf,
    log: PathBuf,
}

impl Files {
    fn write(settings: &Builder, number: usize) -> Self {
        let file = |name: &str| settings.dir().join(format!("{number}.{name}"));
        let files = Self {
            config: file("toml"),
            live: file("live.toml"),
            log: file("log"),
        };
        let mut fixed = settings.fixed.clone();
        if !fixed.contains_key("database") {
            insert(
                &mut fixed,
                "database.url",
                format!("sqlite://{}", file("db").display()).into(),
            );
        }
        fixed.insert("live_file".into(), files.live.display().to_string().into());
        insert(
            &mut fixed,
            "server.instance_name",
            format!("gateway-{number}").into(),
        );
        std::fs::write(&files.config, fixed.to_string()).expect("a writable folder");
        std::fs::write(&files.live, settings.live.to_string()).expect("a writable folder");
        files
    }
}

impl Gateway {
    /// Settings to begin with: loopback, SQLite, no Redis, no Kafka, quick drains.
    pub fn build() -> Builder {
        Builder::new()
    }

    /// One that trusts `issuer`, alone.
    ///
    /// # Panics
    /// As [`Builder::start`].
    pub async fn trusting(issuer: &Issuer) -> Self {
        Self::build().trust(issuer).start().await
    }

    async fn spawn(settings: Builder, number: usize) -> Self {
        settings.policies().await;
        let files = Files::write(&settings, number);
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut gateway = Self {
            settings,
            files,
            number,
            starts: 0,
            child: None,
            public: unset,
            admin: unset,
        };
        gateway.spawn_process().await;
        gateway
    }

    async fn spawn_process(&mut self) {
        // Each start has its own log, so that the addresses of the last one are not found again.
        let earlier = format!("{}.log", self.starts);
        let _ = std::fs::rename(&self.files.log, self.files.log.with_extension(earlier));
        self.starts += 1;
        let log = std::fs::File::create(&self.files.log).expect("a writable folder");
        let mut command = signal_services::bound_command(&binary().await, None);
        command
            .arg("serve")
            .arg("--config")
            .arg(&self.files.config)
            .stdin(Stdio::null())
            .envs(self.settings.environment.iter().cloned());
        command
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.child = Some(signal_services::spawn(command).expect("the gateway starts"));
    }

    async fn listen(&mut self) {
        if let Err(why) = self.try_listen().await {
            panic!("{why}:\n{}", self.log());
        }
    }

    async fn try_listen(&mut self) -> Result<(), String> {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some((public, admin)) = listening(&self.log()) {
                (self.public, self.admin) = (public, admin);
                return Ok(());
            }
            if let Some(status) = self.ended() {
                return Err(format!("the gateway ended with {status}"));
            }
            if begun.elapsed() > START_LIMIT {
                return Err("the gateway says no addresses".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
    }

    /// Where `/stream` and REST are.
    pub fn address(&self) -> SocketAddr {
        self.public
    }

    /// Where probes and metrics are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Its name in lists of connections.
    pub fn instance(&self) -> String {
        format!("gateway-{}", self.number)
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A file in the folder of its configuration.
    pub fn file(&self, name: &str) -> PathBuf {
        self.settings.dir().join(name)
    }

    /// Everything it logged since its last start.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.files.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn expect_ready(&self) {
        self.expect_readiness(200).await;
    }

    /// Waits until `/readyz` answers this status.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn expect_readiness(&self, status: u16) {
        let url = format!("http://{}/readyz?verbose", self.admin);
        let last = std::sync::Mutex::new(String::new());
        let waited = timeout(START_LIMIT, async {
            until_within(START_LIMIT * 2, "readiness", || async {
                let answer = rest::try_ask(rest::http().get(&url)).await.ok()?;
                *last.lock().expect("no panic") = answer.text.clone();
                (answer.status == status).then_some(())
            })
            .await;
        });
        if waited.await.is_err() {
            panic!(
                "/readyz is not {status}: {}\n{}",
                last.lock().expect("no panic"),
                self.log()
            );
        }
    }

    /// One request to REST; `path` begins with a slash, an empty token sends none.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn rest(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> Answer {
        rest::ask(rest::request(
            method,
            &format!("http://{}{path}", self.public),
            token,
            body.as_ref(),
        ))
        .await
    }

    /// One request to the admin listener, with its token.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn admin(&self, method: &str, path: &str) -> Answer {
        self.admin_with(method, path, ADMIN_TOKEN, None).await
    }

    /// One request to the admin listener with a token (an empty one sends none) and a body.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn admin_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> Answer {
        rest::ask(rest::request(
            method,
            &format!("http://{}{path}", self.admin),
            token,
            body.as_ref(),
        ))
        .await
    }

    /// The sum of a metric over all its labels that contain `labels`; `None` while it has no sample.
    ///
    /// # Panics
    /// When `/metrics` does not answer.
    pub async fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let text = self.admin("GET", "/metrics").await.expect(200).text;
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (key, value) = line.rsplit_once(' ')?;
                let bare = key.split('{').next()?;
                (bare == name && key.contains(labels))
                    .then(|| value.parse::<f64>().ok())
                    .flatten()
            });
        samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Changes a live setting and waits until `/status` shows the new revision.
    ///
    /// # Panics
    /// When it is not taken up in time.
    pub async fn reload(&mut self, change: impl FnOnce(&mut Table)) {
        let before = self.live_revision().await;
        change(&mut self.settings.live);
        self.write_live(&self.settings.live.to_string());
        until("the new live revision", || async {
            (self.live_revision().await != before).then_some(())
        })
        .await;
    }

    /// Replaces the live file by any text, at once as a mounted volume does.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_live(&self, text: &str) {
        let draft = self.files.live.with_extension("draft");
        std::fs::write(&draft, text).expect("a writable folder");
        std::fs::rename(&draft, &self.files.live).expect("a writable folder");
    }

    async fn live_revision(&self) -> Value {
        self.admin("GET", "/status").await.expect(200).json()["liveRevision"].clone()
    }

    /// Runs the program a second time with the same settings and this one's real addresses, to its end: for subcommands that ask a
    /// running gateway, or work on what it works on. Gives the exit status and all it wrote.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn run_command(&self, arguments: &[&str]) -> (ExitStatus, String) {
        let mut command = Command::new(binary().await);
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.files.config);
        command.env("SIGNAL__SERVER__ADMIN_ADDRESS", self.admin.to_string());
        run_to_end(command).await
    }

    /// Kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            signal_services::signal(child.id(), name);
        }
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn expect_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running gateway");
        let begun = tokio::time::Instant::now();
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return status;
            }
            if begun.elapsed() > LIMIT {
                self.child = Some(child);
                panic!("the gateway did not end in {LIMIT:?}:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts it again after it was killed or ended, on other ports, and waits until it is ready.
    ///
    /// # Panics
    /// As [`Builder::start`].
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        self.spawn_process().await;
        self.listen().await;
        self.expect_ready().await;
    }

    /// [`Gateway::restart`] that waits until it listens, ready or not.
    ///
    /// # Errors
    /// Says how it ended instead, as a gateway may whose dependencies are away.
    pub async fn try_restart(&mut self) -> Result<(), String> {
        self.kill();
        self.spawn_process().await;
        self.try_listen().await
    }
}

impl Drop for Gateway {
    #[expect(
        clippy::print_stderr,
        reason = "the runner shows it with the failed test"
    )]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of the log of {} ---", self.instance());
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The addresses in the line that says `listening`, whether its fields are nested, flat or text.
fn listening(log: &str) -> Option<(SocketAddr, SocketAddr)> {
    log.lines()
        .filter(|line| line.contains("listening"))
        .find_map(|line| {
            let address = |name: &str| {
                let json: Option<Value> = serde_json::from_str(line).ok();
                let found = json
                    .as_ref()
                    .and_then(|json| json.get(name).or_else(|| json.get("fields")?.get(name)));
                let text = match found {
                    Some(value) => value.as_str()?.to_owned(),
                    None => line
                        .split(name)
                        .nth(1)?
                        .trim_start_matches(['=', '"', ':', ' '])
                        .split([' ', '"', ','])
                        .next()?
                        .to_owned(),
                };
                text.parse::<SocketAddr>().ok()
            };
            Some((address("public.address")?, address("admin.address")?))
        })
}

fn insert(table: &mut Table, name: &str, value: toml::Value) {
    match name.split_once('.') {
        None => {
            table.insert(name.to_owned(), value);
        }
        Some((section, rest)) => {
            let section = table
                .entry(section)
                .or_insert_with(|| toml::Value::Table(Table::new()));
            insert(section.as_table_mut().expect("a section"), rest, value);
        }
    }
}

/// The gateway's program: `$SIGNAL_TEST_GATEWAY`, which `cargo xtask test` built; else built here, once, in this test's profile.
pub async fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SIGNAL_TEST_GATEWAY") {
        return path.into();
    }
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    tokio::task::spawn_blocking(|| BINARY.get_or_init(build).clone())
        .await
        .expect("the gateway builds")
}

/// A program of `examples/`, beside the gateway's that `cargo xtask test` built; else built here with it.
pub async fn example(name: &str) -> PathBuf {
    binary().await;
    profile_folder().join(name)
}

/// The folder of programs of this test's profile.
fn profile_folder() -> PathBuf {
    // target/debug/deps/gateway-0123456789abcdef
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test.parent().and_then(Path::parent);
    profile.expect("a profile's folder").to_owned()
}

fn build() -> PathBuf {
    let profile = profile_folder();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // With the tests of the workspace: their features, so that nothing is compiled a second time.
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--tests"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.stdin(Stdio::null()).status().expect("cargo runs");
    assert!(status.success(), "the gateway does not build");
    profile.join("signal-gateway")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_every_shape_of_the_line() {
        let want = (
            "127.0.0.1:81".parse().unwrap(),
            "127.0.0.1:91".parse().unwrap(),
        );
        for line in [
            r#"{"message":"listening","public.address":"127.0.0.1:81","admin.address":"127.0.0.1:91"}"#,
            r#"{"level":"INFO","fields":{"message":"listening","public.address":"127.0.0.1:81","admin.address":"127.0.0.1:91"}}"#,
            "2026-11-23T08:00:00Z  INFO listening public.address=127.0.0.1:81 admin.address=127.0.0.1:91",
        ] {
            assert_eq!(
                listening(&format!("{{\"message\":\"starting\"}}\n{line}\n")),
                Some(want),
                "{line}"
            );
        }
        assert_eq!(listening("starting"), None);
    }

    #[test]
    fn dotted_names_become_sections() {
        let builder = Gateway::build()
            .set("kafka.properties.client", "a")
            .live("limits.send_queue.bytes", 5);
        assert_eq!(
            builder.fixed["kafka"]["properties"]["client"].as_str(),
            Some("a")
        );
        assert_eq!(
            builder.live["limits"]["send_queue"]["bytes"].as_integer(),
            Some(5)
        );
        assert!(
            builder.fixed["policy"]["url"]
                .as_str()
                .unwrap()
                .starts_with("sqlite:///")
        );
    }
}
