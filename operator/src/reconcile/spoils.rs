//! Whether what was read of a SignalCluster is still true, as far as the watches tell.
//!
//! Every event of one of its objects spoils what was read before. An event that comes while it is read spoils it as well: the mark is taken before. Where a watch
//! has not listed yet, or broke lately, nothing can be told, and everything is read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use signal_crds::SignalCluster;
use tokio::time::Instant;

/// How long after it broke a watch is doubted. It goes on where it stood, with every event that it missed, and says nothing when it does; one that cannot go
/// on breaks again within half a minute.
const DOUBT: Duration = Duration::from_secs(90);

/// What was spoilt, and which watches can tell. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Spoils(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Events so far.
    events: u64,
    /// The last event of each.
    clusters: HashMap<ObjectRef<SignalCluster>, u64>,
    /// The last event of all.
    all: u64,
    watches: HashMap<WatchKey, WatchState>,
}

/// One watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WatchKey {
    /// `None`: of all namespaces.
    pub namespace: Option<String>,
    /// Of what.
    pub kind: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct WatchState {
    listed: bool,
    broke: Option<Instant>,
}

/// The moment at which a read began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Spoils {
    /// A new leader knows nothing and has no watch.
    pub fn begin(&self) {
        let mut state = self.0.lock();
        state.events += 1;
        state.all = state.events;
        state.clusters.clear();
        state.watches.clear();
    }

    /// Something of this SignalCluster has changed.
    pub fn spoil(&self, cluster: &ObjectRef<SignalCluster>) {
        let mut state = self.0.lock();
        state.events += 1;
        let event = state.events;
        state.clusters.insert(cluster.clone(), event);
    }

    /// It is gone.
    pub fn forget(&self, cluster: &ObjectRef<SignalCluster>) {
        self.0.lock().clusters.remove(cluster);
    }

    /// A watch is about to list.
    pub fn starts(&self, watch: WatchKey) {
        let state = WatchState::default();
        self.0.lock().watches.insert(watch, state);
    }

    /// A watch has listed: from here on it reports every event.
    pub fn listed(&self, watch: &WatchKey) {
        if let Some(state) = self.0.lock().watches.get_mut(watch) {
            state.listed = true;
        }
    }

    /// A watch broke.
    pub fn broke(&self, watch: &WatchKey) {
        if let Some(state) = self.0.lock().watches.get_mut(watch) {
            state.broke = Some(Instant::now());
        }
    }

    /// Nobody needs this watch any more.
    pub fn ends(&self, watch: &WatchKey) {
        self.0.lock().watches.remove(watch);
    }

    /// What is read from now on is as new as this.
    pub fn mark(&self) -> Mark {
        Mark(self.0.lock().events)
    }

    /// Whether everything that was read of a SignalCluster since the mark was taken is still true.
    pub fn holds(&self, cluster: &ObjectRef<SignalCluster>, mark: Mark) -> bool {
        let state = self.0.lock();
        let last = state.clusters.get(cluster).copied().unwrap_or_default();
        if last.max(state.all) > mark.0 || state.watches.is_empty() {
            return false;
        }
        let now = Instant::now();
        let covers =
            |watch: &WatchKey| watch.namespace.is_none() || watch.namespace == cluster.namespace;
        let is_sound = |state: &WatchState| {
            state.listed && state.broke.is_none_or(|broke| now - broke >= DOUBT)
        };
        let mut watches = state.watches.iter().filter(|(watch, _)| covers(watch));
        watches.all(|(_, state)| is_sound(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(namespace: &str) -> WatchKey {
        WatchKey {
            namespace: Some(namespace.into()),
            kind: "Pod".into(),
        }
    }

    fn cluster(namespace: &str, name: &str) -> ObjectRef<SignalCluster> {
        ObjectRef::new(name).within(namespace)
    }

    #[test]
    fn an_event_between_the_mark_and_the_end_of_a_read_spoils_it() {
        let spoils = Spoils::default();
        let (one, other) = (cluster("a", "one"), cluster("a", "other"));
        assert!(
            !spoils.holds(&one, spoils.mark()),
            "no watch tells anything"
        );
        spoils.starts(watch("a"));
        assert!(!spoils.holds(&one, spoils.mark()), "it has not listed");
        spoils.listed(&watch("a"));
        let before = spoils.mark();
        assert!(spoils.holds(&one, before));
        spoils.spoil(&one);
        assert!(!spoils.holds(&one, before) && spoils.holds(&other, before));
        assert!(spoils.holds(&one, spoils.mark()));
    }

    #[test]
    fn a_watch_that_broke_is_doubted_and_says_nothing_of_other_namespaces() {
        let spoils = Spoils::default();
        for namespace in ["a", "b"] {
            spoils.starts(watch(namespace));
            spoils.listed(&watch(namespace));
        }
        let mark = spoils.mark();
        spoils.broke(&watch("a"));
        assert!(!spoils.holds(&cluster("a", "one"), mark));
        assert!(spoils.holds(&cluster("b", "one"), mark));
        // As after the time of the doubt.
        let mut state = spoils.0.lock();
        let broken = state.watches.get_mut(&watch("a")).unwrap();
        broken.broke = broken.broke.and_then(|broke| broke.checked_sub(DOUBT));
        drop(state);
        assert!(spoils.holds(&cluster("a", "one"), mark));
    }

    #[test]
    fn a_new_term_of_leadership_knows_nothing_of_the_last_one() {
        let spoils = Spoils::default();
        spoils.starts(watch("a"));
        spoils.listed(&watch("a"));
        let mark = spoils.mark();
        spoils.begin();
        spoils.starts(watch("a"));
        spoils.listed(&watch("a"));
        assert!(!spoils.holds(&cluster("a", "one"), mark));
        assert!(spoils.holds(&cluster("a", "one"), spoils.mark()));
    }
}
