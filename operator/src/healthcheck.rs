//! `signal-operator healthcheck`: asks a running operator for its health. The image contains no other program that could.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longest answer that is shown; `/readyz` has one line for each part that waits.
const MAX_ANSWER: usize = 4096;

/// Fetches `url` and returns the text of the answer.
///
/// # Errors
/// When there is no answer within `limit`, or its status is not a success; the message contains the answer.
pub async fn check(url: &str, limit: Duration) -> Result<String> {
    // A client needs a provider even without TLS; an error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(limit)
        .build()?;
    let mut response = client
        .get(url)
        .send()
        .await
        .with_context(|| format!("ask {url}"))?;
    let mut text = Vec::new();
    while let Some(part) = response.chunk().await.context("read the answer")? {
        let room = MAX_ANSWER - text.len();
        text.extend_from_slice(&part[..part.len().min(room)]);
        if text.len() == MAX_ANSWER {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    ensure!(
        response.status().is_success(),
        "{url} answers {}: {text}",
        response.status()
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Answers one request with this, or, without it, never.
    async fn server(answer: Option<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await.unwrap();
            match answer {
                Some(answer) => socket.write_all(answer.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
        });
        url
    }

    #[tokio::test]
    async fn ready_is_success_and_its_text() {
        let url = server(Some(
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n".into(),
        ))
        .await;
        assert_eq!(check(&url, LIMIT).await.unwrap(), "ok");
    }

    #[tokio::test]
    async fn not_ready_fails_and_names_what_the_operator_waits_for() {
        let body = "crd: SignalCluster is not known\n";
        let url = server(Some(format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )))
        .await;
        let error = check(&url, LIMIT).await.unwrap_err().to_string();
        assert!(
            error.contains("503") && error.contains("SignalCluster is not known"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn silence_redirects_and_a_closed_port_fail_and_a_long_answer_is_cut() {
        assert!(
            check(&server(None).await, Duration::from_millis(50))
                .await
                .is_err()
        );
        let url = server(Some(
            "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n".into(),
        ))
        .await;
        assert!(check(&url, LIMIT).await.is_err());
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(check(&format!("http://{closed}/"), LIMIT).await.is_err());
        let long = "a".repeat(2 * MAX_ANSWER);
        let url = server(Some(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{long}",
            long.len()
        )))
        .await;
        assert_eq!(check(&url, LIMIT).await.unwrap().len(), MAX_ANSWER);
    }
}
