//! Worker numbers that are lost, or used up.

use super::*;
use crate::id::IdGenerator;

/// A Redis without persistence is away while another instance starts: whichever of the two gets the number first, both work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_a_restarted_server_gave_to_another_instance_is_replaced() {
    if !lab::available("a_number_that_a_restarted_server_gave_to_another_instance_is_replaced") {
        return;
    }
    for _ in 0..8 {
        let mut server = Server::start(&[]);
        let a = Instance::start(&server, "a", live(None, None)).await;
        assert_eq!(a.worker(), 9);
        server.kill();
        let (_live, following) = watch::channel(live(None, None));
        let opening = tokio::spawn(open(options(
            &server,
            "b",
            following,
            Arc::new(SystemClock),
        )));
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.run();
        let b = timeout(LIMIT, opening).await.unwrap().unwrap().unwrap();
        eventually("each has a number of its own", async || {
            let other = b.worker.load(Ordering::Acquire);
            let owner = |number: u16| server.try_cli(&["GET", &format!("signal:worker:{number}")]);
            let owners = (owner(a.worker()), owner(other));
            a.worker() != other
                && !(a.bus.lease_lapsed() || a.bus.lease_doubtful() || b.bus.lease_lapsed())
                && matches!(&owners, (Some(a), Some(b)) if a != b && a.len() == 32 && b.len() == 32)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_another_instance_owns_is_replaced_and_left_to_it() {
    if !lab::available("a_number_that_another_instance_owns_is_replaced_and_left_to_it") {
        return;
    }
    let server = Server::start(&[]);
    let a = Instance::start(&server, "a", live(None, None)).await;
    let other = "f".repeat(32);
    server.cli(&["SET", "signal:worker:9", &other]);
    // A renewal follows.
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("it has another number", async || {
        a.worker() != 9 && !a.bus.lease_lapsed() && !a.bus.lease_doubtful()
    })
    .await;
    assert_eq!(server.cli(&["GET", "signal:worker:9"]), other);
}

/// protocol.md 11.4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_back_has_another_number_leased_and_the_old_one_kept() {
    if !lab::available("a_clock_that_steps_back_has_another_number_leased_and_the_old_one_kept") {
        return;
    }
    let server = Server::start(&[]);
    let a = Instance::start(&server, "a", live(None, None)).await;
    let clock = FixedClock::new(SystemClock.now());
    let ids = IdGenerator::following(a.worker.clone(), Arc::new(clock.clone()));
    ids.next().unwrap();
    clock.advance_ms(-7_200_000);
    assert!(ids.next().is_err());
    a.bus.replace_worker(Duration::from_millis(7_200_000));
    eventually("ids are made again", async || ids.next().is_ok()).await;
    assert!(a.worker() != 9 && !a.bus.lease_lapsed());
    eventually("the old number outlasts the step", async || {
        let left = server.cli(&["PTTL", "signal:worker:9"]).parse::<u64>();
        left.is_ok_and(|left| left > 7_200_000 + 3_000_000)
    })
    .await;
    let worker = a.worker();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(a.worker(), worker, "once");
}
