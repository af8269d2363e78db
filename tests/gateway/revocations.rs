//! Revocations against everything that may be away at the wrong moment: Redis connections, Redis, the database, and the release before.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use signal_tests::services::{self, Own};
use signal_tests::wait::{now_secs, until, within};
use signal_tests::{Client, Gateway, Issuer, KeyMember, Proxy};
use tokio::time::{Instant, sleep};

use crate::{Stage, admin};

const PATH: &str = "/socket/websocket/revocations";

/// How long after Redis is back a revoked token must be known everywhere.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// Gateways on one Redis and one PostgreSQL. Each logs in to Redis as a user of its own, by whose name its connections can be cut.
struct Fleet {
    issuer: Issuer,
    redis: Own,
    gateways: Vec<Gateway>,
}

impl Fleet {
    async fn start(count: usize) -> Option<Self> {
        let (redis, database) = (services::redis().await?, services::postgres().await?);
        let issuer = Issuer::start().await;
        let settings = Gateway::build()
            .trust(&issuer)
            .redis(redis.address())
            .postgres(&database);
        let mut fleet = Self {
            issuer,
            redis,
            gateways: Vec::new(),
        };
        fleet.make_users(count).await;
        for number in 0..count {
            let settings = settings
                .clone()
                .set("redis.auth.username", format!("gateway-{number}"));
            fleet.gateways.push(settings.start_number(number).await);
        }
        Some(fleet)
    }

    /// Redis forgets its users when it is killed.
    async fn make_users(&self, count: usize) {
        for number in 0..count {
            let user = format!("gateway-{number}");
            let rights = ["on", "nopass", "~*", "&*", "+@all"];
            self.command(&[&["ACL", "SETUSER", &user][..], &rights].concat())
                .await;
        }
    }

    /// Runs a command on Redis.
    async fn command(&self, command: &[&str]) -> redis::Value {
        let client = redis::Client::open(format!("redis://{}", self.redis.address()));
        let connection = client.expect("an address");
        let mut connection = within(
            "Redis answers",
            connection.get_multiplexed_async_connection(),
        )
        .await
        .expect("Redis answers");
        redis::cmd(command[0])
            .arg(&command[1..])
            .query_async(&mut connection)
            .await
            .expect("Redis obeys")
    }

    async fn revoke(&self, by: usize, user: &str) -> Value {
        let body = Some(json!({"userId": user}));
        let gateway = &self.gateways[by];
        let answer = gateway.rest("POST", PATH, &admin(&self.issuer), body).await;
        answer.expect(200).json()
    }

    /// A connection of the token on every gateway.
    async fn connect(&self, token: &str) -> Vec<Client> {
        let mut clients = Vec::new();
        for gateway in &self.gateways {
            clients.push(Client::open(gateway.address(), token).await);
        }
        clients
    }

    /// Expects that no gateway takes the token.
    async fn expect_refused(&self, token: &str, what: &str) {
        for gateway in &self.gateways {
            let mut client = Client::connect(gateway.address()).await;
            client.send_authenticate(token, KeyMember::None).await;
            assert_eq!(
                client.expect_closed().await,
                (4003, "Authentication failed".into()),
                "{what} at {}",
                gateway.instance()
            );
        }
    }
}

/// What happens while a token is revoked.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Both connections of one gateway are cut, so often, with so many milliseconds in between.
    Connections { times: u32, pause_ms: u64 },
    /// Redis stands still for so many milliseconds.
    Pause(u64),
    /// Redis is killed, and started again after so many milliseconds.
    Kill(u64),
}

