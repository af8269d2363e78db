//! One feed: what one subscriber connection receives, and the connection that publishes to it.
//!
//! There is a classic one, with the channels that emitters know and those of questions between instances. With `redis.sharded_pubsub` there is one more
//! for each [`Segment`] of our own messages. Each repairs itself; a gap of a segment concerns the destinations of the segment alone.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::intake::Intake;
use super::nodes::{Address, Prefer};
use super::publisher::Publisher;
use crate::bus::interests::Interests;
use crate::bus::wire::{Names, Segment};
use crate::dispatch::{Destination, ResyncReason};

/// What its tasks and the callers of the bus share.
pub(super) struct Feed {
    pub(super) segment: Option<Segment>,
    pub(super) names: Names,
    pub(super) intake: Arc<Intake>,
    pub(super) publisher: Publisher,
    pub(super) interests: Mutex<Interests>,
    pub(super) interests_changed: Notify,
    subscriber: Mutex<Option<Address>>,
}

impl Feed {
    pub(super) fn new(
        segment: Option<Segment>,
        names: Names,
        intake: Arc<Intake>,
        publisher: Publisher,
    ) -> Self {
        Self {
            segment,
            names,
            intake,
            publisher,
            interests: Mutex::default(),
            interests_changed: Notify::new(),
            subscriber: Mutex::default(),
        }
    }

    /// The channels that every instance subscribes to.
    pub(super) fn own_channels(&self) -> Vec<String> {
        let names = &self.names;
        if self.segment.is_some() {
            return vec![names.ping.clone(), names.audience.clone()];
        }
        vec![
            names.channel(&Destination::Broadcast),
            names.ping.clone(),
            names.ask.clone(),
            names.reply.clone(),
            names.lost.clone(),
            names.audience.clone(),
        ]
    }

    /// The node that a connection has to be made to, where it is not `otherwise`.
    pub(super) fn node(&self, otherwise: Prefer) -> Prefer {
        self.segment
            .map_or(otherwise, |segment| Prefer::Owner(segment.slot()))
    }

    pub(super) fn set_subscriber(&self, address: Option<Address>) {
        *self.subscriber.lock() = address;
    }

    pub(super) fn subscriber_address(&self) -> Option<Address> {
        self.subscriber.lock().clone()
    }

    /// Has those told to sync that may have missed something, behind everything that was received before: all clients, or those of the segment.
    pub(super) fn resync(&self, reason: ResyncReason) {
        if self.segment.is_none() {
            return self.intake.resync(reason);
        }
        let destinations = self.interests.lock().destinations();
        if !destinations.is_empty() {
            self.intake.resync_for(reason, destinations);
        }
    }

    /// Sends a ping to this instance.
    pub(super) fn ping(&self) {
        // Through the queue of dispatches: a ping meets what they meet.
        let _ = self
            .publisher
            .signal(self.names.ping.clone(), self.intake.ping());
    }
}
