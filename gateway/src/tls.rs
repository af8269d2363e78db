//! Certificate, key and client authorities of the public listener: loaded at start, and again at each change of their files.
//!
//! Input: the files that `[server.tls]` names. Output: the `rustls` configuration for new handshakes, and what `/status` and metrics say of it. Files that
//! cannot be used change nothing: the pair before them stays, and they are read again until they can be used or are others.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, version};
use signal_contract::{ServerTls, TlsReport, TlsVersion};
use tokio_util::sync::CancellationToken;
use x509_cert::der::Decode as _;

use crate::clock::Clock;
use crate::files;
use crate::metrics::Metrics;

/// The longest of the files, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most sessions of TLS 1.2 clients without tickets that can be resumed. Tickets are kept by clients.
const SESSIONS: usize = 4096;

/// The certificates that handshakes use.
pub struct Tls {
    files: ServerTls,
    clock: Arc<dyn Clock>,
    config: ArcSwap<ServerConfig>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the content of the files at the last look.
    revision: String,
    not_after: DateTime<Utc>,
    error: Option<String>,
}

/// What the files say.
struct Look {
    config: Arc<ServerConfig>,
    not_after: DateTime<Utc>,
}

impl Tls {
    /// Reads the files; `None` where the listener is in the clear.
    ///
    /// # Errors
    /// Everything that is wrong with them, each with its setting.
    pub fn load(
        files: &ServerTls,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Arc<Self>>, Vec<String>> {
        if !files.enabled() {
            return Ok(None);
        }
        let revision = revision(files);
        let look = look(files, clock.now())?;
        warn_if_expired(look.not_after, clock.now());
        Ok(Some(Arc::new(Self {
            files: files.clone(),
            clock,
            config: ArcSwap::new(look.config),
            state: Mutex::new(State {
                revision,
                not_after: look.not_after,
                error: None,
            }),
        })))
    }

    /// What a new handshake uses.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Whether every client shows a certificate.
    pub fn demands_certificates(&self) -> bool {
        !self.files.client_ca_file.as_os_str().is_empty()
    }

    /// What `/status` says.
    pub fn report(&self) -> TlsReport {
        let state = self.state.lock();
        TlsReport {
            not_after: state.not_after.to_rfc3339_opts(SecondsFormat::Secs, true),
            error: state.error.clone(),
        }
    }

    /// Reads the files again at each change until `shutdown`, and each [`files::INTERVAL`] while they cannot be used: of two files, one may be written a
    /// moment later.
    pub async fn follow(self: Arc<Self>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
        metrics
            .tls_not_after
            .set(self.state.lock().not_after.timestamp());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(files::INTERVAL) => {}
            }
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || this.look_again());
            match looked.await {
                Ok(Some(looked)) => self.take(looked, &metrics),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Looks at the files if they are others, or could not be used.
    fn look_again(&self) -> Option<Result<Look, Vec<String>>> {
        let revision = revision(&self.files);
        {
            let mut state = self.state.lock();
            if state.revision == revision && state.error.is_none() {
                return None;
            }
            state.revision = revision;
        }
        Some(look(&self.files, self.clock.now()))
    }

    fn take(&self, looked: Result<Look, Vec<String>>, metrics: &Metrics) {
        let count = |kind: &str| {
            metrics
                .config_reloads
                .get_or_create(&Metrics::kind(kind))
                .inc();
        };
        match looked {
            Ok(look) => {
                let mut state = self.state.lock();
                (state.not_after, state.error) = (look.not_after, None);
                self.config.store(look.config);
                metrics.tls_not_after.set(look.not_after.timestamp());
                count("tls_ok");
                tracing::info!(not_after = %look.not_after, "TLS certificate reloaded; new handshakes use it");
                warn_if_expired(look.not_after, self.clock.now());
            }
            Err(problems) => {
                let text = problems.join("; ");
                let mut state = self.state.lock();
                if state.error.as_ref() != Some(&text) {
                    count("tls_error");
                    tracing::error!(error = %text, not_after = %state.not_after, "TLS files cannot be used; the certificate before them stays in use");
                    state.error = Some(text);
                }
            }
        }
    }
}

fn warn_if_expired(not_after: DateTime<Utc>, now: DateTime<Utc>) {
    if not_after < now {
        tracing::warn!(%not_after, "the TLS certificate has expired; clients will refuse it");
    }
}

/// Checks that the files can be used.
pub fn check(files: &ServerTls, now: DateTime<Utc>) -> Vec<String> {
    if !files.enabled() {
        return Vec::new();
    }
    look(files, now).err().unwrap_or_default()
}

fn revision(files: &ServerTls) -> String {
    let key = files.key_file.path().unwrap_or(Path::new(""));
    [&files.certificate_file, key, &files.client_ca_file]
        .map(files::revision)
        .concat()
}

fn look(files: &ServerTls, now: DateTime<Utc>) -> Result<Look, Vec<String>> {
    let mut problems = Vec::new();
    let mut note = |name: &str, path: &Path, result: String| {
        problems.push(format!("server.tls.{name}: {}: {result}", path.display()));
    };
    let certificate_file = files.certificate_file.as_path();
    let key_file = files.key_file.path().unwrap_or(Path::new(""));
    let chain = certificates(certificate_file)
        .and_then(|chain| validity(&chain[0]).map(|validity| (chain, validity)));
    let chain = chain.map_err(|error| note("certificate_file", certificate_file, error));
    let key = read(key_file)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem).map_err(|error| error.to_string()));
    let key = key.map_err(|error| note("key_file", key_file, error));
    let ca_file = files.client_ca_file.as_path();
    let authorities = match ca_file.as_os_str().is_empty() {
        true => Ok(None),
        false => authorities(ca_file)
            .map(Some)
            .map_err(|error| note("client_ca_file", ca_file, error)),
    };
    if let (Ok((chain, (not_before, not_after))), Ok(key), Ok(authorities)) =
        (chain, key, authorities)
    {
        if not_before > now {
            let text = format!("the certificate is not valid before {not_before}");
            note("certificate_file", certificate_file, text);
        } else {
            match server_config(chain, key, authorities, files.min_version) {
                Ok(config) => {
                    return Ok(Look {
                        config: Arc::new(config),
                        not_after,
                    });
                }
                Err(rustls::Error::InconsistentKeys(_)) => note(
                    "key_file",
                    key_file,
                    format!(
                        "the key does not belong to the certificate in {}",
                        certificate_file.display()
                    ),
                ),
                Err(error) => note("key_file", key_file, error.to_string()),
            }
        }
    }
    Err(problems)
}

/// With its own secrets for resumption, so that no session outlives the certificate, or the client authorities, that it began with.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Option<RootCertStore>,
    min_version: TlsVersion,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = match min_version {
        TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
        TlsVersion::V1_3 => &[&version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Its keys are replaced every six hours, and a ticket lives twice as long at most.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    // One ticket per handshake: a client has one connection, and each ticket is a record that it reads.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("longer than {MAX_FILE} bytes"));
    }
    Ok(bytes)
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("holds no PEM certificate".into()),
        Ok(all) => Ok(all),
        Err(error) => Err(error.to_string()),
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(DateTime<Utc>, DateTime<Utc>), String> {
    let certificate =
        x509_cert::Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let validity = certificate.tbs_certificate().validity();
    let time = |time: x509_cert::time::Time| {
        i64::try_from(time.to_unix_duration().as_secs())
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
            .ok_or_else(|| "its validity is no time".to_owned())
    };
    Ok((time(validity.not_before)?, time(validity.not_after)?))
}

#[cfg(test)]
mod tests;
