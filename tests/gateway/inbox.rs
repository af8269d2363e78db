//! Inboxes that clients keep by the rule of the protocol, and changes whose client is gone before they are stored.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal_tests::client::Incoming;
use signal_tests::inbox::Next;
use signal_tests::wait::{until, until_within};
use signal_tests::{Client, Gateway, Inbox, Issuer, Notifications};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::Stage;
use crate::pipeline::Pipeline;

async fn tables(gateway: &Gateway) -> Notifications {
    Notifications::open(&gateway.file("0.db"))
        .await
        .expect("the gateway's database")
}

/// A gateway that waits for a database that the test has locked.
async fn patient() -> Stage {
    Stage::with(|settings| {
        let url = format!("sqlite://{}", settings.dir().join("0.db").display());
        settings
            .set("database.url", url)
            .set("database.acquire_timeout_ms", 20_000)
    })
    .await
}

/// Syncs until nothing is left to ask for.
async fn settle(client: &mut Client, inbox: &mut Inbox) {
    let mut next = Next::Sync;
    while next != Next::Wait {
        inbox.asks();
        let ask = json!({"after": inbox.contiguous(), "limit": 2});
        client.send("notification:sync", ask).await;
        loop {
            let envelope = client.next_envelope().await;
            next = inbox.take(&envelope);
            if envelope.event == "notification:synced" {
                break;
            }
        }
    }
}

fn seqs(inbox: &Inbox) -> Vec<i64> {
    inbox.held().keys().copied().collect()
}

/// protocol.md 2.13 and 3.14.
#[tokio::test]
async fn what_was_read_is_stored_however_its_connection_ends_directly_behind_it() {
    const USERS: usize = 40;
    let stage = patient().await;
    let tables = tables(&stage.gateway).await;
    let mut clients = Vec::new();
    for n in 0..USERS {
        let user = format!("u{n}");
        tables.add(&user, 3).await.expect("rows");
        clients.push(stage.client(&user).await);
    }
    // Nothing can be stored before all connections have ended.
    let lock = tables.lock().await.expect("the lock");
    for (n, mut client) in clients.into_iter().enumerate() {
        for seq in 1..=3 {
            client.send("notification:read", json!({"upTo": seq})).await;
        }
        match n % 3 {
            0 => client.send_message(Message::Close(None)).await,
            1 => drop(client),
            _ => {
                client.send_text("{").await;
                client.expect_error().await;
                drop(client);
            }
        }
    }
    until("all connections have ended", || async {
        let open = stage.gateway.metric("signal_connections", "").await;
        (open.unwrap_or_default() == 0.0).then_some(())
    })
    .await;
    lock.rollback().await.expect("the lock is given back");
    until("all of it is stored", || async {
        (tables.unread().await.ok()? == 0).then_some(())
    })
    .await;
}

/// protocol.md 2.13 and 7.2.
#[tokio::test]
async fn what_was_read_before_a_drain_is_stored_and_the_process_waits_for_it() {
    let mut stage = patient().await;
    let tables = tables(&stage.gateway).await;
    let mut clients = Vec::new();
    for n in 0..20 {
        let user = format!("u{n}");
        tables.add(&user, 2).await.expect("rows");
        clients.push(stage.client(&user).await);
    }
    let lock = tables.lock().await.expect("the lock");
    for client in &mut clients {
        client.send("notification:read", json!({"upTo": 1})).await;
        client.send("notification:read", json!({"upTo": 2})).await;
    }
    stage.gateway.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.expect_closed().await.0, 1001);
    }
    lock.rollback().await.expect("the lock is given back");
    assert!(stage.gateway.expect_exit().await.success());
    assert_eq!(tables.unread().await.expect("a number"), 0);
}

