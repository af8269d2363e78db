//! Switching while messages flow.

use tokio::task::JoinHandle;

use super::*;
use crate::dispatch::ResyncReason;

/// Takes numbers as they come, until one with the event `end`. A resync that an attached server causes is passed over.
fn take_numbers(instance: &mut Instance) -> JoinHandle<Vec<usize>> {
    take_numbers_and(instance, |event| {
        matches!(event, BusEvent::Resync(ResyncReason::BusMoved))
    })
}

/// Takes numbers as they come, until one with the event `end`. Nothing else may come.
fn take_numbers_without_resync(instance: &mut Instance) -> JoinHandle<Vec<usize>> {
    take_numbers_and(instance, |_| false)
}

fn take_numbers_and(
    instance: &mut Instance,
    is_expected: fn(&BusEvent) -> bool,
) -> JoinHandle<Vec<usize>> {
    let nothing = tokio::sync::mpsc::unbounded_channel().1;
    let mut events = std::mem::replace(&mut instance.events, nothing);
    tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                BusEvent::Dispatch(dispatch) if &*dispatch.event == "end" => break,
                BusEvent::Dispatch(dispatch) => {
                    taken.push(dispatch.data_text().unwrap().parse::<usize>().unwrap());
                }
                other => assert!(is_expected(&other), "not a dispatch: {other:?}"),
            }
        }
        taken
    })
}

