//! Cases worked out by hand from the HorizontalPodAutoscaler's documentation.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use signal_contract::{ConnectionCounts, StatusReport};

fn at(secs: i64) -> DateTime<Utc> {
    "2030-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(secs)
}

fn scaling(min: i32, max: i32, behavior: Value) -> Autoscaling {
    let mut spec = json!({"mode": "Connections", "minReplicas": min, "maxReplicas": max, "targetConnectionsPerPod": 100});
    if !behavior.is_null() {
        spec["behavior"] = behavior;
    }
    serde_json::from_value(spec).unwrap()
}

/// Any speed, no windows: what the connections need is what is decided.
fn free() -> Autoscaling {
    let rules = json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 10000, "periodSeconds": 15}]});
    scaling(1, 100, json!({"scaleUp": rules, "scaleDown": rules}))
}

/// One pod for each: connections, `-1` does not answer, `-2` has no address.
fn fleet(pods: &[i64]) -> Fleet {
    let pod = |(place, count): (usize, &i64)| Pod {
        uid: String::new(),
        resource_version: String::new(),
        ip: (*count > -2).then_some(IpAddr::from([10, 0, 0, 1])),
        node: Some("n".into()),
        ready: *count >= 0,
        template_hash: "h".into(),
        created: at(0),
        report: if *count < 0 {
            Err("silent".into())
        } else {
            Ok(StatusReport {
                connections: ConnectionCounts {
                    total: *count,
                    ..Default::default()
                },
                ..Default::default()
            })
        },
        ..crate::fixture::pod(&format!("p{place}"))
    };
    Fleet {
        pods: pods.iter().enumerate().map(pod).collect(),
    }
}

/// The number after one decision.
fn once(scaling: &Autoscaling, current: i32, pods: &[i64]) -> (i32, Option<ConditionReason>) {
    let decision = decide(
        scaling,
        current,
        &fleet(pods),
        &mut History::default(),
        at(0),
    );
    (decision.replicas.unwrap_or(current), decision.limited)
}

/// Decides every `interval` seconds with so many connections in all, spread evenly; the numbers after each.
fn course(scaling: &Autoscaling, mut current: i32, interval: i64, loads: &[i64]) -> Vec<i32> {
    let mut history = History::default();
    let step = |(place, load): (usize, &i64)| {
        let share = load / i64::from(current);
        let mut pods = vec![share; usize::try_from(current).unwrap()];
        pods[0] += load - share * i64::from(current);
        let now = at(interval * i64::try_from(place).unwrap());
        if let Some(replicas) = decide(scaling, current, &fleet(&pods), &mut history, now).replicas
        {
            current = replicas;
        }
        current
    };
    loads.iter().enumerate().map(step).collect()
}

#[test]
fn the_number_is_connections_over_target_rounded_up_outside_the_tolerance() {
    for (current, pods, expected) in [
        (2, &[100, 100][..], 2),
        (2, &[110, 110], 2),       // 10 % above: tolerated
        (2, &[111, 111], 3),       // 222 / 100
        (2, &[90, 90], 2),         // 10 % below: tolerated
        (2, &[50, 49], 1),         // 99 / 100
        (4, &[60, 60, 60, 60], 3), // 240 / 100
        (2, &[200, 0], 2),         // the mean counts
        (2, &[400, 1], 5),
        (3, &[0, 0, 0], 1), // 0, and minReplicas
    ] {
        assert_eq!(
            once(&free(), current, pods).0,
            expected,
            "{current} {pods:?}"
        );
    }
}

#[test]
fn pods_that_do_not_answer_count_carefully_in_both_directions() {
    for (current, pods, expected) in [
        (3, &[300, 300, -1][..], 6),  // missing counts 0: 600 / 3 pods = 2.0; 6
        (3, &[120, 120, -1], 3),      // 240 / 3 = 0.8: the direction turns, nothing changes
        (3, &[160, 160, -1], 3),      // 320 / 3 = 1.07: tolerated
        (3, &[10, 10, -1], 2),        // missing counts 100: 120 / 3 = 0.4; ceil(1.2)
        (4, &[10, -1, -1, -1], 4),    // 310 / 4 = 0.78; ceil(3.1)
        (3, &[300, 300, -2], 6),      // pending counts 0 on the way up
        (3, &[120, 120, -2], 3),      // 0.8: turned
        (3, &[10, 10, -2], 1),        // pending is left out on the way down: 20 / 100
        (2, &[100, 100, 100, -1], 2), // at the target exactly
    ] {
        assert_eq!(
            once(&free(), current, pods).0,
            expected,
            "{current} {pods:?}"
        );
    }
}

