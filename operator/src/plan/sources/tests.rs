//! Single steps by hand; whole courses are in `courses`.

use signal_crds::jwks::Algorithm;

use super::*;
use crate::plan::EventKind;
use signal_contract::{KeySourceReport, SourcePreset, StatusReport};

mod courses;

type Wanted = Vec<(String, SourceDefinition)>;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000 + secs, 0).unwrap()
}

fn definition(issuer: &str, url: &str) -> SourceDefinition {
    SourceDefinition {
        issuer: issuer.into(),
        url: Some(format!("https://{url}/jwks")),
        audiences: vec!["signal".into()],
        algorithms: vec![Algorithm::ES256],
        preset: SourcePreset::Standard,
        subject_claims: vec![],
        subject_prefix: String::new(),
        application_secret_file: None,
        trust_roles: false,
        ca_file: None,
        allow_insecure_http: false,
    }
}

/// `name` or `name@url`; the issuer is called as the name is.
fn wanted(texts: &[&str]) -> Wanted {
    texts
        .iter()
        .map(|text| split(text))
        .map(|(name, url)| (name.to_owned(), definition(name, url)))
        .collect()
}

fn split(text: &str) -> (&str, &str) {
    text.split_once('@').unwrap_or((text, "one"))
}

/// A source that has had its stage since the beginning; Retiring ends at 7200.
fn source(text: &str, stage: SourceStage) -> RecordedSource {
    let (declared, url) = split(text);
    RecordedSource {
        name: text.replace('@', "-"),
        declared: declared.into(),
        definition: definition(declared, url),
        stage,
        since: at(0),
        retire_after: (stage == SourceStage::Retiring).then(|| at(7200)),
    }
}

fn prepared(text: &str) -> RecordedSource {
    source(text, SourceStage::Prepared)
}

fn trusted(text: &str) -> RecordedSource {
    source(text, SourceStage::Trusted)
}

fn retiring(text: &str) -> RecordedSource {
    source(text, SourceStage::Retiring)
}

fn record(sources: Vec<RecordedSource>) -> SourcesRecord {
    SourcesRecord {
        sources,
        ..SourcesRecord::default()
    }
}

/// A pod that holds this revision, and has keys of everything in the record.
fn pod(name: &str, revision: &str, record: &SourcesRecord) -> Pod {
    let key_source = |source: &RecordedSource| KeySourceReport {
        name: source.name.clone(),
        state: Some(source.stage.into()),
        keys: vec!["k1".into()],
        ..KeySourceReport::default()
    };
    let key_sources = record.sources.iter().map(key_source).collect();
    Pod {
        ip: None,
        node: None,
        template_hash: String::new(),
        created: at(0),
        report: Ok(StatusReport {
            ready: true,
            live_revision: revision.into(),
            key_sources,
            ..StatusReport::default()
        }),
        ..crate::fixture::pod(name)
    }
}

/// A pod that never got keys of this source.
fn without(mut pod: Pod, name: &str, error: &str) -> Pod {
    let report = pod.report.as_mut().unwrap();
    let source = report
        .key_sources
        .iter_mut()
        .find(|source| source.name == name)
        .unwrap();
    (source.keys, source.error) = (Vec::new(), Some(error.into()));
    pod
}

fn unready(mut pod: Pod) -> Pod {
    pod.ready = false;
    pod
}

fn silent(mut pod: Pod) -> Pod {
    pod.report = Err("no route".into());
    pod
}

fn step_with(
    rotation: Rotation,
    wanted: &Wanted,
    record: &SourcesRecord,
    pods: Vec<Pod>,
    secs: i64,
) -> Plan<SourcesRecord> {
    let fleet = Fleet { pods };
    plan(
        &SourcesInput {
            wanted,
            rotation: &rotation,
            record,
            revision: Some("r"),
            shown: &[],
            fleet: &fleet,
        },
        at(secs),
    )
}

fn step(texts: &[&str], record: &SourcesRecord, pods: Vec<Pod>, secs: i64) -> Plan<SourcesRecord> {
    step_with(Rotation::default(), &wanted(texts), record, pods, secs)
}

