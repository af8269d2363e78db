//! The bus of an instance that is alone: there is no other instance to publish to or to receive from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{
    Answers, Ask, Bus, BusError, BusEvent, BusStatus, Events, Interest, Opened, Reception, Source,
    SubscriberState,
};
use crate::config;
use crate::dispatch::{Audience, Dispatch};
use crate::revocation::Revocation;

struct LocalBus {
    /// Kept so that the events do not end before the bus is closed.
    events: Mutex<Option<mpsc::Sender<BusEvent>>>,
    ids: config::Ids,
    worker: Arc<AtomicU16>,
}

pub(super) fn open(ids: &config::Ids) -> Opened {
    let (sender, events) = mpsc::channel(1);
    let worker = Arc::new(AtomicU16::new(ids.worker_base));
    let bus = LocalBus {
        events: Mutex::new(Some(sender)),
        ids: ids.clone(),
        worker: worker.clone(),
    };
    Opened {
        bus: Arc::new(bus),
        events: Events(Source::Local(events)),
        worker,
    }
}

impl Bus for LocalBus {
    fn publish<'a>(&'a self, _dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn publish_audience(&self, _audience: &Audience<'_>) {}

    fn subscribe(&self, _interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn unsubscribe(&self, _interests: Vec<Interest>) {}

    fn ask<'a>(&'a self, _ask: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        ready(Ok(Answers::default())).boxed()
    }

    fn last_seen(&self) -> Vec<String> {
        Vec::new()
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
        Some(Reception {
            gaps: 0,
            until: Instant::now(),
        })
    }

    fn lag(&self) -> Option<Duration> {
        None
    }

    fn lease_lapsed(&self) -> bool {
        false
    }

    fn replace_worker(&self, _stepped_back: Duration) {
        // All numbers are this instance's.
        let number = self.worker.load(Ordering::Acquire);
        let next = (number - self.ids.worker_base + 1) % self.ids.worker_count.max(1);
        self.worker
            .store(self.ids.worker_base + next, Ordering::Release);
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

    #[tokio::test]
    async fn the_local_bus_keeps_the_contract_of_every_bus() {
        let opened = open(&crate::config::Config::for_tests().ids);
        assert_eq!(opened.worker.load(std::sync::atomic::Ordering::Acquire), 9);
        conformance::alone(opened).await;
    }
}
