//! An inbox as a client keeps it, by the rule of `docs/protocol.md` 9.9 and 9.10, without IO and without time: whoever drives it waits and sends.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::Envelope;

/// What the client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Wait,
    /// Sync, unless the gap is closed after a random 0.2 to 1 s: [`Inbox::has_gap`].
    SyncLater,
    /// Sync from [`Inbox::contiguous`].
    Sync,
}

/// What a client knows of its inbox.
#[derive(Debug, Clone, Default)]
pub struct Inbox {
    contiguous: i64,
    epoch: Option<String>,
    version: i64,
    /// The version when a sync was asked for that is not answered.
    asked: Option<i64>,
    held: BTreeMap<i64, Value>,
    /// Behind a gap, with its `previousSeq`.
    kept: BTreeMap<i64, (i64, Value)>,
    starts: usize,
}

impl Inbox {
    /// The last `seq` up to which the client has everything.
    pub fn contiguous(&self) -> i64 {
        self.contiguous
    }

    /// Whether a notification waits for an earlier one.
    pub fn has_gap(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The notifications that it shows, by `seq`.
    pub fn held(&self) -> &BTreeMap<i64, Value> {
        &self.held
    }

    /// The epoch that it knows.
    pub fn epoch(&self) -> Option<&str> {
        self.epoch.as_deref()
    }

    /// How often it started over.
    pub fn starts(&self) -> usize {
        self.starts
    }

    /// The client sends `notification:sync`.
    pub fn asks(&mut self) {
        self.asked.get_or_insert(self.version);
    }

    /// Another connection begins: what the last one was to bring does not come.
    pub fn reconnects(&mut self) -> Next {
        self.kept.clear();
        self.asked = None;
        Next::Sync
    }

    /// Takes an event.
    pub fn take(&mut self, envelope: &Envelope) -> Next {
        let data = &envelope.data;
        match envelope.event.as_str() {
            "notification:created" => self.created(&data["notification"], data),
            "notification:skipped" => self.created(data, data),
            "notification:deleted" => {
                let ids = data["ids"].as_array().cloned().unwrap_or_default();
                self.held.retain(|_, row| !ids.contains(&row["id"]));
                self.see(data);
                Next::Wait
            }
            "notification:synced" => self.synced(data),
            "resync" => Next::Sync,
            _ => Next::Wait,
        }
    }

    fn created(&mut self, row: &Value, data: &Value) -> Next {
        self.see(data);
        let seq = number(row, "seq");
        if seq > self.contiguous {
            self.kept
                .insert(seq, (number(data, "previousSeq"), row.clone()));
            self.follow();
        }
        if self.has_gap() && self.asked.is_none() {
            Next::SyncLater
        } else {
            Next::Wait
        }
    }

    fn synced(&mut self, data: &Value) -> Next {
        let asked = self.asked.take().unwrap_or_default();
        let epoch = data["epoch"].as_str().expect("an epoch").to_owned();
        let is_other = self.epoch.as_ref().is_some_and(|known| *known != epoch);
        if is_other || number(data, "version") < asked {
            *self = Self {
                epoch: Some(epoch),
                starts: self.starts + 1,
                ..Self::default()
            };
            return Next::Sync;
        }
        self.epoch = Some(epoch);
        self.see(data);
        self.contiguous = self.contiguous.max(number(data, "cursor"));
        if data["more"] == true {
            return Next::Sync;
        }
        // What was kept was stored before the answer was read: what it does not hold is deleted.
        let kept = std::mem::take(&mut self.kept);
        let last = kept.last_key_value().map_or(0, |(seq, _)| *seq);
        self.contiguous = self.contiguous.max(last);
        Next::Wait
    }

    fn see(&mut self, data: &Value) {
        self.version = self.version.max(number(data, "version"));
    }

    fn follow(&mut self) {
        loop {
            self.kept = self.kept.split_off(&(self.contiguous + 1));
            // Not always the first: a sync passes over one that was deleted.
            let mut kept = self.kept.iter();
            let follows = kept.find(|(_, (previous, _))| *previous <= self.contiguous);
            let Some(seq) = follows.map(|(seq, _)| *seq) else {
                return;
            };
            if let Some((_, row)) = self.kept.remove(&seq) {
                self.held.insert(seq, row);
            }
            self.contiguous = seq;
        }
    }
}

fn number(data: &Value, name: &str) -> i64 {
    data[name].as_i64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use serde_json::json;

    use super::*;

    /// The rows of one inbox, and the pushes on their way.
    #[derive(Clone, Default)]
    struct Server {
        rows: BTreeMap<i64, Value>,
        last: i64,
        version: i64,
        epoch: u32,
        ids: u32,
    }

    fn event(name: &str, data: Value) -> Envelope {
        Envelope {
            event: name.into(),
            data,
            id: None,
            sealed: false,
        }
    }

    impl Server {
        fn store(&mut self) -> Envelope {
            let previous = self.last;
            self.last += 1;
            self.version += 1;
            self.ids += 1;
            let row = json!({"id": format!("{}-{}", self.epoch, self.ids), "seq": self.last});
            self.rows.insert(self.last, row.clone());
            event(
                "notification:created",
                json!({"notification": row, "previousSeq": previous, "version": self.version}),
            )
        }

        fn delete(&mut self, seq: i64) -> Option<Envelope> {
            let row = self.rows.remove(&seq)?;
            self.version += 1;
            Some(event(
                "notification:deleted",
                json!({"ids": [row["id"]], "version": self.version}),
            ))
        }

        fn sync(&self, after: i64, limit: usize) -> Vec<Envelope> {
            let mut cursor = after;
            let mut answer = Vec::new();
            let missed = self.rows.range(after + 1..);
            for (seq, row) in missed.clone().take(limit) {
                answer.push(event(
                    "notification:created",
                    json!({"notification": row, "previousSeq": cursor, "version": self.version}),
                ));
                cursor = *seq;
            }
            let more = missed.count() > limit;
            answer.push(event(
                "notification:synced",
                json!({"cursor": cursor, "epoch": self.epoch.to_string(), "version": self.version, "more": more}),
            ));
            answer
        }
    }

    /// Syncs until nothing is left to ask for.
    fn settle(inbox: &mut Inbox, server: &Server) {
        let mut next = Next::Sync;
        let mut asked = 0;
        while next != Next::Wait {
            asked += 1;
            assert!(asked < 100, "it asks for ever: {inbox:?}");
            inbox.asks();
            for envelope in server.sync(inbox.contiguous(), 3) {
                next = inbox.take(&envelope);
            }
        }
    }

    /// protocol.md 9.5, 9.7 and 9.9.
    #[test]
    fn whatever_is_lost_repeated_or_late_the_client_ends_with_what_is_stored() {
        for seed in 0..500 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut server, mut inbox) = (Server::default(), Inbox::default());
            settle(&mut inbox, &server);
            let mut under_way: Vec<Envelope> = Vec::new();
            let mut gap = false;
            for _ in 0..60 {
                match random.random_range(0..10) {
                    0..5 => {
                        let push = server.store();
                        if random.random_bool(0.8) {
                            under_way.push(push.clone());
                        }
                        if random.random_bool(0.1) {
                            under_way.push(push);
                        }
                    }
                    5 => under_way.extend(server.delete(random.random_range(0..=server.last))),
                    // The wait after a gap is over.
                    6 if gap && inbox.has_gap() => settle(&mut inbox, &server),
                    _ if !under_way.is_empty() => {
                        let late = random.random_range(0..under_way.len().min(3));
                        gap |= inbox.take(&under_way.remove(late)) == Next::SyncLater;
                    }
                    _ => {}
                }
            }
            for push in under_way {
                inbox.take(&push);
            }
            // One more push shows every gap, also one at the end.
            let last = server.store();
            if inbox.take(&last) == Next::SyncLater {
                settle(&mut inbox, &server);
            }
            let stored: Vec<i64> = server.rows.keys().copied().collect();
            let held: Vec<i64> = inbox.held().keys().copied().collect();
            assert!(
                stored.iter().all(|seq| held.contains(seq)),
                "seed {seed}: {stored:?} {held:?}"
            );
            assert_eq!(
                (inbox.contiguous(), inbox.starts()),
                (server.last, 0),
                "seed {seed}"
            );
        }
    }

    /// protocol.md 9.10.
    #[test]
    fn a_client_starts_over_when_the_database_went_back_also_where_only_the_version_shows_it() {
        for has_new_epoch in [true, false] {
            let (mut server, mut inbox) = (Server::default(), Inbox::default());
            for _ in 0..3 {
                inbox.take(&server.store());
            }
            settle(&mut inbox, &server);
            let copy = server.clone();
            for _ in 0..4 {
                inbox.take(&server.store());
            }
            assert_eq!(inbox.contiguous(), 7);
            server = copy;
            server.ids = 100;
            server.epoch += u32::from(has_new_epoch);
            let push = server.store();
            assert_eq!(inbox.take(&push), Next::Wait, "4 looks like a repetition");
            assert_eq!(inbox.take(&event("resync", json!({}))), Next::Sync);
            settle(&mut inbox, &server);
            assert_eq!((inbox.contiguous(), inbox.starts()), (4, 1));
            assert_eq!(inbox.held(), &server.rows);
        }
    }

    /// protocol.md 9.9.
    #[test]
    fn a_push_that_overtakes_another_needs_no_sync() {
        let (mut server, mut inbox) = (Server::default(), Inbox::default());
        settle(&mut inbox, &server);
        let (first, second) = (server.store(), server.store());
        assert_eq!(inbox.take(&second), Next::SyncLater);
        assert_eq!(
            inbox.contiguous(),
            0,
            "the highest is not the contiguous one"
        );
        assert_eq!(inbox.take(&first), Next::Wait);
        assert_eq!((inbox.contiguous(), inbox.has_gap()), (2, false));
    }
}
