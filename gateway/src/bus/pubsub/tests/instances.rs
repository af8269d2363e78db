//! Worker numbers, and questions between instances.

use super::*;

/// protocol.md 11.5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_instances_that_start_together_have_distinct_workers_from_the_base_on() {
    if !lab::available("many_instances_that_start_together_have_distinct_workers_from_the_base_on")
    {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let buses = futures_util::future::join_all((0..12).map(|_| opened(&config))).await;
    let workers: HashSet<u16> = buses.iter().map(|b| b.worker).collect();
    assert_eq!(workers.len(), 12);
    assert!(workers.contains(&9) && workers.iter().all(|w| *w >= 9));
    let ttl: i64 = server.cli(&["TTL", "signal:worker:9"]).parse().unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    for bus in &buses {
        bus.bus.close().await;
    }
    assert_eq!(server.cli(&["KEYS", "*"]), "");
    assert_eq!(opened(&config).await.worker, 9, "the first is free again");
}

/// protocol.md 11.5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instance_keeps_its_worker_until_the_lease_ends() {
    if !lab::available("a_crashed_instance_keeps_its_worker_until_the_lease_ends") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let mut timing = quick(&config);
    (timing.lease, timing.renew) = (Duration::from_secs(6), Duration::from_millis(200));
    // Its tasks are dropped as a crash would: nothing is given up.
    let crashing = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let crashed = {
        let (config, timing) = (config.clone(), timing.clone());
        crashing
            .spawn(async move { open_with(&config, "crashed", timing).await })
            .await
            .unwrap()
    };
    assert_eq!(crashed.worker, 9);
    crashing.shutdown_background();
    let held = open_with(&config, "held", timing.clone()).await;
    assert_ne!(held.worker, 9);
    eventually("the lease of the crashed one ends", async || {
        server.cli(&["EXISTS", "signal:worker:9"]) == "0"
    })
    .await;
    assert!(
        crashed.bus.lease_lapsed(),
        "what cannot be renewed has lapsed"
    );
    assert!(!held.bus.lease_lapsed(), "what is renewed has not");
    assert_eq!(open_with(&config, "next", timing).await.worker, 9);
}

/// protocol.md 11.5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_number_that_another_instance_took_is_noticed_and_leased_again_when_it_is_free() {
    if !lab::available(
        "a_worker_number_that_another_instance_took_is_noticed_and_leased_again_when_it_is_free",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let mut timing = quick(&config);
    timing.renew = Duration::from_millis(100);
    let a = open_with(&config, "a", timing).await;
    assert!(!a.bus.lease_lapsed());
    server.cli(&["SET", "signal:worker:9", "somebody else"]);
    eventually("it is noticed", async || a.bus.lease_lapsed()).await;
    assert_eq!(
        server.cli(&["GET", "signal:worker:9"]),
        "somebody else",
        "the other instance keeps it"
    );
    server.cli(&["DEL", "signal:worker:9"]);
    eventually("it is leased again", async || !a.bus.lease_lapsed()).await;
    server.cli(&["SET", "signal:worker:9", "somebody else"]);
    a.bus.close().await;
    assert_eq!(
        server.cli(&["GET", "signal:worker:9"]),
        "somebody else",
        "closing gives up only what this instance owns"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_reach_all_live_instances_and_those_that_do_not_reply_are_missing() {
    if !lab::available("questions_reach_all_live_instances_and_those_that_do_not_reply_are_missing")
    {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    config.request_timeout_ms = REQUEST.as_millis() as u64;
    let a = open_with(&config, "a", quick(&config)).await;
    let (mut b, mut c) = (
        open_with(&config, "b", quick(&config)).await,
        open_with(&config, "c", quick(&config)).await,
    );
    all_reply(&a, &mut b, &mut c).await;
    those_that_do_not_reply_are_missing(&server, &a, &mut b, &mut c).await;
    c.bus.close().await;
    open_questions_are_bounded(&a).await;
}

/// How long a question waits for replies.
const REQUEST: Duration = Duration::from_secs(3);

fn join_question() -> Ask {
    Ask::Join {
        client: "4bC".parse().unwrap(),
        rooms: vec!["x".into()],
    }
}

async fn all_reply(a: &Opening, b: &mut Opening, c: &mut Opening) {
    let question = join_question();
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        for bus in [b, c] {
            let BusEvent::Asked(asked, reply) = bus.event().await else {
                panic!("not asked")
            };
            assert_eq!(asked, question);
            reply
                .send(Reply::Rooms {
                    rooms: Some(vec!["x".into()]),
                })
                .unwrap();
        }
    });
    let answers = answers.unwrap();
    let mut names: Vec<_> = answers
        .replies
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!((names, answers.missing.len()), (vec!["b", "c"], 0));
    assert!(
        answers.replies.iter().all(
            |(_, reply)| matches!(reply, Reply::Rooms { rooms: Some(rooms) } if rooms == &["x"])
        )
    );
}

/// c drops the question, and an instance that crashed is still listed.
async fn those_that_do_not_reply_are_missing(
    server: &Server,
    a: &Opening,
    b: &mut Opening,
    c: &mut Opening,
) {
    let question = join_question();
    let id = "f".repeat(32);
    server.cli(&[
        "ZADD",
        "signal:instances",
        "9999999999999",
        &format!("{id} gone"),
    ]);
    let began = Instant::now();
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = b.event().await else {
            panic!("not asked")
        };
        reply.send(Reply::Rooms { rooms: None }).unwrap();
        let BusEvent::Asked(_, dropped) = c.event().await else {
            panic!("not asked")
        };
        drop(dropped);
    });
    let answers = answers.unwrap();
    assert!(matches!(&answers.replies[..], [(name, Reply::Rooms { rooms: None })] if name == "b"));
    assert_eq!(answers.missing, ["c", "gone"]);
    let took = began.elapsed();
    assert!(took >= REQUEST && took < 2 * REQUEST, "{took:?}");
    server.cli(&["ZREM", "signal:instances", &format!("{id} gone")]);
}

async fn open_questions_are_bounded(a: &Opening) {
    let questions = vec![
        Ask::Holds {
            client: "A".parse().unwrap()
        };
        2 * ask::MAX_OPEN
    ];
    let answers = futures_util::future::join_all(questions.iter().map(|q| a.bus.ask(q))).await;
    assert!(
        answers
            .iter()
            .any(|answer| matches!(answer, Err(BusError::Full))),
        "open questions are bounded"
    );
    assert!(
        answers
            .iter()
            .flatten()
            .all(|answers| answers.missing == ["b"]),
        "an instance that closed is not asked"
    );
}
