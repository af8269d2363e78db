use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::fixture::{NOW, TestGateway};
use crate::bus::{Answers, Ask, Reply};
use crate::client::{ClientInfo, ClientQuery};

const CLIENTS: &str = "/socket/websocket/clients";

fn client(id: &str, user: &str, rooms: &[&str]) -> ClientInfo {
    ClientInfo {
        id: id.parse().unwrap(),
        user_id: Some(user.into()),
        state: "encrypted".into(),
        encrypted: true,
        rooms: rooms.iter().map(|r| (*r).to_owned()).collect(),
        connected_at: "2026-11-23T08:00:00.000Z".into(),
        last_seen_at: "2026-11-23T08:00:10.000Z".into(),
        address: Some([203, 0, 113, 9].into()),
    }
}

/// The reply of an instance that holds these clients.
fn held(clients: &[ClientInfo], query: &ClientQuery) -> Reply {
    let mut found: Vec<ClientInfo> = clients
        .iter()
        .filter(|c| query.user_id.is_none() || c.user_id == query.user_id)
        .filter(|c| {
            query
                .room
                .as_ref()
                .is_none_or(|room| c.rooms.contains(room))
        })
        .filter(|c| {
            query
                .after
                .is_none_or(|after| c.id.as_str() > after.as_str())
        })
        .cloned()
        .collect();
    found.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
    found.truncate(query.limit);
    Reply::Clients { clients: found }
}

/// Two instances with three clients each, whose ids alternate; a third instance does not answer.
fn play_cluster(gateway: &TestGateway) {
    let one = [
        client("A1", "17", &["lobby"]),
        client("B2", "18", &[]),
        client("z9", "17", &[]),
    ];
    let two = [
        client("A2", "17", &[]),
        client("a", "19", &["lobby"]),
        client("zz", "17", &["lobby"]),
    ];
    gateway.others.answer(move |ask| match ask {
        Ask::List { query } => Answers {
            replies: vec![
                ("gateway-1".into(), held(&one, query)),
                ("gateway-2".into(), held(&two, query)),
            ],
            missing: vec!["gateway-3".into()],
        },
        Ask::Describe { client } => {
            let found = |all: &[ClientInfo]| Reply::Clients {
                clients: all.iter().filter(|c| c.id == *client).cloned().collect(),
            };
            Answers {
                replies: vec![
                    ("gateway-1".into(), found(&one)),
                    ("gateway-2".into(), found(&two)),
                ],
                missing: vec![],
            }
        }
        _ => Answers::default(),
    });
}

