//! One Apache Kafka broker, and the folder of jars it runs from.
//!
//! Maven downloads the jars once. Its folder also holds a formatted log folder, of which every broker starts with a copy, and a
//! class data archive, which halves the start. All of it is in the cache folder and made again only when it is missing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::{Server, bound_command, run};
use crate::{Network, cache_dir, find_program, free_port, loopback};

const VERSION: &str = "4.3.1";
/// Grows when anything in the folder is made another way, so that an older one is not used.
const LAYOUT: u32 = 1;
const POM: &str = include_str!("../kafka/pom.xml");
const PROPERTIES: &str = include_str!("../kafka/server.properties");
const LOGGING: &str = include_str!("../kafka/log4j2.yaml");
/// Any 16 bytes in URL-safe base64.
const CLUSTER_ID: &str = "c2lnbmFsLXRlc3RzLTAwMQ";
const JVM: [&str; 6] = [
    "-Xms64m",
    "-Xmx320m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
];

/// The folder with the jars, the formatted log and the class data archive.
#[derive(Debug, Clone)]
pub struct KafkaInstallation(PathBuf);

impl KafkaInstallation {
    /// The folder, if [`KafkaInstallation::ensure`] completed it earlier and Java is installed.
    pub fn find() -> Option<Self> {
        find_program(&["java"])?;
        let installation = Self::path().ok()?;
        installation
            .join("complete")
            .is_file()
            .then_some(Self(installation))
    }

    /// Downloads and prepares what is missing; `say` is told what takes time.
    ///
    /// # Errors
    /// When Java or Maven is missing or fails.
    pub fn ensure(say: impl Fn(&str)) -> Result<Self> {
        if let Some(installation) = Self::find() {
            return Ok(installation);
        }
        let installation = Self::path()?;
        let parent = installation
            .parent()
            .context("the cache folder has a parent")?;
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        // Prepared under another name and renamed, so that two runs at once never see half a folder.
        let draft = parent.join(format!("kafka.{}.draft", std::process::id()));
        let _ = fs::remove_dir_all(&draft);
        fs::create_dir_all(&draft)?;
        say(&format!(
            "downloading Apache Kafka {VERSION} through Maven into {}",
            installation.display()
        ));
        prepare(&draft, &say)?;
        fs::write(draft.join("complete"), VERSION)?;
        if fs::rename(&draft, &installation).is_err() {
            let _ = fs::remove_dir_all(&installation);
            fs::rename(&draft, &installation)
                .with_context(|| format!("cannot move Kafka to {}", installation.display()))?;
        }
        // The archive checks the path of its class path, so it is made where it will be used.
        say("archiving Kafka's classes for quicker starts");
        let installation = Self(installation);
        if let Err(error) = installation.archive() {
            say(&format!(
                "no class data archive, brokers start a little slower: {error:#}"
            ));
        }
        Ok(installation)
    }

    fn path() -> Result<PathBuf> {
        Ok(cache_dir()?.join(format!("kafka-{VERSION}-{LAYOUT}")))
    }

    /// Java with Kafka's jars, its own client among them, without a program to run.
    ///
    /// # Errors
    /// When Java is not installed.
    pub fn java(&self) -> Result<Command> {
        let java = find_program(&["java"]).context("java is not installed")?;
        let mut command = bound_command(&java, None);
        command.args(JVM).arg("-cp").arg(self.0.join("lib/*"));
        command.arg(format!(
            "-Dlog4j2.configurationFile={}",
            self.0.join("log4j2.yaml").display()
        ));
        Ok(command)
    }

    fn archive(&self) -> Result<()> {
        let scratch = self.0.join("scratch");
        let flag = format!(
            "-XX:ArchiveClassesAtExit={}",
            self.0.join("classes.jsa").display()
        );
        let mut broker = Kafka::start_with(&Network::loopback(), self, &scratch, Some(flag), "")?;
        broker.stop();
        fs::remove_dir_all(&scratch)?;
        Ok(())
    }
}

