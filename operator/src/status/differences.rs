//! How much two statuses differ: what only counts may be written late, and what people read in between may wait a little.

use signal_crds::Status;
use signal_crds::status::Connections;

use crate::status::conditions::ConditionType;

/// The most that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Nothing.
    None,
    /// Connections, and what Kafka has not delivered.
    Numbers,
    /// Texts of conditions, and how many pods report something.
    Texts,
    /// Anything else.
    State,
}

/// Between the last status and a new one.
pub fn difference(before: Option<&Status>, after: &Status) -> Difference {
    let Some(before) = before else {
        return Difference::State;
    };
    let differs = |of: fn(&Status) -> Status| of(before) != of(after);
    if before == after {
        Difference::None
    } else if differs(without_texts) {
        Difference::State
    } else if differs(without_numbers) {
        Difference::Texts
    } else {
        Difference::Numbers
    }
}

fn without_numbers(status: &Status) -> Status {
    let mut rest = status.clone();
    rest.connections = rest.connections.map(|connections| Connections {
        reporting_pods: connections.reporting_pods,
        total: 0,
        authenticated: 0,
        encrypted: 0,
        min_per_pod: 0,
        max_per_pod: 0,
        sampled_at: None,
    });
    if let Some(kafka) = &mut rest.kafka {
        kafka.max_lag = 0;
    }
    // Its message counts connections.
    let limited = ConditionType::ScalingLimited.as_str();
    let conditions = rest.conditions.iter_mut();
    for condition in conditions.filter(|condition| condition.type_ == limited) {
        condition.message.clear();
    }
    rest
}

fn without_texts(status: &Status) -> Status {
    let mut rest = without_numbers(status);
    for condition in &mut rest.conditions {
        condition.message.clear();
    }
    if let Some(config) = &mut rest.config {
        (config.acknowledged_replicas, config.error) = (0, None);
    }
    for source in &mut rest.jwks {
        (source.fetched_replicas, source.last_error) = (0, None);
        source.key_ids.clear();
    }
    if let Some(redis) = &mut rest.redis {
        (redis.subscribed_replicas, redis.error) = (0, None);
    }
    if let Some(kafka) = &mut rest.kafka {
        kafka.assigned_partitions = 0;
    }
    rest
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use signal_crds::status::{ConfigStatus, KafkaStatus};

    use super::*;
    use crate::reasons::ConditionReason;
    use crate::status::conditions::{Finding, State, conditions};

    fn status() -> Status {
        let find = |kind, message: &str| {
            Finding::new(kind, State::True, ConditionReason::Settled, message)
        };
        let found = [
            find(ConditionType::Ready, "3 of 3"),
            find(ConditionType::ScalingLimited, "7 connections"),
        ];
        Status {
            connections: Some(Connections {
                total: 7,
                authenticated: 7,
                encrypted: 1,
                min_per_pod: 3,
                max_per_pod: 4,
                reporting_pods: 2,
                sampled_at: None,
            }),
            kafka: Some(KafkaStatus {
                assigned_partitions: 4,
                max_lag: 9,
            }),
            config: Some(ConfigStatus {
                revision: "a".into(),
                acknowledged_replicas: 2,
                error: None,
            }),
            conditions: conditions(&[], &found, Some(1), DateTime::UNIX_EPOCH),
            ..Status::default()
        }
    }

    fn after(change: impl Fn(&mut Status)) -> Difference {
        let mut changed = status();
        change(&mut changed);
        difference(Some(&status()), &changed)
    }

    #[test]
    fn only_what_counts_connections_and_lag_is_a_number() {
        assert_eq!(difference(None, &status()), Difference::State);
        assert_eq!(after(|_| {}), Difference::None);
        assert_eq!(
            after(|it| it.connections.as_mut().unwrap().total = 8),
            Difference::Numbers
        );
        assert_eq!(
            after(|it| it.kafka.as_mut().unwrap().max_lag = 0),
            Difference::Numbers
        );
        assert_eq!(
            after(|it| it.config.as_mut().unwrap().acknowledged_replicas = 1),
            Difference::Texts
        );
        let message = |it: &mut Status, kind: ConditionType| {
            let mut all = it.conditions.iter_mut();
            all.find(|one| one.type_ == kind.as_str()).unwrap().message = "8".into();
        };
        assert_eq!(
            after(|it| message(it, ConditionType::ScalingLimited)),
            Difference::Numbers
        );
        assert_eq!(
            after(|it| message(it, ConditionType::Ready)),
            Difference::Texts
        );
    }

    #[test]
    fn a_pod_that_is_silent_and_a_reason_that_turns_are_a_state() {
        assert_eq!(
            after(|it| it.connections.as_mut().unwrap().reporting_pods = 1),
            Difference::State
        );
        assert_eq!(after(|it| it.connections = None), Difference::State);
        assert_eq!(after(|it| it.ready_replicas = 1), Difference::State);
        assert_eq!(
            after(|it| it.config.as_mut().unwrap().revision = "b".into()),
            Difference::State
        );
        assert_eq!(
            after(|it| it.conditions[0].reason = "Other".into()),
            Difference::State
        );
        assert_eq!(
            after(|it| it.conditions[0].status = "False".into()),
            Difference::State
        );
    }
}
