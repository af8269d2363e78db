//! Whether the other instances take one message for many users, and messages on segments. No IO.
//!
//! Input: what [`presence`](super::presence) lists at every sign of life. Output: the way that [`Bus::publish_audience`](crate::bus::Bus::publish_audience)
//! and dispatches take. An instance of the release before does not subscribe to `signal:audience`: while one is live, each user gets a message on the
//! user's own channel. Nor does one without `redis.sharded_pubsub` subscribe to segments: while one is live, nothing is published there.

use parking_lot::Mutex;

/// Most other instances that all read every audience. An instance needs about a thirtieth of what a message on a user's own channel costs all
/// who have to do with it, so beyond so many it is dearer.
const MOST: usize = 32;

/// What is known of the other live instances, as to one kind of message.
#[derive(Default)]
pub(super) struct Peers(Mutex<State>);

#[derive(Default)]
struct State {
    /// How many they are, where all of them take such messages; `None` where one does not, or nobody knows.
    all_take: Option<usize>,
    /// One was published since an instance was last seen that does not take them.
    published: bool,
}

impl Peers {
    /// Returns whether an audience of so many users is to be published as one.
    pub(super) fn take_audience(&self, users: usize) -> bool {
        let mut state = self.0.lock();
        // Each instance reads it, so it has a user for each at least.
        let takes = state
            .all_take
            .is_some_and(|others| others <= MOST && users >= others);
        state.published |= takes;
        takes
    }

    /// Returns whether a dispatch may be published on its segment.
    pub(super) fn take_segments(&self) -> bool {
        let mut state = self.0.lock();
        let takes = state.all_take.is_some();
        state.published |= takes;
        takes
    }

    /// Returns whether all others take such messages.
    pub(super) fn all_take(&self) -> bool {
        self.0.lock().all_take.is_some()
    }

    /// Notes how many others are live, and whether all of them take such messages. Returns whether one that does not may have missed some.
    pub(super) fn note(&self, others: usize, all_take: bool) -> bool {
        let mut state = self.0.lock();
        state.all_take = all_take.then_some(others);
        !all_take && std::mem::take(&mut state.published)
    }

    /// Notes that the others could not be listed.
    pub(super) fn forget(&self) {
        self.0.lock().all_take = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_one_message_only_while_all_take_it_and_has_a_user_for_each() {
        let peers = Peers::default();
        assert!(!peers.take_audience(1000), "nobody was listed yet");
        assert!(!peers.note(0, true));
        assert!(peers.take_audience(2));
        peers.note(3, true);
        assert!(peers.take_audience(3) && !peers.take_audience(2));
        peers.note(MOST + 1, true);
        assert!(!peers.take_audience(1000), "too many would read it");
        peers.note(2, true);
        peers.forget();
        assert!(!peers.take_audience(1000));
    }

    #[test]
    fn segments_are_used_only_while_all_take_them() {
        let peers = Peers::default();
        assert!(!peers.take_segments(), "nobody was listed yet");
        assert!(!peers.note(0, true));
        assert!(peers.take_segments());
        assert!(peers.note(1, false), "it has missed what was published");
        assert!(!peers.take_segments());
        peers.note(1, true);
        peers.forget();
        assert!(!peers.take_segments());
    }

    #[test]
    fn an_older_instance_that_appears_has_missed_what_was_published_as_one() {
        let peers = Peers::default();
        assert!(!peers.note(1, false), "nothing was published");
        peers.note(1, true);
        assert!(peers.take_audience(1000));
        assert!(!peers.note(1, true));
        peers.forget();
        assert!(peers.note(2, false));
        assert!(!peers.note(2, false), "it was told");
        assert!(!peers.take_audience(1000));
    }
}
