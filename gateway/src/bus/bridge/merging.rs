//! Decides whether a [`Merge`] stands between the servers and the hub. No IO, no clock.
//!
//! With one server its events are handed out as they come. A merge is attached as soon as there is a second server, or as a dispatch carries the numbers
//! of an instance that publishes to two. It is detached when neither has been the case for [`SETTLE`]: until then it remembers what was taken, so a late
//! copy is still a repeat.

use std::time::Duration;

use tokio::time::Instant;

use super::merge::{Merge, ServerId, ServerState};
use crate::bus::BusEvent;
use crate::bus::pubsub::Received;

/// How long a merge stays after the last numbered dispatch. A copy that comes later than its twin by this much has been lost: a server that holds back so
/// long is stalled, and its connection is replaced.
pub(super) const SETTLE: Duration = Duration::from_secs(120);

/// The servers that deliver, and the merge while there is one.
#[derive(Default)]
pub(super) struct Merging {
    servers: Vec<ServerId>,
    attached: Option<Attached>,
}

struct Attached {
    merge: Merge,
    /// When a numbered dispatch last came in, or a second server was last there.
    last_needed: Instant,
}

impl Merging {
    /// Adds a server that delivers from here on.
    pub(super) fn attach_server(&mut self, server: ServerId, now: Instant) {
        if let Some(attached) = &mut self.attached {
            attached.merge.attach(server);
        }
        self.servers.push(server);
        if self.servers.len() > 1 {
            self.attach(now);
        }
    }

    /// Forgets a server that delivers no longer; what waited for it is taken.
    pub(super) fn detach_server(
        &mut self,
        server: ServerId,
        now: Instant,
        out: &mut Vec<BusEvent>,
    ) {
        self.servers.retain(|other| *other != server);
        if let Some(attached) = &mut self.attached {
            attached.merge.detach(server, out);
            attached.last_needed = now;
        }
    }

    /// Takes a batch as it is where no merge is needed; `false`, and nothing is taken, where one is.
    pub(super) fn take_plain(&self, batch: &mut Vec<Received>, out: &mut Vec<BusEvent>) -> bool {
        let is_plain = self.attached.is_none() && !batch.iter().any(Received::is_numbered);
        if is_plain {
            out.extend(batch.drain(..).map(|received| received.event));
        }
        is_plain
    }

    /// Merges a batch of a server.
    pub(super) fn take(
        &mut self,
        server: ServerId,
        batch: &mut Vec<Received>,
        now: Instant,
        state: impl Fn(ServerId) -> ServerState,
        out: &mut Vec<BusEvent>,
    ) {
        let is_needed = self.servers.len() > 1 || batch.iter().any(Received::is_numbered);
        let attached = self.attach(now);
        for received in batch.drain(..) {
            attached.merge.take(server, received, now, &state, out);
        }
        if is_needed {
            attached.last_needed = now;
        }
    }

    /// Takes the merge off where it is not needed any more. Returns how many repeats were dropped since the last call.
    pub(super) fn settle(&mut self, now: Instant) -> u64 {
        let Some(Attached { merge, last_needed }) = &mut self.attached else {
            return 0;
        };
        let repeats = std::mem::take(&mut merge.repeats);
        if !merge.is_holding() && now.duration_since(*last_needed) >= SETTLE {
            self.attached = None;
        }
        repeats
    }

    /// Whether something is held.
    pub(super) fn is_holding(&self) -> bool {
        self.attached
            .as_ref()
            .is_some_and(|attached| attached.merge.is_holding())
    }

    /// Hands out what was held for too long, or waits for a server that is down.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        state: impl Fn(ServerId) -> ServerState,
        out: &mut Vec<BusEvent>,
    ) {
        if let Some(attached) = &mut self.attached {
            attached.merge.expire(now, state, out);
        }
    }

    /// Returns the merge; begins one of the servers that deliver where there is none.
    fn attach(&mut self, now: Instant) -> &mut Attached {
        self.attached.get_or_insert_with(|| {
            let mut merge = Merge::default();
            for server in &self.servers {
                merge.attach(*server);
            }
            Attached {
                merge,
                last_needed: now,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::conformance::numbered;
    use crate::bus::pubsub::Origin;
    use crate::bus::wire::Bridged;
    use crate::dispatch::Destination;

    const OLD: ServerId = 1;
    const NEW: ServerId = 2;

    fn dispatch(number: Option<u64>, data: usize) -> Received {
        Received {
            event: BusEvent::Dispatch(numbered(Destination::Broadcast, data)),
            origin: Some(Origin {
                instance: "peer".into(),
                bridged: number.map(|number| Bridged {
                    number,
                    since: 1,
                    is_complete: true,
                }),
            }),
        }
    }

    /// Takes one dispatch as the stream does; returns what comes out, and how many repeats were dropped.
    fn take(
        merging: &mut Merging,
        server: ServerId,
        received: Received,
        now: Instant,
    ) -> (Vec<usize>, u64) {
        let (mut batch, mut out) = (vec![received], Vec::new());
        if !merging.take_plain(&mut batch, &mut out) {
            merging.take(server, &mut batch, now, |_| ServerState::Up, &mut out);
        }
        let read = |event| match event {
            BusEvent::Dispatch(dispatch) => dispatch.data_text().unwrap().parse().unwrap(),
            other => panic!("{other:?}"),
        };
        (out.into_iter().map(read).collect(), merging.settle(now))
    }

    #[test]
    fn one_server_has_no_merge_and_a_second_one_attaches_it_for_as_long_as_copies_may_come() {
        let (mut merging, start) = (Merging::default(), Instant::now());
        merging.attach_server(OLD, start);
        assert_eq!(take(&mut merging, OLD, dispatch(None, 1), start).0, [1]);
        assert!(merging.attached.is_none());
        merging.attach_server(NEW, start);
        assert!(merging.attached.is_some());
        assert_eq!(take(&mut merging, OLD, dispatch(Some(1), 2), start).0, [2]);
        let left = start + SETTLE;
        merging.detach_server(OLD, left, &mut Vec::new());
        let late = left + SETTLE / 2;
        let copy = take(&mut merging, NEW, dispatch(Some(1), 2), late);
        assert_eq!(copy, (vec![], 1), "the copy of what the old server brought");
        let before_end = late + SETTLE - Duration::from_secs(1);
        assert_eq!(
            take(&mut merging, NEW, dispatch(None, 3), before_end).0,
            [3]
        );
        assert!(merging.attached.is_some());
        assert_eq!(
            take(&mut merging, NEW, dispatch(None, 4), late + SETTLE).0,
            [4]
        );
        assert!(merging.attached.is_none());
    }

    #[test]
    fn numbers_of_a_peer_attach_the_merge_before_there_is_a_second_server() {
        let (mut merging, now) = (Merging::default(), Instant::now());
        merging.attach_server(OLD, now);
        assert_eq!(take(&mut merging, OLD, dispatch(Some(7), 1), now).0, [1]);
        assert!(merging.attached.is_some());
        merging.attach_server(NEW, now);
        assert_eq!(
            take(&mut merging, NEW, dispatch(Some(7), 1), now),
            (vec![], 1)
        );
        assert_eq!(take(&mut merging, OLD, dispatch(Some(8), 2), now).0, [2]);
    }
}