#[tokio::test]
async fn pages_cover_the_whole_cluster_in_one_order_and_name_silent_instances() {
    let gateway = TestGateway::new().await;
    play_cluster(&gateway);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for page in 0.. {
        assert!(page < 5, "pages without end");
        let body = gateway
            .send(gateway.call(Method::GET, &format!("{CLIENTS}?limit=2{cursor}")))
            .await
            .ok(200);
        assert_eq!(body["missing"], json!(["gateway-3"]));
        seen.extend(body["data"].as_array().unwrap().iter().map(|c| {
            (
                c["id"].as_str().unwrap().to_owned(),
                c["instance"].as_str().unwrap().to_owned(),
            )
        }));
        match body["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let order: Vec<(&str, &str)> = seen
        .iter()
        .map(|(id, instance)| (id.as_str(), instance.as_str()))
        .collect();
    let (one, two) = ("gateway-1", "gateway-2");
    assert_eq!(
        order,
        [
            ("A1", one),
            ("A2", two),
            ("B2", one),
            ("a", two),
            ("z9", one),
            ("zz", two)
        ]
    );
}

/// 31 other instances with so many clients each, whose ids are spread over them or come one instance after the other.
fn play_many(gateway: &TestGateway, clients: usize, spread: bool) -> Arc<AtomicUsize> {
    const OTHERS: usize = 31;
    let listed = Arc::new(AtomicUsize::new(0));
    let names: Vec<String> = (0..OTHERS).map(|n| format!("other-{n}")).collect();
    *gateway.others.live.lock() = names.clone();
    let held_by: Vec<Vec<ClientInfo>> = (0..OTHERS)
        .map(|instance| {
            let id = |n: usize| match spread {
                true => n * OTHERS + instance,
                false => instance * clients + n,
            };
            (0..clients)
                .map(|n| client(&format!("A{:05}", id(n)), "17", &[]))
                .collect()
        })
        .collect();
    let counted = Arc::clone(&listed);
    gateway.others.answer(move |ask| {
        let Ask::List { query } = ask else {
            return Answers::default();
        };
        let replies = names.iter().zip(&held_by).map(|(name, clients)| {
            let reply = held(clients, query);
            if let Reply::Clients { clients } = &reply {
                counted.fetch_max(clients.len(), Ordering::SeqCst);
            }
            (name.clone(), reply)
        });
        Answers {
            replies: replies.collect(),
            missing: vec![],
        }
    });
    listed
}

/// Whoever holds them, and without a page from everybody.
#[tokio::test]
async fn a_page_of_many_instances_takes_a_share_of_each_and_more_only_of_those_that_hold_it() {
    for spread in [true, false] {
        let gateway = TestGateway::new().await;
        let most = play_many(&gateway, 40, spread);
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let url = format!("{CLIENTS}?limit=50{cursor}");
            let body = gateway.send(gateway.call(Method::GET, &url)).await.ok(200);
            let ids = body["data"].as_array().unwrap().iter();
            seen.extend(ids.map(|c| c["id"].as_str().unwrap().to_owned()));
            pages += 1;
            match body["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let all: Vec<String> = (0..31 * 40).map(|n| format!("A{n:05}")).collect();
        assert_eq!(seen, all, "each once and in order");
        let asked = gateway.others.asked.lock().len();
        let most = most.load(Ordering::SeqCst);
        if spread {
            assert_eq!((asked, most), (pages, 8), "the share of each was enough");
        } else {
            assert!(
                asked > pages && asked <= 2 * pages,
                "{asked} questions for {pages} pages"
            );
        }
    }
}

#[tokio::test]
async fn filters_apply_to_every_instance_and_one_instance_can_be_chosen() {
    let gateway = TestGateway::new().await;
    play_cluster(&gateway);
    let ids = |body: &serde_json::Value| {
        body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let get = |query: &'static str| {
        gateway.send(gateway.call(Method::GET, &format!("{CLIENTS}?{query}")))
    };
    assert_eq!(
        ids(&get("userId=17&room=lobby").await.ok(200)),
        ["A1", "zz"]
    );
    let chosen = get("instance=gateway-2").await.ok(200);
    assert_eq!(
        (ids(&chosen), &chosen["missing"]),
        (vec!["A2".into(), "a".into(), "zz".into()], &json!([]))
    );
    assert_eq!(
        get("instance=gateway-3").await.ok(200)["missing"],
        json!(["gateway-3"])
    );

    gateway.others.asking_fails.store(true, Ordering::SeqCst);
    get("").await.problem(503, "bus_unavailable");
    assert_eq!(ids(&get("instance=gateway-0").await.ok(200)), [""; 0]);
}

#[tokio::test]
async fn a_client_is_described_wherever_it_is() {
    let gateway = TestGateway::new().await;
    play_cluster(&gateway);
    let body = gateway
        .send(gateway.call(Method::GET, &format!("{CLIENTS}/zz")))
        .await
        .ok(200);
    assert_eq!(
        body,
        json!({"id": "zz", "userId": "17", "state": "encrypted", "encrypted": true, "rooms": ["lobby"], "connectedAt": "2026-11-23T08:00:00.000Z",
               "lastSeenAt": "2026-11-23T08:00:10.000Z", "address": "203.0.113.9", "instance": "gateway-2"})
    );
    gateway
        .send(gateway.call(Method::GET, &format!("{CLIENTS}/Zz")))
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn no_client_is_reported_absent_while_an_instance_is_silent() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|_| Answers {
        replies: vec![("gateway-1".into(), Reply::Count { count: 0 })],
        missing: vec!["gateway-3".into()],
    });
    let rooms = json!({"rooms": ["lobby"]});
    for (call, body) in [
        (gateway.call(Method::GET, &format!("{CLIENTS}/abc")), None),
        (
            gateway.call(Method::DELETE, &format!("{CLIENTS}/abc")),
            None,
        ),
        (
            gateway.call(Method::POST, &format!("{CLIENTS}/abc/messages")),
            Some(json!({"event": "e"})),
        ),
        (
            gateway.call(Method::POST, &format!("{CLIENTS}/abc/rooms")),
            Some(rooms.clone()),
        ),
        (
            gateway.call(Method::DELETE, &format!("{CLIENTS}/abc/rooms")),
            Some(rooms),
        ),
    ] {
        let call = if let Some(body) = body {
            call.json(&body)
        } else {
            call
        };
        let answer = gateway.send(call).await.problem(503, "instances_silent");
        assert_eq!(answer.body["missing"], json!(["gateway-3"]));
    }
    assert!(gateway.published().is_empty());
}

#[tokio::test]
async fn disconnecting_reaches_other_instances_and_counts() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|ask| match ask {
        Ask::Close {
            client: Some(_),
            user: None,
        } => Answers {
            replies: vec![("gateway-1".into(), Reply::Count { count: 1 })],
            missing: vec!["x".into()],
        },
        Ask::Close {
            client: None,
            user: Some(_),
        } => Answers {
            replies: vec![
                ("gateway-1".into(), Reply::Count { count: 2 }),
                ("gateway-2".into(), Reply::Count { count: 3 }),
            ],
            missing: vec!["gateway-3".into()],
        },
        _ => Answers::default(),
    });
    let body = gateway
        .send(gateway.call(Method::DELETE, &format!("{CLIENTS}/abc")))
        .await
        .ok(200);
    assert_eq!(body, json!({"closed": 1, "missing": []}));
    let body = gateway
        .send(gateway.call(Method::DELETE, "/socket/websocket/users/17%2F3/clients"))
        .await
        .ok(200);
    assert_eq!(body, json!({"closed": 5, "missing": ["gateway-3"]}));
    assert_eq!(
        gateway.others.asked.lock()[1],
        Ask::Close {
            client: None,
            user: Some("17/3".into())
        }
    );

    gateway.others.asking_fails.store(true, Ordering::SeqCst);
    gateway
        .send(gateway.call(Method::DELETE, &format!("{CLIENTS}/abc")))
        .await
        .problem(503, "bus_unavailable");
    let half = gateway
        .send(gateway.call(Method::DELETE, "/socket/websocket/users/17/clients"))
        .await
        .problem(503, "bus_unavailable");
    assert_eq!(half.body["closed"], 0);
}

