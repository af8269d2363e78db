//! One worker number, on two servers where there are two: instances that use only one of them must not share it. A number that is lost to another
//! instance, or used up because the clock stepped back, is replaced by another one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::opening::open_limit;
use super::switcher::Switcher;
use crate::bus::pubsub::PubSubBus;

impl Switcher {
    /// Uses a number that was leased on a new server and on `also`, and gives up the one before there.
    pub(super) async fn use_worker(&self, number: u16, also: Option<&PubSubBus>) {
        let before = self.core.worker.swap(number, Ordering::AcqRel);
        if let Some(also) = also.filter(|_| before != number) {
            log_new_worker(number, before);
            also.release_number(before).await;
        }
    }

    /// Leases a number that is free on both servers and uses it from here on. The number before is given up, or `kept` for this long.
    pub(super) async fn lease_new_worker(
        &self,
        bus: &PubSubBus,
        also: Option<&PubSubBus>,
        kept: Option<Duration>,
    ) {
        let ids = &self.core.setup.ids;
        let before = self.core.worker();
        let step = rand::random_range(1..ids.worker_count.max(2));
        let from_base = before.saturating_sub(ids.worker_base);
        let wanted = ids.worker_base + (from_base + step) % ids.worker_count.max(1);
        let number = bus.lease_worker(also, ids, wanted).await;
        self.core.worker.store(number, Ordering::Release);
        if before == number {
            return;
        }
        log_new_worker(number, before);
        for bus in std::iter::once(bus).chain(also) {
            match kept {
                Some(kept) => bus.keep_number(before, kept).await,
                None => bus.release_number(before).await,
            }
        }
    }

    /// Leases another number where another instance owns this one or the clock stepped back, and the number on the previous server when that was not
    /// possible at first.
    pub(super) async fn keep_worker(&self) {
        let (current, previous) = self.core.both();
        if !current.is_subscribed() {
            return;
        }
        let mut newer = self.live.clone();
        tokio::select! {
            () = self.check_worker(&current, previous.as_deref()) => {}
            () = tokio::time::sleep(open_limit(&self.core.fixed)) => {
                tracing::warn!("no other worker number could be leased yet; trying again");
            }
            Ok(()) = newer.changed() => {}
        }
    }

    async fn check_worker(&self, current: &PubSubBus, previous: Option<&PubSubBus>) {
        let number = self.core.worker();
        let replaced = self.core.replaced.lock().take();
        if let Some((_, stepped_back)) = replaced.filter(|(replaced, _)| *replaced == number) {
            return self
                .lease_new_worker(current, previous, Some(stepped_back))
                .await;
        }
        if current.number_owned_by_other() {
            return self.lease_new_worker(current, previous, None).await;
        }
        let Some(previous) = previous else { return };
        let is_leased = previous.leased_number() == Some(number) || !previous.is_subscribed();
        if previous.number_owned_by_other()
            || (!is_leased && matches!(previous.lease_number(number).await, Ok(false)))
        {
            self.lease_new_worker(current, Some(previous), None).await;
        }
    }
}

fn log_new_worker(worker: u16, before: u16) {
    tracing::warn!(
        worker,
        before,
        "worker number replaced: another instance owns the one before, or the clock stepped back"
    );
}
