use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::time::Instant;

use super::*;
use crate::bus::{BusStatus, Interest, Reception, Reply, SubscriberState};
use crate::dispatch::Dispatch;

/// Another instance that answers from the given attempt on; before, Redis is away, or it is silent.
#[derive(Default)]
struct Other {
    is_away: usize,
    is_silent: usize,
    asked: AtomicUsize,
    told: Mutex<Vec<Revocation>>,
}

impl Bus for Other {
    fn publish<'a>(&'a self, _: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn subscribe(&self, _: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn unsubscribe(&self, _: Vec<Interest>) {}

    fn ask<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        let Ask::Revoke { revocation, .. } = ask else {
            unreachable!("nothing else is asked")
        };
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = Answers::default();
        if asked < self.is_away {
            return ready(Err(BusError::Unavailable("refused".into()))).boxed();
        } else if asked < self.is_away + self.is_silent {
            answers.missing.push("slow".into());
        } else {
            self.told.lock().push(revocation.clone());
            let reply = Reply::Count { count: 1 };
            answers.replies.push(("other".into(), reply));
        }
        ready(Ok(answers)).boxed()
    }

    fn last_seen(&self) -> Vec<String> {
        vec!["was live".into()]
    }

    fn share_revocation<'a>(&'a self, _: &'a Revocation) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn subscriber(&self) -> SubscriberState {
        SubscriberState::Live
    }

    fn reception(&self) -> Option<Reception> {
        None
    }

    fn lag(&self) -> Option<Duration> {
        None
    }

    fn lease_lapsed(&self) -> bool {
        false
    }

    fn status(&self) -> BusStatus {
        BusStatus::default()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

fn revocation(user: &str) -> Revocation {
    Revocation {
        user_id: Some(user.into()),
        jti: None,
        issued_before_ms: 1,
        until_ms: 2,
    }
}

/// authorization.md 3.4.
#[tokio::test(start_paused = true)]
async fn a_revocation_is_announced_until_every_live_instance_has_answered() {
    let other = Arc::new(Other {
        is_away: 3,
        is_silent: 4,
        ..Other::default()
    });
    let (announcer, stop) = (Announcer::new(other.clone()), CancellationToken::new());
    let running = tokio::spawn(Arc::clone(&announcer).run(stop.clone()));
    let answers = announcer.announce(&revocation("17")).await;
    assert_eq!(
        (answers.replies.len(), answers.missing),
        (0, vec!["was live".to_owned()]),
        "they cannot be asked"
    );
    let began = Instant::now();
    while other.told.lock().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*other.told.lock(), [revocation("17")], "once");
    assert!(announcer.waiting.lock().is_empty());
    let answers = announcer.announce(&revocation("18")).await;
    assert_eq!((answers.replies.len(), answers.missing.len()), (1, 0));
    assert_eq!(other.told.lock().len(), 2);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_many_wait_the_oldest_is_left_to_the_reading_of_the_others() {
    let other = Arc::new(Other {
        is_away: usize::MAX,
        ..Other::default()
    });
    let announcer = Announcer::new(other);
    for n in 0..=MAX_WAITING {
        announcer.announce(&revocation(&n.to_string())).await;
    }
    let waiting = announcer.waiting.lock();
    assert_eq!(
        (waiting.len(), &waiting[0]),
        (MAX_WAITING, &revocation("1"))
    );
}