fn emergency(texts: &[&str], record: &SourcesRecord, pods: Vec<Pod>) -> Plan<SourcesRecord> {
    step_with(
        Rotation {
            emergency: true,
            ..Rotation::default()
        },
        &wanted(texts),
        record,
        pods,
        10,
    )
}

/// Names and stages, in order.
fn stages(record: &SourcesRecord) -> Vec<(&str, SourceStage)> {
    record
        .sources
        .iter()
        .map(|source| (source.name.as_str(), source.stage))
        .collect()
}

fn reasons(plan: &Plan<SourcesRecord>) -> Vec<&'static str> {
    plan.events
        .iter()
        .map(|event| event.reason.as_str())
        .collect()
}

fn waits(plan: &Plan<SourcesRecord>) -> Option<(&'static str, &str)> {
    plan.waiting
        .as_ref()
        .map(|waiting| (waiting.reason.as_str(), waiting.message.as_str()))
}

#[test]
fn the_first_configuration_is_trusted_at_once() {
    let wanted = wanted(&["b", "a"]);
    let fleet = Fleet::default();
    let (rotation, empty) = (Rotation::default(), SourcesRecord::default());
    let input = SourcesInput {
        wanted: &wanted,
        rotation: &rotation,
        record: &empty,
        revision: None,
        shown: &[],
        fleet: &fleet,
    };
    let first = plan(&input, at(0));
    assert_eq!(
        stages(&first.next),
        [("b", SourceStage::Trusted), ("a", SourceStage::Trusted)]
    );
    assert_eq!(
        (reasons(&first), waits(&first)),
        (vec!["SourceTrusted", "SourceTrusted"], None)
    );
}

#[test]
fn a_changed_source_is_prepared_and_then_trusted_by_every_pod() {
    let start = record(vec![trusted("a")]);
    let begun = step(&["a@two"], &start, vec![pod("p", "r", &start)], 1);
    assert_eq!(begun.next.sources[0], trusted("a"));
    let name = begun.next.sources[1].name.clone();
    assert!(
        name.len() == "a-".len() + 6 && name.starts_with("a-"),
        "{name}"
    );
    assert_eq!(
        (begun.next.sources[1].stage, begun.next.sources[1].since),
        (SourceStage::Prepared, at(1))
    );
    assert_eq!(
        (reasons(&begun), waits(&begun).unwrap().0),
        (vec!["SourcePrepared"], "WaitingForPods")
    );

    let late = step(
        &["a@two"],
        &begun.next,
        vec![pod("p", "r", &begun.next), pod("q", "old", &start)],
        2,
    );
    assert_eq!((&late.next, late.events.len()), (&begun.next, 0));
    assert_eq!(
        waits(&late),
        Some((
            "WaitingForPods",
            &*format!("{name}: pod q has older live settings")
        ))
    );

    let seen = step(
        &["a@two"],
        &begun.next,
        vec![pod("p", "r", &begun.next), pod("q", "r", &begun.next)],
        3,
    );
    assert_eq!(
        stages(&seen.next),
        [("a", SourceStage::Trusted), (&name, SourceStage::Trusted)]
    );
    assert_eq!(
        (reasons(&seen), waits(&seen).unwrap().0),
        (vec!["SourceTrusted"], "WaitingForPods")
    );
    let late = step(
        &["a@two"],
        &seen.next,
        vec![pod("p", "r", &seen.next), pod("q", "old", &begun.next)],
        4,
    );
    assert_eq!(
        late.next, seen.next,
        "the old one stays while a pod may refuse the new one"
    );
}

