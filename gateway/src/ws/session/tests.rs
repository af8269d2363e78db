//! The clauses of `docs/protocol.md` that a session holds, without a socket.

use super::*;
use crate::config::{ClientFrames, Encryption};
use crate::principal::{TokenFacts, USER, Via};
use crate::protocol::Message;
use crate::protocol::cipher::handshake;
use crate::protocol::room::Join;
use ring::rand::SystemRandom;

const T0: i64 = 1_750_000_000_000;

fn rules() -> Rules {
    Rules {
        authenticate_timeout: Duration::from_secs(5),
        finish_timeout: Duration::from_secs(15),
        heartbeat_timeout: Duration::from_secs(90),
        sweep_interval: Duration::from_secs(30),
        ping_interval: None,
        expiring_lead: Duration::from_secs(60),
        encryption: Encryption {
            mode: EncryptionMode::Optional,
            client_frames: ClientFrames::Any,
        },
    }
}

fn principal(subject: &str, lives: Option<i64>) -> Arc<Principal> {
    Arc::new(Principal {
        subject: subject.into(),
        kind: USER.into(),
        roles: Box::default(),
        via: Via::Token(TokenFacts {
            source: "main".into(),
            thumbprint: Arc::default(),
            token_id: None,
            issued_at: None,
            expires_at: lives.map(|secs| at(secs * 1000)),
        }),
    })
}

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(T0 + ms).unwrap()
}

struct Fixture {
    rules: Rules,
    start: Instant,
    now_ms: u64,
    session: Session,
}

impl Fixture {
    fn new(rules: Rules) -> Self {
        let start = Instant::now();
        let session = Session::new(start, &rules, 0.0);
        Self {
            rules,
            start,
            now_ms: 0,
            session,
        }
    }

    fn on(&mut self, input: Input<'_>) -> Vec<String> {
        let now = self.start + Duration::from_millis(self.now_ms);
        self.session
            .on(
                "abc".parse().unwrap(),
                now,
                at(self.now_ms as i64),
                &self.rules,
                input,
            )
            .iter()
            .map(show)
            .collect()
    }

    fn text(&mut self, text: &str) -> Vec<String> {
        self.on(Input::Text(text))
    }

    fn tick_at(&mut self, ms: u64) -> Vec<String> {
        self.now_ms = ms;
        self.on(Input::Tick)
    }

    fn accept(
        &mut self,
        principal: Arc<Principal>,
        handshake: Option<Result<Handshake, UnusableKey>>,
    ) -> Vec<String> {
        self.on(Input::Authentication(Authentication::Accepted {
            principal,
            handshake,
            leeway: Duration::from_secs(30),
        }))
    }

