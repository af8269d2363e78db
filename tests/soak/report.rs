//! The totals of a run, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::devices::Counts;
use crate::load::Load;
use crate::quiet::Findings;
use crate::run_state::RunState;
use crate::watch::Seen;

/// What a run came to.
pub(crate) struct Totals<'a> {
    pub(crate) seed: u64,
    pub(crate) run: &'a RunState,
    pub(crate) load: &'a Load,
    pub(crate) counts: Counts,
    pub(crate) seen: Seen,
    pub(crate) findings: Findings,
    /// Faults by name.
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) skipped: Vec<String>,
}

impl Totals<'_> {
    pub(crate) fn json(&self) -> Value {
        let (failures, failed) = self.run.failures();
        let ledger = self.load.ledger.lock();
        let (big, repeated) = ledger.big_and_repeated();
        let codecs: BTreeMap<&str, u64> = self.load.sent().into_iter().collect();
        let recoveries: BTreeMap<String, Value> = self
            .run
            .recoveries()
            .into_iter()
            .map(|(fault, times)| {
                let most = times.iter().copied().fold(0.0, f64::max);
                (
                    fault,
                    json!({"count": times.len(), "maxSeconds": (most * 10.0).round() / 10.0}),
                )
            })
            .collect();
        json!({
            "seed": self.seed,
            "minutes": self.run.elapsed().as_secs_f64() / 60.0,
            "passed": failed == 0,
            "failed": failed,
            "failures": failures,
            "records": {
                "events": ledger.events(), "poison": ledger.poison().len(), "big": big, "sentTwice": repeated, "byCodec": codecs,
            },
            "rows": {
                "expected": ledger.rows(), "stored": self.findings.rows, "lost": self.findings.lost, "doubled": self.findings.doubled,
                "outOfOrder": self.findings.out_of_order, "deadLetters": self.findings.dead_letters,
            },
            "clients": {
                "connections": self.counts.connections, "refused": self.counts.refused, "created": self.counts.pushes,
                "resyncs": self.counts.resyncs, "gaps": self.counts.gaps, "syncs": self.counts.syncs,
                "unanswered": self.counts.unanswered, "closed": self.counts.closed, "errors": self.counts.errors,
                "missedInSilence": self.findings.missed,
            },
            "gateways": {
                "samples": self.seen.samples, "unanswered": self.seen.unanswered, "unreadySamples": self.seen.unready, "standstillSamples": self.seen.standstills,
                "mostMemoryMib": self.seen.memory, "quietMemoryMib": self.findings.memory,
            },
            "quietPoints": {
                "count": self.findings.points, "slowestStoringSeconds": self.findings.slowest_storing.as_secs_f64(),
                "slowestSettlingSeconds": self.findings.slowest_settling.as_secs_f64(),
            },
            "faults": self.faults,
            "readyAgain": recoveries,
            "skipped": self.skipped,
        })
    }

    /// The same, to be read by people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let all = self.json();
        for (section, content) in all.as_object().into_iter().flatten() {
            match content {
                Value::Object(rows) => {
                    let _ = writeln!(text, "{section}");
                    for (name, value) in rows {
                        let _ = writeln!(text, "  {name:<26}{value}");
                    }
                }
                Value::Array(rows) if rows.is_empty() => {}
                value => {
                    let _ = writeln!(text, "{section:<28}{value}");
                }
            }
        }
        text
    }
}
