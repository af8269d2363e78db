//! What the operator asks of gateway pods, over their admin listener. Pods are asked directly: no proxy, no redirect.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::observe::fleet::Report;

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
        Ok(Self(
            reqwest::Client::builder()
                .no_proxy()
                .redirect(policy)
                .timeout(LIMIT)
                .connect_timeout(LIMIT)
                .build()?,
        ))
    }

    /// What a pod says of itself.
    ///
    /// # Errors
    /// For people: why nobody knows.
    pub async fn status(&self, ip: IpAddr, port: u16, token: &str) -> Result<Report, String> {
        let mut answer = self
            .0
            .get(url(ip, port, "status"))
            .bearer_auth(token)
            .send()
            .await
            .map_err(|error| why(&error))?;
        if !answer.status().is_success() {
            return Err(format!(
                "its status is answered with {}",
                answer.status().as_u16()
            ));
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

    /// Tells a pod to let its connections go and to stay; told again it changes nothing.
    ///
    /// # Errors
    /// For people: why it was not told.
    pub async fn drain_hold(&self, ip: IpAddr, port: u16, token: &str) -> Result<(), String> {
        let request = self
            .0
            .post(url(ip, port, "drain"))
            .json(&serde_json::json!({"hold": true}));
        order(request.bearer_auth(token)).await
    }

    /// Takes a drain back; one that is not there is taken back too.
    ///
    /// # Errors
    /// For people: why it was not told.
    pub async fn undrain(&self, ip: IpAddr, port: u16, token: &str) -> Result<(), String> {
        order(self.0.delete(url(ip, port, "drain")).bearer_auth(token)).await
    }

    /// Tells a pod to close so many connections with 4009.
    ///
    /// # Errors
    /// For people: why it was not told.
    pub async fn shed(&self, ip: IpAddr, port: u16, token: &str, count: u32) -> Result<(), String> {
        let request = self
            .0
            .post(url(ip, port, "shed"))
            .json(&serde_json::json!({"count": count}));
        order(request.bearer_auth(token)).await
    }
}

fn url(ip: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}/{path}", SocketAddr::new(ip, port))
}

async fn order(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = request.send().await.map_err(|error| why(&error))?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("it answers {}", answer.status().as_u16()))
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