    fn authenticated(rules: Rules, lives: Option<i64>) -> Self {
        let mut fixture = Self::new(rules);
        fixture.text(AUTHENTICATE);
        assert_eq!(fixture.accept(principal("17", lives), None), ["admit"]);
        let sent = fixture.on(Input::Subscribed);
        assert!(
            sent[0].starts_with(r#"clear {"event":"connected","data":{"id":"abc","userId":"17""#),
            "{sent:?}"
        );
        assert_eq!(sent[1..], ["release"]);
        fixture
    }

    fn encrypted(rules: Rules) -> Self {
        let mut fixture = Self::new(rules);
        fixture.text(AUTHENTICATE);
        assert_eq!(
            fixture.accept(principal("17", None), Some(Ok(shake()))),
            ["admit"]
        );
        let sent = fixture.on(Input::Subscribed);
        assert!(
            sent[0].contains("serverPublicKey") && sent[0].starts_with("clear "),
            "{sent:?}"
        );
        assert_eq!(fixture.session.stage(), Stage::Encrypted);
        fixture
    }

    fn seal(&self, text: &str) -> String {
        let mut frame = Vec::new();
        self.session
            .cipher()
            .unwrap()
            .seal(text.as_bytes(), [7; 12], &mut Vec::new(), &mut frame);
        let start = frame.iter().position(|b| *b == b'{').unwrap();
        String::from_utf8(frame[start..].to_vec()).unwrap()
    }
}

const AUTHENTICATE: &str = r#"{"event":"authenticate","data":{"type":"Bearer","token":"t"}}"#;

fn shake() -> Handshake {
    let client = p256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
    let point = p256::elliptic_curve::sec1::ToSec1Point::to_sec1_point(&client, false);
    handshake(
        &base64_simd::STANDARD.encode_to_string(point.as_bytes()),
        [1; 32],
        &SystemRandom::new(),
    )
    .unwrap()
}

fn show(action: &Action) -> String {
    let text = |m: &Message| String::from_utf8(m.payload().to_vec()).unwrap();
    match action {
        Action::Send(m) => format!("send {}", text(m)),
        Action::SendClear(m) => format!("clear {}", text(m)),
        Action::Ping => "ping".into(),
        Action::Verify { token, key } => format!("verify {token} {key:?}"),
        Action::Admit => "admit".into(),
        Action::Release => "release".into(),
        Action::Join(Join { rooms, mark: None }) => format!("join {rooms:?}"),
        Action::Join(Join {
            rooms,
            mark: Some(mark),
        }) => format!("join {rooms:?} for {mark}"),
        Action::Leave(rooms) => format!("leave {rooms:?}"),
        Action::Refresh(token) => format!("refresh {token}"),
        Action::MarkRead(selector) => format!("read {selector:?}"),
        Action::Sync { after, limit } => format!("sync {after} {limit}"),
        Action::Close(close) => format!("close {} {}", close.code(), close.reason()),
    }
}

fn error(text: &str) -> String {
    format!(r#"send {{"event":"error","data":{{"message":"{text}"}}}}"#)
}

fn clear_error(text: &str) -> String {
    format!(r#"clear {{"event":"error","data":{{"message":"{text}"}}}}"#)
}

/// protocol.md 2.3, 2.4 and 3.6.
#[test]
fn what_is_not_json_is_answered_and_what_has_no_event_is_dropped() {
    for mut fixture in [Fixture::new(rules()), Fixture::authenticated(rules(), None)] {
        assert_eq!(fixture.text("hello"), [error("Invalid message format")]);
        assert!(fixture.text("{}").is_empty());
        assert!(fixture.text(r#"{"event":""}"#).is_empty());
        assert!(!fixture.session.is_closed());
    }
}

/// protocol.md 2.4 and 2.5.
#[test]
fn an_event_that_is_no_text_is_an_event_that_nobody_knows() {
    for event in ["5", "true", "{}", "[\"join\"]"] {
        let text = format!(r#"{{"event":{event},"data":{{"rooms":["a"]}}}}"#);
        let mut fixture = Fixture::new(rules());
        assert_eq!(fixture.text(&text), [error("Not authenticated")], "{event}");
        fixture.text(AUTHENTICATE);
        assert_eq!(fixture.text(&text), [error("Not authenticated")], "{event}");
        let mut fixture = Fixture::authenticated(rules(), None);
        assert!(fixture.text(&text).is_empty(), "{event}");
    }
}

/// protocol.md 2.5.
#[test]
fn before_authentication_only_authenticate_and_heartbeat_are_accepted() {
    let mut fixture = Fixture::new(rules());
    assert_eq!(
        fixture.text(r#"{"event":"join","data":{"rooms":["a"]}}"#),
        [error("Not authenticated")]
    );
    assert!(fixture.text(r#"{"event":"heartbeat"}"#).is_empty());
    assert_eq!(fixture.text(AUTHENTICATE), ["verify t None"]);
    assert_eq!(
        fixture.text(r#"{"event":"anything"}"#),
        [error("Not authenticated")]
    );
}

/// protocol.md 2.6.
#[test]
fn authenticate_again_is_an_error_in_every_state() {
    let mut fixture = Fixture::new(rules());
    fixture.text(AUTHENTICATE);
    assert_eq!(fixture.text(AUTHENTICATE), [error("Already authenticated")]);
    fixture.accept(principal("17", None), None);
    assert_eq!(fixture.text(AUTHENTICATE), [error("Already authenticated")]);
    fixture.on(Input::Subscribed);
    assert_eq!(fixture.text(AUTHENTICATE), [error("Already authenticated")]);
}

/// protocol.md 3.1 and 4.2.
#[test]
fn the_type_of_a_token_may_be_absent_and_is_read_in_any_case() {
    for kind in [
        "",
        r#""type":null,"#,
        r#""type":"Bearer","#,
        r#""type":"bearer","#,
        r#""type":"JWT","#,
        r#""type":"jWt","#,
    ] {
        let text = format!(r#"{{"event":"authenticate","data":{{{kind}"token":"t"}}}}"#);
        assert_eq!(
            Fixture::new(rules()).text(&text),
            ["verify t None"],
            "{kind}"
        );
        let refresh = text.replace("authenticate", "refresh");
        let mut fixture = Fixture::authenticated(rules(), None);
        assert_eq!(fixture.text(&refresh), ["refresh t"], "{kind}");
    }
}

/// protocol.md 2.7, 3.3 and 3.4.
#[test]
fn a_join_or_leave_with_malformed_data_is_silent() {
    for event in ["join", "leave"] {
        for data in [
            "",
            r#","data":null"#,
            r#","data":"a""#,
            r#","data":{"rooms":"a"}"#,
            r#","data":[["a"]]"#,
        ] {
            let mut fixture = Fixture::authenticated(rules(), None);
            let sent = fixture.text(&format!(r#"{{"event":"{event}"{data}}}"#));
            assert!(sent.is_empty(), "{event} {data}: {sent:?}");
        }
    }
}

/// protocol.md 5.1.
#[test]
fn a_join_of_more_rooms_than_count_is_told() {
    let rooms: Vec<String> = (0..1025).map(|n| format!("r{n}")).collect();
    let text = serde_json::json!({"event": "join", "data": {"rooms": rooms}}).to_string();
    let sent = Fixture::authenticated(rules(), None).text(&text);
    assert_eq!((sent.len(), &sent[0]), (2, &error("Too many rooms")));
    assert!(sent[1].contains("\"r1023\"") && !sent[1].contains("\"r1024\""));
}

/// protocol.md 3.1.
#[test]
fn both_names_of_the_client_key_are_read() {
    for name in ["clientPublicKey", "publicKey"] {
        let mut fixture = Fixture::new(rules());
        let sent = fixture.text(&format!(
            r#"{{"event":"authenticate","data":{{"type":"Bearer","token":"t","{name}":"K"}}}}"#
        ));
        assert_eq!(sent, [r#"verify t Some(Some("K"))"#]);
    }
}

/// protocol.md 4.2, 4.4, 4.5 and 7.9.
#[test]
fn a_refused_token_and_a_failed_verification_differ_in_the_error_before_4003() {
    let bad = [
        r#"{"event":"authenticate"}"#,
        r#"{"event":"authenticate","data":{"type":"Basic","token":"t"}}"#,
        r#"{"event":"authenticate","data":{"type":"Bearer"}}"#,
    ];
    for text in bad {
        let mut fixture = Fixture::new(rules());
        assert_eq!(
            fixture.text(text),
            [
                clear_error("Authentication failed"),
                "close 4003 Authentication failed".into()
            ]
        );
    }
    for (outcome, message) in [
        (Authentication::Refused, "Authentication failed"),
        (Authentication::Failed, "Authentication error"),
    ] {
        let mut fixture = Fixture::new(rules());
        fixture.text(AUTHENTICATE);
        assert_eq!(
            fixture.on(Input::Authentication(outcome)),
            [
                clear_error(message),
                "close 4003 Authentication failed".into()
            ]
        );
        assert!(
            fixture.text(AUTHENTICATE).is_empty(),
            "nothing is sent after the end"
        );
    }
}

/// protocol.md 4.1 and 7.7.
#[test]
fn without_authenticate_the_connection_ends_after_five_seconds() {
    let mut fixture = Fixture::new(rules());
    assert!(fixture.tick_at(4999).is_empty());
    assert_eq!(fixture.tick_at(5000), ["close 4001 Authentication timeout"]);
}

/// protocol.md 4.3.
#[test]
fn authentication_may_take_fifteen_seconds_from_its_beginning() {
    let mut fixture = Fixture::new(rules());
    fixture.now_ms = 4000;
    fixture.text(AUTHENTICATE);
    assert!(fixture.tick_at(18_999).is_empty());
    fixture.accept(principal("17", None), None);
    assert_eq!(
        fixture.tick_at(19_000),
        ["close 4001 Authentication timeout"],
        "waiting for the bus counts"
    );
}

/// protocol.md 4.12 and 7.8.
#[test]
fn silence_of_ninety_seconds_ends_the_connection_and_a_pong_is_no_silence() {
    let mut fixture = Fixture::authenticated(rules(), None);
    assert_eq!(
        fixture.session.next_deadline(),
        Some(fixture.start + Duration::from_secs(90)),
        "no sweep before it could find anything"
    );
    for second in [30, 60] {
        assert!(fixture.tick_at(second * 1000).is_empty());
    }
    fixture.now_ms = 61_000;
    fixture.on(Input::Alive);
    for second in [90, 120, 150] {
        assert!(fixture.tick_at(second * 1000).is_empty(), "{second}");
    }
    assert_eq!(fixture.tick_at(180_000), ["close 4002 Heartbeat timeout"]);
}

/// protocol.md 1.6.
#[test]
fn the_server_pings_at_its_interval() {
    let mut fixture = Fixture::authenticated(
        Rules {
            ping_interval: Some(Duration::from_secs(25)),
            ..rules()
        },
        None,
    );
    assert_eq!(fixture.tick_at(12_500), ["ping"]);
    assert!(fixture.tick_at(37_000).is_empty());
    assert_eq!(fixture.tick_at(37_500), ["ping"]);
    assert!(
        fixture.session.next_deadline().unwrap() > fixture.start + Duration::from_millis(37_500)
    );
}

/// protocol.md 6.8 and 7.10.
#[test]
fn an_unusable_key_never_ends_in_an_unencrypted_session() {
    for mode in [EncryptionMode::Optional, EncryptionMode::Required] {
        let mut fixture = Fixture::new(Rules {
            encryption: Encryption {
                mode,
                client_frames: ClientFrames::Any,
            },
            ..rules()
        });
        fixture.text(AUTHENTICATE);
        let sent = fixture.accept(principal("17", None), Some(Err(UnusableKey)));
        assert_eq!(
            sent,
            [
                clear_error("Encryption handshake failed"),
                "close 4004 Encryption required".into()
            ]
        );
    }
}

/// protocol.md 6.7 and 6.8.
#[test]
fn required_encryption_needs_a_key_and_disabled_ignores_one() {
    let with = |mode| Rules {
        encryption: Encryption {
            mode,
            client_frames: ClientFrames::Any,
        },
        ..rules()
    };
    let mut fixture = Fixture::new(with(EncryptionMode::Required));
    fixture.text(AUTHENTICATE);
    assert_eq!(
        fixture.accept(principal("17", None), None)[1],
        "close 4004 Encryption required"
    );
    let mut fixture = Fixture::new(with(EncryptionMode::Disabled));
    fixture.text(AUTHENTICATE);
    fixture.accept(principal("17", None), Some(Ok(shake())));
    assert!(!fixture.on(Input::Subscribed)[0].contains("serverPublicKey"));
    assert_eq!(fixture.session.stage(), Stage::Authenticated);
}

/// protocol.md 3.7, 6.6 and 6.9.
#[test]
fn an_encrypted_connection_takes_clear_and_sealed_frames_by_default() {
    let mut fixture = Fixture::encrypted(rules());
    let join = r#"{"event":"join","data":{"rooms":["a"]}}"#;
    assert_eq!(fixture.text(join), [r#"join ["a"]"#]);
    let sealed = fixture.seal(join);
    assert_eq!(fixture.text(&sealed), [r#"join ["a"]"#]);
    let twice = fixture.seal(&sealed);
    assert!(fixture.text(&twice).is_empty());
    assert_eq!(
        fixture.text(&fixture.seal("hello")),
        [error("Invalid message format")]
    );
    let bad = r#"{"event":"encrypted","data":{"iv":"AAAAAAAAAAAAAAAA","ct":"AAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;
    assert_eq!(fixture.text(bad), [error("Decryption failed")]);
    assert!(!fixture.session.is_closed());
}

/// protocol.md 6.6.
#[test]
fn a_setting_demands_sealed_frames_of_all_but_heartbeat() {
    let strict = Encryption {
        mode: EncryptionMode::Optional,
        client_frames: ClientFrames::Encrypted,
    };
    let mut fixture = Fixture::encrypted(Rules {
        encryption: strict,
        ..rules()
    });
    let join = r#"{"event":"join","data":{"rooms":["a"]}}"#;
    assert_eq!(fixture.text(join), [error("Encryption required")]);
    assert!(fixture.text(r#"{"event":"heartbeat"}"#).is_empty());
    assert_eq!(fixture.text(&fixture.seal(join)), [r#"join ["a"]"#]);
    let mut clear = Fixture::authenticated(
        Rules {
            encryption: strict,
            ..rules()
        },
        None,
    );
    assert_eq!(
        clear.text(join),
        [r#"join ["a"]"#],
        "a connection without a cipher cannot seal"
    );
}

/// protocol.md 2.7, 3.3, 3.4 and 5.1.
#[test]
fn join_drops_names_that_no_room_may_have() {
    let mut fixture = Fixture::authenticated(rules(), None);
    let text = format!(
        r#"{{"event":"join","data":{{"rooms":["a",1,"","ws:x","{}","b"]}}}}"#,
        "x".repeat(257)
    );
    assert_eq!(fixture.text(&text), [r#"join ["a", "b"]"#]);
    assert_eq!(
        fixture.text(r#"{"event":"leave","data":{"rooms":["a"]}}"#),
        [r#"leave ["a"]"#]
    );
    assert!(
        fixture
            .text(r#"{"event":"join","data":{"rooms":["ws:x"]}}"#)
            .is_empty()
    );
}

/// protocol.md 2.14 and 5.8.
#[test]
fn a_join_with_a_mark_is_answered_whatever_it_names() {
    let mut fixture = Fixture::authenticated(rules(), None);
    for (sent, done) in [
        (r#""id":"7","data":{"rooms":["a"]}"#, r#"join ["a"] for 7"#),
        (r#""data":{"rooms":["ws:x"]},"id":"7""#, "join [] for 7"),
        (r#""id":"","data":{"rooms":["a"]}"#, r#"join ["a"]"#),
        (r#""id":7,"data":{"rooms":["a"]}"#, r#"join ["a"]"#),
        (
            r#""id":"7""#,
            r#"send {"event":"error","data":{"message":"Invalid data"},"id":"7"}"#,
        ),
    ] {
        let text = format!(r#"{{"event":"join",{sent}}}"#);
        assert_eq!(fixture.text(&text), [done], "{text}");
    }
    let long = "x".repeat(65);
    let text = format!(r#"{{"event":"join","id":"{long}","data":{{"rooms":["a"]}}}}"#);
    assert_eq!(fixture.text(&text), [r#"join ["a"]"#]);
    let leave = r#"{"event":"leave","id":"7","data":{"rooms":["a"]}}"#;
    assert_eq!(fixture.text(leave), [r#"leave ["a"]"#]);
}

/// protocol.md 3.11, 4.9 and 7.11.
#[test]
fn expiring_comes_before_the_end_of_a_token_and_the_close_after_the_leeway() {
    let mut fixture = Fixture::authenticated(rules(), Some(100));
    assert!(fixture.tick_at(39_000).is_empty());
    assert_eq!(
        fixture.tick_at(40_000),
        [
            r#"send {"event":"expiring","data":{"expiresAt":"2025-06-15T15:08:20.000Z","seconds":60}}"#
        ]
    );
    fixture.on(Input::Alive);
    assert!(fixture.tick_at(100_000).is_empty(), "sent once");
    fixture.on(Input::Alive);
    assert!(fixture.tick_at(129_999).is_empty());
    assert_eq!(fixture.tick_at(130_000), ["close 4005 Token expired"]);
}

/// protocol.md 3.9, 3.10 and 4.10.
#[test]
fn a_refresh_of_the_same_subject_moves_the_end_and_another_subject_changes_nothing() {
    let mut fixture = Fixture::authenticated(rules(), Some(100));
    assert_eq!(
        fixture.text(r#"{"event":"refresh","data":{"type":"Bearer","token":"t2"}}"#),
        ["refresh t2"]
    );
    let refreshed = |subject: &str, lives| {
        Input::Refreshed(Authentication::Accepted {
            principal: principal(subject, Some(lives)),
            handshake: None,
            leeway: Duration::from_secs(30),
        })
    };
    assert_eq!(
        fixture.on(refreshed("18", 9000)),
        [error("Refresh refused")]
    );
    assert_eq!(
        fixture.on(Input::Refreshed(Authentication::Refused)),
        [error("Refresh refused")]
    );
    assert_eq!(
        fixture.on(refreshed("17", 200)),
        [r#"send {"event":"refreshed","data":{"expiresAt":"2025-06-15T15:10:00.000Z"}}"#]
    );
    fixture.now_ms = 130_000;
    fixture.on(Input::Alive);
    assert!(fixture.tick_at(130_000).is_empty());
    fixture.now_ms = 229_000;
    fixture.on(Input::Alive);
    assert_eq!(fixture.tick_at(230_000), ["close 4005 Token expired"]);
}

/// protocol.md 4.11 and 7.11.
#[test]
fn withdrawn_trust_announces_the_end_and_a_refresh_may_prevent_it() {
    let mut fixture = Fixture::authenticated(rules(), Some(9000));
    let sent = fixture.on(Input::TrustWithdrawn);
    assert_eq!(
        sent,
        [
            r#"send {"event":"expiring","data":{"expiresAt":"2025-06-15T15:07:40.000Z","seconds":60}}"#
        ]
    );
    assert!(fixture.on(Input::TrustWithdrawn).is_empty(), "sent once");
    fixture.on(Input::Refreshed(Authentication::Accepted {
        principal: principal("17", Some(9000)),
        handshake: None,
        leeway: Duration::ZERO,
    }));
    fixture.on(Input::Alive);
    assert!(fixture.tick_at(60_000).is_empty());
    fixture.on(Input::TrustWithdrawn);
    fixture.on(Input::Alive);
    assert_eq!(fixture.tick_at(120_000), ["close 4005 Token expired"]);
}

/// protocol.md 2.7, 3.14, 3.17 and 9.6.
#[test]
fn inbox_events_are_read_within_their_bounds() {
    let mut fixture = Fixture::authenticated(rules(), None);
    let event =
        |name: &str, data: &str| format!(r#"{{"event":"notification:{name}","data":{data}}}"#);
    assert_eq!(
        fixture.text(&event("sync", r#"{"after":5}"#)),
        ["sync 5 200"]
    );
    assert_eq!(
        fixture.text(&event("sync", r#"{"after":0,"limit":1}"#)),
        ["sync 0 1"]
    );
    assert_eq!(
        fixture.text(&event("sync", r#"{"after":0,"limit":201}"#)),
        [error("Invalid data")]
    );
    assert_eq!(
        fixture.text(&event("sync", r#"{"after":0,"limit":0}"#)),
        [error("Invalid data")]
    );
    assert_eq!(
        fixture.text(&event("sync", r#"{"after":-1}"#)),
        [error("Invalid data")]
    );
    assert_eq!(
        fixture.text(&event("read", r#"{"upTo":7}"#)),
        ["read UpTo(7)"]
    );
    assert_eq!(
        fixture.text(&event("read", r#"{"ids":["a1","not an id"]}"#)),
        ["read Ids([a1])"]
    );
    assert_eq!(
        fixture.text(&event("read", r#"{"ids":["\ud83d","a1"]}"#)),
        ["read Ids([a1])"],
        "a text that cannot be read is no id"
    );
    // As over REST, and as the documents say.
    for (written, read) in [
        (r#"{"upTo":7.0}"#, "read UpTo(7)"),
        (r#"{"upTo":-0}"#, "read UpTo(0)"),
        (r#"{"upTo":-1}"#, &error("Invalid data")),
        (r#"{"upTo":7.5}"#, &error("Invalid data")),
        (r#"{"ids":[7]}"#, &error("Invalid data")),
        (r#"{"ids":["a"],"upTo":7}"#, &error("Invalid data")),
    ] {
        assert_eq!(fixture.text(&event("read", written)), [read], "{written}");
    }
    assert_eq!(fixture.text(&event("read", "{}")), [error("Invalid data")]);
}

/// protocol.md 2.7.
#[test]
fn a_list_is_no_data_of_an_event() {
    let mut fixture = Fixture::authenticated(rules(), None);
    for (event, list) in [
        ("notification:read", r#"[["a1"],null]"#),
        ("notification:sync", "[5,1]"),
        ("refresh", r#"["Bearer","token"]"#),
    ] {
        assert_eq!(
            fixture.text(&format!(r#"{{"event":"{event}","data":{list}}}"#)),
            [error("Invalid data")],
            "{event}"
        );
    }
    let mut connecting = Fixture::new(rules());
    assert_eq!(
        connecting.text(r#"{"event":"authenticate","data":["Bearer","token"]}"#),
        [
            clear_error("Authentication failed"),
            "close 4003 Authentication failed".into()
        ]
    );
}

/// protocol.md 2.8.
#[test]
fn events_of_the_application_are_not_answered() {
    let mut fixture = Fixture::authenticated(rules(), None);
    assert!(
        fixture
            .text(r#"{"event":"order:opened","data":{}}"#)
            .is_empty()
    );
}

#[test]
fn ending_the_session_drops_the_cipher() {
    let mut fixture = Fixture::encrypted(rules());
    let cipher = fixture.session.cipher().unwrap().watch();
    fixture.session.end();
    assert!(cipher.upgrade().is_none());
    assert!(fixture.session.next_deadline().is_none());
}