#[test]
fn a_replaced_source_retires_once_every_pod_trusts_the_new_one_and_goes_after_the_overlap() {
    let start = record(vec![trusted("a")]);
    let begun = step(&["a@two"], &start, vec![pod("p", "r", &start)], 1);
    let name = begun.next.sources[1].name.clone();
    let seen = step(&["a@two"], &begun.next, vec![pod("p", "r", &begun.next)], 3);
    let both = step(
        &["a@two"],
        &seen.next,
        vec![pod("p", "r", &seen.next), pod("q", "r", &seen.next)],
        5,
    );
    assert_eq!(
        stages(&both.next),
        [("a", SourceStage::Retiring), (&name, SourceStage::Trusted)]
    );
    assert_eq!(
        (both.next.sources[0].retire_after, reasons(&both)),
        (Some(at(7205)), vec!["SourceRetiring"])
    );
    let overlap = step(
        &["a@two"],
        &both.next,
        vec![pod("p", "r", &both.next)],
        7204,
    );
    assert_eq!(
        (&overlap.next, waits(&overlap).unwrap().0),
        (&both.next, "Overlap")
    );
    assert!(
        waits(&overlap)
            .unwrap()
            .1
            .starts_with("a is accepted until 20"),
        "{overlap:?}"
    );

    let over = step(
        &["a@two"],
        &both.next,
        vec![pod("p", "old", &seen.next)],
        7205,
    );
    assert_eq!(
        (stages(&over.next), reasons(&over)),
        (vec![(&*name, SourceStage::Trusted)], vec!["SourceRemoved"])
    );
    let rest = step(
        &["a@two"],
        &over.next,
        vec![pod("p", "r", &over.next)],
        7206,
    );
    assert_eq!(
        (&rest.next, waits(&rest), rest.events.len()),
        (&over.next, None, 0)
    );
}

#[test]
fn every_difference_in_a_definition_makes_another_source() {
    let changes: [fn(&mut SourceDefinition); 8] = [
        |it| it.issuer.push('x'),
        |it| it.url = None,
        |it| it.audiences.push("other".into()),
        |it| it.algorithms.push(Algorithm::RS256),
        |it| it.subject_prefix.push('x'),
        |it| it.trust_roles = true,
        |it| it.ca_file = Some("source-a-ca-12345678.crt".into()),
        |it| it.allow_insecure_http = true,
    ];
    let start = record(vec![trusted("a")]);
    let mut names = BTreeSet::new();
    for change in changes {
        let mut wanted = wanted(&["a"]);
        change(&mut wanted[0].1);
        let next = step_with(Rotation::default(), &wanted, &start, vec![], 0).next;
        assert_eq!(next.sources[1].stage, SourceStage::Prepared);
        assert!(
            names.insert(next.sources[1].name.clone()),
            "two definitions of one name"
        );
    }
}

#[test]
fn a_broken_new_source_changes_nothing_and_says_which_pod_cannot_fetch_it() {
    let now = record(vec![trusted("a"), prepared("a@two")]);
    let pods = |bad: Pod| vec![pod("p", "r", &now), bad];
    let stale = {
        let mut pod = pod("q", "r", &now);
        pod.report.as_mut().unwrap().key_sources[1].error = Some("404".into());
        pod
    };
    for (bad, message) in [
        (
            without(pod("q", "r", &now), "a-two", "404"),
            "a-two (https://two/jwks): pod q: 404",
        ),
        (stale, "a-two (https://two/jwks): pod q: 404"),
        (
            pod("q", "r", &record(vec![trusted("a")])),
            "a-two (https://two/jwks): pod q does not have this source yet",
        ),
    ] {
        let broken = step(&["a@two"], &now, pods(bad), 299);
        assert_eq!((&broken.next, broken.events.len()), (&now, 0));
        assert_eq!(waits(&broken), Some(("SourceUnreachable", message)));
    }
    let late = step(
        &["a@two"],
        &now,
        pods(without(pod("q", "r", &now), "a-two", "404")),
        300,
    );
    assert_eq!(
        (waits(&late).unwrap().0, reasons(&late), late.events[0].kind),
        (
            "SourceUnreachable",
            vec!["AcknowledgementTimedOut"],
            EventKind::Warning
        )
    );
}

