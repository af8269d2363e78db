//! The benchmark itself, small: that every group runs to its end, loses nothing, and says something of each figure. No figure is judged.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use signal_services::{Redis, find_program};
use signal_tests::gateway::binary;
use signal_tests::services::{self, skip};

/// Runs these groups and gives the lines of their tables.
async fn run(groups: &[&str], environment: &[(&str, &str)]) -> Vec<Value> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let json = dir.path().join("figures.json");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_signal-bench"));
    command
        .arg("--small")
        .arg("--json")
        .arg(&json)
        .arg("--gateway")
        .arg(binary().await);
    command
        .args(groups.iter().flat_map(|group| ["--only", group]))
        .envs(environment.iter().copied());
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the benchmark starts");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("skipped: "), "{text}");
    let all = read(&json);
    assert_eq!(
        (&all["small"], &all["skipped"], &all["failed"]),
        (&true.into(), &Value::Array(vec![]), &Value::Array(vec![])),
        "{text}"
    );
    for group in groups {
        assert!(text.contains(&format!("## {group}\n")), "{text}");
    }
    all["lines"].as_array().expect("a list").clone()
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("the figures")).expect("JSON")
}

/// Each group has so many lines, and each line a figure.
fn assert_lines(lines: &[Value], wanted: &[(&str, usize)]) {
    for (group, count) in wanted {
        let own: Vec<&Value> = lines
            .iter()
            .filter(|line| line["group"] == *group)
            .collect();
        assert_eq!(own.len(), *count, "{group}: {own:#?}");
        for line in own {
            // Nothing is below zero but what memory is given back, and nothing is left out.
            assert!(
                line["figure"]["median"]
                    .as_f64()
                    .is_some_and(f64::is_finite),
                "{line}"
            );
        }
    }
}

#[tokio::test]
async fn every_group_on_sockets_and_redis_runs_to_its_end() {
    if !Redis::is_installed() || find_program(&["taskset"]).is_none() {
        skip("redis-server or taskset is not installed");
        return;
    }
    let wanted = [
        ("idle", 9),
        ("connect", 4),
        ("fanout", 12),
        ("burst", 14),
        ("tls", 5),
        ("storm", 4),
        ("unicast", 2),
        ("echo", 3),
        ("workers", 2),
        ("instances", 30),
    ];
    let lines = run(&wanted.map(|(group, _)| group), &[]).await;
    assert_lines(&lines, &wanted);
    let against_floor = lines.iter().filter(|line| line["group"] == "fanout");
    assert!(
        against_floor.into_iter().all(|line| line["ratio"]["median"]
            .as_f64()
            .is_some_and(|ratio| ratio > 0.0)),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn the_pipeline_and_what_it_is_held_against_run_to_their_end() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    if !Redis::is_installed() || find_program(&["taskset"]).is_none() {
        skip("redis-server or taskset is not installed");
        return;
    }
    let lines = run(
        &["pipeline", "audience"],
        &[
            ("SIGNAL_TEST_KAFKA", &brokers),
            ("SIGNAL_TEST_POSTGRES", &database.url),
        ],
    )
    .await;
    assert_lines(&lines, &[("pipeline", 7), ("audience", 3)]);
}
