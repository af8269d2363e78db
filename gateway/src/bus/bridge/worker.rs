//! One worker number on two servers: instances that use only one of them must not share it.

use std::sync::atomic::Ordering;

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

    /// Leases a number that is free on both servers and uses it from here on.
    pub(super) async fn lease_new_worker(&self, bus: &PubSubBus, also: Option<&PubSubBus>) {
        let ids = &self.core.setup.ids;
        let wanted = ids.worker_base + rand::random_range(0..ids.worker_count);
        let number = bus.lease_worker(also, ids, wanted).await;
        let before = self.core.worker.swap(number, Ordering::AcqRel);
        if before != number {
            log_new_worker(number, before);
            for bus in std::iter::once(bus).chain(also) {
                bus.release_number(before).await;
            }
        }
    }

    /// Leases the number on the previous server when that was not possible at first, and leases a new one on both when another instance owns it there.
    pub(super) async fn keep_same_worker(&self) {
        let (current, previous) = self.core.both();
        let Some(previous) = previous else { return };
        let number = self.core.worker();
        let check = async {
            let is_leased = previous.leased_number() == Some(number) || !previous.is_subscribed();
            if previous.number_owned_by_other()
                || (!is_leased && matches!(previous.lease_number(number).await, Ok(false)))
            {
                self.lease_new_worker(&current, Some(&previous)).await;
            }
        };
        if tokio::time::timeout(open_limit(&self.core.fixed), check)
            .await
            .is_err()
        {
            tracing::warn!(
                "no worker number could be leased on both Redis servers yet; trying again"
            );
        }
    }
}

fn log_new_worker(worker: u16, before: u16) {
    tracing::info!(
        worker,
        before,
        "worker number owned by another instance on one of two Redis servers; using a new one"
    );
}