#[test]
fn a_pod_that_does_not_answer_is_waited_for_and_named_and_told_after_the_timeout() {
    let now = record(vec![trusted("a"), prepared("a@two")]);
    let silent = || vec![silent(pod("q", "r", &now))];
    let waiting = step(&["a@two"], &now, silent(), 299);
    assert_eq!(
        (&waiting.next, waits(&waiting)),
        (&now, Some(("WaitingForPods", "a-two: pod q: no route")))
    );
    let late = step(&["a@two"], &now, silent(), 300);
    assert_eq!(
        (&late.next, waits(&late).unwrap().0, reasons(&late)),
        (
            &now,
            "AcknowledgementTimedOut",
            vec!["AcknowledgementTimedOut"]
        )
    );
    assert!(
        late.events[0].note.ends_with("a-two: pod q: no route"),
        "{late:?}"
    );
}

#[test]
fn a_replaced_source_stays_while_a_pod_has_no_keys_of_its_successor() {
    let now = record(vec![trusted("a"), trusted("a@two")]);
    let broken = step(
        &["a@two"],
        &now,
        vec![without(pod("p", "r", &now), "a-two", "503")],
        1,
    );
    assert_eq!(
        (&broken.next, waits(&broken).unwrap().0),
        (&now, "SourceUnreachable")
    );
    let mut stale = pod("p", "r", &now);
    stale.report.as_mut().unwrap().key_sources[1].error = Some("503".into());
    let next = step(&["a@two"], &now, vec![stale], 1).next;
    assert_eq!(
        next.sources[0].stage,
        SourceStage::Retiring,
        "keys that were fetched once will do"
    );
}

#[test]
fn without_ready_pods_nobody_is_waited_for_but_nothing_is_trusted_unseen() {
    let now = record(vec![trusted("a"), prepared("a@two")]);
    let seen = || unready(pod("p", "r", &now));
    let blind = || unready(without(pod("q", "r", &now), "a-two", "404"));
    for (pods, stage) in [
        (vec![], SourceStage::Trusted),
        (vec![seen(), blind()], SourceStage::Trusted),
        (vec![blind()], SourceStage::Prepared),
        (vec![silent(seen())], SourceStage::Prepared),
        (vec![unready(pod("p", "old", &now))], SourceStage::Prepared),
    ] {
        let next = step(&["a@two"], &now, pods, 1);
        assert_eq!(next.next.sources[1].stage, stage, "{:?}", next.waiting);
        assert!(next.waiting.is_some());
    }
}

#[test]
fn a_removed_source_retires_once_pods_are_in_step_unless_its_issuer_goes_on_under_another_name() {
    let now = record(vec![trusted("a"), trusted("b")]);
    let behind = step(&["b"], &now, vec![pod("p", "old", &now)], 1);
    assert_eq!(
        stages(&behind.next),
        [("a", SourceStage::Trusted), ("b", SourceStage::Trusted)]
    );
    let removed = step(&["b"], &now, vec![pod("p", "r", &now)], 1);
    assert_eq!(
        stages(&removed.next),
        [("a", SourceStage::Retiring), ("b", SourceStage::Trusted)]
    );

    let renamed: Wanted = vec![
        ("new".into(), definition("a", "one")),
        ("b".into(), definition("b", "one")),
    ];
    let begun = step_with(Rotation::default(), &renamed, &now, vec![], 1);
    assert_eq!(
        stages(&begun.next),
        [
            ("a", SourceStage::Trusted),
            ("b", SourceStage::Trusted),
            ("new", SourceStage::Prepared)
        ]
    );
    let pods = vec![without(pod("p", "r", &begun.next), "new", "404")];
    assert_eq!(
        step_with(Rotation::default(), &renamed, &begun.next, pods, 2).next,
        begun.next,
        "the old name serves until the new one does"
    );
}

