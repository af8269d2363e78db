use super::*;
use crate::config::{Config, Rooms};
use crate::principal::{USER, Via};
use crate::store::GroupRow;
use futures_util::future::BoxFuture;
use std::sync::atomic::AtomicUsize;

/// A store over fixed rows that counts its calls and can be unavailable.
#[derive(Default)]
struct Rows {
    policies: Mutex<Vec<PolicyRow>>,
    groups: Mutex<Vec<GroupRow>>,
    hierarchy: Mutex<Hierarchy>,
    asked: AtomicUsize,
    away: std::sync::atomic::AtomicBool,
    gate: Option<tokio::sync::Semaphore>,
}

impl Rows {
    async fn answer<T>(&self, value: T) -> Result<T, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        if self.away.load(Ordering::SeqCst) {
            Err(crate::store::testing::unavailable("no connection"))
        } else {
            Ok(value)
        }
    }
}

impl PolicyStore for Rows {
    fn users_in<'a>(
        &'a self,
        _domains: &'a [Domain],
    ) -> BoxFuture<'a, Result<HashMap<Domain, Arc<[String]>>, StoreError>> {
        Box::pin(self.answer(HashMap::new()))
    }

    fn domains_of<'a>(
        &'a self,
        kind: &'a str,
        user: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Domain>, StoreError>> {
        let subject = format!("{kind}_{user}");
        let rows = self.groups.lock();
        let domains = rows
            .iter()
            .filter(|row| row.subject == subject)
            .filter_map(|row| match row.domain.as_deref()?.split_once('_')? {
                ("Merchant", id) => Some(Domain::Merchant(id.into())),
                (_, id) => Some(Domain::Organizer(id.into())),
            })
            .collect();
        Box::pin(self.answer(domains))
    }

    fn rules_of<'a>(
        &'a self,
        kind: &'a str,
        user: &'a str,
    ) -> BoxFuture<'a, Result<Rules, StoreError>> {
        let subject = format!("{kind}_{user}");
        let groups: Vec<GroupRow> = self
            .groups
            .lock()
            .iter()
            .filter(|row| row.subject == subject || row.subject.starts_with("Role_"))
            .cloned()
            .collect();
        let concerns = |row: &&PolicyRow| {
            row.subject == subject || groups.iter().any(|group| group.role == row.subject)
        };
        let policies = self
            .policies
            .lock()
            .iter()
            .filter(concerns)
            .cloned()
            .collect();
        Box::pin(self.answer(Rules { policies, groups }))
    }

    fn hierarchy(&self) -> BoxFuture<'_, Result<Hierarchy, StoreError>> {
        Box::pin(self.answer(self.hierarchy.lock().clone()))
    }

    fn survey(&self) -> BoxFuture<'_, Result<crate::store::PolicySurvey, StoreError>> {
        Box::pin(self.answer(crate::store::PolicySurvey::default()))
    }
}

fn allow(subject: &str, domain: Option<&str>, code: &str, action: &str) -> PolicyRow {
    PolicyRow {
        subject: subject.into(),
        domain: domain.map(Into::into),
        target: Target::Code(code.into()),
        action: Some(action.into()),
        allow: true,
    }
}

fn deny(subject: &str, domain: Option<&str>, code: &str, action: &str) -> PolicyRow {
    PolicyRow {
        allow: false,
        ..allow(subject, domain, code, action)
    }
}

fn group(subject: &str, role: &str, domain: Option<&str>) -> GroupRow {
    GroupRow {
        subject: subject.into(),
        role: role.into(),
        domain: domain.map(Into::into),
    }
}

fn user(subject: &str) -> Principal {
    Principal {
        subject: subject.into(),
        kind: USER.into(),
        roles: Box::default(),
        via: Via::Basic,
    }
}

fn over(policies: Vec<PolicyRow>, groups: Vec<GroupRow>) -> (Access, Arc<Rows>) {
    with_rooms(
        Rows {
            policies: Mutex::new(policies),
            groups: Mutex::new(groups),
            ..Rows::default()
        },
        Unmatched::Deny,
    )
}

