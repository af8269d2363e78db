//! One fetch of one source's key set, over HTTP or from a mounted file.
//!
//! Input: the source's URL and CA file, or its keys file. Output: its keys, or why they cannot be used. Bounded in bytes here, in time by the caller.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use url::Url;

use super::super::jwk::{self, Key, NotAKeySet};
use crate::auth::token::payload::PayloadKey;
use crate::config::{SecretFile, Source, read_secret};
use crate::outgoing::{self, BodyError};

/// Why a key set could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the CA file cannot be used: {0}")]
    Authorities(String),
    #[error("the keys file cannot be read: {0}")]
    File(String),
    #[error("the application secret cannot be used: {0}")]
    Secret(String),
    #[error("the request failed: {0}")]
    Request(String),
    #[error("the answer is {0}, not 200")]
    Status(u16),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("no whole answer within {0} ms")]
    TooSlow(u64),
    #[error(transparent)]
    NotAKeySet(#[from] NotAKeySet),
}

/// What a fetch brings.
pub(super) struct KeySet {
    pub(super) keys: Vec<Arc<Key>>,
    /// The key of encrypted payloads, for a source that names a secret.
    pub(super) payload_key: Option<PayloadKey>,
}

/// Fetches one source's keys; keeps the HTTP client between fetches.
#[derive(Default)]
pub(super) struct KeyFetcher {
    client: Mutex<Option<(String, reqwest::Client)>>,
}

impl KeyFetcher {
    pub(super) async fn fetch(
        &self,
        source: &Source,
        max_bytes: usize,
    ) -> Result<KeySet, FetchError> {
        let secret = source.application_secret_file.clone();
        let payload_key = tokio::task::spawn_blocking(move || payload_key(&secret))
            .await
            .map_err(|error| FetchError::Secret(error.to_string()))??;
        let text = match &source.url {
            Some(url) => get(&self.client(source, url).await?, url, max_bytes).await?,
            None => {
                let path = source.keys_file.clone();
                let read = tokio::task::spawn_blocking(move || read(&path, max_bytes)).await;
                read.map_err(|error| FetchError::File(error.to_string()))??
            }
        };
        Ok(KeySet {
            keys: jwk::parse(&text)?,
            payload_key,
        })
    }

    /// Returns the client for this source, and makes another one when the content of its CA file changes.
    async fn client(&self, source: &Source, url: &Url) -> Result<reqwest::Client, FetchError> {
        let (path, url) = (source.ca_file.clone(), url.clone());
        let revision = {
            let path = path.clone();
            let read = move || {
                if path.as_os_str().is_empty() {
                    String::new()
                } else {
                    crate::files::revision(&path)
                }
            };
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| FetchError::Authorities(error.to_string()))?
        };
        if let Some((known, client)) = &*self.client.lock()
            && *known == revision
        {
            return Ok(client.clone());
        }
        // Loading the system's authorities takes milliseconds of disk and parsing.
        let made = tokio::task::spawn_blocking(move || make_client(&url, &path)).await;
        let client = made.map_err(|error| FetchError::Authorities(error.to_string()))??;
        *self.client.lock() = Some((revision, client.clone()));
        Ok(client)
    }
}

/// Reads the secret of encrypted payloads, if the source has one.
fn payload_key(file: &SecretFile) -> Result<Option<PayloadKey>, FetchError> {
    let secret = read_secret(file).map_err(|error| FetchError::Secret(error.to_string()))?;
    secret
        .map(|secret| PayloadKey::new(secret.expose()))
        .transpose()
        .map_err(|error| FetchError::Secret(error.to_string()))
}

/// Gets a document of at most `max_bytes`.
async fn get(client: &reqwest::Client, url: &Url, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let request = client
        .get(url.clone())
        .header("accept", "application/jwk-set+json, application/json");
    let answer = request.send().await.map_err(request_failed)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status(answer.status().as_u16()));
    }
    outgoing::body(answer, max_bytes)
        .await
        .map_err(|error| match error {
            BodyError::Request(error) => request_failed(error),
            BodyError::TooLong => FetchError::TooLong(max_bytes),
        })
}

fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| FetchError::File(error.to_string()))?;
    file.take(max_bytes as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| FetchError::File(error.to_string()))?;
    if text.len() > max_bytes {
        Err(FetchError::TooLong(max_bytes))
    } else {
        Ok(text)
    }
}

fn make_client(url: &Url, ca_file: &Path) -> Result<reqwest::Client, FetchError> {
    outgoing::client(url, ca_file)
        .map_err(FetchError::Authorities)?
        .build()
        .map_err(request_failed)
}

fn request_failed(error: reqwest::Error) -> FetchError {
    FetchError::Request(outgoing::failure(error))
}
