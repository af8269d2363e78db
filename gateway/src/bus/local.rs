//! The bus of an instance that is alone: there is no other instance to publish to or to receive from.
//!
//! Revocations are kept in memory and end with the process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    Answers, Ask, Bus, BusError, BusEvent, BusStatus, Events, Interest, MAX_REVOCATIONS, Opened,
    Source, SubscriberState,
};
use crate::clock::Clock;
use crate::config;
use crate::dispatch::Dispatch;
use crate::revocation::Revocation;

struct LocalBus {
    clock: Arc<dyn Clock>,
    revocations: Mutex<Vec<Revocation>>,
    /// Kept so that the events do not end before the bus is closed.
    events: Mutex<Option<mpsc::Sender<BusEvent>>>,
}

pub(super) fn open(ids: &config::Ids, clock: Arc<dyn Clock>) -> Opened {
    let (sender, events) = mpsc::channel(1);
    let bus = LocalBus {
        clock,
        revocations: Mutex::default(),
        events: Mutex::new(Some(sender)),
    };
    Opened {
        bus: Arc::new(bus),
        events: Events(Source::Local(events)),
        worker: Arc::new(ids.worker_base.into()),
    }
}

impl LocalBus {
    fn forget_old(&self) {
        let now = self.clock.now_ms();
        self.revocations.lock().retain(|r| r.until_ms > now);
    }
}

impl Bus for LocalBus {
    fn publish<'a>(&'a self, _dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn subscribe(&self, _interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn unsubscribe(&self, _interests: Vec<Interest>) {}

    fn ask<'a>(&'a self, _ask: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        ready(Ok(Answers::default())).boxed()
    }

    fn store_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        self.forget_old();
        let mut stored = self.revocations.lock();
        let result = if stored.contains(revocation) {
            Ok(())
        } else if stored.len() >= MAX_REVOCATIONS {
            Err(BusError::Full)
        } else {
            stored.push(revocation.clone());
            Ok(())
        };
        ready(result).boxed()
    }

    fn revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        self.forget_old();
        ready(Ok(self.revocations.lock().clone())).boxed()
    }

    fn subscriber(&self) -> SubscriberState {
        SubscriberState::Live
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
        self.events.lock().take();
        ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;
    use crate::clock::FixedClock;

    #[tokio::test]
    async fn the_local_bus_keeps_the_contract_of_every_bus() {
        let clock =
            FixedClock::new(chrono::DateTime::from_timestamp_millis(1_800_000_000_000).unwrap());
        let opened = open(
            &crate::config::Config::for_tests().ids,
            Arc::new(clock.clone()),
        );
        assert_eq!(opened.worker.load(std::sync::atomic::Ordering::Acquire), 9);
        conformance::alone(opened, &clock).await;
    }
}
