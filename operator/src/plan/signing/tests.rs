//! Keys and their life, against values that were computed elsewhere and a clock that is moved by hand.

use std::collections::BTreeMap;

use base64_simd::URL_SAFE_NO_PAD as BASE64URL;
use p256::SecretKey;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::pkcs8::DecodePrivateKey as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use signal_crds::Duration;

use super::ring::{CURRENT_JSON, CURRENT_PEM, JWKS_JSON, RING_JSON};
use super::*;
use crate::decide::{ClusterMemory, ClusterPlan, decide};
use crate::fixture::example;
use crate::observe::observed::Observed;
use crate::plan::record::SigningRecord;
use crate::time::to_k8s;
use signal_contract::{JwksFileReport, StatusReport};

/// RFC 7517, appendix A.1 and A.2: the EC key.
const RFC_X: &str = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
const RFC_Y: &str = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
const RFC_D: &str = "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE";
/// Its RFC 7638 thumbprint, computed with Python's hashlib.
const RFC_KID: &str = "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s";

const ROTATE: i64 = 30 * 86_400;
const CACHE: i64 = 300;
/// How long before its turn a key is published.
const LEAD: i64 = CACHE + 180;
/// `maxTokenLife`, `clockSkew` and `cacheAge`.
const VERIFIED: i64 = 86_400 + 60 + CACHE;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
}

fn managed() -> Managed {
    serde_json::from_value(
        json!({"issuer": "https://edge.example.com/", "audiences": ["signal", "edge"]}),
    )
    .unwrap()
}

/// Ready pods that serve these keys each.
fn fleet(served: &[&[String]]) -> Fleet {
    let pod = |(number, keys): (usize, &&[String])| Pod {
        uid: format!("uid-{number}"),
        ip: None,
        node: None,
        template_hash: "hash".into(),
        created: at(0),
        report: Ok(StatusReport {
            jwks_file: Some(JwksFileReport {
                revision: String::new(),
                keys: keys.to_vec(),
            }),
            ..StatusReport::default()
        }),
        ..crate::fixture::pod(&format!("edge-{number}"))
    };
    Fleet {
        pods: served.iter().enumerate().map(pod).collect(),
    }
}

fn step_with(managed: &Managed, ring: Option<&KeyRing>, fleet: &Fleet, secs: i64) -> Plan<KeyRing> {
    step_of(managed, ring, fleet, secs, None)
}

fn step_of(
    managed: &Managed,
    ring: Option<&KeyRing>,
    fleet: &Fleet,
    secs: i64,
    rotate_now: Option<&str>,
) -> Plan<KeyRing> {
    let input = SigningInput {
        managed,
        skew: Duration::secs(60),
        ring,
        recorded: &SigningRecord::default(),
        rotate_now,
        fleet,
    };
    plan(
        &input,
        at(secs),
        &mut StdRng::seed_from_u64(secs.unsigned_abs()),
    )
}

/// A step in a cluster whose one pod serves the ring.
fn step(ring: Option<&KeyRing>, secs: i64) -> Plan<KeyRing> {
    let served = ring.map(kids).unwrap_or_default();
    step_with(&managed(), ring, &fleet(&[&served]), secs)
}

