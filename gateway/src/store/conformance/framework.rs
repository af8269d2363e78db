//! Rows as the framework's own adapters write them: of `@venizia/ignis` 0.0.7, and of the variants that came later.

use super::*;
use crate::config::Policy;

/// The tables of the framework's example, with numbers for ids and a mark for deleted rows.
const TABLES: &str = r"
CREATE TABLE policy_definition (id bigint NOT NULL PRIMARY KEY, variant varchar(64), subject_type varchar(64), subject_id varchar(64), target_type varchar(64),
    target_id varchar(64), action varchar(64), effect varchar(64), domain varchar(64), metadata text, deleted_at timestamp);
CREATE TABLE permission (id bigint NOT NULL PRIMARY KEY, code varchar(64) NOT NULL, deleted_at timestamp);
INSERT INTO permission VALUES (1, 'WebSocketClient.find', NULL), (2, 'WebSocketClient', NULL), (3, 'Edge', NULL), (4, 'WebSocketClient.send', '2026-01-01');";

/// Adds rows, each in one line: variant, subject, target, action, effect, domain, and `deleted`; `-` is NULL.
async fn add(database: &TestDatabase, table: &str, lines: &[&str]) {
    for line in lines {
        let mut words: Vec<String> = line
            .split_ascii_whitespace()
            .map(|word| match word {
                "-" => "NULL".to_owned(),
                "deleted" => "'2026-01-01'".to_owned(),
                word => format!("'{}'", word.trim_matches('\'')),
            })
            .collect();
        words.resize(9, "NULL".to_owned());
        words.insert(8, "'{}'".to_owned());
        let insert = format!(
            "INSERT INTO {table} VALUES ((SELECT coalesce(max(id), 100) + 1 FROM {table}), {})",
            words.join(", ")
        );
        database.execute(&insert).await;
    }
}

async fn with_rows(database: &TestDatabase, lines: &[&str]) -> Stores {
    // The store makes the folder of a database that is a file.
    let stores = database.open().await;
    database.execute(TABLES).await;
    add(database, "policy_definition", lines).await;
    stores
}

fn settings(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Config::for_tests().policy;
    change(&mut policy);
    policy
}

/// What a person may do, in the order of the text.
async fn may(stores: &Stores, kind: &str, user: &str) -> Vec<String> {
    let rules = stores.policies.rules_of(kind, user).await.unwrap();
    let mut shown: Vec<String> = rules.policies.iter().map(show).collect();
    shown.sort_unstable();
    shown
}

fn show(row: &PolicyRow) -> String {
    let (Target::Code(code) | Target::Resource(code)) = &row.target;
    format!(
        "{} {} {code} {} {}",
        row.subject,
        if row.allow { "may" } else { "may not" },
        row.action.as_deref().unwrap_or("*"),
        row.domain.as_deref().unwrap_or("*")
    )
}

async fn members(stores: &Stores, domain: Domain) -> Vec<String> {
    let asked = [domain];
    let found = stores.policies.users_in(&asked).await.unwrap();
    found
        .get(&asked[0])
        .map_or_else(Vec::new, |users| users.to_vec())
}

/// authorization.md 4.2, 4.3 and 4.4.
pub(super) async fn a_row_of_another_target_with_the_id_of_a_permission_grants_nothing(
    database: &TestDatabase,
) {
    let stores = with_rows(
        database,
        &[
            "policy User 17 Menu 1 read allow -",
            "policy User 17 Menu 1 read - -",
            "group User 17 Menu 3 - - -",
            "policy Role 3 Permission 1 delete - -",
            // User 3 is not role 3, nor is role 17 user 17.
            "policy User 3 Permission 1 update - -",
            "policy Role 17 Permission 1 update - -",
            "policy User 17 Permission 1 execute Allow -",
            "policy User 17 Permission 1 execute Deny -",
            "policy User 17 Permission 4 execute - -",
            "policy User 17 Permission 9 execute - -",
        ],
    )
    .await;
    assert_eq!(may(&stores, "User", "17").await, [""; 0]);
    add(
        database,
        "policy_definition",
        &[
            "policy User 17 Permission 1 read '' ''",
            "policy User 17 Permission 1 create deny Merchant_42",
            "group User 17 Role 3 - - -",
        ],
    )
    .await;
    assert_eq!(
        may(&stores, "User", "17").await,
        [
            "Role_3 may WebSocketClient.find delete *",
            "User_17 may WebSocketClient.find read *",
            "User_17 may not WebSocketClient.find create Merchant_42",
        ]
    );
}

