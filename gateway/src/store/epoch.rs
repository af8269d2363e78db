//! Whether a database went back in time: a restore from an older copy, a failover that lost rows. No IO: the stores look, and this judges.
//!
//! Input: the one row of `signal_epoch`, where the database says that it is, and what the last look saw. Output: whether clients must start over
//! (protocol.md 9.10). The row travels with every copy, and the place does not: a copy is noticed by a row that was written elsewhere.
//!
//! | what went back | is noticed by |
//! |---|---|
//! | PostgreSQL to a point in time, or to a standby | its timeline, which every promotion changes; one that lost nothing cannot be told apart |
//! | a dump, read into another server, database or table | the server's identity, or the number of the database or of the table |
//! | the storage of the server, while an instance runs | the position in its log, which is lower than before |
//! | the file of SQLite | the sum of all versions beside it, which is higher than the one in it |
//!
//! What no look can notice, such as storage that goes back while nobody runs, `docs/admin.md` has a statement for; and clients see the lower `version`.

use crate::notification::Epoch;

/// Where a database is, as far as it tells: `None` is not known, and differs from nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Location {
    /// Which server.
    pub(super) server: Option<String>,
    /// Which history of that server.
    pub(super) timeline: Option<String>,
    /// Which database and table in it.
    pub(super) relation: Option<String>,
}

impl Location {
    /// Each part with that of another location.
    fn pairs<'l>(&'l self, other: &'l Self) -> [(&'l Option<String>, &'l Option<String>); 3] {
        [
            (&self.server, &other.server),
            (&self.timeline, &other.timeline),
            (&self.relation, &other.relation),
        ]
    }

    /// Whether it is certainly another one.
    fn differs(&self, other: &Self) -> bool {
        self.pairs(other)
            .iter()
            .any(|(one, other)| one.is_some() && other.is_some() && one != other)
    }

    /// Whether it tells what `other` does not.
    fn tells_more(&self, other: &Self) -> bool {
        self.pairs(other)
            .iter()
            .any(|(one, other)| one.is_some() && other.is_none())
    }
}

/// What one look saw.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// The row's epoch.
    pub(super) epoch: Epoch,
    /// The row's location: where the row was written.
    pub(super) noted: Location,
    /// Where the database is.
    pub(super) here: Location,
    /// A number that only grows while nothing goes back, if the database tells one.
    pub(super) mark: Option<i64>,
}

/// What follows from a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing went back.
    Same,
    /// Nothing went back, and the row lacks what the database tells.
    Note,
    /// It went back.
    WentBack,
}

impl Look {
    /// Judges this look; `before` is what the last one of this instance saw.
    pub(super) fn finding(&self, before: Option<&Self>) -> Finding {
        // Another epoch was written by somebody who noticed: it is taken as it is.
        let is_lower = before.is_some_and(|before| {
            before.epoch == self.epoch
                && !before.here.differs(&self.here)
                && before.mark > self.mark
                && self.mark.is_some()
        });
        if is_lower || self.noted.differs(&self.here) {
            Finding::WentBack
        } else if self.here.tells_more(&self.noted) {
            Finding::Note
        } else {
            Finding::Same
        }
    }
}

/// A new epoch. Not the next number: a copy that is put back twice begins two histories.
pub(super) fn fresh() -> Epoch {
    Epoch(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(parts: [&str; 3]) -> Location {
        let [server, timeline, relation] = parts.map(|part| (part != "-").then(|| part.to_owned()));
        Location {
            server,
            timeline,
            relation,
        }
    }

    fn look(noted: [&str; 3], here: [&str; 3], mark: i64) -> Look {
        Look {
            epoch: Epoch(7),
            noted: location(noted),
            here: location(here),
            mark: Some(mark),
        }
    }

    /// protocol.md 9.10.
    #[test]
    fn another_server_timeline_or_table_is_a_database_that_went_back_and_an_unknown_one_is_not() {
        let origin = ["s1", "00000001", "5/16384"];
        for (noted, here, finding) in [
            (origin, origin, Finding::Same),
            (origin, ["s2", "00000001", "5/16384"], Finding::WentBack),
            (origin, ["s1", "00000002", "5/16384"], Finding::WentBack),
            (origin, ["s1", "00000001", "6/16384"], Finding::WentBack),
            // A role that may not ask changes nothing, and one that may completes the row.
            (origin, ["-", "-", "5/16384"], Finding::Same),
            (["-", "-", "5/16384"], origin, Finding::Note),
            (["-", "-", "-"], ["-", "-", "-"], Finding::Same),
            (
                ["-", "00000001", "-"],
                ["s1", "00000002", "-"],
                Finding::WentBack,
            ),
        ] {
            assert_eq!(
                look(noted, here, 1).finding(None),
                finding,
                "{noted:?} {here:?}"
            );
        }
    }

    /// protocol.md 9.10.
    #[test]
    fn a_position_that_is_lower_than_before_is_one_that_went_back_unless_somebody_noticed() {
        let origin = ["s1", "00000001", "5/16384"];
        let before = look(origin, origin, 100);
        assert_eq!(
            look(origin, origin, 100).finding(Some(&before)),
            Finding::Same
        );
        assert_eq!(
            look(origin, origin, 99).finding(Some(&before)),
            Finding::WentBack
        );
        let renewed = Look {
            epoch: Epoch(8),
            ..look(origin, origin, 50)
        };
        assert_eq!(renewed.finding(Some(&before)), Finding::Same);
        let silent = Look {
            mark: None,
            ..look(origin, origin, 0)
        };
        assert_eq!(silent.finding(Some(&before)), Finding::Same);
        let after = ["s1", "00000002", "5/16384"];
        assert_eq!(
            look(after, after, 50).finding(Some(&before)),
            Finding::Same,
            "positions of two timelines are not compared"
        );
    }
}