fn kids(ring: &KeyRing) -> Vec<String> {
    let set: Value = serde_json::from_str(&ring.jwks()).unwrap();
    set["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

fn stages(ring: &KeyRing) -> Vec<SigningKeyStage> {
    ring.status().iter().map(|key| key.state).collect()
}

fn reasons(plan: &Plan<KeyRing>) -> Vec<&'static str> {
    plan.events
        .iter()
        .map(|event| event.reason.as_str())
        .collect()
}

fn read(data: &BTreeMap<String, Vec<u8>>) -> KeyRing {
    KeyRing::from_secret(data).unwrap().unwrap()
}

fn current(ring: &KeyRing) -> String {
    let current: Value = serde_json::from_slice(&ring.to_secret()[CURRENT_JSON]).unwrap();
    current["kid"].as_str().unwrap().to_owned()
}

/// A ring in which one key is verified only, one signs and one is published; and when that is.
fn full() -> (KeyRing, i64) {
    let managed = Managed {
        max_token_life: Duration::secs(86_400 * 40),
        ..managed()
    };
    let mut ring = step(None, 0).next;
    // The look after a key is published sees that it is served.
    for secs in [
        ROTATE - LEAD,
        ROTATE - LEAD + 1,
        ROTATE,
        2 * ROTATE - LEAD,
        2 * ROTATE - LEAD + 1,
    ] {
        ring = step_with(&managed, Some(&ring), &fleet(&[&kids(&ring)]), secs).next;
    }
    assert_eq!(
        stages(&ring),
        [
            SigningKeyStage::VerifyOnly,
            SigningKeyStage::Signing,
            SigningKeyStage::Published
        ]
    );
    (ring, 2 * ROTATE - LEAD + 1)
}

fn rfc_ring() -> KeyRing {
    let ring = json!({"keys": [{"kid": RFC_KID, "d": RFC_D, "stage": "Signing", "since": at(0), "verify_until": null}]});
    read(&[(RING_JSON.to_owned(), ring.to_string().into_bytes())].into())
}

#[test]
fn the_key_of_rfc_7517_has_its_public_members_and_the_thumbprint_of_rfc_7638() {
    let expected = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "x": RFC_X, "y": RFC_Y, "kid": RFC_KID, "alg": "ES256", "use": "sig"},
    ]});
    assert_eq!(
        serde_json::from_str::<Value>(&rfc_ring().jwks()).unwrap(),
        expected
    );
}

#[test]
fn what_the_issuer_signs_with_its_pem_the_published_key_verifies() {
    let data = step(Some(&rfc_ring()), 1).next.to_secret();
    let signer = SigningKey::from(
        SecretKey::from_pkcs8_pem(std::str::from_utf8(&data[CURRENT_PEM]).unwrap()).unwrap(),
    );
    let signature: Signature = signer.sign(b"header.claims");
    let point = [
        vec![4],
        BASE64URL.decode_to_vec(RFC_X).unwrap(),
        BASE64URL.decode_to_vec(RFC_Y).unwrap(),
    ]
    .concat();
    let public = VerifyingKey::from_sec1_bytes(&point).unwrap();
    assert!(public.verify(b"header.claims", &signature).is_ok());
    assert!(public.verify(b"header.other", &signature).is_err());
    let current: Value = serde_json::from_slice(&data[CURRENT_JSON]).unwrap();
    assert_eq!(
        current,
        json!({"kid": RFC_KID, "alg": "ES256", "iss": "https://edge.example.com/", "aud": ["signal", "edge"]})
    );
    assert_eq!(data[JWKS_JSON], rfc_ring().jwks().into_bytes());
}

#[test]
fn a_rotation_that_is_asked_for_happens_once_for_each_value_and_after_every_verifier_has_the_key() {
    let look = |ring: &KeyRing, secs, value| {
        let served = fleet(&[&kids(ring)]);
        let plan = step_of(&managed(), Some(ring), &served, secs, value);
        // What is remembered is in the Secret.
        (read(&plan.next.to_secret()), reasons(&plan))
    };
    let first = step(None, 0).next;
    let (asked, events) = look(&first, 10, Some("one"));
    assert_eq!(events, ["SigningKeyPublished", "RotationRequested"]);
    assert_eq!(current(&asked), current(&first), "nobody has the new key");
    let (served, events) = look(&asked, 11, Some("one"));
    assert_eq!(events, [""; 0]);
    let (early, _) = look(&served, 11 + CACHE - 1, Some("one"));
    assert_eq!(
        current(&early),
        current(&first),
        "some may cache the old set"
    );
    let (turned, events) = look(&early, 11 + CACHE, Some("one"));
    assert_eq!(events, ["SigningKeyActivated", "SigningKeyRetired"]);
    assert_ne!(current(&turned), current(&first));
    let (same, events) = look(&turned, 12 + CACHE, Some("one"));
    assert_eq!((current(&same), events), (current(&turned), vec![]));
    let (_, events) = look(&turned, 12 + CACHE, Some("two"));
    assert_eq!(events, ["SigningKeyPublished", "RotationRequested"]);
    // A key that was published in time signs earlier.
    let (due, _) = look(&first, ROTATE - LEAD, None);
    let (due, _) = look(&due, ROTATE - LEAD + 1, None);
    let (_, events) = look(&due, ROTATE - LEAD + 1 + CACHE, None);
    assert_eq!(events, [""; 0]);
    let (_, events) = look(&due, ROTATE - LEAD + 1 + CACHE, Some("one"));
    assert_eq!(
        events,
        [
            "RotationRequested",
            "SigningKeyActivated",
            "SigningKeyRetired"
        ]
    );
    // The first key is what the value would ask for.
    let fresh = step_of(&managed(), None, &fleet(&[]), 0, Some("one")).next;
    assert_eq!(look(&fresh, 1, Some("one")).1, [""; 0]);
}

