//! Secrets in files that change while the gateway runs: each takes effect, and connections do not notice.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::aio::MultiplexedConnection;
use serde_json::json;
use signal_tests::producer::payment;
use signal_tests::services::{self, unique};
use signal_tests::wait::{LIMIT, until};
use signal_tests::{Client, Emitter, Gateway, Issuer, Producer};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::Instant;

use crate::admin;

/// Replaces a file at once, as a mounted secret does.
fn replace(file: &Path, text: &str) {
    let draft = file.with_extension("draft");
    std::fs::write(&draft, text).expect("a writable folder");
    std::fs::rename(&draft, file).expect("a writable folder");
}

async fn set_user(redis: &mut MultiplexedConnection, rules: &[&str]) {
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg("signal")
        .arg(rules)
        .query_async::<()>(redis)
        .await
        .expect("an ACL user");
}

/// The ids of the connections of user `signal`.
async fn connections(redis: &mut MultiplexedConnection) -> Vec<u64> {
    let list: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query_async(redis)
        .await
        .expect("a list of clients");
    let lines = list.lines().filter(|line| line.contains(" user=signal "));
    lines
        .map(|line| {
            line.trim_start_matches("id=")
                .split(' ')
                .next()
                .and_then(|id| id.parse().ok())
                .expect("an id")
        })
        .collect()
}

#[tokio::test]
async fn a_changed_redis_password_loses_no_message_and_no_connection() {
    let Some(server) = services::redis().await else {
        return;
    };
    let mut redis = redis::Client::open(format!("redis://{}", server.address()))
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    set_user(&mut redis, &["on", ">first", "~*", "&*", "+@all"]).await;
    let issuer = Issuer::start().await;
    let settings = Gateway::build()
        .trust(&issuer)
        .redis(server.address())
        .set("redis.auth.username", "signal");
    let file = settings.dir().join("redis-password");
    std::fs::write(&file, "first\n").unwrap();
    let gateways = settings
        .set("redis.auth.password_file", file.display().to_string())
        .start_many(2)
        .await;
    let mut client = Client::open_encrypted(gateways[1].address(), &issuer.token("17")).await;
    let mut emitter = Emitter::connect(server.address()).await.unwrap();

    // During a rotation both passwords are accepted.
    set_user(&mut redis, &[">second"]).await;
    let before = connections(&mut redis).await;
    assert!(
        before.len() >= 4,
        "each gateway publishes and subscribes: {before:?}"
    );
    replace(&file, "second\n");
    let (begun, mut sent) = (Instant::now(), 0);
    loop {
        sent += 1;
        emitter
            .to_client(client.id(), "number", json!(sent))
            .await
            .unwrap();
        let now = connections(&mut redis).await;
        if now.len() >= 4 && now.iter().all(|id| !before.contains(id)) {
            break;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "connections are still those of before: {before:?}, {now:?}"
        );
    }
    set_user(&mut redis, &["<first"]).await;
    emitter.to_user("17", "last", json!(null)).await.unwrap();
    for number in 1..=sent {
        let envelope = client.next_envelope().await;
        assert_eq!(
            (envelope.event.as_str(), &envelope.data),
            ("number", &json!(number)),
            "each once, in order, and no `resync`"
        );
    }
    assert_eq!(client.next_envelope().await.event, "last");
    let path = format!("/socket/websocket/clients/{}/messages", client.id());
    let body = json!({"event": "across", "data": null});
    gateways[0]
        .rest("POST", &path, &admin(&issuer), Some(body))
        .await
        .expect(202);
    assert_eq!(client.next_envelope().await.event, "across");

    // Connections that are lost come back with the new password alone.
    let killed: i64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("USER")
        .arg("signal")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert!(killed >= 4, "{killed}");
    client.expect("resync").await;
    for gateway in &gateways {
        gateway.expect_ready().await;
    }
    emitter
        .to_client(client.id(), "after", json!(null))
        .await
        .unwrap();
    client.expect("after").await;
}