fn with_rooms(rows: Rows, unmatched: Unmatched) -> (Access, Arc<Rows>) {
    let rows = Arc::new(rows);
    let access = Access::new(
        Arc::clone(&rows) as Arc<dyn PolicyStore>,
        &Config::for_tests().policy,
        Rooms { unmatched },
    );
    (access, rows)
}

const FIND: &str = "WebSocketClient.find";

/// A case of client management: its name, the rows, and whether user 17 may list connections.
type Case = (&'static str, Vec<PolicyRow>, Vec<GroupRow>, bool);

async fn check_find(cases: Vec<Case>) {
    for (name, policies, groups, expected) in cases {
        let (access, _) = over(policies, groups);
        assert_eq!(
            access.may(&user("17"), FIND, "read").await.unwrap(),
            expected,
            "{name}"
        );
    }
}

/// authorization.md 4.4, 4.5 and 4.7.
#[tokio::test]
async fn client_management_needs_a_grant_that_holds_everywhere() {
    let merchant = Some("Merchant_42");
    check_find(vec![
        ("nothing", vec![], vec![], false),
        (
            "own grant",
            vec![allow("User_17", None, FIND, "read")],
            vec![],
            true,
        ),
        (
            "a grant of another user",
            vec![allow("User_18", None, FIND, "read")],
            vec![],
            false,
        ),
        (
            "another action",
            vec![allow("User_17", None, FIND, "update")],
            vec![],
            false,
        ),
        (
            "another code",
            vec![allow("User_17", None, "WebSocketClient.findById", "read")],
            vec![],
            false,
        ),
        (
            "grant in one domain",
            vec![allow("User_17", merchant, FIND, "read")],
            vec![],
            false,
        ),
        (
            "all codes",
            vec![allow("User_17", None, "WebSocketClient.*", "read")],
            vec![],
            true,
        ),
        (
            "all codes of another kind",
            vec![allow("User_17", None, "Client.*", "read")],
            vec![],
            false,
        ),
        (
            "no wildcard in the middle of a name",
            vec![allow("User_17", None, "WebSocketClient*", "read")],
            vec![],
            false,
        ),
        (
            "no code is all codes",
            vec![allow("User_17", None, "*", "read")],
            vec![],
            false,
        ),
    ])
    .await;
}

/// authorization.md 4.4, 4.5 and 4.7.
#[tokio::test]
async fn a_role_counts_where_it_is_held_and_granted_everywhere() {
    let (merchant, role) = (Some("Merchant_42"), "Role_3");
    check_find(vec![
        (
            "role's grant",
            vec![allow(role, None, FIND, "read")],
            vec![group("User_17", role, None)],
            true,
        ),
        (
            "a grant of another role",
            vec![allow("Role_4", None, FIND, "read")],
            vec![group("User_17", role, None)],
            false,
        ),
        (
            "role held in one domain",
            vec![allow(role, None, FIND, "read")],
            vec![group("User_17", role, merchant)],
            false,
        ),
        (
            "role granted in one domain",
            vec![allow(role, merchant, FIND, "read")],
            vec![group("User_17", role, None)],
            false,
        ),
    ])
    .await;
}

/// authorization.md 4.4, 4.5 and 4.7.
#[tokio::test]
async fn a_deny_that_holds_everywhere_wins() {
    let (merchant, role) = (Some("Merchant_42"), "Role_3");
    check_find(vec![
        (
            "a deny wins",
            vec![
                allow("User_17", None, FIND, "read"),
                deny("User_17", None, FIND, "read"),
                allow("User_17", None, FIND, "read"),
            ],
            vec![],
            false,
        ),
        (
            "a role's deny wins",
            vec![
                allow("User_17", None, FIND, "read"),
                deny(role, None, "WebSocketClient.*", "read"),
            ],
            vec![group("User_17", role, None)],
            false,
        ),
        (
            "a deny in one domain is about that domain",
            vec![
                allow("User_17", None, FIND, "read"),
                deny("User_17", merchant, FIND, "read"),
            ],
            vec![],
            true,
        ),
        (
            "a deny alone",
            vec![deny("User_17", None, FIND, "read")],
            vec![],
            false,
        ),
    ])
    .await;
}

/// authorization.md 4.5.
#[test]
fn group_rows_without_a_domain_hold_in_every_domain_and_others_in_theirs() {
    let mut enforcer = enforcer();
    let policies = [["Role_3", "*", "allow"], ["Role_4", "Merchant_42", "allow"]];
    let everywhere = [["User_17", "Role_3", "*"], ["User_18", "Role_4", "*"]];
    let domains = ["Merchant_42", "Merchant_7", "Organizer_1", "*"];
    load(&mut enforcer, policies.into_iter(), everywhere.into_iter());
    for domain in domains {
        assert!(enforces(&enforcer, "User_17", domain), "{domain}");
        assert_eq!(
            enforces(&enforcer, "User_18", domain),
            domain == "Merchant_42",
            "{domain}"
        );
    }
    let in_one = [["User_18", "Role_3", "Merchant_42"]];
    load(&mut enforcer, policies.into_iter(), in_one.into_iter());
    for domain in domains {
        assert_eq!(
            enforces(&enforcer, "User_18", domain),
            domain == "Merchant_42",
            "{domain}"
        );
    }
    // Loading replaces all rows of the user before.
    assert!(!enforces(&enforcer, "User_17", "*"));
    load(&mut enforcer, policies.into_iter(), everywhere.into_iter());
    load(&mut enforcer, policies.into_iter(), std::iter::empty());
    assert!(!enforces(&enforcer, "User_17", "*"));
}

fn grant(subject: &str, domain: Option<&str>, code: &str, action: &str) -> PolicyRow {
    PolicyRow {
        target: Target::Resource(code.into()),
        ..allow(subject, domain, code, action)
    }
}

/// Asks each case over what lies above `WebSocketClient` and `read`.
async fn check_grants(cases: Vec<Case>) {
    let edge = |lower: &str, higher: &str| (lower.to_owned(), higher.to_owned());
    for (name, policies, groups, expected) in cases {
        let hierarchy = Hierarchy {
            resources: vec![
                edge("WebSocketClient", "Edge"),
                edge("Edge", "Platform"),
                edge("Platform", "Edge"),
                edge("Other", "All"),
            ],
            actions: vec![edge("read", "manage"), edge("manage", "own")],
        };
        let rows = Rows {
            policies: Mutex::new(policies),
            groups: Mutex::new(groups),
            hierarchy: Mutex::new(hierarchy),
            ..Rows::default()
        };
        let (access, _) = with_rooms(rows, Unmatched::Deny);
        let answer = access.may(&user("17"), FIND, "read").await.unwrap();
        assert_eq!(answer, expected, "{name}");
    }
}

/// authorization.md 4.10.
#[tokio::test]
async fn a_grant_covers_what_lies_below() {
    let one = |code: &str, action: &str| vec![grant("User_17", None, code, action)];
    let any_member = vec![grant("User_17", Some("ANY_MEMBER"), "*", "read")];
    let older = vec![allow("User_17", None, "WebSocketClient", "read")];
    check_grants(vec![
        ("the code itself", one(FIND, "read"), vec![], true),
        ("above it", one("WebSocketClient", "read"), vec![], true),
        ("everything", one("*", "read"), vec![], true),
        ("begins alike", one("WebSocket", "read"), vec![], false),
        ("far above", one("Platform", "read"), vec![], true),
        ("something else", one("All", "read"), vec![], false),
        ("an action above", one("Edge", "own"), vec![], true),
        ("another action", one("Edge", "update"), vec![], false),
        ("where joined", any_member, vec![], false),
        ("the older variant", older, vec![], false),
    ])
    .await;
}

/// authorization.md 4.11 and 4.12.
#[tokio::test]
async fn inherited_roles_count_and_a_deny_of_what_lies_above_wins() {
    let groups = || {
        vec![
            group("User_17", "Role_3", None),
            group("Role_3", "Role_9", None),
        ]
    };
    let of = |role: &str| vec![grant(role, None, "Edge", "read")];
    let denied = PolicyRow {
        allow: false,
        action: None,
        ..grant("User_17", None, "Edge", "")
    };
    let but_denied = vec![grant("User_17", None, "*", "read"), denied];
    check_grants(vec![
        ("a role's role", of("Role_9"), groups(), true),
        ("a role of nobody", of("Role_8"), groups(), false),
        ("a deny above", but_denied, vec![], false),
    ])
    .await;
}

/// authorization.md 4.2, 5.2 and 5.3.
#[tokio::test]
async fn staff_has_no_right_of_the_user_with_the_same_number() {
    let (access, _) = over(
        vec![
            allow("User_17", None, FIND, "read"),
            allow("Staff_17", None, FIND, "update"),
        ],
        vec![
            group("User_17", "Role_1", Some("Merchant_1")),
            group("Staff_17", "Role_1", Some("Merchant_2")),
        ],
    );
    let staff = Principal {
        kind: "Staff".into(),
        ..user("17")
    };
    let rooms = ["user:17", "merchant:1", "merchant:2"];
    // Asked in turn, so that what is kept of the one is not used for the other.
    for _ in 0..2 {
        for (principal, reads, joins) in [
            (user("17"), true, [true, true, false]),
            (staff.clone(), false, [false, false, true]),
        ] {
            assert_eq!(access.may(&principal, FIND, "read").await.unwrap(), reads);
            assert_eq!(
                access.may(&principal, FIND, "update").await.unwrap(),
                !reads
            );
            let client = Id::from_number(1);
            assert_eq!(
                access.may_join(&principal, client, &rooms).await.unwrap(),
                joins
            );
        }
    }
}

#[tokio::test]
async fn names_that_look_like_policy_lines_or_expressions_are_only_names() {
    let evil = "17, Role_3, *\ng, User_17";
    let (access, _) = over(
        vec![allow("Role_3", None, FIND, "read")],
        vec![group(&format!("User_{evil}"), "x\" || true || \"", None)],
    );
    assert!(!access.may(&user(evil), FIND, "read").await.unwrap());
    assert!(
        !access
            .may(&user("17\" || true || \""), FIND, "read")
            .await
            .unwrap()
    );
}

/// authorization.md 4.8.
#[tokio::test]
async fn roles_on_the_always_allow_list_skip_the_check_and_the_store() {
    let (access, rows) = over(vec![], vec![]);
    rows.away.store(true, Ordering::SeqCst);
    let with = |role: &str| Principal {
        roles: ["clerk".into(), role.into()].into(),
        ..user("1")
    };
    assert!(
        access
            .may(&with("super-admin"), FIND, "read")
            .await
            .unwrap()
    );
    assert!(
        access
            .may(&with("Super-Admin"), FIND, "read")
            .await
            .is_err()
    );
}

/// authorization.md 4.9.
#[tokio::test]
async fn an_outage_is_an_error_and_never_allows() {
    let (access, rows) = over(
        vec![allow("User_17", None, FIND, "read")],
        vec![group("User_17", "Role_1", Some("Merchant_42"))],
    );
    rows.away.store(true, Ordering::SeqCst);
    let client = Id::from_number(1);
    assert!(matches!(
        access.may(&user("17"), FIND, "read").await,
        Err(StoreError::Unavailable { .. })
    ));
    assert!(
        access
            .may_join(&user("17"), client, &["merchant:42"])
            .await
            .is_err()
    );
    // Rooms that need no store are decided without it.
    assert_eq!(
        access
            .may_join(&user("17"), client, &["user:17", "lobby"])
            .await
            .unwrap(),
        [true, false]
    );
    rows.away.store(false, Ordering::SeqCst);
    assert!(access.may(&user("17"), FIND, "read").await.unwrap());
    assert_eq!(
        access
            .may_join(&user("17"), client, &["merchant:42"])
            .await
            .unwrap(),
        [true]
    );
}

/// authorization.md 5.1, 5.2, 5.3, 5.4, 5.5 and 5.6.
#[tokio::test]
async fn rooms_are_for_members_owners_and_their_own_connection() {
    let groups = vec![
        group("User_17", "Role_1", Some("Merchant_42")),
        group("User_17", "Role_1", Some("Organizer_7")),
        group("User_17", "Role_2", None),
        group("User_17", "Role_2", Some("*")),
        group("User_18", "Role_1", Some("Merchant_43")),
    ];
    let own = Id::from_parts(59_731_200_000, 9, 0);
    let foreign = Id::from_parts(59_731_200_000, 9, 1);
    let cases = [
        ("merchant:42", true),
        ("merchant:43", false),
        ("merchant:4", false),
        ("merchant:*", false),
        ("merchant:", false),
        ("Merchant_42", false),
        ("organizer:7", true),
        ("organizer:42", false),
        ("user:17", true),
        ("user:18", false),
        ("user:", false),
        ("ws-default", true),
        ("ws-notification", true),
        ("ws-other", false),
        (own.as_str(), true),
        (foreign.as_str(), false),
        ("lobby", false),
        ("chat:1", false),
    ];
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    for unmatched in [Unmatched::Deny, Unmatched::Allow] {
        let (access, _) = with_rooms(
            Rows {
                groups: Mutex::new(groups.clone()),
                ..Rows::default()
            },
            unmatched,
        );
        let answers = access.may_join(&user("17"), own, &names).await.unwrap();
        for ((name, expected), answer) in cases.iter().zip(answers) {
            let unmatched_name = ["Merchant_42", "ws-other", "lobby", "chat:1"].contains(name);
            assert_eq!(
                answer,
                *expected || (unmatched_name && unmatched == Unmatched::Allow),
                "{name} with {unmatched:?}"
            );
        }
    }
}

/// authorization.md 5.5.
#[test]
fn only_possible_ids_are_shaped_like_a_client_id() {
    let early = Id::from_parts(38 * 86_400_000, 0, 0);
    let last = Id::from_number((1 << 70) - 1);
    for id in [early.as_str(), last.as_str(), "9abcdefghi", "1LyPpThFq001"] {
        assert!(is_shaped_like_a_client_id(id), "{id}");
    }
    let beyond = Id::from_number(1 << 70);
    for name in [
        "lobby",
        "123456789",
        "0123456789",
        "support-room",
        "abcdefghijklm",
        "room:1234567",
        beyond.as_str(),
        "zzzzzzzzzzzz",
    ] {
        assert!(!is_shaped_like_a_client_id(name), "{name}");
    }
}

/// authorization.md 5.7.
#[tokio::test]
async fn an_always_allow_role_makes_nobody_a_member() {
    let (access, _) = over(vec![], vec![]);
    let admin = Principal {
        roles: ["super-admin".into()].into(),
        ..user("1")
    };
    assert_eq!(
        access
            .may_join(&admin, Id::from_number(1), &["merchant:42"])
            .await
            .unwrap(),
        [false]
    );
}

/// authorization.md 4.9 and 5.8.
#[tokio::test(start_paused = true)]
async fn rows_are_kept_for_a_while_and_a_lost_right_ends_within_that_time() {
    let (access, rows) = over(
        vec![allow("User_17", None, FIND, "read")],
        vec![group("User_17", "Role_1", Some("Merchant_42"))],
    );
    let (seventeen, client) = (user("17"), Id::from_number(1));
    for _ in 0..5 {
        assert!(access.may(&seventeen, FIND, "read").await.unwrap());
        assert_eq!(
            access
                .may_join(&seventeen, client, &["merchant:42"])
                .await
                .unwrap(),
            [true]
        );
    }
    assert_eq!(rows.asked.load(Ordering::SeqCst), 2);
    rows.policies.lock().clear();
    rows.groups.lock().clear();
    let lost = Instant::now();
    while access
        .may_join(&seventeen, client, &["merchant:42"])
        .await
        .unwrap()[0]
    {
        tokio::time::advance(access.recheck_interval()).await;
    }
    assert!(lost.elapsed() <= Duration::from_secs(30));
    // The worst case: asked right before the kept rows expire.
    assert!(access.inner.domains.keep_for + access.recheck_interval() <= Duration::from_secs(30));
    while access.may(&seventeen, FIND, "read").await.unwrap() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(lost.elapsed() <= Duration::from_secs(30));
}

#[tokio::test]
async fn questions_about_one_user_at_the_same_time_read_once() {
    let rows = Rows {
        policies: Mutex::new(vec![allow("User_17", None, FIND, "read")]),
        gate: Some(tokio::sync::Semaphore::new(0)),
        ..Rows::default()
    };
    let (access, rows) = with_rooms(rows, Unmatched::Deny);
    let seventeen = user("17");
    let ask =
        || futures_util::future::join_all((0..20).map(|_| access.may(&seventeen, FIND, "read")));
    let open = async {
        tokio::task::yield_now().await;
        rows.gate.as_ref().unwrap().add_permits(1);
    };
    let (answers, ()) = tokio::join!(ask(), open);
    assert!(answers.into_iter().all(|answer| answer.unwrap()));
    assert_eq!(rows.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failed_read_fails_all_who_wait_and_the_next_caller_reads_again() {
    let rows = Rows {
        gate: Some(tokio::sync::Semaphore::new(0)),
        away: true.into(),
        ..Rows::default()
    };
    let (access, rows) = with_rooms(rows, Unmatched::Deny);
    let seventeen = user("17");
    let ask = futures_util::future::join_all((0..20).map(|_| access.may(&seventeen, FIND, "read")));
    let open = async {
        tokio::task::yield_now().await;
        rows.gate.as_ref().unwrap().add_permits(1);
    };
    let (answers, ()) = tokio::join!(ask, open);
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(StoreError::Unavailable { .. })))
    );
    assert_eq!(rows.asked.load(Ordering::SeqCst), 1);
    rows.gate.as_ref().unwrap().add_permits(10);
    rows.away.store(false, Ordering::SeqCst);
    assert!(!access.may(&seventeen, FIND, "read").await.unwrap());
    assert_eq!(rows.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_caller_who_gives_up_does_not_block_the_next() {
    let rows = Rows {
        policies: Mutex::new(vec![allow("User_17", None, FIND, "read")]),
        gate: Some(tokio::sync::Semaphore::new(0)),
        ..Rows::default()
    };
    let (access, rows) = with_rooms(rows, Unmatched::Deny);
    let seventeen = user("17");
    let given_up = tokio::time::timeout(
        Duration::from_millis(1),
        access.may(&seventeen, FIND, "read"),
    )
    .await;
    assert!(given_up.is_err());
    rows.gate.as_ref().unwrap().add_permits(1);
    assert!(access.may(&seventeen, FIND, "read").await.unwrap());
    assert_eq!(rows.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn thousands_of_merchants_and_rooms_do_not_block_the_enforcer() {
    let groups = (0..5000)
        .map(|n| group("User_17", "Role_1", Some(&format!("Merchant_{n}"))))
        .collect();
    let policies = (0..5000)
        .map(|n| allow("Role_1", Some(&format!("Merchant_{n}")), FIND, "read"))
        .collect();
    let (access, _) = over(policies, groups);
    let names: Vec<String> = (4000..6000).map(|n| format!("merchant:{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let began = std::time::Instant::now();
    let answers = access
        .may_join(&user("17"), Id::from_number(1), &names)
        .await
        .unwrap();
    assert_eq!(answers.iter().filter(|answer| **answer).count(), 1000);
    assert!(answers[..1000].iter().all(|answer| *answer));
    assert!(!access.may(&user("17"), FIND, "read").await.unwrap());
    // Loading all memberships for every few rooms would take over a minute here: adding a link visits every domain that has one.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}