impl Cut {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0..6 => Self::Connections {
                times: random.random_range(1..=3),
                pause_ms: random.random_range(0..80),
            },
            6..8 => Self::Pause(random.random_range(200..3500)),
            _ => Self::Kill(random.random_range(0..2500)),
        }
    }

    /// Cuts, and returns when Redis is back.
    async fn run(self, fleet: &Fleet, victim: usize) {
        let wait = |ms| sleep(Duration::from_millis(ms));
        match self {
            Self::Connections { times, pause_ms } => {
                let user = format!("gateway-{victim}");
                for _ in 0..times {
                    fleet.command(&["CLIENT", "KILL", "USER", &user]).await;
                    wait(pause_ms).await;
                }
            }
            Self::Pause(ms) => {
                fleet.redis.pause().await;
                wait(ms).await;
                fleet.redis.resume().await;
            }
            Self::Kill(ms) => {
                fleet.redis.kill().await;
                wait(ms).await;
                fleet.redis.restart().await;
                fleet.make_users(fleet.gateways.len()).await;
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// authorization.md 3.4. `SIGNAL_TEST_CUTS` is the number of cuts, `SIGNAL_TEST_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_redis_is_cut_no_revoked_token_is_let_in_five_seconds_after_it_is_back() {
    let Some(fleet) = Fleet::start(3).await else {
        return;
    };
    let seed = number("SIGNAL_TEST_SEED", rand::random::<u32>().into());
    let cuts = number("SIGNAL_TEST_CUTS", 8);
    println!("seed {seed}, {cuts} cuts");
    let mut random = StdRng::seed_from_u64(seed);
    let innocent = fleet.issuer.token("innocent");
    let mut untouched = fleet.connect(&innocent).await;
    for round in 0..cuts {
        let user = format!("user-{round}");
        let token = fleet.issuer.token(&user);
        let mut clients = fleet.connect(&token).await;
        let victim = random.random_range(0..3);
        let by = (victim + random.random_range(1..3)) % 3;
        let cut = Cut::random(&mut random);
        let (before_cut, before_revoking) = (
            Duration::from_millis(random.random_range(0..60)),
            Duration::from_millis(random.random_range(0..90)),
        );
        let what = format!("seed {seed}, round {round}: {cut:?} of {victim}, revoked by {by}");
        println!("{what}");
        let (back, ()) = tokio::join!(
            async {
                sleep(before_cut).await;
                cut.run(&fleet, victim).await;
                Instant::now()
            },
            async {
                sleep(before_revoking).await;
                fleet.revoke(by, &user).await;
            }
        );
        for client in &mut clients {
            let left = (back + KNOWN_WITHIN).saturating_duration_since(Instant::now());
            let limit = left.max(Duration::from_millis(500));
            assert_eq!(
                client.expect_closed_within(limit).await,
                (4006, "Revoked".into()),
                "{what}"
            );
        }
        // Every gateway knows: from here on it lets none in, whatever time it is.
        fleet.expect_refused(&token, &what).await;
        for client in fleet.connect(&innocent).await {
            client.close().await;
        }
    }
    for (client, gateway) in untouched.iter_mut().zip(&fleet.gateways) {
        let path = format!("/socket/websocket/clients/{}/messages", client.id());
        until("it is told", || async {
            let body = Some(json!({"event": "still here", "data": null}));
            let answer = gateway
                .rest("POST", &path, &admin(&fleet.issuer), body)
                .await;
            (answer.status == 202).then_some(())
        })
        .await;
        client.expect("still here").await;
    }
}

/// authorization.md 3.2 and 3.3.
#[tokio::test]
async fn a_revocation_holds_on_every_gateway_and_on_those_that_start_later() {
    let Some(mut fleet) = Fleet::start(2).await else {
        return;
    };
    let token = fleet.issuer.token("17");
    let mut client = Client::open(fleet.gateways[1].address(), &token).await;
    let answer = fleet.revoke(0, "17").await;
    assert_eq!(
        (&answer["closed"], &answer["missing"]),
        (&json!(1), &json!([]))
    );
    assert_eq!(client.expect_closed().await, (4006, "Revoked".into()));
    fleet.gateways[1].kill();
    // Redis keeps nothing that matters.
    fleet.command(&["DEL", "signal:revocations"]).await;
    fleet.gateways[1].restart().await;
    fleet.expect_refused(&token, "after a restart").await;
}

/// authorization.md 3.4: nothing but the database tells the other gateway.
#[tokio::test]
async fn while_redis_is_away_a_revocation_holds_on_the_other_gateway_within_seconds() {
    let Some(fleet) = Fleet::start(2).await else {
        return;
    };
    let token = fleet.issuer.token("17");
    let mut clients = fleet.connect(&token).await;
    let mut other = Client::open(fleet.gateways[1].address(), &fleet.issuer.token("18")).await;
    // The other is known to be live.
    let list = fleet.gateways[0]
        .rest(
            "GET",
            "/socket/websocket/clients",
            &admin(&fleet.issuer),
            None,
        )
        .await;
    assert_eq!(list.expect(200).json()["missing"], json!([]));
    fleet.redis.kill().await;
    let answer = fleet.revoke(0, "17").await;
    assert_eq!(
        (&answer["closed"], &answer["missing"]),
        (&json!(1), &json!(["gateway-1"])),
        "the one that could not be asked is named"
    );
    for client in &mut clients {
        assert_eq!(
            client.expect_closed_within(KNOWN_WITHIN).await,
            (4006, "Revoked".into())
        );
    }
    fleet.expect_refused(&token, "without Redis").await;
    let path = format!("/socket/websocket/clients/{}/messages", other.id());
    let body = Some(json!({"event": "still here", "data": null}));
    let gateway = &fleet.gateways[1];
    gateway
        .rest("POST", &path, &admin(&fleet.issuer), body)
        .await
        .expect(202);
    other.expect("still here").await;
}

/// authorization.md 3.3: REST promises a date.
#[tokio::test]
async fn without_redis_a_revocation_outlives_a_restart() {
    let mut stage = Stage::new().await;
    let (token, other) = (stage.issuer.token("17"), stage.issuer.token("18"));
    let body = Some(json!({"userId": "17"}));
    let answer = stage
        .gateway
        .rest("POST", PATH, &admin(&stage.issuer), body)
        .await
        .expect(200)
        .json();
    assert!(
        answer["until"]
            .as_str()
            .is_some_and(|until| until > answer["issuedBefore"].as_str().unwrap())
    );
    for _ in 0..2 {
        stage.gateway.kill();
        stage.gateway.restart().await;
        let mut client = stage.connect().await;
        client.send_authenticate(&token, KeyMember::None).await;
        assert_eq!(
            client.expect_closed().await,
            (4003, "Authentication failed".into())
        );
        Client::open(stage.gateway.address(), &other).await;
    }
}

/// authorization.md 3.5.
#[tokio::test]
async fn without_redis_and_the_database_new_tokens_are_refused_and_open_connections_stay() {
    let (Some(redis), Some(database)) = (services::redis().await, services::postgres().await)
    else {
        return;
    };
    let (to_redis, to_database) = (
        Proxy::to(redis.address()).await,
        Proxy::to(database.server).await,
    );
    let issuer = Issuer::start().await;
    let gateway = Gateway::build()
        .trust(&issuer)
        .redis(to_redis.address())
        .postgres_url(&database.through(to_database.address()))
        .set("database.acquire_timeout_ms", 1000)
        .start()
        .await;
    let token = issuer.token("17");
    let mut open = Client::open(gateway.address(), &token).await;
    to_database.cut();
    sleep(Duration::from_secs(1)).await;
    let still_taken = Client::open(gateway.address(), &token).await;
    still_taken.close().await;
    to_redis.cut();
    let attempt = async || {
        let mut client = Client::connect(gateway.address()).await;
        client.send_authenticate(&token, KeyMember::None).await;
        let envelope = client.next_envelope().await;
        match envelope.event.as_str() {
            "connected" => None,
            _ => Some((envelope.data, client.expect_closed().await)),
        }
    };
    let (data, closed) = until("new tokens are refused", &attempt).await;
    assert_eq!(data, json!({"message": "Authentication error"}));
    assert_eq!(closed, (4003, "Authentication failed".into()));
    gateway.expect_readiness(503).await;
    assert_eq!(
        gateway.metric("signal_unready", "revocations").await,
        Some(1.0)
    );
    let age = gateway.metric("signal_revocations_age_seconds", "").await;
    assert!(age.is_some_and(|age| age > 5.0), "{age:?}");
    let answer = gateway.rest("GET", "/notifications", &token, None).await;
    assert_eq!(answer.expect(503).json()["code"], "keys_unavailable");

    // The database alone is enough.
    to_database.restore();
    until("tokens are taken again", || async {
        attempt().await.is_none().then_some(())
    })
    .await;
    to_redis.restore();
    gateway.expect_ready().await;
    let path = format!("/socket/websocket/clients/{}/messages", open.id());
    let body = Some(json!({"event": "still here", "data": null}));
    gateway
        .rest("POST", &path, &admin(&issuer), body)
        .await
        .expect(202);
    open.expect("still here").await;
}

/// During an upgrade instances of the release before store revocations in Redis and announce them so, and they read what this release makes.
#[tokio::test]
async fn during_an_upgrade_each_release_learns_of_the_revocations_of_the_other() {
    let Some(mut fleet) = Fleet::start(1).await else {
        return;
    };
    let (stored, announced) = (
        fleet.issuer.token("stored"),
        fleet.issuer.token("announced"),
    );
    let of = |user: &str| json!({"userId": user, "issuedBeforeMs": (now_secs() + 1) * 1000, "untilMs": (now_secs() + 3600) * 1000});
    let keep = async |fleet: &Fleet, revocation: &Value| {
        let (until, member) = (revocation["untilMs"].to_string(), revocation.to_string());
        fleet
            .command(&["ZADD", "signal:revocations", &until, &member])
            .await;
    };
    let mut client = Client::open(fleet.gateways[0].address(), &announced).await;

    // Announced by a running instance of the release before.
    let revocation = of("announced");
    keep(&fleet, &revocation).await;
    let live = match fleet
        .command(&["ZRANGE", "signal:instances", "0", "-1"])
        .await
    {
        redis::Value::Array(live) => live,
        other => panic!("{other:?}"),
    };
    let [redis::Value::BulkString(member)] = live.as_slice() else {
        panic!("{live:?}")
    };
    let member = String::from_utf8_lossy(member);
    let channel = format!("signal:ask:{}", member.split(' ').next().unwrap());
    let ask = json!({"id": 1, "from": "0".repeat(32), "ask": "revoke", "revocation": revocation});
    fleet
        .command(&["PUBLISH", &channel, &ask.to_string()])
        .await;
    assert_eq!(client.expect_closed().await, (4006, "Revoked".into()));

    // Stored before this release started.
    keep(&fleet, &of("stored")).await;
    fleet.gateways[0].kill();
    fleet.gateways[0].restart().await;
    fleet.expect_refused(&stored, "taken over").await;

    // Both are in the database.
    fleet.command(&["DEL", "signal:revocations"]).await;
    fleet.gateways[0].kill();
    fleet.gateways[0].restart().await;
    fleet.expect_refused(&stored, "kept").await;
    fleet.expect_refused(&announced, "kept").await;

    // What this release makes is where the release before reads.
    fleet.revoke(0, "new").await;
    let kept = match fleet
        .command(&["ZRANGE", "signal:revocations", "0", "-1"])
        .await
    {
        redis::Value::Array(kept) => kept,
        other => panic!("{other:?}"),
    };
    let [redis::Value::BulkString(member)] = kept.as_slice() else {
        panic!("{kept:?}")
    };
    let kept: Value = serde_json::from_slice(member).unwrap();
    assert_eq!(kept["userId"], "new");
}