#[test]
fn a_source_that_another_of_other_name_and_issuer_replaces_waits_until_that_one_is_trusted_everywhere()
 {
    let now = record(vec![trusted("a")]);
    let begun = step(&["b"], &now, vec![pod("p", "r", &now)], 1);
    assert_eq!(
        stages(&begun.next),
        [("a", SourceStage::Trusted), ("b", SourceStage::Prepared)]
    );
    let broken = step(
        &["b"],
        &begun.next,
        vec![without(pod("p", "r", &begun.next), "b", "404")],
        2,
    );
    assert_eq!(broken.next, begun.next);
    let both = step(&["b"], &begun.next, vec![pod("p", "r", &begun.next)], 2);
    assert_eq!(
        stages(&both.next),
        [("a", SourceStage::Trusted), ("b", SourceStage::Trusted)]
    );
    let late = step(&["b"], &both.next, vec![pod("p", "old", &begun.next)], 3);
    assert_eq!(
        late.next, both.next,
        "a pod that does not trust the new one yet keeps the old one"
    );
    let retired = step(&["b"], &both.next, vec![pod("p", "r", &both.next)], 4);
    assert_eq!(
        stages(&retired.next),
        [("a", SourceStage::Retiring), ("b", SourceStage::Trusted)]
    );
}

#[test]
fn what_was_never_trusted_goes_without_ado() {
    let now = record(vec![trusted("a"), prepared("a@two")]);
    let back = step(&["a"], &now, vec![pod("p", "old", &now)], 1);
    assert_eq!(
        (stages(&back.next), reasons(&back)),
        (vec![("a", SourceStage::Trusted)], vec!["SourceRemoved"])
    );
    let other = step(&["a@three"], &now, vec![pod("p", "old", &now)], 1);
    let names: Vec<_> = other
        .next
        .sources
        .iter()
        .map(|source| source.declared.as_str())
        .collect();
    assert_eq!(
        (names, reasons(&other)),
        (vec!["a", "a"], vec!["SourceRemoved", "SourcePrepared"])
    );
    let first = record(vec![prepared("a")]);
    let instead = step(&["a@two"], &first, vec![pod("p", "old", &first)], 1).next;
    assert_ne!(
        instead.sources[0].name, "a",
        "a pod that reads late has another source of that name"
    );
}

#[test]
fn what_is_wanted_again_is_taken_back_and_what_nothing_replaces_yet_is_too() {
    let now = record(vec![retiring("a"), trusted("a@two")]);
    let back = step(&["a"], &now, vec![pod("p", "old", &now)], 1);
    assert_eq!(
        (stages(&back.next), reasons(&back)),
        (
            vec![("a", SourceStage::Trusted), ("a-two", SourceStage::Trusted)],
            vec!["SourceTakenBack"]
        )
    );
    assert_eq!(
        (
            back.next.sources[0].since,
            back.next.sources[0].retire_after
        ),
        (at(1), None)
    );
    let settled = step(&["a"], &back.next, vec![pod("p", "r", &back.next)], 2);
    assert_eq!(
        stages(&settled.next),
        [
            ("a", SourceStage::Trusted),
            ("a-two", SourceStage::Retiring)
        ]
    );

    let gone = record(vec![retiring("a")]);
    let again = step(&["a@three"], &gone, vec![pod("p", "r", &gone)], 9000);
    assert_eq!(
        reasons(&again),
        ["SourceTakenBack", "SourcePrepared"],
        "its time is over, but nothing else serves the name"
    );
}

#[test]
fn of_those_no_longer_wanted_one_stays_until_the_wanted_one_is_there() {
    let now = record(vec![trusted("a"), trusted("a@two"), prepared("a@three")]);
    let pods = vec![without(pod("p", "r", &now), "a-three", "404")];
    let next = step(&["a@three"], &now, pods, 1).next;
    assert_eq!(
        stages(&next),
        [
            ("a", SourceStage::Retiring),
            ("a-two", SourceStage::Trusted),
            ("a-three", SourceStage::Prepared)
        ]
    );
}

