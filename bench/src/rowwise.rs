//! What the pipeline is held against: a consumer that takes one record at a time and does the same with it. Decode, make the text, insert one row per
//! recipient, publish it for other instances, write it to the recipient's sockets here, commit the offset.
//!
//! Written as such services are: one task, one connection to each server, each step awaited.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::Message as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};

use crate::frame::{self, opcode};

const TABLE: &str = "create table if not exists rowwise (
    id bigint generated always as identity primary key, recipient_id text not null, source text not null, event_id text not null,
    kind text not null, title text not null, content text not null, locale text not null, data text not null, actor_id text,
    read_at timestamptz, created_at timestamptz not null default now(), unique (source, event_id, recipient_id));
create index if not exists rowwise_inbox on rowwise (recipient_id, id);
create index if not exists rowwise_unread on rowwise (recipient_id, id) where read_at is null";

const INSERT: &str = "insert into rowwise (recipient_id, source, event_id, kind, title, content, locale, data, actor_id)
    values ($1, $2, $3, $4, $5, $6, 'en', $7, $8) on conflict (source, event_id, recipient_id) do nothing returning id";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    actor_id: String,
    recipient_ids: Vec<String>,
    data: Payment,
}

#[derive(Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Payment {
    amount: u64,
    currency: String,
    order_id: String,
}

type Sockets = Arc<Mutex<HashMap<String, Vec<OwnedWriteHalf>>>>;

/// Prints where its sockets connect, and consumes for ever.
pub(crate) fn serve(brokers: &str, topic: &str, database: &str, redis: &str) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(consume(brokers, topic, database, redis))
}

async fn consume(brokers: &str, topic: &str, database: &str, redis: &str) -> Result<()> {
    let mut database = PgConnection::connect(database).await?;
    sqlx::raw_sql(TABLE).execute(&mut database).await?;
    let mut redis = redis::Client::open(format!("redis://{redis}"))?
        .get_multiplexed_async_connection()
        .await?;
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("rowwise-{topic}"));
    config
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let sockets = Sockets::default();
    tokio::spawn(accept(listener, Arc::clone(&sockets)));
    loop {
        let message = consumer.recv().await?;
        let record: Record =
            serde_json::from_slice(message.payload().context("a record without a value")?)?;
        let title = "Payment received".to_owned();
        let content = format!(
            "Order {} has been paid: {} {}.",
            record.data.order_id, record.data.amount, record.data.currency
        );
        let data = serde_json::to_string(&record.data)?;
        for recipient in &record.recipient_ids {
            let insert = sqlx::query_scalar::<_, i64>(INSERT)
                .bind(recipient)
                .bind(topic)
                .bind(&record.id)
                .bind(&record.kind);
            let insert = insert
                .bind(&title)
                .bind(&content)
                .bind(&data)
                .bind(&record.actor_id);
            let Some(id) = insert.fetch_optional(&mut database).await? else {
                continue;
            };
            let notification = json!({
                "id": id, "type": record.kind, "title": title, "content": content, "data": record.data, "actorId": record.actor_id,
                "recipientId": recipient, "isRead": false, "readAt": Value::Null,
            });
            let event = json!({ "event": "notification:created", "data": { "notification": notification } });
            let channel = format!("rowwise:{recipient}");
            let () = redis::cmd("PUBLISH")
                .arg(channel)
                .arg(event.to_string())
                .query_async(&mut redis)
                .await?;
            deliver(&sockets, recipient, &event.to_string()).await?;
        }
        consumer.commit_message(&message, CommitMode::Sync)?;
    }
}

async fn deliver(sockets: &Sockets, user: &str, text: &str) -> Result<()> {
    let own = sockets.lock().remove(user);
    let Some(mut own) = own else { return Ok(()) };
    for socket in &mut own {
        socket
            .write_all(&frame::of_server(opcode::TEXT, text.as_bytes()))
            .await?;
    }
    sockets
        .lock()
        .entry(user.to_owned())
        .or_default()
        .append(&mut own);
    Ok(())
}

/// Takes sockets whose path is their user.
async fn accept(listener: TcpListener, sockets: Sockets) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        greet(stream, &sockets).await?;
    }
}

async fn greet(stream: TcpStream, sockets: &Sockets) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.into_split();
    let mut head = vec![0; 1024];
    let length = from.read(&mut head).await?;
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    let user = head.split([' ', '/']).nth(2).context("a path")?.to_owned();
    to.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    )
    .await?;
    sockets.lock().entry(user).or_default().push(to);
    // Nothing more is read; dropping this half leaves the socket open.
    drop(from);
    Ok(())
}