/// Fails unless every number that the sender has published was taken, once and in order.
async fn assert_all_taken(sender: &Instance, taken: JoinHandle<Vec<usize>>, sent: usize) {
    let end = Dispatch {
        event: "end".into(),
        ..numbered(room(), 0)
    };
    sender.bus.publish(&end).await.unwrap();
    let taken = timeout(LIMIT, taken).await.unwrap().unwrap();
    let first_wrong = taken
        .iter()
        .copied()
        .zip(0..)
        .find(|(got, want)| got != want);
    assert_eq!((first_wrong, taken.len()), (None, sent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_switch_one_after_the_other_while_messages_flow_and_none_is_lost_doubled_or_late()
{
    if !lab::available(
        "instances_switch_one_after_the_other_while_messages_flow_and_none_is_lost_doubled_or_late",
    ) {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let (here, there) = (location(&old), location(&new));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let mut b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    b.subscribe(&[room()]).await;
    let workers = (a.worker(), b.worker());
    let taken = [
        take_numbers_without_resync(&mut b),
        take_numbers_without_resync(&mut a),
    ];
    let stop = CancellationToken::new();
    let sending = [&a, &b].map(|instance| count(&instance.bus, room(), &stop));
    // There, back at once, and there again; then without the previous one.
    for (bus, previous) in [
        (&there, Some(&here)),
        (&here, Some(&there)),
        (&there, Some(&here)),
    ] {
        a.switch(bus, previous).await;
        b.switch(bus, previous).await;
    }
    assert_eq!(
        (a.worker(), b.worker()),
        workers,
        "the numbers were free there"
    );
    a.switch(&there, None).await;
    b.switch(&there, None).await;
    // Everything goes by the new one alone.
    eventually("the old one is left", async || subscribers(&old) == "0").await;
    a.subscribe(&[Interest::User("late".into())]).await;
    stop.cancel();
    let mut sent = Vec::new();
    for task in sending {
        sent.push(task.await.unwrap());
    }
    assert!(sent.iter().all(|sent| *sent > 100), "{sent:?}");
    for ((sender, taken), sent) in [&a, &b].into_iter().zip(taken).zip(sent) {
        assert_all_taken(sender, taken, sent).await;
    }
    eventually("what is held there is given up", async || {
        old.cli(&["KEYS", "*"]).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_is_attached_and_detached_under_load_and_nothing_is_lost_or_doubled() {
    if !lab::available(
        "a_bridge_is_attached_and_detached_under_load_and_nothing_is_lost_or_doubled",
    ) {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let (previous, current) = (location(&old), location(&new));
    let mut a = Instance::start(&new, "a", live(None, None)).await;
    let mut b = Instance::start(&new, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    b.subscribe(&[room()]).await;
    let taken = [take_numbers(&mut b), take_numbers(&mut a)];
    let stop = CancellationToken::new();
    let sending = [&a, &b].map(|instance| count(&instance.bus, room(), &stop));
    for _ in 0..3 {
        a.switch(&current, Some(&previous)).await;
        assert_eq!(
            subscribers(&old),
            "1",
            "the bridge of one instance is attached"
        );
        b.switch(&current, Some(&previous)).await;
        a.switch(&current, None).await;
        b.switch(&current, None).await;
        eventually("the bridges are detached", async || {
            subscribers(&old) == "0"
        })
        .await;
    }
    stop.cancel();
    for ((sender, sending), taken) in [&a, &b].into_iter().zip(sending).zip(taken) {
        let sent = sending.await.unwrap();
        assert_all_taken(sender, taken, sent).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_an_emitter_is_received_once_on_either_server_while_there_are_two() {
    if !lab::available(
        "a_message_of_an_emitter_is_received_once_on_either_server_while_there_are_two",
    ) {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let mut b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    b.subscribe(&[room()]).await;
    a.switch(&location(&new), Some(&location(&old))).await;
    // Wanted from here on, on both.
    b.switch(&location(&new), Some(&location(&old))).await;
    for (n, server) in [&old, &new, &old, &new].into_iter().enumerate() {
        emit(server, n);
        assert_eq!((a.number().await, b.number().await), (n, n));
    }
    a.bus.unsubscribe(vec![room()]);
    eventually("b alone subscribes", async || {
        subscribers(&old) == "1" && subscribers(&new) == "1"
    })
    .await;
    emit(&old, 7);
    assert_eq!(b.number().await, 7);
    a.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_login_or_another_name_of_the_same_server_is_used_without_a_gap() {
    if !lab::available("another_login_or_another_name_of_the_same_server_is_used_without_a_gap") {
        return;
    }
    let server = Server::start(&[]);
    for (user, password) in [("one", "first"), ("two", "second")] {
        server.cli(&[
            "ACL",
            "SETUSER",
            user,
            "on",
            &format!(">{password}"),
            "+@all",
            "~*",
            "&*",
        ]);
        std::fs::write(server.dir.path().join(password), password).unwrap();
    }
    let user_file = |user: &str| {
        let path = server.dir.path().join(format!("user-{user}"));
        std::fs::write(&path, user).unwrap();
        SecretFile::new(path)
    };
    let by = |user: &str, password: &str| RedisLocation {
        auth: RedisAuth {
            username: String::new(),
            username_file: user_file(user),
            password_file: SecretFile::new(server.dir.path().join(password)),
        },
        ..location(&server)
    };
    let mut a = Instance::start(&server, "a", live(Some(by("one", "first")), None)).await;
    let b = Instance::start(&server, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    let users = || {
        let clients = server.cli(&["CLIENT", "LIST"]);
        ["user=one ", "user=two "]
            .map(|user| clients.lines().filter(|line| line.contains(user)).count())
    };
    assert_eq!(users(), [2, 0]);
    let stop = CancellationToken::new();
    let sending = count(&b.bus, room(), &stop);
    a.set(&by("two", "first"), None);
    eventually("a wrong password is an error", async || {
        a.status().error.is_some()
    })
    .await;
    assert_eq!(users(), [2, 0], "and changes nothing");
    a.set(&by("two", "second"), None);
    eventually("all connections are the other user's", async || {
        users() == [0, 2]
    })
    .await;
    assert!(a.status().error.is_none() && !a.status().switching);
    stop.cancel();
    let sent = sending.await.unwrap();
    for n in 0..sent {
        assert_eq!(a.number().await, n, "of {sent}");
    }
    a.nothing_waits();
    // By another name: nothing is received twice.
    let named = RedisLocation {
        nodes: vec![format!("localhost:{}", server.port)],
        ..by("two", "second")
    };
    a.set(&named, Some(&location(&server)));
    eventually("the name is used", async || a.status().nodes == named.nodes).await;
    emit(&server, 1);
    emit(&server, 2);
    let mut numbers = Vec::new();
    while numbers.last() != Some(&2) {
        if let BusEvent::Dispatch(dispatch) = a.event().await {
            numbers.push(dispatch.data_text().unwrap().parse::<usize>().unwrap());
        }
    }
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_follows_the_file_to_a_server_that_answers() {
    if !lab::available("a_start_follows_the_file_to_a_server_that_answers") {
        return;
    }
    let (mut dead, new) = (Server::start(&[]), Server::start(&[]));
    dead.kill();
    let (live_sender, following) = watch::channel(live(None, None));
    let opening = tokio::spawn(open(options(
        &dead,
        "one",
        following,
        Arc::new(SystemClock),
    )));
    live_sender.send_replace(live(Some(location(&new)), Some(location(&dead))));
    let opened = timeout(LIMIT, opening).await.unwrap().unwrap().unwrap();
    let facts = opened.bus.status();
    assert_eq!(
        (
            facts.nodes,
            facts.previous.map(|previous| previous.subscribed)
        ),
        (vec![new.address()], Some(false))
    );
    opened.bus.close().await;
}