#[test]
fn an_emergency_revokes_at_once_and_trusts_what_is_wanted_unseen() {
    let now = record(vec![
        trusted("a"),
        retiring("a@old"),
        prepared("a@never"),
        prepared("b"),
        retiring("c"),
    ]);
    let pods = || vec![pod("p", "old", &now)];
    let plan = emergency(&["a@two", "b", "c"], &now, pods());
    let names: Vec<_> = stages(&plan.next)
        .into_iter()
        .map(|(name, stage)| (name.split('-').next().unwrap(), stage))
        .collect();
    assert_eq!(
        names,
        [
            ("b", SourceStage::Trusted),
            ("c", SourceStage::Trusted),
            ("a", SourceStage::Trusted)
        ]
    );
    assert_eq!(
        (&plan.next.revoked_sources[..], plan.next.revoked_since),
        (&["a".to_owned(), "a-old".into()][..], Some(at(10)))
    );
    assert_eq!(
        reasons(&plan),
        [
            "SourceRevoked",
            "SourceRevoked",
            "SourceRemoved",
            "SourceTrusted",
            "SourceTakenBack",
            "SourceTrusted"
        ]
    );
    assert_eq!(plan.events[0].kind, EventKind::Warning);
    assert!(
        !plan
            .next
            .revoked_sources
            .contains(&plan.next.sources[2].name),
        "what is trusted is not called as what is revoked"
    );
}

#[test]
fn an_emergency_is_about_the_sources_that_it_names_and_about_no_other() {
    let now = record(vec![trusted("a"), trusted("b"), trusted("c")]);
    let named = |names: &[&str]| Rotation {
        emergency: true,
        emergency_sources: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Rotation::default()
    };
    let pods = |record: &SourcesRecord| vec![pod("p", "r", record)];
    let begun = step_with(
        named(&["a"]),
        &wanted(&["a@two", "c@two"]),
        &now,
        pods(&now),
        10,
    );
    let found: Vec<_> = stages(&begun.next)
        .into_iter()
        .map(|(name, stage)| (name.split('-').next().unwrap(), stage))
        .collect();
    assert_eq!(begun.next.revoked_sources, ["a"]);
    assert_eq!(
        found,
        [
            ("b", SourceStage::Trusted),
            ("c", SourceStage::Trusted),
            ("a", SourceStage::Trusted),
            ("c", SourceStage::Prepared)
        ],
        "what replaces the named one is trusted unseen, others change as ever"
    );
    // The names stay on the list while the emergency is in force.
    let held = step_with(
        named(&["a"]),
        &wanted(&["a@two", "c@two"]),
        &begun.next,
        pods(&begun.next),
        11,
    );
    assert_eq!(held.next.revoked_sources, ["a"]);
    let other = step_with(named(&["a"]), &wanted(&["a", "c"]), &now, pods(&now), 10);
    assert_eq!(
        other.next.revoked_sources, [""; 0],
        "b leaves with an overlap"
    );
    assert_eq!(
        stages(&other.next)[1],
        ("b", SourceStage::Retiring),
        "{:?}",
        other.next
    );
}

#[test]
fn without_any_record_only_what_the_status_showed_as_trusted_is_trusted_unseen() {
    let shown = |name: &str, state| SourceStatus {
        name: name.into(),
        issuer: wanted(&[name])[0].1.issuer.clone(),
        state,
        key_ids: Vec::new(),
        fetched_replicas: 0,
        retire_after: None,
        last_error: None,
    };
    let shown = [
        shown("a", SourceStage::Trusted),
        shown("b", SourceStage::Prepared),
    ];
    let (wanted, empty) = (wanted(&["a", "b", "c"]), SourcesRecord::default());
    let begin = |pods| {
        let input = SourcesInput {
            wanted: &wanted,
            rotation: &Rotation::default(),
            record: &empty,
            revision: None,
            shown: &shown,
            fleet: &Fleet { pods },
        };
        plan(&input, at(0))
    };
    let lost = begin(vec![pod("p", "r", &empty)]);
    assert_eq!(
        stages(&lost.next),
        [
            ("a", SourceStage::Trusted),
            ("b", SourceStage::Prepared),
            ("c", SourceStage::Prepared)
        ]
    );
    let last = lost.events.last().unwrap();
    assert_eq!(
        (last.kind, last.reason.as_str()),
        (EventKind::Warning, "RecordLost")
    );
    let stages_of_none = stages(&begin(Vec::new()).next).len();
    assert_eq!(stages_of_none, 3, "without a pod there is nothing to fetch");
}

