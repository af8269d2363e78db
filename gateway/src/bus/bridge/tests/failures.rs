//! Servers that cannot be reached or die.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_reached_leaves_the_current_one_in_use_until_it_can() {
    if !lab::available("a_server_that_cannot_be_reached_leaves_the_current_one_in_use_until_it_can")
    {
        return;
    }
    let (old, mut new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    new.kill();
    a.set(&location(&new), Some(&location(&old)));
    eventually("the error is shown", async || a.status().error.is_some()).await;
    let facts = a.status();
    assert!(
        facts.switching && facts.nodes == [old.address()],
        "{facts:?}"
    );
    b.publish(1).await;
    assert_eq!(
        (a.number().await, a.bus.subscriber()),
        (1, SubscriberState::Live)
    );
    new.run();
    eventually("it has switched", async || {
        a.status().nodes == [new.address()]
    })
    .await;
    eventually("the error is gone", async || a.status().error.is_none()).await;
    b.publish(2).await;
    assert_eq!(a.number().await, 2);
    // Taken back before it could be done: nothing is left of it.
    new.kill();
    a.switch(&location(&old), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_previous_server_that_dies_harms_nothing_and_is_left_when_the_file_names_it_no_longer() {
    if !lab::available(
        "a_previous_server_that_dies_harms_nothing_and_is_left_when_the_file_names_it_no_longer",
    ) {
        return;
    }
    let (mut old, new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    for instance in [&a, &b] {
        instance
            .switch(&location(&new), Some(&location(&old)))
            .await;
    }
    old.kill();
    eventually("the loss is shown", async || {
        a.status()
            .previous
            .is_some_and(|previous| !previous.subscribed)
    })
    .await;
    let began = Instant::now();
    for n in 0..100 {
        b.publish(n).await;
        assert_eq!(a.number().await, n);
    }
    assert!(
        began.elapsed() < LIMIT,
        "messages wait for the dead server: {:?}",
        began.elapsed()
    );
    assert_eq!(
        (a.bus.subscriber(), a.bus.lease_lapsed()),
        (SubscriberState::Live, false)
    );
    a.subscribe(&[Interest::User("late".into())]).await;
    let question = Ask::Holds {
        client: "A".parse().unwrap(),
    };
    let (answers, ()) = tokio::join!(b.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = a.event().await else {
            panic!("not asked")
        };
        reply.send(Reply::Count { count: 0 }).unwrap();
    });
    assert_eq!(answers.unwrap().replies.len(), 1);
    b.switch(&location(&new), None).await;
    assert_eq!(b.status().previous, None);
}