/// protocol.md 2.13.
#[tokio::test]
async fn a_request_that_changes_something_is_carried_out_although_its_caller_is_gone() {
    let stage = patient().await;
    let tables = tables(&stage.gateway).await;
    tables.add("17", 3).await.expect("rows");
    let token = stage.issuer.token("17");
    let list = stage
        .gateway
        .rest("GET", "/notifications", &token, None)
        .await;
    let id = list.expect(200).json()["data"][0]["id"].clone();
    let id = id.as_str().expect("an id");
    let mut device = stage.client("17").await;
    let lock = tables.lock().await.expect("the lock");
    let body = r#"{"upTo":2}"#;
    for request in [
        format!("DELETE /notifications/{id} HTTP/1.1\r\n"),
        format!(
            "POST /notifications/read HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ),
    ] {
        let body = if request.starts_with("POST") {
            body
        } else {
            ""
        };
        let mut caller = TcpStream::connect(stage.gateway.address())
            .await
            .expect("connected");
        let text = format!("{request}Host: x\r\nAuthorization: Bearer {token}\r\n\r\n{body}");
        caller.write_all(text.as_bytes()).await.expect("sent");
        // Time to begin with it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(caller);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    lock.rollback().await.expect("the lock is given back");
    device.expect("notification:deleted").await;
    let read = device.expect("notification:read").await;
    assert_eq!(read.data["total"], 2);
    assert_eq!(tables.unread().await.expect("a number"), 0);
}

/// protocol.md 3.18, 9.4 and 9.9.
#[tokio::test]
async fn the_answer_to_a_sync_is_contiguous_where_notifications_were_deleted() {
    let stage = Stage::new().await;
    let tables = tables(&stage.gateway).await;
    tables.add("17", 6).await.expect("rows");
    tables
        .execute("DELETE FROM signal_notification WHERE seq IN (2, 3, 6)")
        .await
        .expect("fewer rows");
    let mut client = stage.client("17").await;
    client.send("notification:sync", json!({"after": 0})).await;
    let answer = client.all_before("notification:synced").await;
    let chain: Vec<(Option<i64>, Option<i64>)> = answer
        .iter()
        .map(|created| {
            let data = &created.data;
            (
                data["previousSeq"].as_i64(),
                data["notification"]["seq"].as_i64(),
            )
        })
        .collect();
    let linked = |previous, seq| (Some(previous), Some(seq));
    assert_eq!(chain, [linked(0, 1), linked(1, 4), linked(4, 5)]);
    let mut inbox = Inbox::default();
    settle(&mut client, &mut inbox).await;
    assert_eq!((seqs(&inbox), inbox.contiguous()), (vec![1, 4, 5], 5));
}

async fn epochs(gateway: &Gateway, issuer: &Issuer) -> [Value; 2] {
    let token = issuer.token("17");
    let mut epochs = [Value::Null, Value::Null];
    for (at, path) in ["/notifications", "/notifications/unread-count"]
        .into_iter()
        .enumerate()
    {
        let answer = gateway
            .rest("GET", path, &token, None)
            .await
            .expect(200)
            .json();
        epochs[at] = answer["epoch"].clone();
    }
    epochs
}

/// protocol.md 3.12, 3.18 and 9.10.
#[tokio::test]
async fn another_epoch_is_told_to_every_client_while_they_are_connected() {
    let stage = Stage::new().await;
    let tables = tables(&stage.gateway).await;
    tables.add("17", 2).await.expect("rows");
    let mut client = stage.client("17").await;
    let mut inbox = Inbox::default();
    settle(&mut client, &mut inbox).await;
    let first = inbox.epoch().expect("an epoch").to_owned();
    assert_eq!(
        epochs(&stage.gateway, &stage.issuer).await,
        [json!(first), json!(first)]
    );
    tables
        .execute("UPDATE signal_epoch SET epoch = epoch - 1")
        .await
        .expect("a new epoch");
    let resync = client.expect("resync").await;
    assert_eq!(resync.data["reason"], "epoch_changed");
    settle(&mut client, &mut inbox).await;
    let second = inbox.epoch().expect("an epoch").to_owned();
    assert_ne!(first, second);
    assert_eq!((inbox.starts(), seqs(&inbox)), (1, vec![1, 2]));
    assert_eq!(
        epochs(&stage.gateway, &stage.issuer).await,
        [json!(second), json!(second)]
    );
}

/// protocol.md 9.10.
#[tokio::test]
async fn a_client_sees_what_comes_after_an_older_copy_of_the_database_was_put_back() {
    let mut stage = Stage::new().await;
    let file = stage.gateway.file("0.db");
    let copy = file.with_extension("copy");
    let mut inbox = Inbox::default();
    for round in 0..3 {
        if round > 0 {
            stage.gateway.restart().await;
        }
        let tables = tables(&stage.gateway).await;
        tables.add("17", 2).await.expect("rows");
        tables.close().await;
        let mut client = stage.client("17").await;
        inbox.reconnects();
        settle(&mut client, &mut inbox).await;
        let ids: Vec<Value> = inbox.held().values().map(|row| row["id"].clone()).collect();
        let (wanted, starts) = match round {
            0 => (vec![1, 2], 0),
            1 => (vec![1, 2, 3, 4], 0),
            // What was 3 and 4 is gone, and others have their numbers.
            _ => (vec![1, 2, 3, 4], 1),
        };
        assert_eq!(
            (seqs(&inbox), inbox.starts()),
            (wanted, starts),
            "round {round}"
        );
        let token = stage.issuer.token("17");
        let list = stage
            .gateway
            .rest("GET", "/notifications", &token, None)
            .await;
        let mut stored: Vec<Value> = list.expect(200).json()["data"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| row["id"].clone())
            .collect();
        stored.reverse();
        assert_eq!(ids, stored, "round {round}");
        drop(client);
        stage.gateway.signal("TERM");
        stage.gateway.expect_exit().await;
        match round {
            0 => drop(std::fs::copy(&file, &copy).expect("a copy")),
            1 => drop(std::fs::copy(&copy, &file).expect("the copy is put back")),
            _ => {}
        }
    }
}

/// Keeps an inbox by the rule until `done`, and gives what it holds.
async fn keep(mut client: Client, done: impl Fn(&Inbox) -> bool) -> Inbox {
    let mut inbox = Inbox::default();
    settle(&mut client, &mut inbox).await;
    let mut sync_at: Option<Instant> = None;
    while !done(&inbox) {
        let mut next = Next::Wait;
        match client.next_within(Duration::from_millis(20)).await {
            Some(Incoming::Envelope(envelope)) => next = inbox.take(&envelope),
            Some(end) => panic!("the connection ended: {end:?}"),
            None => {}
        }
        match next {
            Next::SyncLater if sync_at.is_none() => {
                let wait = Duration::from_millis(rand::random_range(200..1000));
                sync_at = Some(Instant::now() + wait);
            }
            Next::Sync => sync_at = Some(Instant::now()),
            _ => {}
        }
        if sync_at.is_some_and(|at| at <= Instant::now()) {
            sync_at = None;
            inbox.asks();
            let ask = json!({"after": inbox.contiguous()});
            client.send("notification:sync", ask).await;
        }
    }
    inbox
}

/// protocol.md 9.5 and 9.9.
#[tokio::test]
async fn clients_that_keep_to_the_rule_have_everything_after_the_consuming_gateway_was_killed() {
    const USERS: usize = 12;
    const RECORDS: usize = 600;
    let Some(mut pipeline) = Pipeline::start(2).await else {
        return;
    };
    let survivor = pipeline.gateways.remove(1);
    let killed = &mut pipeline.gateways[0];
    let mut keeping = Vec::new();
    for user in 0..USERS {
        let client = Client::open(
            survivor.address(),
            &pipeline.issuer.token(&format!("u{user}")),
        )
        .await;
        // Nothing is produced behind the last record, so nothing later shows a gap.
        let all = (RECORDS / USERS) as i64;
        keeping.push(tokio::spawn(keep(client, move |inbox| {
            inbox.contiguous() >= all && !inbox.has_gap()
        })));
    }
    for n in 0..RECORDS {
        if n % 200 == 150 {
            killed.kill();
        }
        if n % 200 == 199 {
            killed.restart().await;
        }
        let user = format!("u{}", n % USERS);
        let record = json!({"id": format!("e{n}"), "type": "T", "title": "t", "content": "c", "actorId": user});
        pipeline
            .producer
            .send(&pipeline.topic, &user, &record)
            .await
            .expect("acknowledged");
    }
    killed.kill();
    let limit = Duration::from_secs(60);
    until_within(limit, "every client has everything", || async {
        keeping.iter().all(|kept| kept.is_finished()).then_some(())
    })
    .await;
    for (user, kept) in keeping.into_iter().enumerate() {
        let inbox = kept.await.expect("no panic");
        let wanted: Vec<i64> = (1..=(RECORDS / USERS) as i64).collect();
        assert_eq!((seqs(&inbox), inbox.starts()), (wanted, 0), "u{user}");
    }
}
