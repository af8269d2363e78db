//! Single decisions, and whole courses in which shed clients come back to random ready pods.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use signal_crds::Duration;

use super::*;
use signal_contract::{ConnectionCounts, StatusReport};

fn at(secs: i64) -> DateTime<Utc> {
    "2030-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(secs)
}

fn settings() -> Rebalance {
    Rebalance {
        enabled: true,
        max_skew_percent: 25,
        stable_for: Duration::secs(60),
        max_per_minute: 600,
    }
}

fn fleet(counts: &[i64]) -> Fleet {
    let pod = |(place, total): (usize, &i64)| Pod {
        uid: String::new(),
        resource_version: String::new(),
        node: Some("n".into()),
        template_hash: "h".into(),
        created: at(0),
        report: Ok(StatusReport {
            connections: ConnectionCounts {
                total: *total,
                ..Default::default()
            },
            ..Default::default()
        }),
        ..crate::fixture::pod(&format!("p{place}"))
    };
    Fleet {
        pods: counts.iter().enumerate().map(pod).collect(),
    }
}

fn at_rest<'a>(settings: &'a Rebalance, fleet: &'a Fleet) -> RebalanceInput<'a> {
    RebalanceInput {
        settings,
        fleet,
        rolling_out: false,
        scaling: false,
        paused: false,
    }
}

/// What is shed when this has lasted for longer than `stableFor`.
fn lasting(counts: &[i64]) -> Vec<(String, u32)> {
    let (settings, fleet, mut memory) = (settings(), fleet(counts), RebalanceMemory::default());
    assert!(plan(&at_rest(&settings, &fleet), &mut memory, at(0)).is_empty());
    assert!(plan(&at_rest(&settings, &fleet), &mut memory, at(59)).is_empty());
    plan(&at_rest(&settings, &fleet), &mut memory, at(60))
}

#[test]
fn only_pods_far_above_the_mean_shed_and_in_proportion() {
    // Mean 500; 25 % above is 625.
    assert_eq!(
        lasting(&[1000, 750, 625, 0, 125]),
        [("p0".to_owned(), 67), ("p1".to_owned(), 33)]
    );
    for even in [&[625, 375][..], &[500, 500], &[1000], &[], &[0, 0]] {
        assert!(lasting(even).is_empty(), "{even:?}");
    }
}

#[test]
fn a_few_connections_are_not_worth_a_reconnect() {
    assert!(lasting(&[19, 1]).is_empty());
    assert_eq!(
        lasting(&[20, 0]),
        [("p0".to_owned(), 10)],
        "and never below the mean"
    );
}

#[test]
fn a_rollout_a_scale_in_a_pause_and_a_switch_begin_the_waiting_again() {
    let (on, fleet) = (settings(), fleet(&[1000, 0]));
    let off = Rebalance {
        enabled: false,
        ..on
    };
    let rest = at_rest(&on, &fleet);
    for stop in [
        RebalanceInput {
            rolling_out: true,
            ..rest
        },
        RebalanceInput {
            scaling: true,
            ..rest
        },
        RebalanceInput {
            paused: true,
            ..rest
        },
        RebalanceInput {
            settings: &off,
            ..rest
        },
    ] {
        let mut memory = RebalanceMemory::default();
        assert!(plan(&rest, &mut memory, at(0)).is_empty());
        assert!(plan(&stop, &mut memory, at(61)).is_empty());
        assert!(plan(&rest, &mut memory, at(62)).is_empty(), "{stop:?}");
        assert!(!plan(&rest, &mut memory, at(123)).is_empty(), "{stop:?}");
    }
}