/// How to start a broker.
pub struct Kafka;

impl Kafka {
    /// Starts a broker with its data in `dir`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(installation: &KafkaInstallation, dir: &Path) -> Result<Server> {
        Self::start_in(&Network::loopback(), installation, dir)
    }

    /// Starts a broker in a network, which it advertises its address of.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_in(
        network: &Network,
        installation: &KafkaInstallation,
        dir: &Path,
    ) -> Result<Server> {
        Self::start_with(
            network,
            installation,
            dir,
            Self::archive_flag(installation),
            "",
        )
    }

    /// Starts a broker with a clear listener and one that requires SCRAM-SHA-512; also returns the address of the second.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_scram(
        installation: &KafkaInstallation,
        dir: &Path,
    ) -> Result<(Server, SocketAddr)> {
        Self::start_with_listener(
            installation,
            dir,
            "SASL_PLAINTEXT",
            "sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.second.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n",
        )
    }

    /// Starts a broker with a clear listener and one that requires OAUTHBEARER; also returns the address of the second. It takes unsigned tokens with
    /// `sub`, `iat` and `exp`, and none after its end.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_oauth(
        installation: &KafkaInstallation,
        dir: &Path,
    ) -> Result<(Server, SocketAddr)> {
        Self::start_with_listener(
            installation,
            dir,
            "SASL_PLAINTEXT",
            "sasl.enabled.mechanisms=OAUTHBEARER\n\
             listener.name.second.oauthbearer.connections.max.reauth.ms=3600000\n\
             listener.name.second.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";\n",
        )
    }

    /// Starts a broker with a clear listener and one over TLS that requires a certificate of the client; also returns the address of the second.
    /// `identity` is a PEM file with the broker's private key (PKCS#8) and certificate.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_tls(
        installation: &KafkaInstallation,
        dir: &Path,
        identity: &Path,
        authorities: &Path,
    ) -> Result<(Server, SocketAddr)> {
        let tls = format!(
            "listener.name.second.ssl.keystore.type=PEM\n\
             listener.name.second.ssl.keystore.location={}\n\
             listener.name.second.ssl.truststore.type=PEM\n\
             listener.name.second.ssl.truststore.location={}\n\
             listener.name.second.ssl.client.auth=required\n",
            identity.display(),
            authorities.display()
        );
        Self::start_with_listener(installation, dir, "SSL", &tls)
    }

    fn start_with_listener(
        installation: &KafkaInstallation,
        dir: &Path,
        protocol: &str,
        properties: &str,
    ) -> Result<(Server, SocketAddr)> {
        let at = loopback(free_port()?);
        let server = Self::start_with_second(installation, dir, at, at, protocol, properties)?;
        Ok((server, at))
    }

    /// Starts a broker with a clear listener and one called `SECOND` at `at`, whose clients are told to come to `advertised`.
    fn start_with_second(
        installation: &KafkaInstallation,
        dir: &Path,
        at: SocketAddr,
        advertised: SocketAddr,
        protocol: &str,
        properties: &str,
    ) -> Result<Server> {
        let listener = format!(
            "listeners=PLAINTEXT://127.0.0.1:@PORT@,SECOND://{at},CONTROLLER://127.0.0.1:@CONTROLLER_PORT@\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SECOND://{advertised}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECOND:{protocol},CONTROLLER:PLAINTEXT\n\
             {properties}"
        );
        Self::start_with(
            &Network::loopback(),
            installation,
            dir,
            Self::archive_flag(installation),
            &listener,
        )
    }

    /// Starts a broker with a second clear listener, whose clients are told to come to `advertised`: for a proxy there that none gets around. Also
    /// returns where that listener is.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_behind(
        installation: &KafkaInstallation,
        dir: &Path,
        advertised: SocketAddr,
    ) -> Result<(Server, SocketAddr)> {
        let at = loopback(free_port()?);
        let server = Self::start_with_second(installation, dir, at, advertised, "PLAINTEXT", "")?;
        Ok((server, at))
    }

    /// Sets the one SCRAM-SHA-512 password of a user; connections made with the one before stay.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn set_scram_password(
        installation: &KafkaInstallation,
        broker: SocketAddr,
        user: &str,
        password: &str,
    ) -> Result<()> {
        let mut command = installation.java()?;
        command.args([
            "kafka.admin.ConfigCommand",
            "--bootstrap-server",
            &broker.to_string(),
            "--alter",
        ]);
        command.args(["--entity-type", "users", "--entity-name", user]);
        run(command.arg("--add-config").arg(format!(
            "SCRAM-SHA-512=[iterations=4096,password={password}]"
        )))
    }

    fn archive_flag(installation: &KafkaInstallation) -> Option<String> {
        let archive = installation.0.join("classes.jsa");
        archive
            .is_file()
            .then(|| format!("-XX:SharedArchiveFile={}", archive.display()))
    }

    /// A property of `more` comes after the one of the template, and the last one counts.
    fn start_with(
        network: &Network,
        installation: &KafkaInstallation,
        dir: &Path,
        flag: Option<String>,
        more: &str,
    ) -> Result<Server> {
        fs::create_dir_all(dir)?;
        let log = dir.join("log");
        copy_folder(&installation.0.join("formatted"), &log)?;
        let (port, controller) = (network.free_port()?, network.free_port()?);
        let properties = dir.join("server.properties");
        let text = render(&format!("{PROPERTIES}\n{more}"), &log, port, controller);
        fs::write(
            &properties,
            text.replace("127.0.0.1:", &format!("{}:", network.ip())),
        )?;
        installation.java()?;
        let (installation, inside, network) =
            (installation.clone(), network.clone(), network.clone());
        let address = SocketAddr::from((network.ip(), port));
        let command = move || {
            let mut command = installation.java().expect("java was found a moment ago");
            command.args(&flag).arg("kafka.Kafka").arg(&properties);
            inside.command(command)
        };
        let ready = move || network.run(|| answers(address)).unwrap_or(false);
        Server::start("kafka", dir, address, "TERM", command, ready)
    }
}

