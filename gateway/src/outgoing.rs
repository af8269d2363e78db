//! HTTP requests that this process makes, to issuers of tokens and to a registry of schemas: what their clients have in common.
//!
//! Input: an address of the settings, and the file of the authorities to trust there. Output: a client that goes there and nowhere else.

use std::path::Path;

use url::Url;

/// Begins a client that follows no redirects, because an answer comes only from the configured address, and keeps no idle connections, because
/// the next request is minutes away. Reads `ca_file`; an empty path stands for the system's authorities.
///
/// # Errors
/// Why the file cannot be used.
pub(crate) fn client(url: &Url, ca_file: &Path) -> Result<reqwest::ClientBuilder, String> {
    // For tests and for whoever uses this library without its `main`; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .https_only(url.scheme() == "https")
        .pool_max_idle_per_host(0)
        .gzip(true)
        .user_agent(concat!("signal-gateway/", env!("CARGO_PKG_VERSION")));
    if is_loopback(url) {
        // A proxy of the environment is not for this host itself.
        builder = builder.no_proxy();
    }
    if !ca_file.as_os_str().is_empty() {
        let pem = std::fs::read(ca_file).map_err(|error| error.to_string())?;
        let authorities =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())?;
        if authorities.is_empty() {
            return Err("it holds no certificate".into());
        }
        builder = builder.tls_certs_only(authorities);
    } else if url.scheme() == "http" {
        builder = builder.tls_certs_only([]);
    }
    Ok(builder)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Why the body of an answer was not read.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// The connection failed.
    Request(reqwest::Error),
    /// It is longer than allowed.
    TooLong,
}

/// Reads the body of an answer, which the server may send compressed. The bound is of the body itself, so nothing small can unfold into something
/// large.
pub(crate) async fn body(
    mut answer: reqwest::Response,
    max_bytes: usize,
) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(BodyError::Request)? {
        if body.len() + chunk.len() > max_bytes {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns an error with its causes but without the URL, which may hold a secret.
pub(crate) fn failure(error: reqwest::Error) -> String {
    causes(&error.without_url())
}

/// Returns an error with its causes.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
