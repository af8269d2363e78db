//! Requests to the admin listener of gateway pods. They go to the pod directly: no proxy, no redirect.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use signal_contract::{DrainOrder, Object, ShedOrder, StatusReport};

use crate::observe::bounded;

/// A held drain that the operator has not ordered again for so long is taken back by the pod itself: nobody is there who would delete it.
pub const HOLD_EXPIRES: Duration = Duration::from_secs(900);
/// Longest time for one request.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer that is read: a gateway with all the sources that it takes, and ten keys of each, needs a third of it.
const MAX_BYTES: usize = 64 * 1024;

/// Sends requests to pods. Cheap to clone; all clones share connections.
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

    /// Reads the status of a pod.
    ///
    /// # Errors
    /// A text for people: why it could not be read.
    pub async fn status(&self, ip: IpAddr, port: u16, token: &str) -> Result<StatusReport, String> {
        let mut answer = self
            .0
            .get(url(ip, port, "status"))
            .bearer_auth(token)
            .send()
            .await
            .map_err(|error| why(&error))?;
        if !answer.status().is_success() {
            return Err(format!("GET /status returned {}", answer.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|error| why(&error))? {
            if body.len() + part.len() > MAX_BYTES {
                return Err(format!("its status is longer than {MAX_BYTES} bytes"));
            }
            body.extend_from_slice(&part);
        }
        read_report(&body)
    }

    /// Orders a pod to close its connections after a pause and to keep running; a repeated order only puts off when it expires.
    ///
    /// # Errors
    /// A text for people: why the order failed.
    pub async fn drain_hold(
        &self,
        ip: IpAddr,
        port: u16,
        token: &str,
        pause: Duration,
    ) -> Result<(), String> {
        let whole = DrainOrder {
            hold: true,
            pause_ms: u64::try_from(pause.as_millis()).ok(),
            expires_ms: u64::try_from(HOLD_EXPIRES.as_millis()).ok(),
        };
        // A gateway of an older release refuses members that it does not know.
        let bare = DrainOrder {
            hold: true,
            ..DrainOrder::default()
        };
        let request = |body: &DrainOrder| {
            let request = self.0.post(url(ip, port, "drain")).json(body);
            request.bearer_auth(token)
        };
        let answer = request(&whole).send().await.map_err(|error| why(&error))?;
        match answer.status().as_u16() {
            400 | 422 => order(request(&bare)).await,
            _ => taken(&answer),
        }
    }

    /// Cancels a drain; succeeds also if the pod does not drain.
    ///
    /// # Errors
    /// A text for people: why the order failed.
    pub async fn undrain(&self, ip: IpAddr, port: u16, token: &str) -> Result<(), String> {
        order(self.0.delete(url(ip, port, "drain")).bearer_auth(token)).await
    }

    /// Orders a pod to close so many connections with 4009.
    ///
    /// # Errors
    /// A text for people: why the order failed.
    pub async fn shed(&self, ip: IpAddr, port: u16, token: &str, count: u32) -> Result<(), String> {
        let request = self.0.post(url(ip, port, "shed")).json(&ShedOrder {
            count: usize::try_from(count).expect("64 bits"),
        });
        order(request.bearer_auth(token)).await
    }
}

/// Reads a status. Its values are counted before any of them is kept.
fn read_report(body: &[u8]) -> Result<StatusReport, String> {
    let failed = |error: serde_json::Error| format!("its status cannot be read: {error}");
    bounded::count(body).map_err(failed)?;
    serde_json::from_slice(body)
        .map(|Object(report)| report)
        .map_err(failed)
}

fn url(ip: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}/{path}", SocketAddr::new(ip, port))
}

async fn order(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = request.send().await.map_err(|error| why(&error))?;
    taken(&answer)
}

fn taken(answer: &reqwest::Response) -> Result<(), String> {
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("it answered {}", answer.status().as_u16()))
    }
}

fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        format!("no answer within {} s", LIMIT.as_secs())
    } else if error.is_connect() {
        "it refuses connections".into()
    } else {
        "its answer ended early".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(sources: usize, keys: usize) -> Vec<u8> {
        let keys: Vec<String> = (0..keys)
            .map(|at| format!("a key id of usual length {at}"))
            .collect();
        let source = |at: usize| {
            serde_json::json!({"name": format!("source-{at}"), "state": "trusted", "keys": keys, "refreshedAt": "2026-01-01T00:00:00Z",
                "error": "the answer is 503, not 200"})
        };
        let sources: Vec<_> = (0..sources).map(source).collect();
        let report = serde_json::json!({"version": "1", "ready": true, "connections": {"total": 7}, "keySources": sources});
        report.to_string().into_bytes()
    }

    #[test]
    fn the_status_of_a_gateway_with_many_sources_is_read() {
        let body = full(33, 10);
        assert!(body.len() < MAX_BYTES / 2, "{}", body.len());
        let report = read_report(&body).unwrap();
        assert_eq!(
            (report.key_sources.len(), report.connections.total),
            (33, 7)
        );
    }

    #[test]
    fn an_address_of_ipv6_stands_in_brackets() {
        let ip: IpAddr = "2001:db8::7".parse().unwrap();
        assert_eq!(url(ip, 9090, "status"), "http://[2001:db8::7]:9090/status");
    }

    #[tokio::test]
    async fn a_pod_that_listens_on_both_families_is_asked_at_either() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Ok(listener) = tokio::net::TcpListener::bind("[::]:0").await else {
            // Without IPv6 there is nothing to be asked.
            return;
        };
        let port = listener.local_addr().unwrap().port();
        let answer = || async { r#"{"version": "1", "ready": true}"# };
        let drain = || async { "" };
        let routes = axum::Router::new()
            .route("/status", axum::routing::get(answer))
            .route("/drain", axum::routing::post(drain));
        let server = tokio::spawn(async { axum::serve(listener, routes).await });
        let client = AdminClient::new().unwrap();
        for ip in ["::1", "127.0.0.1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let report = client.status(ip, port, "token").await.unwrap();
            assert!(report.ready, "{ip}");
            let pause = Duration::from_secs(1);
            client.drain_hold(ip, port, "token", pause).await.unwrap();
        }
        server.abort();
    }

    #[test]
    fn a_status_of_many_empty_entries_is_refused_before_any_is_kept() {
        let many = |open: &str, entry: &str, close: &str| {
            let entries = vec![entry; MAX_BYTES / (entry.len() + 1) - 100];
            format!("{open}{}{close}", entries.join(","))
        };
        for body in [
            many("{\"keySources\":[", "{}", "]}"),
            many("{\"keySources\":[{\"keys\":[", "\"\"", "]}]}"),
            many("{\"unready\":[", "{}", "]}"),
            many("{\"unknown\":[", "0", "]}"),
        ] {
            assert!(body.len() <= MAX_BYTES);
            let error = read_report(body.as_bytes()).unwrap_err();
            assert!(error.contains("more than 4096 values"), "{error}");
        }
        let deep = "[".repeat(60_000);
        assert!(read_report(deep.as_bytes()).is_err());
        assert!(read_report(b"[1]").is_err(), "a list is no report");
    }
}