#[test]
fn nothing_but_the_secret_holds_private_parts() {
    let (ring, _) = full();
    let shown = format!("{ring:?} {} {:?}", ring.jwks(), ring.status());
    for key in &ring.keys {
        let d = key.entry().d;
        assert!(!shown.contains(&d), "{shown}");
        let bytes = format!("{:?}", key.secret.to_bytes().as_slice());
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
    assert!(!ring.jwks().contains("\"d\""));
}

#[test]
fn the_first_key_signs_at_once_and_then_nothing_changes_until_its_successor_is_due() {
    let first = step(None, 0);
    assert_eq!(
        (stages(&first.next), reasons(&first)),
        (vec![SigningKeyStage::Signing], vec!["SigningKeyActivated"])
    );
    for secs in [0, 1, ROTATE - LEAD - 1] {
        let next = step(Some(&first.next), secs);
        assert_eq!(
            next,
            Plan {
                next: first.next.clone(),
                waiting: None,
                due: vec![due(at(ROTATE - LEAD))],
                events: Vec::new()
            },
            "{secs}"
        );
    }
}

#[test]
fn a_whole_life_of_keys_overlaps() {
    let a = step(None, 0).next;
    let made = step(Some(&a), ROTATE - LEAD);
    assert_eq!(reasons(&made), ["SigningKeyPublished"]);
    let published = step(Some(&made.next), ROTATE - LEAD + 1);
    assert_eq!(
        (published.next.jwks(), reasons(&published)),
        (made.next.jwks(), vec![])
    );
    assert_eq!(
        stages(&published.next),
        [SigningKeyStage::Signing, SigningKeyStage::Published]
    );
    assert_eq!(current(&published.next), current(&a));

    let early = step(Some(&published.next), ROTATE - 1);
    assert_eq!((early.next.clone(), early.waiting), (published.next, None));
    let turned = step(Some(&early.next), ROTATE);
    assert_eq!(
        reasons(&turned),
        ["SigningKeyActivated", "SigningKeyRetired"]
    );
    assert_eq!(
        stages(&turned.next),
        [SigningKeyStage::VerifyOnly, SigningKeyStage::Signing]
    );
    assert_ne!(current(&turned.next), current(&a));
    // Who serves the set has nothing to read again.
    assert_eq!(turned.next.jwks(), early.next.jwks());

    let last = step(Some(&turned.next), ROTATE + VERIFIED - 1);
    assert_eq!(kids(&last.next), kids(&turned.next));
    let dropped = step(Some(&last.next), ROTATE + VERIFIED);
    assert_eq!(
        (reasons(&dropped), stages(&dropped.next)),
        (vec!["SigningKeyDropped"], vec![SigningKeyStage::Signing])
    );
    assert_eq!(current(&dropped.next), current(&turned.next));
}

#[test]
fn over_four_rotations_every_token_is_verified_to_its_end_and_every_key_is_known_ahead() {
    // No divisor of the spans, so that steps come late by different amounts.
    let mut ring = step(None, 0).next;
    let (mut published, mut signs) = (kids(&ring), current(&ring));
    let mut seen_since: BTreeMap<String, i64> = [(signs.clone(), -CACHE)].into();
    let mut signed: BTreeMap<String, i64> = BTreeMap::new();
    for secs in (0..4 * ROTATE).step_by(137) {
        let next = step_with(&managed(), Some(&ring), &fleet(&[&published]), secs).next;
        if next != ring {
            ring = next;
            (published, signs) = (kids(&ring), current(&ring));
            published
                .iter()
                .for_each(|kid| _ = seen_since.entry(kid.clone()).or_insert(secs));
        }
        signed.insert(signs.clone(), secs);
        assert!(secs - seen_since[&signs] >= CACHE);
        for (kid, last) in &signed {
            assert!(
                secs >= last + VERIFIED || published.contains(kid),
                "{kid} at {secs}"
            );
        }
        assert!(published.len() <= 2);
    }
    assert_eq!(signed.len(), 4);
}

#[test]
fn a_successor_waits_until_every_ready_pod_serves_it() {
    let ring = step(Some(&step(None, 0).next), ROTATE - LEAD).next;
    let (all, old) = (kids(&ring), vec![kids(&ring)[0].clone()]);
    let waits = step_with(&managed(), Some(&ring), &fleet(&[&all, &old]), ROTATE + 50);
    let waiting = waits.waiting.unwrap();
    assert_eq!(
        (waiting.reason.as_str(), &waits.next),
        ("WaitingForPods", &ring)
    );
    assert!(
        waiting.message.contains("edge-1") && waiting.message.contains(&all[1]),
        "{}",
        waiting.message
    );

    let mut silent = fleet(&[&all, &all]);
    silent.pods[0].report = Err("connection refused".into());
    let waits = step_with(&managed(), Some(&ring), &silent, ROTATE + 50);
    assert!(
        waits
            .waiting
            .unwrap()
            .message
            .contains("connection refused")
    );
    silent.pods[0].ready = false;
    let served = step_with(&managed(), Some(&ring), &silent, ROTATE + 50).next;
    assert_eq!(current(&served), all[0], "sets without it may be in caches");
    assert_eq!(
        current(&step_with(&managed(), Some(&served), &silent, ROTATE + 50 + CACHE).next),
        all[1]
    );
}

#[test]
fn a_late_successor_is_still_published_for_the_cache_age() {
    let ring = step(None, 0).next;
    let late = 2 * ROTATE;
    let made = step(Some(&ring), late).next;
    let published = step(Some(&made), late + 1).next;
    assert_eq!(
        current(&step(Some(&published), late + CACHE).next),
        current(&ring)
    );
    assert_ne!(
        current(&step(Some(&published), late + CACHE + 1).next),
        current(&ring)
    );
}

#[test]
fn caches_are_counted_from_when_every_ready_pod_serves_a_key() {
    let ring = step(Some(&step(None, 0).next), ROTATE - LEAD).next;
    let (all, old) = (kids(&ring), vec![kids(&ring)[0].clone()]);
    let held = step_with(
        &managed(),
        Some(&ring),
        &fleet(&[&all, &old]),
        ROTATE + 3600,
    )
    .next;
    // The second pod serves the key from this second on: sets without it may be cached for CACHE more.
    let next = step_with(
        &managed(),
        Some(&held),
        &fleet(&[&all, &all]),
        ROTATE + 3601,
    )
    .next;
    assert_eq!(current(&next), current(&ring));
    // A pod that serves an older set for a while starts the time again.
    let lapsed = step_with(
        &managed(),
        Some(&next),
        &fleet(&[&all, &old]),
        ROTATE + 3700,
    )
    .next;
    let again = step_with(
        &managed(),
        Some(&lapsed),
        &fleet(&[&all, &all]),
        ROTATE + 3800,
    )
    .next;
    assert_eq!(
        current(
            &step_with(
                &managed(),
                Some(&again),
                &fleet(&[&all, &all]),
                ROTATE + 3799 + CACHE
            )
            .next
        ),
        current(&ring)
    );
    assert_eq!(
        current(
            &step_with(
                &managed(),
                Some(&again),
                &fleet(&[&all, &all]),
                ROTATE + 3800 + CACHE
            )
            .next
        ),
        all[1]
    );
}

#[test]
fn a_successor_waits_for_a_pod_that_is_ready_where_some_are_not() {
    let ring = step(Some(&step(None, 0).next), ROTATE - LEAD).next;
    let mut starting = fleet(&[&kids(&ring)]);
    starting.pods[0].ready = false;
    let waits = step_with(&managed(), Some(&ring), &starting, ROTATE + CACHE);
    assert_eq!(
        (waits.waiting.unwrap().reason.as_str(), current(&waits.next)),
        ("WaitingForPods", current(&ring))
    );
}

#[test]
fn a_shorter_token_life_does_not_shorten_that_of_tokens_that_are_out() {
    let long = Managed {
        max_token_life: Duration::secs(20 * 86_400),
        ..managed()
    };
    let first = step_with(&long, None, &fleet(&[]), 0).next;
    let mut ring = step_with(&long, Some(&first), &fleet(&[&kids(&first)]), ROTATE - LEAD).next;
    let short = Managed {
        max_token_life: Duration::secs(3600),
        ..managed()
    };
    for secs in [ROTATE - LEAD + 1, ROTATE] {
        ring = step_with(&short, Some(&ring), &fleet(&[&kids(&ring)]), secs).next;
    }
    assert_eq!(
        ring.keys[0].verify_until,
        Some(at(ROTATE + 20 * 86_400 + 60 + CACHE))
    );
}

#[test]
fn there_are_never_more_than_eight_keys() {
    let quick = Managed {
        rotate_every: Duration::secs(1),
        max_token_life: Duration::secs(1),
        cache_age: Duration::secs(1),
        ..managed()
    };
    let mut ring = step_with(&quick, None, &fleet(&[]), 0).next;
    let mut held_back = false;
    for secs in 1..300 {
        let plan = step_with(&quick, Some(&ring), &fleet(&[&kids(&ring)]), secs);
        held_back |= plan
            .waiting
            .is_some_and(|waiting| waiting.reason == "TooManySigningKeys");
        ring = plan.next;
        assert!(kids(&ring).len() <= 8, "{secs}");
    }
    assert!(held_back);
}

#[test]
fn a_pem_with_another_key_than_the_signing_one_is_reported_and_signs() {
    let (ring, now) = full();
    let mut data = ring.to_secret();
    data.insert(
        CURRENT_PEM.to_owned(),
        rfc_ring().to_secret()[CURRENT_PEM].clone(),
    );
    let damage = KeyRing::from_secret(&data).unwrap_err();
    assert!(damage.to_string().contains(RFC_KID), "{damage}");
    let plan = step(damage.ring.as_deref(), now);
    assert_eq!(current(&plan.next), RFC_KID);
    assert!(
        kids(&ring).iter().all(|kid| kids(&plan.next).contains(kid)),
        "what signed before is verified on"
    );
}

#[test]
fn a_clock_that_goes_backwards_changes_nothing() {
    let (ring, now) = full();
    for back in [1, CACHE, ROTATE, 3 * ROTATE] {
        let plan = step(Some(&ring), now - back);
        assert_eq!(
            (plan.next, plan.events),
            (ring.clone(), Vec::new()),
            "{back}"
        );
    }
}

#[test]
fn rings_come_back_from_the_secret_as_they_were() {
    let (ring, now) = full();
    let data = ring.to_secret();
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        [CURRENT_JSON, CURRENT_PEM, JWKS_JSON, RING_JSON]
    );
    assert_eq!(read(&data), ring);
    assert_eq!(read(&data).to_secret(), data);
    let steady = step(Some(&read(&data)), now);
    assert_eq!((steady.next.to_secret(), steady.events), (data, Vec::new()));
    assert!(KeyRing::from_secret(&BTreeMap::new()).unwrap().is_none());
}