#[test]
fn nothing_is_shed_while_a_pod_is_silent_or_not_ready() {
    let (settings, whole) = (settings(), fleet(&[1000, 0, 0]));
    let (mut silent, mut unready) = (whole.clone(), whole.clone());
    silent.pods[1].report = Err("timed out".into());
    unready.pods[2].ready = false;
    let mut memory = RebalanceMemory::default();
    assert!(plan(&at_rest(&settings, &whole), &mut memory, at(0)).is_empty());
    assert!(plan(&at_rest(&settings, &silent), &mut memory, at(61)).is_empty());
    assert!(plan(&at_rest(&settings, &unready), &mut memory, at(62)).is_empty());
    assert!(
        !plan(&at_rest(&settings, &whole), &mut memory, at(63)).is_empty(),
        "the skew has lasted all the same"
    );
    let mut draining = whole.clone();
    draining.pods[1].draining_since = Some(at(0));
    assert!(
        !plan(&at_rest(&settings, &draining), &mut memory, at(73)).is_empty(),
        "a pod that drains is not counted"
    );
}

#[test]
fn a_slow_pace_moves_one_at_a_time() {
    let (slow, fleet, mut memory) = (
        Rebalance {
            max_per_minute: 2,
            ..settings()
        },
        fleet(&[1000, 0]),
        RebalanceMemory::default(),
    );
    let shed: Vec<u32> = (0..40)
        .map(|step| {
            plan(&at_rest(&slow, &fleet), &mut memory, at(step * 5))
                .iter()
                .map(|(_, count)| count)
                .sum()
        })
        .collect();
    assert!(shed.iter().all(|count| *count <= 1));
    assert_eq!(shed[12..24].iter().sum::<u32>(), 2, "{shed:?}");
}

/// Runs for two hours in steps of `interval` seconds; shed clients come back after up to 20 s to any pod. Returns the pods' connections and how
/// many were shed at each second.
fn course(counts: &[i64], interval: i64, seed: u64) -> (Vec<i64>, Vec<(i64, i64)>) {
    let (settings, mut counts, mut memory) =
        (settings(), counts.to_vec(), RebalanceMemory::default());
    let mut random = StdRng::seed_from_u64(seed);
    let mut away: Vec<i64> = Vec::new();
    let mut shed = Vec::new();
    for clock in 0..7200 {
        away.retain(|back| {
            if *back <= clock {
                let index = random.random_range(0..counts.len());
                counts[index] += 1;
            }
            *back > clock
        });
        if clock % interval == 0 {
            let fleet = fleet(&counts);
            for (name, count) in plan(&at_rest(&settings, &fleet), &mut memory, at(clock)) {
                let index: usize = name[1..].parse().unwrap();
                counts[index] -= i64::from(count);
                assert!(counts[index] >= 0);
                shed.push((clock, i64::from(count)));
                away.extend((0..count).map(|_| clock + random.random_range(1..20)));
            }
        }
    }
    (counts, shed)
}

#[test]
fn the_numbers_close_in_on_the_mean_and_stay_there_within_the_pace() {
    for (seed, start) in [
        &[3000, 3000, 0][..],
        &[6000, 0, 0, 0],
        &[1500, 1400, 1600, 0, 0],
        &[400, 0],
    ]
    .iter()
    .enumerate()
    {
        for interval in [5, 10, 60] {
            let (counts, shed) = course(start, interval, u64::try_from(seed).unwrap());
            let total: i64 = start.iter().sum();
            let mean = total / i64::try_from(start.len()).unwrap();
            assert_eq!(counts.iter().sum::<i64>(), total);
            assert!(
                counts.iter().all(|count| *count * 100 <= mean * 126),
                "{counts:?} of {start:?}, every {interval} s"
            );
            let last = shed.last().unwrap().0;
            assert!(
                last < 6600,
                "it still sheds after {last} s: {start:?}, every {interval} s"
            );
            for (clock, _) in &shed {
                let minute: i64 = shed
                    .iter()
                    .filter(|(other, _)| (clock - 59..=*clock).contains(other))
                    .map(|(_, count)| count)
                    .sum();
                assert!(minute <= 600, "{minute} in a minute before {clock}");
            }
            let moved: i64 = shed.iter().map(|(_, count)| count).sum();
            let needed: i64 = start.iter().map(|count| (count - mean).max(0)).sum();
            // Some of those that are shed come back to a full pod and are shed again: a few times over, where most pods are full.
            assert!(
                moved <= needed * 5,
                "{moved} moved where {needed} were too many: {start:?}, every {interval} s"
            );
        }
    }
}