#[tokio::test]
async fn rooms_are_joined_and_left_on_the_instance_that_holds_the_client() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|ask| {
        let rooms = match ask {
            Ask::Join { rooms, .. } | Ask::Leave { rooms, .. } => rooms.clone(),
            _ => panic!("nothing else is asked"),
        };
        let replies = vec![
            ("gateway-1".into(), Reply::Rooms { rooms: None }),
            (
                "gateway-2".into(),
                Reply::Rooms {
                    rooms: Some(rooms[..1].to_vec()),
                },
            ),
        ];
        Answers {
            replies,
            missing: vec![],
        }
    });
    let path = format!("{CLIENTS}/abc/rooms");
    for method in [Method::POST, Method::DELETE] {
        let call = gateway
            .call(method, &path)
            .json(&json!({"rooms": ["b", "a", "b"]}));
        assert_eq!(
            gateway.send(call).await.ok(200),
            json!({"rooms": ["a"], "instance": "gateway-2"})
        );
    }
    let asked = gateway.others.asked.lock().clone();
    let (client, rooms) = ("abc".parse().unwrap(), vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(
        asked,
        [
            Ask::Join {
                client,
                rooms: rooms.clone()
            },
            Ask::Leave { client, rooms }
        ]
    );

    for rooms in [
        json!([]),
        json!([""]),
        json!(["ws:x"]),
        json!([7]),
        json!("lobby"),
        json!(["r".repeat(257)]),
        json!(vec!["r"; 1025]),
    ] {
        gateway
            .send(
                gateway
                    .call(Method::POST, &path)
                    .json(&json!({"rooms": rooms})),
            )
            .await
            .problem(400, "invalid_body");
    }
}