#[test]
fn with_a_damaged_ring_the_key_that_signs_stays_and_its_time_starts_again() {
    let (ring, now) = full();
    for damaged in [
        None,
        Some("{"),
        Some("{}"),
        Some("[]"),
        Some(r#"{"keys": []}"#),
        Some(r#"{"keys": [7, {"kid": "k"}]}"#),
    ] {
        let mut data = ring.to_secret();
        data.remove(RING_JSON);
        data.extend(damaged.map(|text| (RING_JSON.to_owned(), text.as_bytes().to_vec())));
        let damage = KeyRing::from_secret(&data).unwrap_err();
        assert!(damage.to_string().contains(&current(&ring)), "{damage}");
        let plan = step(damage.ring.as_deref(), now);
        assert_eq!(
            (stages(&plan.next), current(&plan.next)),
            (vec![SigningKeyStage::Signing], current(&ring)),
            "{damaged:?}"
        );
        assert_eq!(plan.next.status()[0].since, to_k8s(at(now)));
        assert_eq!(read(&plan.next.to_secret()), plan.next);
    }
}

#[test]
fn one_damaged_key_takes_no_other_with_it() {
    let (ring, now) = full();
    let text = String::from_utf8(ring.to_secret()[RING_JSON].clone()).unwrap();
    for lost in 0..3 {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        // A private key that is valid, and not the one of its `kid`.
        value["keys"][lost]["d"] = json!(RFC_D);
        let mut data = ring.to_secret();
        data.insert(RING_JSON.to_owned(), value.to_string().into_bytes());
        let damage = KeyRing::from_secret(&data).unwrap_err();
        assert!(!damage.to_string().contains(RFC_D));
        let plan = step(damage.ring.as_deref(), now);
        assert_eq!(current(&plan.next), current(&ring), "{lost}");
        let kept: Vec<String> = kids(&ring)
            .into_iter()
            .enumerate()
            .filter(|(at, _)| *at != lost || lost == 1)
            .map(|(_, kid)| kid)
            .collect();
        assert!(
            kept.iter().all(|kid| kids(&plan.next).contains(kid)),
            "{lost}"
        );
    }
}

#[test]
fn two_keys_that_sign_become_the_one_of_the_issuer_and_one_that_is_verified() {
    let (ring, now) = full();
    let text = String::from_utf8(ring.to_secret()[RING_JSON].clone()).unwrap();
    let mut data = ring.to_secret();
    data.insert(
        RING_JSON.to_owned(),
        text.replace("Published", "Signing").into_bytes(),
    );
    let plan = step(
        KeyRing::from_secret(&data).unwrap_err().ring.as_deref(),
        now + 1,
    );
    assert_eq!(
        (current(&plan.next), &kids(&plan.next)[..3]),
        (current(&ring), &kids(&ring)[..])
    );
    assert_eq!(plan.next.keys[2].verify_until, Some(at(now + 1 + VERIFIED)));
    // The place of the published one is free again, and its turn is near.
    assert_eq!(
        stages(&plan.next)[2..],
        [SigningKeyStage::VerifyOnly, SigningKeyStage::Published]
    );
}

#[test]
fn where_no_key_that_signs_can_be_read_the_published_one_takes_its_place() {
    let (ring, now) = full();
    let mut data = ring.to_secret();
    let text = String::from_utf8(data[RING_JSON].clone()).unwrap();
    data.insert(
        RING_JSON.to_owned(),
        text.replace("\"Signing\"", "\"Unknown\"").into_bytes(),
    );
    data.insert(
        CURRENT_PEM.to_owned(),
        b"-----BEGIN PRIVATE KEY-----".to_vec(),
    );
    let damage = KeyRing::from_secret(&data).unwrap_err();
    assert_eq!(
        current(&step(damage.ring.as_deref(), now).next),
        kids(&ring)[2]
    );

    data.insert(RING_JSON.to_owned(), b"?".to_vec());
    let damage = KeyRing::from_secret(&data).unwrap_err();
    assert!(damage.ring.is_none());
    let plan = step(None, now + 1);
    assert_eq!(
        (
            stages(&plan.next),
            kids(&ring).contains(&current(&plan.next))
        ),
        (vec![SigningKeyStage::Signing], false)
    );
}

#[test]
fn a_draw_that_is_no_key_is_drawn_again() {
    struct Draws(Vec<u8>);
    impl rand::RngCore for Draws {
        fn next_u32(&mut self) -> u32 {
            0
        }
        fn next_u64(&mut self) -> u64 {
            0
        }
        fn fill_bytes(&mut self, bytes: &mut [u8]) {
            bytes.fill(self.0.remove(0));
        }
    }
    impl rand::CryptoRng for Draws {}
    let mut random = Draws(vec![0, 0xff, 7, 9]);
    let key = Key::generate(&mut random, SigningKeyStage::Signing, at(0));
    assert_eq!(
        (key.secret, random.0),
        (SecretKey::from_slice(&[7; 32]).unwrap(), vec![9])
    );
}

#[test]
fn spans_beyond_the_calendar_do_not_panic() {
    let managed = Managed {
        rotate_every: Duration::secs(u64::MAX / 2),
        max_token_life: Duration::secs(u64::MAX / 2),
        ..managed()
    };
    let ring = step_with(&managed, None, &fleet(&[]), 0).next;
    assert_eq!(
        step_with(&managed, Some(&ring), &fleet(&[]), ROTATE).next,
        ring
    );
    assert_eq!(after(at(0), managed.rotate_every), DateTime::<Utc>::MAX_UTC);
}

fn look(observed: &Observed, secs: i64) -> ClusterPlan {
    decide(
        observed,
        &mut ClusterMemory::default(),
        None,
        &mut StdRng::seed_from_u64(secs.unsigned_abs()),
        at(secs),
    )
}

fn said(plan: &ClusterPlan) -> Vec<&'static str> {
    plan.facts()
        .events
        .iter()
        .map(|event| event.reason.as_str())
        .filter(|reason| reason.starts_with("SigningKey"))
        .collect()
}

#[test]
fn a_reconcile_makes_the_secret_once_and_shows_what_it_holds() {
    let mut observed = example("production");
    let first = look(&observed, 0);
    let objects = &first.planned().unwrap().desired;
    assert_eq!(
        (said(&first), &first.facts().signing_keys),
        (vec!["SigningKeyActivated"], &Vec::new())
    );
    observed.signing_keys = objects.signing_keys.clone();
    observed.live_config = Some(objects.live_config.clone());

    let second = look(&observed, 60);
    let again = &second.planned().unwrap().desired;
    assert_eq!(
        (&again.signing_keys, said(&second)),
        (&observed.signing_keys, Vec::new())
    );
    let data = again.signing_keys.as_ref().unwrap().data.as_ref().unwrap();
    let served = again.live_config.data.as_ref().unwrap()[crate::objects::JWKS_JSON].as_bytes();
    assert_eq!(served, data[JWKS_JSON].0);
    assert_eq!(
        second
            .facts()
            .signing_keys
            .iter()
            .map(|key| key.state)
            .collect::<Vec<_>>(),
        [SigningKeyStage::Signing]
    );
    assert_eq!(second.facts().signing_keys[0].since, to_k8s(at(0)));

    observed
        .signing_keys
        .as_mut()
        .unwrap()
        .data
        .as_mut()
        .unwrap()
        .remove(RING_JSON);
    let third = look(&observed, 120);
    assert_eq!(said(&third), ["SigningKeysDamaged"]);
    let repaired = third.planned().unwrap().desired.signing_keys.clone();
    let repaired = repaired.unwrap().data.unwrap();
    assert_eq!(
        (&repaired[CURRENT_PEM], &repaired[JWKS_JSON]),
        (&data[CURRENT_PEM], &data[JWKS_JSON])
    );
}

#[test]
fn status_keeps_its_keys_while_the_spec_or_the_secret_cannot_be_read() {
    let (ring, now) = full();
    let mut observed = crate::fixture::changed("production", |cluster| {
        cluster.status = Some(signal_crds::Status {
            signing_keys: ring.status(),
            ..signal_crds::Status::default()
        });
    });
    let damaged = ring
        .to_secret()
        .into_iter()
        .filter(|(key, _)| key != RING_JSON)
        .map(|(key, value)| (key, k8s_openapi::ByteString(value)));
    observed.signing_keys = Some(k8s_openapi::api::core::v1::Secret {
        data: Some(damaged.collect()),
        ..Default::default()
    });
    assert_eq!(look(&observed, now).facts().signing_keys, ring.status());
    observed
        .secrets
        .values_mut()
        .for_each(|secret| *secret = None);
    let plan = look(&observed, now);
    assert!(plan.planned().is_none());
    assert_eq!(plan.facts().signing_keys, ring.status());
}
