//! A registry of schemas: Apicurio, whose API is also Confluent's. It is large (160 MB) and slow to start, so no run of all tests needs it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::{Server, bound_command, run};
use crate::{cache_dir, find_program, free_port, loopback};

const VERSION: &str = "3.3.3";
/// The oldest Java that runs it.
const JAVA: u32 = 21;
/// Confluent's API within its own.
const API: &str = "/apis/ccompat/v7";

/// The folder with the program, and the Java that runs it.
#[derive(Debug, Clone)]
pub struct Apicurio {
    program: PathBuf,
    java: PathBuf,
}

impl Apicurio {
    /// Downloads it through Maven if it is missing; `say` is told what takes time.
    ///
    /// # Errors
    /// When Maven or a Java that is new enough is missing or fails.
    pub fn ensure(say: impl Fn(&str)) -> Result<Self> {
        let java = java().with_context(|| {
            format!("no Java of version {JAVA} or newer in JAVA_HOME, /usr/lib/jvm or the path")
        })?;
        let program = cache_dir()?.join(format!("apicurio-{VERSION}"));
        if !program.join("complete").is_file() {
            say(&format!(
                "downloading Apicurio {VERSION} through Maven into {}",
                program.display()
            ));
            let maven = find_program(&["mvn"]).context("mvn is not installed")?;
            let _ = fs::remove_dir_all(&program);
            fs::create_dir_all(&program)?;
            let artifact = format!("io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all");
            let mut copy = Command::new(maven);
            copy.args(["-q", "-B", "dependency:copy", "-DoutputDirectory=."])
                .arg(format!("-Dartifact={artifact}"));
            run(copy.current_dir(&program))?;
            let archive = format!("apicurio-registry-app-{VERSION}-all.tar.gz");
            let mut unpack = Command::new("tar");
            run(unpack.args(["-xzf", &archive]).current_dir(&program))?;
            fs::remove_file(program.join(&archive))?;
            fs::write(program.join("complete"), VERSION)?;
        }
        Ok(Self { program, java })
    }

    /// Starts it with everything in memory; also returns the base of Confluent's API.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, dir: &Path) -> Result<(Server, String)> {
        fs::create_dir_all(dir)?;
        let (address, management) = (loopback(free_port()?), free_port()?);
        let (java, program) = (self.java.clone(), self.program.clone());
        let command = move || {
            let mut command = bound_command(&java, None);
            command
                .args(["-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                .arg("-Dquarkus.http.host=127.0.0.1")
                .arg(format!("-Dquarkus.http.port={}", address.port()))
                .arg("-Dquarkus.management.host=127.0.0.1")
                .arg(format!("-Dquarkus.management.port={management}"))
                .arg("-jar")
                .arg(program.join("quarkus-run.jar"));
            command
        };
        let server = Server::start("apicurio", dir, address, "TERM", command, move || {
            answers(address)
        })?;
        Ok((server, format!("http://{address}{API}")))
    }
}

/// The first Java that is new enough.
fn java() -> Option<PathBuf> {
    let named = std::env::var_os("JAVA_HOME").map(PathBuf::from);
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let mut installed: Vec<PathBuf> = installed.map(|entry| entry.path()).collect();
    installed.sort();
    let folders = named.into_iter().chain(installed);
    folders
        .map(|folder| folder.join("bin/java"))
        .chain(find_program(&["java"]))
        .find(|java| version(java).is_some_and(|version| version >= JAVA))
}

/// `openjdk version "25.0.1" 2025-10-21`, on standard error.
fn version(java: &Path) -> Option<u32> {
    let said = Command::new(java).arg("-version").output().ok()?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    let quoted = text.split('"').nth(1)?;
    quoted.split(['.', '-', '+']).next()?.parse().ok()
}

fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(
            socket,
            "GET {API}/subjects HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
        )?;
        let mut status = [0; 12];
        socket.read_exact(&mut status)?;
        Ok(&status == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
