use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::run;

/// Makes a new authority in `dir` and a certificate of it for one address: `ca.pem`, `cert.pem`, `key.pem`.
///
/// # Errors
/// When `openssl` is not installed or fails.
pub fn certificates(dir: &Path, ip: Ipv4Addr) -> Result<()> {
    let openssl =
        |arguments: &[&str]| run(Command::new("openssl").args(arguments).current_dir(dir));
    std::fs::write(dir.join("san"), format!("subjectAltName=IP:{ip}\n"))
        .context("cannot write next to the certificate")?;
    let new_key = [
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    openssl(
        &[
            &new_key[..],
            &[
                "-x509",
                "-days",
                "30",
                "-subj",
                "/CN=test authority",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ],
        ]
        .concat(),
    )?;
    openssl(
        &[
            &new_key[..],
            &[
                "-subj",
                "/CN=server",
                "-keyout",
                "key.pem",
                "-out",
                "csr.pem",
            ],
        ]
        .concat(),
    )?;
    let authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(
        &[
            &["x509", "-req", "-in", "csr.pem"][..],
            &authority,
            &["-days", "30", "-extfile", "san", "-out", "cert.pem"],
        ]
        .concat(),
    )
}