/// authorization.md 3.2 and 3.3.
#[tokio::test]
async fn a_revocation_is_stored_before_it_is_applied() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|ask| match ask {
        Ask::Revoke { .. } => Answers {
            replies: vec![("gateway-1".into(), Reply::Count { count: 2 })],
            missing: vec!["gateway-3".into()],
        },
        _ => Answers::default(),
    });
    let post = |body: serde_json::Value| {
        gateway.send(
            gateway
                .call(Method::POST, "/socket/websocket/revocations")
                .json(&body),
        )
    };
    let until = chrono::DateTime::from_timestamp(NOW + 31 * 86_400, 0).unwrap();
    let body = post(json!({"userId": "17"})).await.ok(200);
    assert_eq!(
        (&body["closed"], &body["missing"]),
        (&json!(2), &json!(["gateway-3"]))
    );
    assert_eq!(
        body["until"],
        until.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
    );
    let stored = gateway.table.all().await;
    assert_eq!(
        (
            stored[0].user_id.as_deref(),
            stored[0].jti.as_deref(),
            stored[0].issued_before_ms
        ),
        (Some("17"), None, NOW * 1000)
    );
    assert_eq!(
        gateway.others.asked.lock()[..],
        [Ask::Revoke {
            revocation: stored[0].clone(),
            in_database: true
        }]
    );
    assert_eq!(
        gateway.others.shared.lock()[..],
        stored[..1],
        "instances of the release before read it in Redis"
    );
    assert_eq!(gateway.revocations.len(), 1);

    for body in [
        json!({}),
        json!({"userId": "17", "jti": "a"}),
        json!({"jti": ""}),
        json!({"userId": "17", "issuedBefore": "soon"}),
        json!({"userId": 17}),
        json!({"jti": "a", "until": 5}),
    ] {
        post(body).await.problem(400, "invalid_body");
    }
    assert_eq!(gateway.table.all().await.len(), 1);
}

/// authorization.md 3.4.
#[tokio::test]
async fn a_revocation_that_cannot_be_stored_changes_nothing_and_one_that_cannot_be_announced_holds()
{
    let gateway = TestGateway::new().await;
    let post = || {
        gateway.send(
            gateway
                .call(Method::POST, "/socket/websocket/revocations")
                .json(&json!({"jti": "t-17"})),
        )
    };
    gateway.table.is_away.store(true, Ordering::SeqCst);
    let answer = post().await.problem(503, "store_unavailable");
    assert!(
        answer.body["detail"].as_str().unwrap().contains("nothing"),
        "{}",
        answer.text
    );
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(gateway.revocations.len(), 0);
    assert!(gateway.others.asked.lock().is_empty() && gateway.others.shared.lock().is_empty());
    gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .ok(200);

    // Redis is away: it is stored and applies here, and those that were live before are named.
    gateway.table.is_away.store(false, Ordering::SeqCst);
    gateway.others.asking_fails.store(true, Ordering::SeqCst);
    let body = post().await.ok(200);
    assert_eq!(
        (&body["closed"], &body["missing"]),
        (&json!(0), &json!(["gateway-2"]))
    );
    assert_eq!(
        (gateway.revocations.len(), gateway.table.all().await.len()),
        (1, 1)
    );
    gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .problem(401, "credentials_refused");
}

/// authorization.md 3.5.
#[tokio::test]
async fn while_revocations_are_not_known_a_token_gets_503_and_a_basic_user_an_answer() {
    let gateway = TestGateway::new().await;
    let long_ago = tokio::time::Instant::now() - crate::auth::MAX_BLIND - Duration::from_secs(1);
    gateway.revocations.set_whole_until(long_ago);
    let answer = gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .problem(503, "keys_unavailable");
    assert!(answer.headers.contains_key("retry-after"));
    gateway
        .revocations
        .set_whole_until(tokio::time::Instant::now());
    gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .ok(200);
}