/// authorization.md 4.2 and 6.1.
pub(super) async fn people_of_two_kinds_with_one_id_are_two(database: &TestDatabase) {
    let stores = with_rows(
        database,
        &[
            "policy User 17 Permission 1 read - -",
            "policy Staff 17 Permission 1 update - -",
            "group User 17 Role 3 - - Merchant_1",
            "group Staff 17 Role 4 - - Merchant_2",
            "policy Role 3 Permission 1 delete - -",
            "policy Role 4 Permission 1 execute - -",
        ],
    )
    .await;
    assert_eq!(
        may(&stores, "User", "17").await,
        [
            "Role_3 may WebSocketClient.find delete *",
            "User_17 may WebSocketClient.find read *"
        ]
    );
    assert_eq!(
        may(&stores, "Staff", "17").await,
        [
            "Role_4 may WebSocketClient.find execute *",
            "Staff_17 may WebSocketClient.find update *"
        ]
    );
    let policies = &stores.policies;
    let (one, two) = (Domain::Merchant("1".into()), Domain::Merchant("2".into()));
    assert_eq!(
        policies.domains_of("User", "17").await.unwrap(),
        std::slice::from_ref(&one)
    );
    assert_eq!(
        policies.domains_of("Staff", "17").await.unwrap(),
        std::slice::from_ref(&two)
    );
    // Activities are for people of kind User.
    assert_eq!(members(&stores, one).await, ["17"]);
    assert_eq!(members(&stores, two).await, [""; 0]);
    // Nobody speaks for a role.
    assert_eq!(may(&stores, "Role", "3").await, [""; 0]);
}

/// authorization.md 4.5, 4.11, 4.12, 4.13 and 6.1.
pub(super) async fn memberships_have_every_form_and_deleted_rows_none(database: &TestDatabase) {
    let rows = [
        "group User 1 Role 3 - - Merchant_42",
        "group User 2 Role 3 - - 42",
        "group User 3 Merchant 42 - - -",
        "group User 3 Merchant 42 - - ''",
        "join_domain User 4 Merchant 42 - - -",
        "assign_role User 5 Role 3 - - Merchant_42",
        "group User 6 Menu 3 - - Merchant_42",
        "group User 7 Organizer 42 - - -",
        "group Role 8 Role 3 - - Merchant_42",
        "policy User 9 Permission 1 read - Merchant_42",
        "group User 10 Role 3 - - Merchant_42 deleted",
        "join_domain User 11 Merchant 42 - - - deleted",
        "group User 12 Role 3 - - Merchant_42",
        "exclude User 12 Merchant 42 - deny -",
        "group User 13 Role 3 - - Merchant_421",
    ];
    let merchant = || Domain::Merchant("42".into());
    let stores = with_rows(database, &rows).await;
    assert_eq!(members(&stores, merchant()).await, ["1", "3", "4"]);
    let with_kind = settings(|policy| policy.bare_domain_kind = "Merchant".into());
    let bare = database.open_with(&with_kind).await;
    assert_eq!(members(&bare, merchant()).await, ["1", "2", "3", "4"]);
    assert_eq!(members(&bare, Domain::Organizer("42".into())).await, ["7"]);
    // The rooms of a person follow the same rows.
    for (user, is_member, with_kind) in [
        ("1", true, true),
        ("2", false, true),
        ("3", true, true),
        ("4", true, true),
        ("5", false, false),
        ("6", false, false),
        ("7", false, false),
        ("9", false, false),
        ("10", false, false),
        ("11", false, false),
        ("12", false, false),
        ("13", false, false),
    ] {
        for (stores, wanted) in [(&stores, is_member), (&bare, with_kind)] {
            let domains = stores.policies.domains_of("User", user).await.unwrap();
            assert_eq!(domains.contains(&merchant()), wanted, "{user}");
        }
    }
}

