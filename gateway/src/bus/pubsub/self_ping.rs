//! Self-pings: this instance publishes to a channel of its own and waits to receive it, so that a subscriber that receives nothing is noticed.

use super::PubSubCore;
use crate::bus::SubscriberState;

/// Sends a ping at every interval and when asked to, and sets the gauges by what comes back. Ends never.
pub(super) async fn send(core: &PubSubCore) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(core.timing.self_ping) => {}
            () = core.ping_at_once.notified() => {}
        }
        for feed in core.feeds() {
            feed.ping();
        }
        if core.is_shown() {
            core.metrics.bus_stalled.set(i64::from(
                core.subscriber_state() == SubscriberState::Stalled,
            ));
            core.metrics.bus_lag.set(
                core.classic
                    .intake
                    .last_ping()
                    .1
                    .unwrap_or_default()
                    .as_secs_f64(),
            );
        }
    }
}
