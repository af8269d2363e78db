//! A client: prints the notifications of one user as they come, encrypted, and misses none.
//!
//! ```sh
//! cargo run --bin example-client -- --token-file .signal-dev/user-17.token
//! ```
//!
//! It follows docs/websocket.md; numbers in comments are clauses of docs/protocol.md. A real client stores what it received together
//! with `Inbox::cursor`, and goes on from there after a restart.

#![expect(clippy::print_stdout, reason = "it speaks to its terminal")]

mod cipher;
mod connection;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::{Value, json};
use tokio::time::sleep;

use connection::{Connection, Ended, Then};

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
    // 9.5: after every connect and every `resync`.
    inbox.sync(&mut connection).await?;
    loop {
        let (event, data) = connection.next().await?;
        match event.as_str() {
            "notification:created" => {
                if !inbox.take(&data["notification"]) {
                    inbox.sync(&mut connection).await?;
                }
            }
            "notification:synced" => {
                inbox.finish_page(&data);
                if data["more"] == true {
                    inbox.sync(&mut connection).await?;
                }
            }
            "resync" => inbox.sync(&mut connection).await?,
            // 4.9 and 4.10: whoever issues tokens has put a new one into the file.
            "expiring" => {
                let data = json!({"type": "Bearer", "token": arguments.token()?});
                connection.send("refresh", data).await?;
            }
            // 2.9 and 2.10: the sync is not answered.
            "error" if inbox.is_syncing => return Err(Ended::from(data)),
            _ => println!("{event} {data}"),
        }
    }
}

/// How far the user's inbox was printed.
struct Inbox {
    /// Everything up to this `seq` was printed (9.2).
    cursor: i64,
    /// Whether an answer to `notification:sync` is to come.
    is_syncing: bool,
    /// What came meanwhile, by `seq`.
    page: BTreeMap<i64, Value>,
}

impl Inbox {
    fn new(cursor: i64) -> Self {
        Self {
            cursor,
            is_syncing: false,
            page: BTreeMap::new(),
        }
    }

    async fn sync(&mut self, connection: &mut Connection) -> Result<(), Ended> {
        self.is_syncing = true;
        let data = json!({"after": self.cursor});
        connection.send("notification:sync", data).await
    }

    /// Takes a notification. Returns false if one before it may have been missed (9.7), so that a sync is needed.
    fn take(&mut self, notification: &Value) -> bool {
        let seq = notification["seq"].as_i64().unwrap_or_default();
        if self.is_syncing {
            self.page.insert(seq, notification.clone());
        } else if seq == self.cursor + 1 {
            self.print(seq, notification);
        }
        self.is_syncing || seq <= self.cursor
    }

    /// Prints the page that a sync brought. What was pushed from beyond it comes with the next page (9.4).
    fn finish_page(&mut self, synced: &Value) {
        self.is_syncing = false;
        let end = synced["cursor"].as_i64().unwrap_or_default();
        for (seq, notification) in std::mem::take(&mut self.page) {
            if seq > self.cursor && seq <= end {
                self.print(seq, &notification);
            }
        }
    }

    fn print(&mut self, seq: i64, notification: &Value) {
        let text = |name: &str| notification[name].as_str().unwrap_or_default();
        println!("{seq}. {}: {}", text("title"), text("content"));
        self.cursor = seq;
    }
}