/// authorization.md 4.10, 4.11 and 4.13.
pub(super) async fn newer_variants_are_read_and_roles_inherit(database: &TestDatabase) {
    let stores = with_rows(
        database,
        &[
            "assign_role User 17 Role 3 - - -",
            "role_inherits Role 3 Role 4 - - -",
            "role_inherits Role 4 Role 5 - - -",
            "role_inherits Role 5 Role 3 - - -",
            "role_inherits Role 3 Role 6 - - - deleted",
            "grant Role 5 Permission 2 read allow SYSTEM_WIDE",
            "grant Role 6 Permission 2 update allow SYSTEM_WIDE",
            "grant User 17 Permission 2 execute - -",
            "grant User 17 Permission 2 custom deny SYSTEM_WIDE",
            "resource_inherits Permission 2 Permission 3 - - -",
            "resource_inherits Menu 1 Permission 3 - - -",
            "resource_inherits Permission 1 Permission 3 - - - deleted",
            "action_inherits Action read Action manage - - -",
            "action_inherits User read Action manage - - -",
        ],
    )
    .await;
    assert_eq!(
        may(&stores, "User", "17").await,
        [
            "Role_5 may WebSocketClient read *",
            "User_17 may WebSocketClient execute ANY_MEMBER",
            "User_17 may not WebSocketClient * *",
        ]
    );
    let rules = stores.policies.rules_of("User", "17").await.unwrap();
    let mut roles: Vec<String> = rules
        .groups
        .iter()
        .map(|row| format!("{} has {}", row.subject, row.role))
        .collect();
    roles.sort_unstable();
    assert_eq!(
        roles,
        [
            "Role_3 has Role_4",
            "Role_4 has Role_5",
            "Role_5 has Role_3",
            "User_17 has Role_3"
        ]
    );
    assert_eq!(
        stores.policies.hierarchy().await.unwrap(),
        Hierarchy {
            resources: vec![("WebSocketClient".into(), "Edge".into())],
            actions: vec![("read".into(), "manage".into())],
        }
    );
}

/// authorization.md 4.1 and 4.13.
pub(super) async fn tables_and_columns_have_the_names_of_the_settings(database: &TestDatabase) {
    drop(database.open().await);
    let schema = if database.is_postgres() {
        database.execute("CREATE SCHEMA identity").await;
        "identity"
    } else {
        "main"
    };
    let table = format!(r#"{schema}."PolicyDefinition""#);
    database
        .execute(&format!(
            r#"CREATE TABLE {table} (id bigint, "Variant" text, "subjectType" text, "subjectId" text, "targetType" text, "targetId" text, "order" text, effect text,
                domain text, metadata text, "removedAt" timestamp);
            CREATE TABLE {schema}."Permission" (id bigint, "Code" text, "removedAt" timestamp);
            INSERT INTO {schema}."Permission" VALUES (1, 'WebSocketClient.find', NULL)"#
        ))
        .await;
    add(
        database,
        &table,
        &[
            "policy User 17 Permission 1 read - -",
            "policy User 17 Permission 1 update - - deleted",
            "group User 17 Role 3 - - Merchant_42",
        ],
    )
    .await;
    let policy = settings(|policy| {
        policy.tables.policy_definition = format!("{schema}.PolicyDefinition");
        policy.tables.permission = format!("{schema}.Permission");
        let columns = &mut policy.columns;
        columns.variant = "Variant".into();
        columns.subject_type = "subjectType".into();
        columns.subject_id = "subjectId".into();
        columns.target_type = "targetType".into();
        columns.target_id = "targetId".into();
        columns.action = "order".into();
        columns.code = "Code".into();
        columns.deleted_at = "removedAt".into();
    });
    let stores = database.open_with(&policy).await;
    assert_eq!(
        may(&stores, "User", "17").await,
        ["User_17 may WebSocketClient.find read *"]
    );
    assert_eq!(
        members(&stores, Domain::Merchant("42".into())).await,
        ["17"]
    );
    let survey = stores.policies.survey().await.unwrap();
    assert_eq!((survey.deleted, survey.unread_rows()), (Some(1), 0));
    assert!(stores.policies.hierarchy().await.is_ok());
}

