//! Which feed a message and an interest belong to: the classic one, and with `redis.sharded_pubsub` the [`Segment`] of its name as well.
//!
//! Every interest is subscribed to on the classic channels, where emitters publish. What this instance publishes goes on a segment while every other live
//! instance receives there.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready, try_join_all};
use tokio::time::Instant;

use super::feed::Feed;
use super::{PubSubBus, PubSubCore};
use crate::bus::interests::Added;
use crate::bus::wire::{self, Segment};
use crate::bus::{BusError, Interest};
use crate::config::{self, RedisMode};
use crate::dispatch::{Audience, Destination};

/// Returns the segments that these settings use.
///
/// # Errors
/// [`BusError::Misconfigured`] for a prefix with which segments would not be where they are looked for.
pub(super) fn segments_of(
    config: &config::Redis,
) -> Result<impl Iterator<Item = Segment>, BusError> {
    let is_sharded = config.sharded_pubsub && config.mode == RedisMode::Cluster;
    if config.sharded_pubsub && !is_sharded {
        tracing::warn!("redis.sharded_pubsub has no effect: the Redis in use is no cluster");
    }
    if is_sharded && !Segment::allows_prefix(&config.channel_prefix) {
        return Err(BusError::Misconfigured(
            "redis.channel_prefix may hold no braces with redis.sharded_pubsub: they say where channels are".into(),
        ));
    }
    Ok(Segment::all().filter(move |_| is_sharded))
}

impl PubSubCore {
    /// All feeds: the classic one, then the segments.
    pub(super) fn feeds(&self) -> impl Iterator<Item = &Arc<Feed>> {
        std::iter::once(&self.classic).chain(&self.segments)
    }

    /// Whether this instance receives what is published on segments.
    pub(super) fn is_sharded(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Returns where a dispatch to this destination is published.
    pub(super) fn feed_of(&self, destination: &Destination) -> &Arc<Feed> {
        match Segment::of(destination) {
            Some(segment) if self.is_sharded() && self.sharded_peers.take_segments() => {
                &self.segments[segment.number()]
            }
            _ => &self.classic,
        }
    }

    /// Adds interests; see [`Bus::subscribe`](crate::bus::Bus::subscribe).
    pub(super) fn add(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        if !self.is_sharded() {
            return add_to(&self.classic, interests);
        }
        let added: Vec<_> = self
            .by_feed(interests)
            .into_iter()
            .map(|(feed, interests)| add_to(feed, interests))
            .collect();
        try_join_all(added).map(|all| all.map(drop)).boxed()
    }

    /// Takes interests back.
    pub(super) fn remove(&self, interests: Vec<Interest>) {
        for (feed, interests) in self.by_feed(interests) {
            feed.interests.lock().remove(interests, Instant::now());
            feed.interests_changed.notify_one();
        }
    }

    /// Returns the feeds that are subscribed for these: the classic one for all of them, each segment for its own.
    fn by_feed(&self, interests: Vec<Interest>) -> Vec<(&Arc<Feed>, Vec<Interest>)> {
        let on_segments = interests.iter().filter(|_| self.is_sharded());
        let shares = self.shares(
            on_segments.filter_map(|interest| Some((Segment::of(interest)?, interest.clone()))),
        );
        std::iter::once((&self.classic, interests))
            .chain(shares)
            .collect()
    }

    /// Returns the feeds that have something of this, each with its share, in order.
    fn shares<T: Clone>(
        &self,
        all: impl Iterator<Item = (Segment, T)>,
    ) -> Vec<(&Arc<Feed>, Vec<T>)> {
        let mut shares = vec![Vec::new(); self.segments.len()];
        for (segment, one) in all {
            shares[segment.number()].push(one);
        }
        let shares = self.segments.iter().zip(shares);
        shares.filter(|(_, share)| !share.is_empty()).collect()
    }

    /// Sets the gauges of segments.
    pub(super) fn count_segments(&self) {
        if self.is_shown() {
            let _counting = self.counting.lock();
            let up = self
                .segments
                .iter()
                .filter(|feed| feed.interests.lock().is_up());
            self.metrics.bus_segments.set(up.count() as i64);
            let is_used = self.is_sharded() && self.sharded_peers.all_take();
            self.metrics.bus_sharded.set(i64::from(is_used));
        }
    }
}

/// Adds interests to a feed.
fn add_to(feed: &Feed, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
    let added = feed.interests.lock().add(interests);
    match added {
        Added::Confirmed => ready(Ok(())).boxed(),
        Added::Down => ready(Err(BusError::Unavailable("subscriptions are down".into()))).boxed(),
        Added::Waiting(confirmed) => {
            feed.interests_changed.notify_one();
            async move {
                confirmed.await.unwrap_or_else(|_| {
                    Err(BusError::Unavailable(
                        "the subscriber connection is replaced".into(),
                    ))
                })
            }
            .boxed()
        }
    }
}

impl PubSubBus {
    /// Publishes an audience where its users' own messages go, so that each user gets all in order.
    pub(super) fn publish_to_feeds(&self, audience: &Audience<'_>) {
        let core = &self.core;
        if !(core.is_sharded() && core.sharded_peers.take_segments()) {
            return self.publish_to(&core.classic, audience);
        }
        let addressees = audience.addressees.iter();
        let by_segment = addressees.map(|one| (Segment::of_name(one.user), *one));
        for (feed, addressees) in core.shares(by_segment) {
            let share = Audience {
                text: Arc::clone(&audience.text),
                addressees,
                span: audience.span.clone(),
            };
            self.publish_to(feed, &share);
        }
    }

    /// Publishes an audience as one message of this feed, or as a message to each user where not all read it.
    fn publish_to(&self, feed: &Feed, audience: &Audience<'_>) {
        let users = audience.addressees.len();
        if !self.core.audience_peers.take_audience(users) {
            for dispatch in audience.dispatches() {
                drop(self.publish_numbered(&dispatch, None));
            }
            return;
        }
        let payload = wire::encode_audience(&self.core.instance, audience);
        feed.publisher.audience(payload);
    }
}
