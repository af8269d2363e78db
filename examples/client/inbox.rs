//! One user's inbox as a client keeps it, without IO. Comments cite clauses of docs/protocol.md.
//!
//! A real client stores `contiguous` and `epoch` together with the notifications, and goes on from there after a restart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Most notifications that are kept behind a gap.
const MOST_KEPT: usize = 200;

/// How far the inbox was printed.
pub(crate) struct Inbox {
    /// Everything up to this `seq` that exists was printed (9.9).
    pub(crate) contiguous: i64,
    /// None before the first answer.
    epoch: Option<String>,
    /// The highest one that was seen (9.3).
    version: i64,
    /// What came behind a gap, by `seq`: its `previousSeq` and its text.
    kept: BTreeMap<i64, (i64, String)>,
    /// Answers to `notification:sync` that are to come.
    pub(crate) syncing: u32,
    /// `version` when the first of them was asked for.
    asked_at: i64,
    /// When to sync because of a gap, or because the gateway said so.
    pub(crate) sync_at: Option<Instant>,
    /// Whether the gateway said so.
    is_told: bool,
}

impl Inbox {
    pub(crate) fn new(contiguous: i64) -> Self {
        Self {
            contiguous,
            epoch: None,
            version: 0,
            kept: BTreeMap::new(),
            syncing: 0,
            asked_at: 0,
            sync_at: None,
            is_told: false,
        }
    }

    /// A connection has begun: nothing of the last one is to come.
    pub(crate) fn begin(&mut self) {
        self.kept.clear();
        self.syncing = 0;
    }

    /// A sync from `contiguous` is being sent.
    pub(crate) fn ask(&mut self) {
        if self.syncing == 0 {
            self.asked_at = self.version;
        }
        self.syncing += 1;
        (self.sync_at, self.is_told) = (None, false);
    }

    /// Takes the data of `notification:created` or `notification:skipped`.
    pub(crate) fn take(&mut self, data: &Value) {
        self.see_version(data);
        let notification = &data["notification"];
        let text = |name: &str| notification[name].as_str().unwrap_or_default();
        let (seq, text) = match notification["seq"].as_i64() {
            Some(seq) => (seq, format!("{}: {}", text("title"), text("content"))),
            // 9.8: REST has it.
            None => (number(data, "seq"), format!("{} is long", data["id"])),
        };
        // 9.7: what is not higher is a repetition.
        if seq > self.contiguous {
            self.kept.insert(seq, (number(data, "previousSeq"), text));
            self.print();
        }
    }

    /// Takes the data of `notification:synced`. Returns whether to sync again.
    pub(crate) fn finish(&mut self, data: &Value) -> bool {
        self.syncing = self.syncing.saturating_sub(1);
        let epoch = data["epoch"].as_str().map(str::to_owned);
        let is_other = self.epoch.is_some() && self.epoch != epoch;
        let went_back = number(data, "version") < self.asked_at;
        self.epoch = epoch;
        if is_other || went_back {
            // 9.10: the database went back in time, and lower numbers are new notifications.
            println!("the inbox starts over");
            (self.contiguous, self.version, self.asked_at) = (0, 0, 0);
            self.kept.clear();
            return true;
        }
        self.see_version(data);
        self.contiguous = self.contiguous.max(number(data, "cursor"));
        if data["more"] == true {
            return true;
        }
        // What was kept and is not in the answer is deleted (9.9).
        if let Some((last, _)) = self.kept.pop_last() {
            self.contiguous = self.contiguous.max(last);
        }
        self.kept.clear();
        self.close_gap();
        false
    }

    fn see_version(&mut self, data: &Value) {
        self.version = self.version.max(number(data, "version"));
    }

    /// Prints what follows, and decides when to sync where something is missing before what is left (9.9).
    fn print(&mut self) {
        loop {
            self.kept = self.kept.split_off(&(self.contiguous + 1));
            // Not always the first: a sync passes over one that was deleted.
            let mut kept = self.kept.iter();
            let next = kept.find(|(_, (previous, _))| *previous <= self.contiguous);
            let Some((seq, (_, text))) = next else { break };
            println!("{seq}. {text}");
            self.contiguous = *seq;
        }
        if self.kept.len() > MOST_KEPT {
            // A sync brings them as well.
            self.kept.clear();
            self.tell();
        } else if self.kept.is_empty() {
            self.close_gap();
        } else if self.syncing == 0 {
            self.sync_soon();
        }
    }

    /// The gateway sent `resync` (9.5).
    pub(crate) fn tell(&mut self) {
        self.is_told = true;
        self.sync_soon();
    }

    /// A random time later: many clients see the same gap at the same moment.
    fn sync_soon(&mut self) {
        let wait = Duration::from_millis(rand::random_range(200..1000));
        self.sync_at.get_or_insert(Instant::now() + wait);
    }

    fn close_gap(&mut self) {
        if !self.is_told {
            self.sync_at = None;
        }
    }
}

fn number(data: &Value, name: &str) -> i64 {
    data[name].as_i64().unwrap_or_default()
}