#[test]
fn without_any_report_the_number_stays() {
    for pods in [&[-1, -1][..], &[-2], &[]] {
        assert_eq!(
            once(&free(), 5, pods),
            (5, Some(ConditionReason::MetricUnavailable)),
            "{pods:?}"
        );
    }
}

#[test]
fn pods_that_drain_or_terminate_are_left_out() {
    let mut some = fleet(&[100, 100, 900, 900]);
    some.pods[2].draining_since = Some(at(-5));
    some.pods[3].terminating = true;
    let decision = decide(&free(), 2, &some, &mut History::default(), at(0));
    assert_eq!(decision.replicas, None, "{}", decision.message);
}

#[test]
fn bounds_hold_and_are_named() {
    let mut bounded = free();
    (bounded.min_replicas, bounded.max_replicas) = (2, 4);
    assert_eq!(
        once(&bounded, 3, &[500, 500, 500]),
        (4, Some(ConditionReason::TooManyReplicas))
    );
    assert_eq!(
        once(&bounded, 3, &[1, 1, 1]),
        (2, Some(ConditionReason::TooFewReplicas))
    );
    assert_eq!(
        once(&bounded, 9, &[100]),
        (4, Some(ConditionReason::TooManyReplicas)),
        "set by hand beyond the bounds"
    );
    assert_eq!(
        once(&bounded, 1, &[-1]),
        (2, Some(ConditionReason::TooFewReplicas)),
        "also without a metric"
    );
    assert_eq!(
        once(&bounded, 0, &[]),
        (0, Some(ConditionReason::ScalingDisabled))
    );
}

#[test]
fn without_rules_the_way_up_doubles_or_adds_four_each_quarter_of_a_minute() {
    let plain = scaling(1, 100, Value::Null);
    assert_eq!(
        course(&plain, 1, 15, &[10_000; 6]),
        [5, 10, 20, 40, 80, 100]
    );
    // Looked at more often, the period still counts.
    assert_eq!(course(&plain, 4, 5, &[10_000; 4]), [8, 8, 8, 16]);
    assert_eq!(
        once(&plain, 4, &[5000, 0, 0, 0]).1,
        Some(ConditionReason::ScaleUpLimit)
    );
}

#[test]
fn without_rules_the_way_down_is_one_pod_every_two_minutes_after_five_quiet_ones() {
    let plain = scaling(1, 100, Value::Null);
    let course = course(&plain, 4, 30, &[100; 24]);
    let down: Vec<usize> = (1..24)
        .filter(|place| course[*place] < course[place - 1])
        .collect();
    assert_eq!(
        down,
        [10, 14, 18],
        "after 300 s, then every 120 s: {course:?}"
    );
}

