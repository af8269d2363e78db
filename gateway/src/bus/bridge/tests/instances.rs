//! Questions, worker numbers and revocations while there are two servers.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_on_the_old_server_alone_is_asked_there_and_one_on_both_is_asked_once() {
    if !lab::available(
        "an_instance_on_the_old_server_alone_is_asked_there_and_one_on_both_is_asked_once",
    ) {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let a = Instance::start(&old, "a", live(None, None)).await;
    let mut b = Instance::start(&old, "b", live(None, None)).await;
    let mut c = Instance::start(&old, "c", live(None, None)).await;
    for instance in [&a, &b] {
        instance
            .switch(&location(&new), Some(&location(&old)))
            .await;
    }
    let question = Ask::Holds {
        client: "4bC".parse().unwrap(),
    };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        for instance in [&mut b, &mut c] {
            let BusEvent::Asked(_, reply) = instance.event().await else {
                panic!("not asked")
            };
            reply.send(Reply::Count { count: 1 }).unwrap();
        }
    });
    let answers = answers.unwrap();
    let mut names: Vec<&str> = answers
        .replies
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!((names, answers.missing.len()), (vec!["b", "c"], 0));
    b.nothing_waits();
    c.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_numbers_are_never_shared_while_instances_are_on_different_servers() {
    if !lab::available("worker_numbers_are_never_shared_while_instances_are_on_different_servers") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let a = Instance::start(&old, "a", live(None, None)).await;
    let b = Instance::start(&old, "b", live(None, None)).await;
    assert_eq!(a.worker(), 9);
    // Another instance owns a's number there.
    let taken = |server: &Server, number: u16| {
        server.cli(&["SET", &format!("signal:worker:{number}"), "somebody else"])
    };
    taken(&new, 9);
    let fresh = Instance::start(
        &old,
        "fresh",
        live(Some(location(&new)), Some(location(&old))),
    )
    .await;
    a.switch(&location(&new), Some(&location(&old))).await;
    let numbers = [a.worker(), b.worker(), fresh.worker()];
    assert!(
        a.worker() != 9
            && numbers[0] != numbers[1]
            && numbers[1] != numbers[2]
            && numbers[0] != numbers[2],
        "{numbers:?}"
    );
    for server in [&old, &new] {
        for instance in [&a, &fresh] {
            let holder = server.cli(&["GET", &format!("signal:worker:{}", instance.worker())]);
            assert!(holder.len() == 32, "leased on both servers: {holder}");
        }
    }
    assert_eq!(
        old.cli(&["EXISTS", "signal:worker:9"]),
        "0",
        "the number before is given up"
    );
    // Another instance takes the number on the old server later.
    taken(&old, fresh.worker());
    let before = fresh.worker();
    fresh.switch(&location(&new), None).await;
    fresh.switch(&location(&new), Some(&location(&old))).await;
    assert_ne!(fresh.worker(), before);
    assert_eq!(
        old.cli(&["GET", &format!("signal:worker:{}", fresh.worker())])
            .len(),
        32
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_for_the_release_before_are_written_to_both_servers_and_read_from_both() {
    if !lab::available(
        "revocations_for_the_release_before_are_written_to_both_servers_and_read_from_both",
    ) {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let until_ms = SystemClock.now_ms() + 60_000;
    let of = |user: &str| Revocation {
        user_id: Some(user.into()),
        jti: None,
        issued_before_ms: 1,
        until_ms,
    };
    let there = Instance::start(&new, "there", live(None, None)).await;
    there.bus.share_revocation(&of("there")).await.unwrap();
    let a = Instance::start(&old, "a", live(None, None)).await;
    a.switch(&location(&new), Some(&location(&old))).await;
    a.bus.share_revocation(&of("on both")).await.unwrap();
    let late = Instance::start(&old, "late", live(None, None)).await;
    assert_eq!(
        late.bus.shared_revocations().await.unwrap(),
        [of("on both")]
    );
    late.bus.share_revocation(&of("old alone")).await.unwrap();
    assert_eq!(a.bus.shared_revocations().await.unwrap().len(), 3);
}

/// What was published between two receptions of different numbers may have been missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_and_another_server_are_gaps_and_nothing_else_is() {
    if !lab::available("a_lost_connection_and_another_server_are_gaps_and_nothing_else_is") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let first = a.bus.reception().unwrap();
    a.bus
        .subscribe(vec![Interest::Room("r".into())])
        .await
        .unwrap();
    eventually("a ping comes back", async || {
        a.bus.reception().is_some_and(|now| now.until > first.until)
    })
    .await;
    assert_eq!(a.bus.reception().unwrap().gaps, first.gaps);
    assert_ne!(old.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]), "0");
    assert!(matches!(a.event().await, BusEvent::Resync(_)));
    let second = a.bus.reception().unwrap();
    assert_ne!(second.gaps, first.gaps);
    a.switch(&location(&new), None).await;
    let third = a.bus.reception().unwrap();
    assert!(third.gaps != first.gaps && third.gaps != second.gaps);
}
