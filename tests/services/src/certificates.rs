use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::run;

/// How a private key is made and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivateKey {
    /// P-256 in PKCS#8.
    Pkcs8,
    /// P-256 in SEC1.
    Sec1,
    /// RSA of 2048 bits in PKCS#1.
    Rsa,
}

/// A certificate authority with a folder. Its own certificate is `ca.pem`.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes a new one in `dir`.
    ///
    /// # Errors
    /// When `openssl` is not installed or fails.
    pub fn new(dir: &Path) -> Result<Self> {
        let authority = Self { dir: dir.into() };
        authority.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -x509 -days 30 -keyout ca.key -out ca.pem",
            &["-subj", "/CN=test authority"],
        )?;
        Ok(authority)
    }

    /// Issues a certificate for one address: `NAME.pem`, and its key in `NAME.key`.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub fn issue(&self, name: &str, ip: Ipv4Addr, key: PrivateKey) -> Result<()> {
        std::fs::write(
            self.dir.join(format!("{name}.san")),
            format!("subjectAltName=IP:{ip}\n"),
        )
        .context("cannot write next to the certificate")?;
        let kind = match key {
            PrivateKey::Pkcs8 | PrivateKey::Sec1 => "ec -pkeyopt ec_paramgen_curve:P-256",
            PrivateKey::Rsa => "rsa:2048",
        };
        self.openssl(
            &format!("req -newkey {kind} -nodes -keyout {name}.key -out {name}.csr"),
            &["-subj", &format!("/CN={name}")],
        )?;
        self.openssl(
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.san -out {name}.pem"
            ),
            &[],
        )?;
        if key != PrivateKey::Pkcs8 {
            self.openssl(
                &format!("pkey -traditional -in {name}.key -out {name}.other"),
                &[],
            )?;
            std::fs::rename(
                self.dir.join(format!("{name}.other")),
                self.dir.join(format!("{name}.key")),
            )
            .context("cannot rename the key")?;
        }
        Ok(())
    }

    fn openssl(&self, arguments: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).args(more);
        run(command.current_dir(&self.dir))
    }
}

/// Makes a new authority in `dir` and a certificate of it for one address: `ca.pem`, `cert.pem`, `key.pem`.
///
/// # Errors
/// When `openssl` is not installed or fails.
pub fn certificates(dir: &Path, ip: Ipv4Addr) -> Result<()> {
    Authority::new(dir)?.issue("cert", ip, PrivateKey::Pkcs8)?;
    std::fs::rename(dir.join("cert.key"), dir.join("key.pem")).context("cannot rename the key")
}
