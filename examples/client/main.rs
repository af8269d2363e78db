//! A client: prints the notifications of one user as they come, encrypted, and misses none.
//!
//! ```sh
//! cargo run --bin example-client -- --token-file .signal-dev/user-17.token
//! ```
//!
//! It follows docs/websocket.md; numbers in comments are clauses of docs/protocol.md.

#![expect(clippy::print_stdout, reason = "it speaks to its terminal")]

mod cipher;
mod connection;
mod inbox;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::json;
use tokio::time::sleep;

use connection::{Connection, Ended, Then};
use inbox::Inbox;

/// Prints the notifications of one user as they come.
#[derive(Parser)]
struct Arguments {
    /// The WebSocket of a gateway, ws:// or wss://
    #[arg(long, default_value = "ws://127.0.0.1:8080/stream")]
    url: String,
    /// A file with the user's token; it is read again when another token is needed
    #[arg(long, default_value = ".signal-dev/user-17.token")]
    token_file: PathBuf,
    /// Prints only notifications with a higher `seq`
    #[arg(long, default_value_t = 0)]
    after: i64,
}

impl Arguments {
    fn token(&self) -> Result<String> {
        let text = std::fs::read_to_string(&self.token_file);
        let text = text.with_context(|| format!("cannot read {}", self.token_file.display()))?;
        Ok(text.trim().to_owned())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // The cryptography of wss://.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut inbox = Inbox::new(arguments.after);
    let mut failures = 0;
    loop {
        let (begun, token) = (Instant::now(), arguments.token()?);
        let Err(ended) = session(&arguments, &token, &mut inbox).await;
        println!("the connection ended: {}", ended.why);
        if begun.elapsed() > Duration::from_secs(60) {
            failures = 0;
        }
        let seconds = match ended.then {
            Then::Reconnect => 2,
            Then::BackOff => {
                failures += 1;
                2_u64.pow(failures.min(6))
            }
            Then::NewToken if arguments.token()? != token => 0,
            Then::NewToken => bail!("another token is needed in {:?}", arguments.token_file),
            Then::Stop => bail!("the next connection would end in the same way"),
        };
        // A random part of it, so that many clients do not come back at the same moment.
        let delay = rand::random_range(0..=seconds * 1000);
        sleep(Duration::from_millis(delay)).await;
    }
}

/// One connection, from its opening to its end.
async fn session(
    arguments: &Arguments,
    token: &str,
    inbox: &mut Inbox,
) -> Result<Infallible, Ended> {
    let mut connection = Connection::open(&arguments.url, token).await?;
    inbox.begin();
    // 9.5: after every connect.
    sync(inbox, &mut connection).await?;
    loop {
        let (event, data) = tokio::select! {
            next = connection.next() => next?,
            // 9.9: the gap is still there.
            () = until(inbox.sync_at) => {
                sync(inbox, &mut connection).await?;
                continue;
            }
        };
        match event.as_str() {
            "notification:created" | "notification:skipped" => inbox.take(&data),
            "notification:synced" => {
                if inbox.finish(&data) {
                    sync(inbox, &mut connection).await?;
                }
            }
            "resync" => inbox.tell(),
            // 4.9 and 4.10: whoever issues tokens has put a new one into the file.
            "expiring" => {
                let data = json!({"type": "Bearer", "token": arguments.token()?});
                connection.send("refresh", data).await?;
            }
            // 2.9 and 2.10: the sync is not answered.
            "error" if inbox.syncing > 0 => return Err(Ended::from(data)),
            _ => println!("{event} {data}"),
        }
    }
}

/// Asks for what is missing, from the last contiguous `seq` (9.9).
async fn sync(inbox: &mut Inbox, connection: &mut Connection) -> Result<(), Ended> {
    inbox.ask();
    let data = json!({"after": inbox.contiguous});
    connection.send("notification:sync", data).await
}

/// Waits until this moment; for ever without one.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