/// authorization.md 4.13.
pub(super) async fn a_column_that_is_missing_is_named_and_found_when_it_is_there(
    database: &TestDatabase,
) {
    let policy = settings(|policy| policy.columns.deleted_at = "gone".into());
    let stores = database.open_with(&policy).await;
    let problem = async || match stores.policies.rules_of("User", "17").await {
        Err(StoreError::Unavailable { source }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    let missing = problem().await;
    assert!(
        missing.contains("policy_definition does not exist"),
        "{missing}"
    );
    database.execute(TABLES).await;
    let missing = problem().await;
    assert!(
        missing.contains("policy_definition has no column gone"),
        "{missing}"
    );
    for table in ["policy_definition", "permission"] {
        database
            .execute(&format!("ALTER TABLE {table} ADD COLUMN gone timestamp"))
            .await;
    }
    assert_eq!(may(&stores, "User", "17").await, [""; 0]);
}

/// authorization.md 4.12.
pub(super) async fn a_survey_counts_what_is_not_understood(database: &TestDatabase) {
    let stores = with_rows(
        database,
        &[
            "policy User 17 Permission 1 read - -",
            "policy User 18 Permission 1 read - Merchant_42",
            "policy User 17 Menu 1 read - -",
            "policy User 17 Permission 1 read - 42",
            "policy User 18 Permission 1 read - 43",
            "policy User 18 Permission 1 read deny 43",
            "policy User 18 Permission 4 read - -",
            "policy User 18 Permission 1 read Allow -",
            "group User 18 Merchant 42 - - Merchant_42",
            "group User 18 Merchant 42 - - Organizer_42",
            "grant User 18 Permission 1 custom - -",
            "delegate User 18 Permission 1 read deny -",
            "delegate User 18 Permission 1 read deny - deleted",
            "- User 18 Permission 1 read - -",
        ],
    )
    .await;
    let survey = stores.policies.survey().await.unwrap();
    let variants: Vec<(&str, u64)> = survey
        .variants
        .iter()
        .map(|(variant, count)| (variant.as_str(), *count))
        .collect();
    assert_eq!(
        variants,
        [
            ("", 1),
            ("delegate", 1),
            ("grant", 1),
            ("group", 2),
            ("policy", 8)
        ]
    );
    assert_eq!((survey.deleted, survey.incomplete), (Some(1), false));
    let mut unread: Vec<String> = survey
        .unread
        .iter()
        .map(|unread| {
            let denies = if unread.denies { " denies" } else { "" };
            format!(
                "{} {} {}{denies}",
                unread.variant,
                unread.why.as_str(),
                unread.count
            )
        })
        .collect();
    unread.sort_unstable();
    assert_eq!(
        unread,
        [
            " variant 1",
            "delegate variant 1 denies",
            "grant custom 1",
            "group domain 1",
            "policy domain 1 denies",
            "policy domain 2",
            "policy effect 1",
            "policy permission 1",
        ]
    );
    let bare = survey
        .unread
        .iter()
        .find(|unread| unread.why == Misread::Domain && unread.count == 2);
    assert_eq!(bare.unwrap().example.as_deref(), Some("104"));
    assert_eq!(survey.unread_rows(), 9);
}
