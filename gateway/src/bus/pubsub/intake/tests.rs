//! The intake without a server: hand-overs, overflow, questions.

use super::*;
use crate::bus::pubsub::queue::MAX_WAITING;
use crate::dispatch::Destination;

const ME: &str = "0123456789abcdef0123456789abcdef";

fn intake() -> (Arc<Intake>, Events, mpsc::Receiver<OpenQuestion>) {
    Intake::new(Names::new("", ME), ME.into(), Metrics::new())
}

/// Channel and payload.
type Message = (String, String);

fn message(channel: &str, payload: &str) -> Message {
    (channel.to_owned(), payload.to_owned())
}

fn receive(intake: &Intake, generation: u64, (channel, payload): Message) {
    intake.receive(generation, channel.as_bytes(), payload.as_bytes());
}

fn published(n: usize) -> Message {
    message(
        "ws:room:r",
        &format!(
            "{{\"serverId\":\"emitter\",\"type\":\"room\",\"target\":\"r\",\"event\":\"e\",\"data\":{n}}}"
        ),
    )
}

fn drain(events: &mut Events) -> Vec<String> {
    std::iter::from_fn(|| events.try_recv())
        .map(|received| match received.event {
            BusEvent::Dispatch(dispatch) => {
                assert_eq!(dispatch.destination, Destination::Room("r".into()));
                dispatch.data_text().unwrap().to_owned()
            }
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_handover_is_one_stream_without_gap_or_repeat_whichever_connection_is_faster() {
    let marker = || message(&format!("signal:ping:{ME}"), "handover-1");
    // What each connection receives, in order, and every way to mix the two, as the bits of a number.
    for mix in 0..1u32 << 12 {
        let (intake, mut events, _questions) = intake();
        intake.switch_to(1);
        intake.begin_handover(1, 2, b"handover-1".to_vec());
        let stream = || {
            [
                published(1),
                published(2),
                marker(),
                published(3),
                published(4),
                published(5),
            ]
        };
        let (mut old, mut new) = (stream().into_iter(), stream().into_iter());
        for bit in 0..12 {
            if mix >> bit & 1 == 0 {
                old.next()
                    .into_iter()
                    .for_each(|push| receive(&intake, 1, push));
            } else {
                new.next()
                    .into_iter()
                    .for_each(|push| receive(&intake, 2, push));
            }
        }
        old.for_each(|push| receive(&intake, 1, push));
        new.for_each(|push| receive(&intake, 2, push));
        assert_eq!(drain(&mut events), ["1", "2", "3", "4", "5"], "{mix:b}");
    }
}

#[test]
fn only_the_connection_in_use_is_received_from() {
    let (intake, mut events, _questions) = intake();
    intake.switch_to(2);
    receive(&intake, 1, published(1));
    receive(&intake, 2, published(2));
    assert_eq!(drain(&mut events), ["2"]);
}

#[tokio::test]
async fn a_full_queue_drops_and_a_resync_follows_once_it_is_half_empty() {
    let (intake, mut events, _questions) = intake();
    intake.switch_to(1);
    for n in 0..MAX_WAITING + 10 {
        receive(&intake, 1, published(n));
    }
    for n in 0..MAX_WAITING {
        let Some(Received {
            event: BusEvent::Dispatch(dispatch),
            ..
        }) = events.recv().await
        else {
            panic!("{n} is missing")
        };
        assert_eq!(dispatch.data_text().unwrap(), n.to_string());
    }
    assert!(matches!(
        events.recv().await,
        Some(Received {
            event: BusEvent::Resync(ResyncReason::BusOverflow),
            ..
        })
    ));
    receive(&intake, 1, published(7));
    assert!(matches!(
        events.recv().await,
        Some(Received {
            event: BusEvent::Dispatch(_),
            ..
        })
    ));
}

#[tokio::test]
async fn events_end_behind_what_was_received_and_the_intake_notices_when_they_are_no_longer_taken()
{
    let (intake, mut events, _questions) = intake();
    intake.switch_to(1);
    receive(&intake, 1, published(1));
    drop(intake.end_when_dropped());
    receive(&intake, 1, published(2));
    assert_eq!(drain(&mut events), ["1"]);
    assert!(events.recv().await.is_none() && events.recv().await.is_none());
    drop(events);
    intake.abandoned().await;
}

#[test]
fn questions_are_bounded_and_garbage_among_them_is_dropped() {
    let (intake, mut events, mut questions) = intake();
    intake.switch_to(1);
    let channel = format!("signal:ask:{ME}");
    for bad in [
        "",
        "{}",
        r#"{"id":1,"from":"x","ask":"holds","client":"4bC"}"#,
        r#"{"id":1,"from":"00","ask":"unknown"}"#,
        // Lists are no objects: a question, the query of one, a revocation.
        &format!(r#"[1,"{ME}",["holds","4bC"]]"#),
        &format!(r#"{{"id":1,"from":"{ME}","ask":"list","query":[null,null,null,1]}}"#),
        &format!(r#"{{"id":1,"from":"{ME}","ask":"revoke","revocation":["17",null,1,2]}}"#),
    ] {
        receive(&intake, 1, message(&channel, bad));
    }
    assert!(questions.try_recv().is_err());
    let question = Question {
        id: 7,
        from: ME.into(),
        ask: Ask::Holds {
            client: "4bC".parse().unwrap(),
        },
    };
    let payload = serde_json::to_string(&question).unwrap();
    for _ in 0..MAX_QUESTIONS + 1 {
        receive(&intake, 1, message(&channel, &payload));
    }
    assert_eq!(
        std::iter::from_fn(|| questions.try_recv().ok()).count(),
        MAX_QUESTIONS
    );
    let mut events = std::iter::from_fn(|| events.try_recv());
    assert!(matches!(
        events.next().unwrap().event,
        BusEvent::Asked(Ask::Holds { .. }, _)
    ));
    assert_eq!(events.count(), MAX_QUESTIONS - 1);
}
