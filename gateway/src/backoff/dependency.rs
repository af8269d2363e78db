//! A dependency that many wait for: one of them probes it for all, and its return wakes all of them at once.
//!
//! Input: those whose work failed, and a question that shows whether the dependency answers. Output: when they try again. A hundred who slept by
//! themselves would each ask in vain and wake long after the return; here an outage costs one question at a time, whoever waits and however long.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::Backoff;

/// Delays between two questions while there is no answer.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Longest wait for one answer. A question that got lost does not hold back the next one.
const ANSWER_LIMIT: Duration = Duration::from_secs(6);

/// What those who wait share.
pub(crate) struct Dependency {
    name: &'static str,
    /// Who has it asks; where that one stops waiting, the next in line goes on.
    turn: Semaphore,
    outage: Mutex<Outage>,
    answers: watch::Sender<Answered>,
}

struct Outage {
    since: Option<Instant>,
    backoff: Backoff,
}

/// The last answer to a question.
#[derive(Debug, Clone, Copy, Default)]
struct Answered {
    /// Whether questions before it had no answer.
    is_return: bool,
}

impl Dependency {
    /// `name` begins log lines, as in "the notification database".
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            turn: Semaphore::new(1),
            outage: Mutex::new(Outage {
                since: None,
                backoff: Backoff::between(FIRST_DELAY, LONGEST_DELAY),
            }),
            answers: watch::channel(Answered::default()).0,
        }
    }

    /// Waits after a failure until it is worth trying again: until the dependency has returned or, where it answers all the time and the failure
    /// lies elsewhere, for `delay`. Whoever waits asks with their own `question`, one at a time. Cancel safe.
    pub(crate) async fn wait<E: std::fmt::Display, F: Future<Output = Result<(), E>>>(
        &self,
        delay: Duration,
        question: impl Fn() -> F,
    ) {
        let due = Instant::now() + delay;
        let mut answers = self.answers.subscribe();
        let answered = tokio::select! {
            biased;
            Ok(()) = answers.changed() => *answers.borrow(),
            answered = self.ask(question) => answered,
        };
        if !answered.is_return {
            tokio::time::sleep_until(due).await;
        }
    }

    /// Asks until there is an answer, and passes it on to all who wait.
    async fn ask<E: std::fmt::Display, F: Future<Output = Result<(), E>>>(
        &self,
        question: impl Fn() -> F,
    ) -> Answered {
        let _turn = self.turn.acquire().await;
        loop {
            let error = match tokio::time::timeout(ANSWER_LIMIT, question()).await {
                Ok(Ok(())) => return self.answered(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {ANSWER_LIMIT:?}"),
            };
            tokio::time::sleep(self.unanswered(&error)).await;
        }
    }

    fn unanswered(&self, error: &str) -> Duration {
        let mut outage = self.outage.lock();
        if outage.since.is_none() {
            outage.since = Some(Instant::now());
            tracing::warn!(error, "{} does not answer; asking until it does", self.name);
        }
        outage.backoff.next_delay()
    }

    fn answered(&self) -> Answered {
        let mut outage = self.outage.lock();
        outage.backoff.reset();
        let since = outage.since.take();
        drop(outage);
        if let Some(since) = since {
            let away_ms = since.elapsed().as_millis() as u64;
            tracing::info!(away_ms, "{} answers again", self.name);
        }
        let answered = Answered {
            is_return: since.is_some(),
        };
        self.answers.send_replace(answered);
        answered
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    /// A server that can be away, and how often it was asked.
    #[derive(Default)]
    struct Server {
        is_away: AtomicBool,
        asked: AtomicUsize,
        at_once: AtomicUsize,
    }

    /// A question under way.
    struct Asking<'s>(&'s AtomicUsize);

    impl Drop for Asking<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Server {
        async fn ping(&self) -> Result<(), &'static str> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let others = self.at_once.fetch_add(1, Ordering::SeqCst);
            let _asking = Asking(&self.at_once);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(others, 0, "one question at a time");
            if self.is_away.load(Ordering::SeqCst) {
                Err("away")
            } else {
                Ok(())
            }
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// `count` who wait, each with a delay of an hour.
    fn crowd(dependency: &Arc<Dependency>, server: &Arc<Server>, count: usize) -> JoinSet<Instant> {
        let mut crowd = JoinSet::new();
        for _ in 0..count {
            let (dependency, server) = (dependency.clone(), server.clone());
            crowd.spawn(async move {
                dependency.wait(secs(3600), || server.ping()).await;
                Instant::now()
            });
        }
        crowd
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_go_on_within_two_seconds_of_the_return_after_an_hour_away() {
        let (dependency, server) = (Arc::new(Dependency::new("it")), Arc::new(Server::default()));
        server.is_away.store(true, Ordering::SeqCst);
        let crowd = crowd(&dependency, &server, 100);
        tokio::time::sleep(secs(3600)).await;
        let asked = server.asked.load(Ordering::SeqCst);
        assert!(
            (3600..8000).contains(&asked),
            "once or twice a second for all together: {asked}"
        );
        server.is_away.store(false, Ordering::SeqCst);
        let returned = Instant::now();
        for woken in crowd.join_all().await {
            assert!(woken - returned <= secs(2), "{:?}", woken - returned);
        }
        let more = server.asked.load(Ordering::SeqCst) - asked;
        assert!(more <= 2, "one answer is enough for all: {more}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_dependency_answers_everyone_waits_for_their_own_delay() {
        let (dependency, server) = (Dependency::new("it"), Server::default());
        for delay in [1, 4] {
            let began = Instant::now();
            dependency.wait(secs(delay), || server.ping()).await;
            assert_eq!(began.elapsed(), secs(delay));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_in_line_asks_where_the_first_stops_waiting() {
        let (dependency, server) = (Arc::new(Dependency::new("it")), Arc::new(Server::default()));
        server.is_away.store(true, Ordering::SeqCst);
        let mut first = crowd(&dependency, &server, 1);
        tokio::time::sleep(secs(5)).await;
        let second = crowd(&dependency, &server, 1);
        tokio::time::sleep(secs(5)).await;
        first.shutdown().await;
        tokio::time::sleep(secs(5)).await;
        server.is_away.store(false, Ordering::SeqCst);
        let returned = Instant::now();
        let woken = second.join_all().await[0];
        assert!(woken - returned <= secs(2), "{:?}", woken - returned);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_never_answered_does_not_hold_back_the_next() {
        let dependency = Dependency::new("it");
        let asked = AtomicUsize::new(0);
        let began = Instant::now();
        dependency
            .wait(secs(3600), || async {
                if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                    std::future::pending::<()>().await;
                }
                Ok::<(), &str>(())
            })
            .await;
        assert!(began.elapsed() <= ANSWER_LIMIT + LONGEST_DELAY);
    }
}