#[test]
fn revoked_names_stay_until_every_pod_has_taken_them_and_the_emergency_is_over() {
    let now = SourcesRecord {
        revoked_sources: vec!["a".into()],
        revoked_since: Some(at(0)),
        ..record(vec![trusted("b")])
    };
    let current = || pod("p", "r", &now);
    let on = emergency(&["b"], &now, vec![current()]);
    assert_eq!(
        (&on.next, waits(&on).unwrap().0),
        (&now, "EmergencyInForce")
    );
    for late in [
        pod("q", "old", &now),
        unready(pod("q", "old", &now)),
        silent(current()),
    ] {
        let waiting = step(&["b"], &now, vec![current(), late], 1);
        assert_eq!(
            (&waiting.next, waits(&waiting).unwrap().0),
            (&now, "WaitingForPods")
        );
    }
    let late = step(&["b"], &now, vec![pod("q", "old", &now)], 300);
    assert_eq!(
        (waits(&late).unwrap().0, reasons(&late)),
        ("AcknowledgementTimedOut", vec!["AcknowledgementTimedOut"])
    );
    let over = step(&["b"], &now, vec![current(), unready(silent(current()))], 1);
    assert_eq!(over.next, record(vec![trusted("b")]));
}

#[test]
fn gateways_never_get_more_revoked_names_than_they_take() {
    let revoked_sources = (0..MAX_REVOKED).map(|n| format!("old-{n}")).collect();
    let now = SourcesRecord {
        revoked_sources,
        ..record(vec![trusted("a")])
    };
    let next = emergency(&["b"], &now, vec![]).next;
    assert_eq!(
        (
            next.revoked_sources.len(),
            &*next.revoked_sources[0],
            &*next.revoked_sources[63]
        ),
        (MAX_REVOKED, "old-1", "a")
    );
}

#[test]
fn more_sources_than_gateways_take_wait_for_their_turn() {
    let names: Vec<String> = (0..9).map(|n| format!("s{n}")).collect();
    let now = record(names.iter().map(|name| trusted(name)).collect());
    let new: Vec<String> = names.iter().map(|name| format!("{name}@two")).collect();
    let new: Vec<&str> = new.iter().map(String::as_str).collect();
    let begun = step(&new, &now, vec![pod("p", "r", &now)], 1).next;
    assert_eq!(begun.sources.len(), MAX_SOURCES);
    let seen = step(&new, &begun, vec![pod("p", "r", &begun)], 2).next;
    let both = step(&new, &seen, vec![pod("p", "r", &seen)], 3).next;
    let full = step(&new, &both, vec![pod("p", "r", &both)], 4);
    assert_eq!(
        waits(&full),
        Some((
            "TooManySources",
            "gateways accept 16 sources; waiting for room: s7, s8"
        ))
    );
    let room = step(&new, &both, vec![pod("p", "r", &both)], 7203).next;
    assert_eq!(
        room.sources
            .iter()
            .filter(|source| source.stage == SourceStage::Prepared)
            .count(),
        2
    );
}

#[test]
fn a_rotation_is_not_called_complete_while_a_pod_says_otherwise() {
    let (before, now) = (
        record(vec![retiring("a"), trusted("b")]),
        record(vec![trusted("b")]),
    );
    let late = step(&["b"], &now, vec![pod("p", "old", &before)], 7201);
    assert_eq!(
        (waits(&late).unwrap().0, late.events.len()),
        ("WaitingForPods", 0),
        "that the rotation began long ago makes no pod late"
    );
    let unrelated = step(&["b"], &now, vec![pod("p", "old", &now)], 1);
    assert_eq!(
        waits(&unrelated),
        None,
        "it is something else that the pod has not read yet"
    );
}

#[test]
fn nothing_advances_on_settings_that_are_not_written() {
    let (fleet, rotation, wanted) = (Fleet::default(), Rotation::default(), wanted(&["a"]));
    let now = record(vec![prepared("a")]);
    let input = SourcesInput {
        wanted: &wanted,
        rotation: &rotation,
        record: &now,
        revision: None,
        shown: &[],
        fleet: &fleet,
    };
    assert_eq!(plan(&input, at(0)).next, now);
}