/// Two roles with passwords that the server really asks for; both own the database.
async fn make_roles(pool: &PgPool, database: &str) {
    let folder: String = sqlx::query_scalar("show data_directory")
        .fetch_one(pool)
        .await
        .expect("a setting");
    for sql in [
        "create role one login password 'first'".to_owned(),
        "create role two login password 'second' in role one".to_owned(),
        format!("alter database {database} owner to one"),
        format!(
            "copy (values ('host all one,two all scram-sha-256'), ('host all all all trust'), ('local all all trust')) \
             to '{folder}/pg_hba.conf'"
        ),
        "select pg_reload_conf()".to_owned(),
    ] {
        sqlx::query(AssertSqlSafe(sql))
            .execute(pool)
            .await
            .expect("a role");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_changed_database_url_moves_to_another_role_and_no_request_fails() {
    let Some(server) = services::own_postgres().await else {
        return;
    };
    let database = services::database_on(&server).await;
    let pool = PgPool::connect(&database.url).await.unwrap();
    let name = database.url.rsplit('/').next().unwrap();
    make_roles(&pool, name).await;
    let url = |user: &str, password: &str| {
        format!("postgres://{user}:{password}@{}/{name}", database.server)
    };
    let count = async |user: &str| {
        let sql = "select count(*) from pg_stat_activity where usename = $1";
        sqlx::query_scalar::<_, i64>(sql)
            .bind(user)
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    until("the server asks for passwords", || async {
        PgPool::connect(&url("one", "wrong"))
            .await
            .is_err()
            .then_some(())
    })
    .await;

    let issuer = Issuer::start().await;
    let settings = Gateway::build().trust(&issuer);
    let file = settings.dir().join("database-url");
    std::fs::write(&file, url("one", "first")).unwrap();
    let gateway = settings
        .set("database.url_file", file.display().to_string())
        .start()
        .await;
    let token = issuer.token("17");
    let mut client = Client::open(gateway.address(), &token).await;
    let ask = || gateway.rest("GET", "/notifications", &token, None);
    ask().await.expect(200);
    assert!(count("one").await > 0);

    // A URL that does not work is tried and logged, and the pool in use stays.
    replace(&file, &url("two", "wrong"));
    until("it is tried", || async {
        gateway
            .log()
            .contains("the changed database URL does not work")
            .then_some(())
    })
    .await;
    assert!(!gateway.log().contains(":wrong@"), "the URL is a secret");
    ask().await.expect(200);

    replace(&file, &url("two", "second"));
    let moved = AtomicBool::new(false);
    let moving = async {
        until("all connections are those of the other role", || async {
            (count("one").await == 0 && count("two").await > 0).then_some(())
        })
        .await;
        moved.store(true, Ordering::SeqCst);
    };
    let asking = async {
        let mut answers = 0;
        while !moved.load(Ordering::SeqCst) {
            ask().await.expect(200);
            answers += 1;
        }
        answers
    };
    let ((), answers) = tokio::join!(moving, asking);
    assert!(answers > 0);
    sqlx::query("alter role one nologin")
        .execute(&pool)
        .await
        .unwrap();
    ask().await.expect(200);
    let path = format!("/socket/websocket/clients/{}/messages", client.id());
    gateway
        .rest(
            "POST",
            &path,
            &admin(&issuer),
            Some(json!({"event": "still here", "data": null})),
        )
        .await
        .expect(202);
    assert_eq!(client.next_envelope().await.event, "still here");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_changed_kafka_password_loses_no_record() {
    let Some(broker) = services::scram_kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    broker.set_password("signal", "first").await;
    let (issuer, topic) = (Issuer::start().await, unique("activity"));
    let producer = Producer::new(&broker.clear()).unwrap();
    producer.create_topic(&topic, 2).await.unwrap();
    let settings = Gateway::build()
        .trust(&issuer)
        .postgres(&database)
        .kafka(&broker.scram(), &topic);
    let settings = settings
        .set("kafka.security.protocol", "SASL_PLAINTEXT")
        .set("kafka.security.auth.username", "signal");
    let file = settings.dir().join("kafka-password");
    std::fs::write(&file, "first\n").unwrap();
    settings
        .policies()
        .await
        .join("17", "Merchant_42")
        .await
        .unwrap();
    let gateway = settings
        .set(
            "kafka.security.auth.password_file",
            file.display().to_string(),
        )
        .start()
        .await;
    let mut client = Client::open_encrypted(gateway.address(), &issuer.token("17")).await;
    let mut number = 0;
    let mut flows = async || {
        number += 1;
        producer
            .send(
                &topic,
                "42",
                &payment(&format!("evt-{number}"), "42", number),
            )
            .await
            .unwrap();
        let created = client.expect("notification:created").await;
        assert_eq!(
            (
                &created.data["notification"]["seq"],
                &created.data["unreadCount"]
            ),
            (&json!(number), &json!(number))
        );
    };
    flows().await;

    replace(&file, "wrong\n");
    until("it is tried", || async {
        gateway
            .log()
            .contains("the brokers refuse the changed Kafka credentials")
            .then_some(())
    })
    .await;
    flows().await;
    broker.set_password("signal", "second").await;
    flows().await;
    replace(&file, "second\n");
    let text = "Kafka is connected with the changed credentials";
    until("the new password is used", || async {
        gateway.log().contains(text).then_some(())
    })
    .await;
    flows().await;
    assert!(
        !gateway.log().contains("second"),
        "the password is a secret"
    );
    let inbox = gateway
        .rest("GET", "/notifications", &issuer.token("17"), None)
        .await
        .expect(200)
        .json();
    assert_eq!(inbox["data"].as_array().map(Vec::len), Some(4), "{inbox}");
}
