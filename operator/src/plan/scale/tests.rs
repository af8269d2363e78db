//! Single steps by hand, and whole courses on a small cluster that fails in every way it can.

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStatus};
use proptest::prelude::*;

use super::*;
use crate::plan::EventKind;
use signal_contract::{ConnectionCounts, StatusReport};

mod simulation;

fn now() -> DateTime<Utc> {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn deployment(replicas: i32, counted: i32) -> Deployment {
    Deployment {
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            ..Default::default()
        }),
        status: Some(DeploymentStatus {
            replicas: Some(counted),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn pod(name: &str, connections: i64) -> Pod {
    Pod {
        uid: format!("uid-{name}"),
        resource_version: "7".into(),
        readiness_lag: Duration::from_secs(10),
        node: Some("n1".into()),
        template_hash: "h1".into(),
        created: now() - TimeDelta::hours(1),
        report: Ok(StatusReport {
            ready: true,
            connections: ConnectionCounts {
                total: connections,
                ..Default::default()
            },
            ..Default::default()
        }),
        ..crate::fixture::pod(name)
    }
}

/// A pod that was marked so many seconds ago and drains, with so many connections left.
fn draining(name: &str, secs: i64, remaining: i64) -> Pod {
    let mut pod = pod(name, remaining);
    pod.ready = false;
    pod.draining_since = Some(now() - TimeDelta::seconds(secs));
    pod.deletion_cost = Some(DRAINING_COST);
    if let Ok(report) = &mut pod.report {
        report.drain = signal_contract::DrainStatus {
            at_start: 0,
            draining: true,
            held: true,
            remaining,
        };
    }
    pod
}

fn pending(name: &str) -> Pod {
    let mut pod = pod(name, 0);
    (pod.ready, pod.node, pod.ip, pod.report) = (false, None, None, Err("has no address".into()));
    pod
}

fn step(wanted: i32, replicas: i32, pods: Vec<Pod>) -> ScaleStep {
    step_in(wanted, replicas, pods, false)
}

fn step_in(wanted: i32, replicas: i32, pods: Vec<Pod>, rolling_out: bool) -> ScaleStep {
    let counted = pods.iter().filter(|pod| !pod.terminating).count();
    let deployment = deployment(replicas, i32::try_from(counted).unwrap());
    let fleet = Fleet { pods };
    let drain = Drain::default();
    plan(
        &ScaleInput {
            wanted,
            deployment: Some(&deployment),
            fleet: &fleet,
            drain: &drain,
            seen: &BTreeMap::new(),
            rolling_out,
            shrinks: None,
        },
        now(),
    )
}

fn names(marks: &[PodMark]) -> Vec<&str> {
    marks.iter().map(|mark| mark.name.as_str()).collect()
}

#[test]
fn nothing_is_written_where_the_number_is_as_wanted() {
    let step = step(2, 2, vec![pod("a", 5), pod("b", 7)]);
    assert_eq!(
        step.status,
        Scaling {
            from: 2,
            to: 2,
            ..Scaling::default()
        }
    );
    assert_eq!(
        (step.deployment_replicas, step.events, step.waiting),
        (2, vec![], None)
    );
    assert!(
        step.mark.is_empty()
            && step.unmark.is_empty()
            && step.drain.is_empty()
            && step.undrain.is_empty()
    );
}

#[test]
fn the_way_up_is_at_once() {
    let step = step(5, 2, vec![pod("a", 5), pod("b", 7)]);
    assert_eq!(
        (step.deployment_replicas, step.status.state),
        (5, ScalingState::Scaling)
    );
    assert_eq!(step.events[0].reason, "ScaledOut");
}

#[test]
fn the_emptiest_are_marked_first_and_neither_drained_nor_deleted_before_the_mark_is_seen() {
    let step = step(
        2,
        4,
        vec![pod("a", 50), pod("b", 7), pod("c", 90), pod("d", 8)],
    );
    assert_eq!(names(&step.mark), ["b", "d"]);
    assert_eq!(
        (
            step.mark[0].cost,
            step.mark[0].since,
            step.mark[0].uid.as_str()
        ),
        (DRAINING_COST, now(), "uid-b")
    );
    assert_eq!(
        (
            step.deployment_replicas,
            step.drain.len(),
            step.status.state
        ),
        (4, 0, ScalingState::Draining)
    );
    assert_eq!(step.status.victims, ["b", "d"]);
    assert_eq!(step.waiting.unwrap().reason, "Draining");
}

#[test]
fn of_equally_full_pods_the_youngest_goes_and_then_the_first_by_name() {
    let mut young = pod("z", 7);
    young.created = now() - TimeDelta::minutes(1);
    assert_eq!(
        names(&step(2, 3, vec![pod("a", 7), pod("b", 7), young]).mark),
        ["z"]
    );
    assert_eq!(
        names(&step(1, 2, vec![pod("a", 7), pod("b", 7)]).mark),
        ["a"]
    );
}

#[test]
fn a_ready_pod_that_does_not_answer_counts_as_the_fullest() {
    let mut silent = pod("a", 0);
    silent.report = Err("timed out".into());
    assert_eq!(names(&step(1, 2, vec![silent, pod("b", 700)]).mark), ["b"]);
}

#[test]
fn a_marked_pod_is_told_to_drain_until_it_says_that_it_does() {
    let mut marked = pod("a", 30);
    (marked.draining_since, marked.deletion_cost) = (Some(now()), Some(DRAINING_COST));
    assert_eq!(step(1, 2, vec![marked.clone(), pod("b", 40)]).drain, ["a"]);
    assert!(
        step(1, 2, vec![draining("a", 20, 30), pod("b", 40)])
            .drain
            .is_empty()
    );
    marked.deletion_cost = None;
    let step = step(1, 2, vec![marked, pod("b", 40)]);
    assert_eq!(
        (names(&step.mark), step.drain.len()),
        (vec!["a"], 0),
        "half a mark is completed first"
    );
}

#[test]
fn the_deployment_is_lowered_when_victims_are_empty_and_endpoints_had_their_time() {
    let early = step(1, 2, vec![draining("a", 5, 0), pod("b", 40)]);
    assert_eq!(
        (early.deployment_replicas, early.status.state),
        (2, ScalingState::Draining)
    );
    let full = step(1, 2, vec![draining("a", 20, 1), pod("b", 40)]);
    assert_eq!(full.deployment_replicas, 2);
    let empty = step(1, 2, vec![draining("a", 20, 0), pod("b", 40)]);
    assert_eq!(
        (empty.deployment_replicas, empty.status.state),
        (1, ScalingState::Scaling)
    );
    assert_eq!(empty.events[0].reason, "ScaledIn");
}

#[test]
fn a_pod_past_its_deadline_goes_with_a_warning() {
    let limit = 10 + 8 + 120 + 15;
    assert_eq!(
        step(1, 2, vec![draining("a", limit - 1, 3), pod("b", 40)]).deployment_replicas,
        2
    );
    let late = step(1, 2, vec![draining("a", limit, 3), pod("b", 40)]);
    assert_eq!(late.deployment_replicas, 1);
    assert!(
        late.events.iter().any(
            |event| event.kind == EventKind::Warning && event.reason == "DrainDeadlineExceeded"
        )
    );
}

#[test]
fn a_pod_accepts_connections_until_its_probe_has_made_it_unready_and_endpoints_have_noticed() {
    let pause = |lag: u64, propagation: &str| {
        let mut one = pod("a", 3);
        one.readiness_lag = Duration::from_secs(lag);
        let drain: Drain =
            serde_json::from_value(serde_json::json!({"endpointPropagation": propagation}))
                .unwrap();
        super::pause(&one, &drain).as_secs()
    };
    assert_eq!(pause(13, "8s"), 21);
    assert_eq!(
        pause(13, "0s"),
        15,
        "no field makes it shorter than the probe"
    );
    assert_eq!(pause(31, "30s"), 61);
    let mut marked = pod("a", 30);
    (marked.draining_since, marked.deletion_cost) = (Some(now()), Some(DRAINING_COST));
    let step = step(1, 2, vec![marked, pod("b", 40)]);
    assert_eq!(step.pauses["a"].as_secs(), 18, "it is part of the order");
}

#[test]
fn a_drain_is_ordered_again_while_it_is_to_go_on() {
    let held = step(1, 2, vec![draining("a", 20, 3), pod("b", 40)]);
    assert_eq!((held.renew, held.drain), (vec!["a".to_owned()], vec![]));
    let back = step(2, 2, vec![draining("a", 20, 3), pod("b", 40)]);
    assert_eq!((back.renew, back.undrain), (vec![], vec!["a".to_owned()]));
}

#[test]
fn a_leader_whose_clock_runs_ahead_gives_a_drain_its_whole_time() {
    let fleet = Fleet {
        pods: vec![draining("a", 3600, 3), pod("b", 40)],
    };
    let look = |secs: i64| {
        let drain = Drain::default();
        let seen = [("uid-a".to_owned(), now())].into();
        let input = ScaleInput {
            wanted: 1,
            deployment: Some(&deployment(2, 2)),
            fleet: &fleet,
            drain: &drain,
            seen: &seen,
            rolling_out: false,
            shrinks: None,
        };
        plan(&input, now() + TimeDelta::seconds(secs)).deployment_replicas
    };
    assert_eq!((look(0), look(152), look(153)), (2, 2, 1));
}

#[test]
fn a_draining_pod_that_does_not_answer_is_given_its_time() {
    let mut silent = draining("a", 60, 3);
    silent.report = Err("timed out".into());
    assert_eq!(
        step(1, 2, vec![silent.clone(), pod("b", 40)]).deployment_replicas,
        2
    );
    silent.draining_since = Some(now() - TimeDelta::seconds(200));
    assert_eq!(
        step(1, 2, vec![silent, pod("b", 40)]).deployment_replicas,
        1
    );
}

#[test]
fn a_finished_victim_waits_for_its_lower_cost_while_another_drains() {
    let pods = |cost| {
        let mut first = draining("a", 20, 0);
        first.deletion_cost = Some(cost);
        vec![first, draining("b", 20, 9), pod("c", 40)]
    };
    let before = step(1, 3, pods(DRAINING_COST));
    assert_eq!(
        (before.deployment_replicas, names(&before.mark)),
        (3, vec!["a"])
    );
    assert_eq!(
        (before.mark[0].cost, before.mark[0].since),
        (FINISHED_COST, now() - TimeDelta::seconds(20))
    );
    let after = step(1, 3, pods(FINISHED_COST));
    assert_eq!(
        (after.deployment_replicas, after.mark.len()),
        (2, 0),
        "exactly the finished one"
    );
}

#[test]
fn a_late_victim_that_is_still_ready_waits_for_one_that_drains() {
    // The ReplicaSet would delete b, which is not ready, before a.
    let mut late = pod("a", 5);
    (late.draining_since, late.deletion_cost) =
        (Some(now() - TimeDelta::seconds(500)), Some(FINISHED_COST));
    assert_eq!(
        step(1, 3, vec![late, draining("b", 20, 9), pod("c", 40)]).deployment_replicas,
        3
    );
}

#[test]
fn pods_being_deleted_are_not_counted_twice() {
    // The Deployment is lowered, the ReplicaSet has not acted: marks stay, no other pod is chosen.
    let lowered = step(
        2,
        2,
        vec![
            draining("a", 20, 0),
            draining("b", 20, 0),
            pod("c", 5),
            pod("d", 6),
        ],
    );
    assert!(lowered.mark.is_empty() && lowered.unmark.is_empty() && lowered.undrain.is_empty());
    assert_eq!(
        (lowered.deployment_replicas, lowered.status.state),
        (2, ScalingState::Scaling)
    );
    // It has acted: they terminate.
    let mut gone = vec![
        draining("a", 20, 0),
        draining("b", 20, 0),
        pod("c", 5),
        pod("d", 6),
    ];
    gone[0].terminating = true;
    gone[1].terminating = true;
    let after = step(2, 2, gone);
    assert_eq!(
        (after.status.state, after.mark.len(), after.undrain.len()),
        (ScalingState::Idle, 0, 0)
    );
}

#[test]
fn one_step_at_a_time() {
    let step = step(
        1,
        4,
        vec![draining("a", 20, 4), pod("b", 5), pod("c", 6), pod("d", 7)],
    );
    assert!(
        step.mark.is_empty(),
        "the target fell further, but a still drains"
    );
}

#[test]
fn a_rising_target_takes_the_fullest_back_first() {
    let pods = || {
        vec![
            draining("a", 20, 0),
            draining("b", 20, 9),
            draining("c", 20, 5),
            pod("d", 70),
        ]
    };
    let some = step(2, 4, pods());
    assert_eq!(
        (names(&some.unmark), some.undrain.as_slice()),
        (vec!["b"], ["b".to_owned()].as_slice())
    );
    let all = step(4, 4, pods());
    assert_eq!(
        (names(&all.unmark), all.undrain),
        (
            vec!["b", "c", "a"],
            vec!["a".to_owned(), "b".into(), "c".into()]
        )
    );
    assert_eq!(all.status.state, ScalingState::Idle);
}

#[test]
fn a_drain_without_a_mark_is_taken_back_also_after_a_crash_between_the_two() {
    let mut unmarked = draining("a", 20, 3);
    (unmarked.draining_since, unmarked.deletion_cost) = (None, None);
    let step = step(2, 2, vec![unmarked, pod("b", 5)]);
    assert_eq!(
        (step.undrain, step.unmark.len(), step.mark.len()),
        (vec!["a".to_owned()], 0, 0)
    );
}

#[test]
fn a_pending_pod_takes_the_place_of_a_victim_that_drains() {
    let first = step(
        2,
        4,
        vec![
            draining("a", 20, 9),
            draining("b", 20, 3),
            pending("e"),
            pod("d", 50),
        ],
    );
    assert_eq!(
        (names(&first.mark), names(&first.unmark)),
        (vec!["e"], vec!["a"])
    );
    let mut marked = pending("e");
    (marked.draining_since, marked.deletion_cost) = (Some(now()), Some(DRAINING_COST));
    let second = step(
        2,
        4,
        vec![pod("a", 9), draining("b", 20, 3), marked, pod("d", 50)],
    );
    assert_eq!(
        second.deployment_replicas, 3,
        "it goes at once, before the one that drains"
    );
}

#[test]
fn pods_that_are_missing_are_not_waited_for() {
    assert_eq!(
        step(2, 4, vec![pod("a", 5), pod("b", 6)]).deployment_replicas,
        2
    );
    let drain = Drain::default();
    let fleet = Fleet {
        pods: vec![pod("a", 5)],
    };
    let deployment = deployment(4, 4);
    let input = ScaleInput {
        wanted: 1,
        deployment: Some(&deployment),
        fleet: &fleet,
        drain: &drain,
        seen: &BTreeMap::new(),
        rolling_out: false,
        shrinks: None,
    };
    assert_eq!(
        plan(&input, now()).deployment_replicas,
        4,
        "the Deployment counts more pods than were seen"
    );
}

#[test]
fn no_pod_goes_during_a_rollout_and_those_that_drain_are_taken_back() {
    let step = step_in(
        1,
        3,
        vec![draining("a", 20, 9), pod("b", 5), pod("c", 6), pod("d", 7)],
        true,
    );
    assert_eq!(
        (step.deployment_replicas, step.status.state),
        (3, ScalingState::Waiting)
    );
    assert_eq!(
        (names(&step.unmark), step.undrain, step.mark.len()),
        (vec!["a"], vec!["a".to_owned()], 0)
    );
    assert_eq!(step.waiting.unwrap().reason, "RolloutInProgress");
    assert_eq!(
        step_in(6, 3, vec![pod("b", 5)], true).deployment_replicas,
        6,
        "up is never held back"
    );
}

#[test]
fn stopped_means_that_all_drain_together() {
    assert_eq!(
        names(&step(0, 2, vec![pod("a", 5), pod("b", 6)]).mark),
        ["a", "b"]
    );
    assert_eq!(
        step(0, 2, vec![draining("a", 20, 0), draining("b", 20, 0)]).deployment_replicas,
        0
    );
}

#[test]
fn without_a_deployment_the_wanted_number_is_what_it_begins_with() {
    let drain = Drain::default();
    let fleet = Fleet::default();
    let step = plan(
        &ScaleInput {
            wanted: 3,
            deployment: None,
            fleet: &fleet,
            drain: &drain,
            seen: &BTreeMap::new(),
            rolling_out: false,
            shrinks: None,
        },
        now(),
    );
    assert_eq!((step.deployment_replicas, step.events.len()), (3, 0));
}

/// One step of a stuck rollout: `old` has most pods, and those of `new` are not ready.
fn stuck(wanted: i32, replicas: i32, settled: bool, pods: &[Pod]) -> ScaleStep {
    let count = i32::try_from(pods.len()).unwrap();
    let deployment = deployment(replicas, count);
    let fleet = Fleet {
        pods: pods.to_vec(),
    };
    let input = ScaleInput {
        wanted,
        deployment: Some(&deployment),
        fleet: &fleet,
        drain: &Drain::default(),
        seen: &BTreeMap::new(),
        rolling_out: true,
        shrinks: Some(ShrinkingSet {
            template_hash: "old",
            settled,
        }),
    };
    plan(&input, now())
}

fn of_revision(hash: &str, mut pod: Pod) -> Pod {
    pod.template_hash = hash.into();
    pod
}

/// A pod that no node has room for.
fn without_a_node(name: &str) -> Pod {
    let mut pod = pod(name, 0);
    (pod.node, pod.ip, pod.ready) = (None, None, false);
    pod.report = Err("it has no address yet".into());
    pod
}

#[test]
fn a_stuck_rollout_lets_pods_go_one_at_a_time_from_the_replica_set_that_shrinks() {
    let old = |pod| of_revision("old", pod);
    let pods = [
        old(pod("a", 9)),
        old(pod("b", 3)),
        old(pod("c", 5)),
        of_revision("new", without_a_node("d")),
    ];
    let first = stuck(1, 3, true, &pods);
    assert_eq!(names(&first.mark), ["b"], "the emptiest of the old ones");
    assert_eq!(
        (first.deployment_replicas, first.waiting.unwrap().reason),
        (3, ConditionReason::Draining)
    );

    let mut pods = pods;
    pods[1] = old(draining("b", 30, 4));
    assert_eq!(stuck(1, 3, true, &pods).deployment_replicas, 3, "it drains");
    pods[1] = old(draining("b", 30, 0));
    let next = stuck(1, 3, true, &pods);
    assert_eq!(
        (next.deployment_replicas, next.mark.len()),
        (2, 0),
        "one fewer"
    );

    // Until it is gone its mark stays, and no other is chosen; also when the number is reached.
    for wanted in [1, 2] {
        let step = stuck(wanted, 2, false, &pods);
        assert_eq!(step.deployment_replicas, 2);
        assert_eq!(
            (step.mark.len(), step.unmark.len(), step.undrain.len()),
            (0, 0, 0)
        );
    }
    pods[1].terminating = true;
    assert_eq!(names(&stuck(1, 2, true, &pods).mark), ["c"]);
    assert_eq!(
        names(&stuck(2, 2, true, &pods).mark),
        [""; 0],
        "it is reached"
    );
}

#[test]
fn a_stuck_rollout_that_is_not_scaled_in_marks_nobody_and_takes_marks_back() {
    let old = |pod| of_revision("old", pod);
    let pods = [
        old(pod("a", 9)),
        old(draining("b", 5, 3)),
        of_revision("new", pod("c", 0)),
    ];
    let step = stuck(3, 3, true, &pods);
    assert_eq!((step.mark.len(), names(&step.unmark)), (0, vec!["b"]));
    assert_eq!(step.undrain, ["b"]);
    let pods = [old(pod("a", 9)), of_revision("new", draining("b", 5, 3))];
    let step = stuck(1, 2, true, &pods);
    assert_eq!(
        (names(&step.mark), names(&step.unmark)),
        (vec!["a"], vec!["b"]),
        "of the other ReplicaSet"
    );
}

fn asked(mut pod: Pod) -> Pod {
    pod.asked_to_drain = true;
    pod
}

#[test]
fn a_pod_that_is_asked_to_drain_goes_once_its_successor_serves() {
    let wanted = |pods: &[Pod], has_surge: bool| {
        let fleet = Fleet { pods: pods.into() };
        wanted_with_drains(2, &fleet, has_surge, false)
    };
    let mut pods = vec![pod("a", 5), asked(pod("b", 50))];
    assert_eq!(wanted(&pods, true), 3, "one more comes first");
    pods.push(pending("c"));
    assert_eq!(wanted(&pods, true), 3, "it does not serve yet");
    let waits = step(3, 3, pods.clone());
    assert!(waits.mark.is_empty(), "{waits:?}");
    pods[2] = pod("c", 0);
    assert_eq!(wanted(&pods, true), 2);
    assert_eq!(
        names(&step(2, 3, pods.clone()).mark),
        ["b"],
        "not the emptiest"
    );
    pods[1] = asked(draining("b", 60, 3));
    assert_eq!(wanted(&pods, true), 2);
    assert_eq!(step(2, 3, pods.clone()).deployment_replicas, 3);
    pods[1] = asked(draining("b", 60, 0));
    assert_eq!(step(2, 3, pods.clone()).deployment_replicas, 2);
    pods.remove(1);
    assert_eq!(wanted(&pods, true), 2);
}

#[test]
fn without_room_for_one_more_a_pod_drains_first_and_its_successor_comes_then() {
    let wanted = |pods: Vec<Pod>| wanted_with_drains(2, &Fleet { pods }, false, false);
    let both = vec![asked(pod("a", 5)), asked(pod("b", 50))];
    assert_eq!(wanted(both.clone()), 1);
    assert_eq!(names(&step(1, 2, both).mark), ["a"], "one at a time");
    assert_eq!(
        wanted(vec![asked(draining("a", 9, 1)), asked(pod("b", 50))]),
        1
    );
    assert_eq!(wanted(vec![asked(pod("b", 50))]), 2, "its successor");
    assert_eq!(wanted(vec![asked(pod("b", 50)), pending("c")]), 2);
    assert_eq!(wanted(vec![asked(pod("b", 50)), pod("c", 0)]), 1);
}

#[test]
fn a_pod_is_not_replaced_for_itself_in_a_rollout_or_where_none_is_wanted_and_one_that_is_broken_is()
{
    let fleet = |pods: Vec<Pod>| Fleet { pods };
    let two = || fleet(vec![pod("a", 5), asked(pod("b", 50))]);
    assert_eq!(wanted_with_drains(2, &two(), true, true), 2);
    assert_eq!(wanted_with_drains(0, &two(), true, false), 0);
    assert_eq!(wanted_with_drains(0, &two(), false, false), 0);
    let broken = || asked(pending("b"));
    let before = fleet(vec![pod("a", 5), broken()]);
    assert_eq!(wanted_with_drains(2, &before, true, false), 3);
    let after = fleet(vec![pod("a", 5), broken(), pod("c", 0)]);
    assert_eq!(wanted_with_drains(2, &after, true, false), 2);
}