#[test]
fn a_short_dip_changes_nothing_and_a_peak_starts_the_window_again() {
    let window = scaling(
        1,
        100,
        json!({"scaleDown": {"stabilizationWindowSeconds": 60,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}),
    );
    let loads = [400, 100, 100, 400, 100, 100, 100, 100, 100];
    assert_eq!(course(&window, 4, 20, &loads), [4, 4, 4, 4, 4, 4, 1, 1, 1]);
}

#[test]
fn an_upward_window_takes_the_least_of_its_recommendations() {
    let window = scaling(
        1,
        100,
        json!({"scaleUp": {"stabilizationWindowSeconds": 60,
        "policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}]}}),
    );
    assert_eq!(
        course(&window, 2, 20, &[200, 900, 500, 900, 900]),
        [2, 2, 2, 5, 5],
        "a new leader begins with the present number"
    );
}

#[test]
fn the_policy_that_is_selected_counts() {
    let rules = |select: &str| {
        let policies = json!([{"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]);
        let rules =
            json!({"selectPolicy": select, "stabilizationWindowSeconds": 0, "policies": policies});
        scaling(1, 100, json!({"scaleUp": rules, "scaleDown": rules}))
    };
    for (select, up, down) in [("Max", 15, 5), ("Min", 12, 8), ("Disabled", 10, 10)] {
        assert_eq!(once(&rules(select), 10, &[5000; 10]).0, up, "{select}");
        assert_eq!(once(&rules(select), 10, &[0; 10]).0, down, "{select}");
    }
    // 50 % of 5 is 2.5: up is rounded up (7.5), down is rounded down (2.5).
    assert_eq!(
        (
            once(&rules("Max"), 5, &[5000; 5]).0,
            once(&rules("Max"), 5, &[0; 5]).0
        ),
        (8, 2)
    );
    assert_eq!(
        once(&rules("Disabled"), 10, &[0; 10]).1,
        Some(ConditionReason::ScaleDownLimit)
    );
}

#[test]
fn a_decision_that_was_never_written_is_not_counted() {
    let rules = json!({"policies": [{"type": "Pods", "value": 1, "periodSeconds": 600}]});
    let slow = scaling(1, 100, json!({"scaleUp": rules}));
    let mut history = History::default();
    let full = fleet(&[900, 900]);
    assert_eq!(
        decide(&slow, 2, &full, &mut history, at(0)).replicas,
        Some(3)
    );
    assert_eq!(
        decide(&slow, 2, &full, &mut history, at(15)).replicas,
        Some(3),
        "the write failed: decided again"
    );
    assert_eq!(
        decide(&slow, 3, &full, &mut history, at(30)).replicas,
        None,
        "one pod in ten minutes"
    );
    assert_eq!(
        decide(&slow, 3, &full, &mut history, at(616)).replicas,
        Some(4)
    );
}

#[test]
fn others_are_bounded_only_in_mode_external() {
    let spec = |mode: &str, replicas: i32| -> SignalClusterSpec {
        serde_json::from_value(json!({"replicas": replicas, "image": {"repository": "r", "tag": "t"}, "jwks": {"sources": []},
            "autoscaling": {"mode": mode, "minReplicas": 2, "maxReplicas": 5}}))
        .unwrap()
    };
    assert_eq!(
        named(&spec("External", 9)),
        (5, Some(ConditionReason::TooManyReplicas))
    );
    assert_eq!(
        named(&spec("External", 0)),
        (2, Some(ConditionReason::TooFewReplicas))
    );
    assert_eq!(named(&spec("External", 3)), (3, None));
    for mode in ["HPA", "Connections"] {
        let (most, few) = (named(&spec(mode, 9)), named(&spec(mode, 1)));
        assert_eq!(most.1, Some(ConditionReason::TooManyReplicas));
        assert_eq!(few.1, Some(ConditionReason::TooFewReplicas));
        assert_eq!(named(&spec(mode, 0)), (0, None), "somebody switched it off");
    }
    assert_eq!(
        named(&SignalClusterSpec {
            stopped: true,
            ..spec("External", 9)
        }),
        (0, None)
    );
}

fn number(spec: &SignalClusterSpec, is_named: bool, running: Option<i32>) -> Number<'_> {
    Number {
        spec,
        is_named,
        running,
    }
}

/// Wanted pods of a spec whose number somebody wrote.
fn named(spec: &SignalClusterSpec) -> (i32, Option<ConditionReason>) {
    wanted(&Number {
        spec,
        is_named: true,
        running: Some(7),
    })
}

#[test]
fn a_number_that_fell_because_the_field_was_removed_is_no_wish() {
    let mut spec: SignalClusterSpec = serde_json::from_value(json!({
        "image": {"repository": "r", "tag": "1"}, "jwks": {},
        "autoscaling": {"mode": "External", "minReplicas": 1, "maxReplicas": 20},
    }))
    .unwrap();
    assert_eq!(spec.replicas, 2, "as the API server fills it in");
    for (is_named, running, expected, lost) in [
        (false, Some(15), 15, Some(15)),
        (false, Some(30), 20, Some(20)),
        (false, Some(1), 2, None),
        (false, None, 2, None),
        (true, Some(15), 2, None),
    ] {
        let number = number(&spec, is_named, running);
        assert_eq!((wanted(&number).0, number.lost()), (expected, lost));
    }
    spec.stopped = true;
    let stopped = number(&spec, false, Some(15));
    assert_eq!((wanted(&stopped).0, stopped.lost()), (0, None));
    let without = SignalClusterSpec {
        stopped: false,
        autoscaling: None,
        ..spec
    };
    let without = number(&without, false, Some(15));
    assert_eq!((wanted(&without).0, without.lost()), (2, None));
}
