//! An inbox without local connections, whose pushes a test can read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending, ready};
use parking_lot::Mutex;

use super::Inbox;
use crate::bus::{Answers, Ask, Bus, BusError, BusStatus, Interest, Reception, SubscriberState};
use crate::clock::SystemClock;
use crate::delivery::Delivery;
use crate::dispatch::Dispatch;
use crate::hub::Hub;
use crate::revocation::Revocation;
use crate::store::NotificationStore;

/// An inbox whose pushes all go to `bus`.
pub(crate) fn inbox(notifications: Arc<dyn NotificationStore>, bus: Arc<Published>) -> Inbox {
    let delivery = Delivery::new(Hub::none(), bus);
    Inbox::new(notifications, delivery, Arc::new(SystemClock))
}

/// A bus that keeps what is published, or is unavailable, or takes everything and never answers.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) dispatches: Mutex<Vec<Dispatch>>,
    pub(crate) is_away: AtomicBool,
    pub(crate) never_answers: AtomicBool,
    pub(crate) tries: AtomicUsize,
}

impl Bus for Published {
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        // Queued when called, as by every bus.
        self.tries.fetch_add(1, Ordering::SeqCst);
        if self.is_away.load(Ordering::SeqCst) {
            return ready(Err(BusError::Unavailable("away".into()))).boxed();
        }
        self.dispatches.lock().push(dispatch.clone());
        if self.never_answers.load(Ordering::SeqCst) {
            return pending().boxed();
        }
        ready(Ok(())).boxed()
    }

    fn subscribe(&self, _: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        Box::pin(async { Ok(()) })
    }

    fn unsubscribe(&self, _: Vec<Interest>) {}

    fn ask<'a>(&'a self, _: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        Box::pin(async { Ok(Answers::default()) })
    }

    fn last_seen(&self) -> Vec<String> {
        Vec::new()
    }

    fn share_revocation<'a>(&'a self, _: &'a Revocation) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async { Ok(()) })
    }

    fn lease_lapsed(&self) -> bool {
        false
    }

    fn reception(&self) -> Option<Reception> {
        None
    }

    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn status(&self) -> BusStatus {
        BusStatus::default()
    }

    fn subscriber(&self) -> SubscriberState {
        SubscriberState::Live
    }

    fn lag(&self) -> Option<Duration> {
        None
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
