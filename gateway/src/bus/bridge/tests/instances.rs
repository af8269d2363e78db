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
async fn revocations_are_written_to_the_new_server_and_those_stored_there_are_handed_out() {
    if !lab::available(
        "revocations_are_written_to_the_new_server_and_those_stored_there_are_handed_out",
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
    there
        .bus
        .store_revocation(&of("stored there"))
        .await
        .unwrap();
    let mut a = Instance::knowing(&old, "a", live(None, None), vec![of("known")]).await;
    a.switch(&location(&new), Some(&location(&old))).await;
    let BusEvent::Revocations(mut stored) = a.event().await else {
        panic!("no revocations")
    };
    stored.sort_by_key(|revocation| revocation.user_id.clone());
    assert_eq!(stored, [of("known"), of("stored there")]);
    assert_eq!(there.bus.revocations().await.unwrap().len(), 2);
    a.bus.store_revocation(&of("made between")).await.unwrap();
    let late = Instance::start(&old, "late", live(None, None)).await;
    assert_eq!(
        late.bus.revocations().await.unwrap(),
        [of("made between")],
        "both have it"
    );
    late.bus.store_revocation(&of("old alone")).await.unwrap();
    assert_eq!(a.bus.revocations().await.unwrap().len(), 4, "both are read");
}
