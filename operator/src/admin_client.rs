//! What the operator asks of gateway pods, over their admin listener. Pods are asked directly: no proxy, no redirect.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::fleet::Report;

/// Longest time for one question.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const MAX_BYTES: usize = 256 * 1024;

/// Asks pods. Cheap to clone; all clones share connections.
#[derive(Debug, Clone)]
pub struct AdminClient(reqwest::Client);

impl AdminClient {
    /// A client without connections.
    ///
    /// # Errors
    /// When no TLS provider is installed.
    pub fn new() -> reqwest::Result<Self> {
        let policy = reqwest::redirect::Policy::none();
        Ok(Self(reqwest::Client::builder().no_proxy().redirect(policy).timeout(LIMIT).connect_timeout(LIMIT).build()?))
    }

    /// What a pod says of itself.
    ///
    /// # Errors
    /// For people: why nobody knows.
    pub async fn status(&self, ip: IpAddr, port: u16, token: &str) -> Result<Report, String> {
        let url = format!("http://{}/status", SocketAddr::new(ip, port));
        let mut answer = self.0.get(url).bearer_auth(token).send().await.map_err(|error| why(&error))?;
        if !answer.status().is_success() {
            return Err(format!("its status is answered with {}", answer.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|error| why(&error))? {
            if body.len() + part.len() > MAX_BYTES {
                return Err(format!("its status is longer than {MAX_BYTES} bytes"));
            }
            body.extend_from_slice(&part);
        }
        serde_json::from_slice(&body).map_err(|error| format!("its status cannot be read: {error}"))
    }
}

fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        format!("no answer within {} s", LIMIT.as_secs())
    } else if error.is_connect() {
        "it accepts no connection".into()
    } else {
        "its answer broke off".into()
    }
}