fn prepare(draft: &Path, say: &impl Fn(&str)) -> Result<()> {
    let maven = find_program(&["mvn"]).context("mvn is not installed")?;
    fs::write(draft.join("pom.xml"), POM.replace("@KAFKA@", VERSION))?;
    fs::write(draft.join("log4j2.yaml"), LOGGING)?;
    let lib = draft.join("lib");
    let mut copy = Command::new(maven);
    copy.args([
        "-q",
        "-B",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
    ]);
    copy.arg(format!("-DoutputDirectory={}", lib.display()))
        .current_dir(draft);
    run(&mut copy)?;

    say("formatting a log folder");
    let installation = KafkaInstallation(draft.to_owned());
    let properties = draft.join("format.properties");
    // Ports that are never listened on: only the storage tool reads this file.
    fs::write(
        &properties,
        render(PROPERTIES, &draft.join("formatted"), 9092, 9093),
    )?;
    let mut format = installation.java()?;
    format
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(&properties);
    run(&mut format)
}

fn render(template: &str, log: &Path, port: u16, controller: u16) -> String {
    template
        .replace("@DATA@", &log.display().to_string())
        .replace("@CONTROLLER_PORT@", &controller.to_string())
        .replace("@PORT@", &port.to_string())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Asks ApiVersions (key 18, version 0) and takes any reply: the broker opens its port before it serves.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff])?;
        let mut reply = [0; 8];
        socket.read_exact(&mut reply)?;
        Ok(reply[4..] == [0, 0, 0, 1])
    };
    ask().unwrap_or(false)
}
