//! Whether this member leaves the group: it cannot work for a cause of its own, and another instance can.
//!
//! Input: the pipeline's status, and what other instances answer. Output: when to leave, and when to join again.
//!
//! A member that stays keeps its partitions, however long it cannot work. One that leaves when nobody else can work gains nothing, and many that leave and
//! join move partitions for nothing: so another instance must say that it works, and a member leaves at most once in [`APART`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::PipelineStatus;

/// Least time between two times that a member leaves.
const APART: Duration = Duration::from_secs(600);
/// How often the state is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often others are asked.
const ASK: Duration = Duration::from_secs(5);
/// The same by a member that has left: when nobody works any more, it joins again.
const ASK_WHILE_LEFT: Duration = Duration::from_secs(30);
/// How often in succession it must be able to work before it joins again.
const ABLE_TIMES: u32 = 3;

/// What the pipeline asks of those around it.
#[derive(Clone)]
pub struct Surroundings {
    /// Whether this instance could store a row.
    pub able: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    /// Whether another instance says that its pipeline works.
    pub others_work: Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
}

impl Surroundings {
    /// An instance alone, which stays in the group whatever happens.
    pub fn alone() -> Self {
        use futures_util::FutureExt;
        Self {
            able: Arc::new(|| std::future::ready(Ok(())).boxed()),
            others_work: Arc::new(|| std::future::ready(false).boxed()),
        }
    }
}

/// Decides when the member leaves.
pub(super) struct Leave {
    status: Arc<PipelineStatus>,
    around: Surroundings,
    left: Option<Instant>,
    asked: Option<Instant>,
}

impl Leave {
    pub(super) fn new(status: Arc<PipelineStatus>, around: Surroundings) -> Self {
        Self {
            status,
            around,
            left: None,
            asked: None,
        }
    }

    /// Waits until the member should leave, and returns why. Cancelling loses nothing.
    pub(super) async fn due(&mut self) -> String {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(why) = self.status.own_cause(self.status.stuck_after()) else {
                continue;
            };
            let is_soon = |at: Option<Instant>, apart| at.is_some_and(|at| at.elapsed() < apart);
            if is_soon(self.left, APART) || is_soon(self.asked, ASK) {
                continue;
            }
            self.asked = Some(Instant::now());
            if (self.around.others_work)().await {
                self.left = Some(Instant::now());
                return why;
            }
        }
    }

    /// Waits until this instance can work again, or nobody else does.
    pub(super) async fn until_able(&mut self) {
        let mut able = 0;
        let mut asked = Instant::now();
        while able < ABLE_TIMES {
            tokio::time::sleep(LOOK).await;
            able = if (self.around.able)().await.is_ok() {
                able + 1
            } else {
                0
            };
            if asked.elapsed() >= ASK_WHILE_LEFT {
                if !(self.around.others_work)().await {
                    tracing::warn!(
                        "no other instance says that its pipeline works; this one joins the group again"
                    );
                    return;
                }
                asked = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt;

    use super::super::status::Cause;
    use super::*;

    struct Around {
        able: AtomicBool,
        others: AtomicBool,
    }

    fn leave() -> (Leave, Arc<Around>) {
        let around = Arc::new(Around {
            able: AtomicBool::new(false),
            others: AtomicBool::new(true),
        });
        let (able, others) = (around.clone(), around.clone());
        let surroundings = Surroundings {
            able: Arc::new(move || {
                let is_able = able.able.load(Ordering::SeqCst);
                async move { is_able.then_some(()).ok_or_else(String::new) }.boxed()
            }),
            others_work: Arc::new(move || {
                std::future::ready(others.others.load(Ordering::SeqCst)).boxed()
            }),
        };
        (Leave::new(Arc::default(), surroundings), around)
    }

    fn wait_for(leave: &Leave, cause: Cause) {
        let topic: Arc<str> = "t".into();
        leave.status.add(&topic, 0);
        leave.status.observe(&topic, 0, 0, 9);
        leave.status.waits(&topic, 0, 0, cause, "away".into());
    }

    async fn leaves_within(leave: &mut Leave, seconds: u64) -> bool {
        tokio::time::timeout(Duration::from_secs(seconds), leave.due())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_cannot_work_leaves_once_in_ten_minutes_and_only_to_one_that_works() {
        let (mut leave, around) = leave();
        wait_for(&leave, Cause::Database);
        assert!(!leaves_within(&mut leave, 29).await, "it waits first");
        assert!(leaves_within(&mut leave, 10).await);
        assert!(!leaves_within(&mut leave, 590).await, "once in ten minutes");
        assert!(leaves_within(&mut leave, 30).await);

        around.others.store(false, Ordering::SeqCst);
        assert!(!leaves_within(&mut leave, 3600).await, "nobody works");
        around.others.store(true, Ordering::SeqCst);
        assert!(leaves_within(&mut leave, 10).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_would_stand_still_everywhere_makes_no_member_leave() {
        for cause in [Cause::Fetch, Cause::DeadLetters] {
            let (mut leave, _) = leave();
            wait_for(&leave, cause);
            assert!(!leaves_within(&mut leave, 3600).await, "{cause:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_left_joins_again_when_it_can_work_or_nobody_else_does() {
        let (mut leave, around) = leave();
        let hour = Duration::from_secs(3600);
        assert!(
            tokio::time::timeout(hour, leave.until_able())
                .await
                .is_err()
        );
        around.able.store(true, Ordering::SeqCst);
        let soon = Duration::from_secs(4);
        assert!(tokio::time::timeout(soon, leave.until_able()).await.is_ok());
        around.able.store(false, Ordering::SeqCst);
        around.others.store(false, Ordering::SeqCst);
        let later = Duration::from_secs(40);
        assert!(
            tokio::time::timeout(later, leave.until_able())
                .await
                .is_ok()
        );
    }
}
