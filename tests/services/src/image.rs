//! Container images from scratch: one layer of named files, as an archive that containerd imports.
//!
//! The archive is the same, byte for byte, whenever its files are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The user that images without root run as.
const NONROOT: u32 = 65532;
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

enum Entry {
    File(PathBuf, u32),
    Text(String),
    Link(String),
}

/// An image being put together.
pub struct Image {
    reference: String,
    /// By absolute path in the image.
    entries: BTreeMap<String, Entry>,
    entrypoint: Vec<String>,
    environment: Vec<String>,
    user: Option<u32>,
}

impl Image {
    /// An empty image with a full reference: `localhost/signal-gateway:1`.
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            environment: Vec::new(),
            user: None,
        }
    }

    /// Adds a file of this machine; `mode` is like `0o755`.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn file(mut self, from: &Path, to: &str, mode: u32) -> Result<Self> {
        let from =
            fs::canonicalize(from).with_context(|| format!("cannot find {}", from.display()))?;
        self.entries.insert(to.to_owned(), Entry::File(from, mode));
        Ok(self)
    }

    /// Adds a program and the shared libraries that `ldd` names, those where they are here.
    ///
    /// # Errors
    /// When it does not exist, or a library of it does not.
    pub fn program(mut self, from: &Path, to: &str) -> Result<Self> {
        self = self.file(from, to, 0o755)?;
        let output = Command::new("ldd")
            .arg(from)
            .output()
            .context("cannot run ldd")?;
        // It fails for a program that needs none.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if line.contains("not found") {
                bail!(
                    "{} needs a library that is missing: {}",
                    from.display(),
                    line.trim()
                );
            }
            let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
            let path = path.split(" (0x").next().unwrap_or_default();
            if path.starts_with('/') && line.contains("(0x") {
                self = self.file(Path::new(path), path, 0o755)?;
            }
        }
        Ok(self)
    }

    /// Adds a file with this text, readable by all.
    pub fn text(mut self, to: &str, text: &str) -> Self {
        self.entries
            .insert(to.to_owned(), Entry::Text(text.to_owned()));
        self
    }

    /// Adds a symbolic link.
    pub fn link(mut self, target: &str, to: &str) -> Self {
        self.entries
            .insert(to.to_owned(), Entry::Link(target.to_owned()));
        self
    }

    /// What runs, with its first arguments.
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Sets an environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Runs as user and group 65532, `nonroot`, with this machine's certificate authorities.
    ///
    /// # Errors
    /// When the machine has no bundle of authorities.
    pub fn nonroot(mut self) -> Result<Self> {
        self.user = Some(NONROOT);
        self.text("/etc/passwd", &format!("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/:/sbin/nologin\n"))
            .text("/etc/group", &format!("root:x:0:\nnonroot:x:{NONROOT}:\n"))
            .file(Path::new(BUNDLE), BUNDLE, 0o644)
    }

    /// Writes the archive: an OCI image layout in a tar file.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, to: &Path) -> Result<()> {
        // The layer is hashed before it can be named in the archive.
        let layer = to.with_extension("layer");
        let written = self
            .write_around(&layer, to)
            .with_context(|| format!("cannot write {}", to.display()));
        let _ = fs::remove_file(&layer);
        written
    }

    fn write_around(&self, layer: &Path, to: &Path) -> Result<()> {
        let mut out = BufWriter::new(File::create(layer)?);
        self.write_layer(&mut out)?;
        out.flush()?;
        let scratch = to.with_extension("blob");
        let digest_of = |text: &str| -> Result<String> {
            fs::write(&scratch, text)?;
            sha256(&scratch)
        };
        let (layer_digest, layer_size) = (sha256(layer)?, fs::metadata(layer)?.len());
        let config = self.config(&layer_digest);
        let config_digest = digest_of(&config)?;
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{layer_digest}","size":{layer_size}}}]}}"#,
            config.len()
        );
        let manifest_digest = digest_of(&manifest)?;
        let tag = self.reference.rsplit(':').next().unwrap_or("latest");
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{manifest_digest}","size":{},"platform":{{"architecture":"{}","os":"linux"}},"annotations":{{"io.containerd.image.name":"{}","org.opencontainers.image.ref.name":"{tag}"}}}}]}}"#,
            manifest.len(),
            architecture(),
            self.reference
        );
        let _ = fs::remove_file(&scratch);

        let mut out = BufWriter::new(File::create(to)?);
        for (name, text) in [
            ("oci-layout".to_owned(), r#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json".to_owned(), &index),
            (format!("blobs/sha256/{config_digest}"), &config),
            (format!("blobs/sha256/{manifest_digest}"), &manifest),
        ] {
            header(&mut out, &name, b'0', 0o644, text.len() as u64, "")?;
            body(&mut out, &mut text.as_bytes())?;
        }
        header(
            &mut out,
            &format!("blobs/sha256/{layer_digest}"),
            b'0',
            0o644,
            layer_size,
            "",
        )?;
        body(&mut out, &mut File::open(layer)?)?;
        out.write_all(&[0; 1024])?;
        out.flush()?;
        Ok(())
    }

    fn config(&self, layer: &str) -> String {
        let words = |words: &[String]| {
            words
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(",")
        };
        let mut environment = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
        environment.extend_from_slice(&self.environment);
        let user = self
            .user
            .map(|user| format!(r#","User":"{user}:{user}""#))
            .unwrap_or_default();
        format!(
            r#"{{"architecture":"{}","os":"linux","created":"1970-01-01T00:00:00Z","rootfs":{{"type":"layers","diff_ids":["sha256:{layer}"]}},"config":{{"Env":[{}],"Entrypoint":[{}],"WorkingDir":"/"{user}}}}}"#,
            architecture(),
            words(&environment),
            words(&self.entrypoint)
        )
    }

    fn write_layer(&self, out: &mut impl Write) -> Result<()> {
        // Folders before what is in them, and the ones that every program may expect.
        let mut folders: BTreeMap<String, u32> = ["dev", "etc", "proc", "sys"]
            .map(|name| (name.to_owned(), 0o755))
            .into();
        folders.insert("tmp".to_owned(), 0o1777);
        for path in self.entries.keys() {
            let path = path.trim_start_matches('/');
            for (at, _) in path.match_indices('/') {
                folders.entry(path[..at].to_owned()).or_insert(0o755);
            }
        }
        for (name, mode) in &folders {
            header(out, &format!("{name}/"), b'5', *mode, 0, "")?;
        }
        for (path, entry) in &self.entries {
            let name = path.trim_start_matches('/');
            match entry {
                Entry::File(from, mode) => {
                    let mut file = File::open(from)
                        .with_context(|| format!("cannot read {}", from.display()))?;
                    header(out, name, b'0', *mode, file.metadata()?.len(), "")?;
                    body(out, &mut file)?;
                }
                Entry::Text(text) => {
                    header(out, name, b'0', 0o644, text.len() as u64, "")?;
                    body(out, &mut text.as_bytes())?;
                }
                Entry::Link(target) => header(out, name, b'2', 0o777, 0, target)?,
            }
        }
        out.write_all(&[0; 1024])?;
        Ok(())
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum")
        .arg(file)
        .output()
        .context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let digest = text
        .split_whitespace()
        .next()
        .filter(|digest| digest.len() == 64);
    digest
        .map(str::to_owned)
        .with_context(|| format!("sha256sum failed for {}", file.display()))
}

/// The 512 bytes before each member of a tar file, in the POSIX form: owner root, made in 1970.
fn header(
    out: &mut impl Write,
    name: &str,
    kind: u8,
    mode: u32,
    size: u64,
    link: &str,
) -> Result<()> {
    // A long path is split at a slash into a prefix of at most 155 bytes and a name of at most 100.
    let cut = if name.len() <= 100 {
        None
    } else {
        name.match_indices('/')
            .map(|(at, _)| at)
            .find(|at| name.len() - at - 1 <= 100)
    };
    let (prefix, name) = cut.map_or(("", name), |at| (&name[..at], &name[at + 1..]));
    if name.len() > 100 || prefix.len() > 155 || link.len() > 100 {
        bail!("a path is too long for a tar file: {prefix}/{name} {link}");
    }
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&block)?;
    Ok(())
}

/// A member's bytes, filled up to whole blocks.
fn body(out: &mut impl Write, from: &mut impl io::Read) -> Result<()> {
    let size = io::copy(from, out)?;
    let over = usize::try_from(size % 512)?;
    if over > 0 {
        out.write_all(&[0; 512][over..])?;
    }
    Ok(())
}
