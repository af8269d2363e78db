//! Policies in tables of another system.

use super::*;

fn platform() -> Platform {
    let mut definitions = vec![
        PolicyDefinition::member("17", "3", Some("Merchant_42")),
        PolicyDefinition::member("17", "4", None),
        PolicyDefinition::member("18", "3", Some("Merchant_42")),
        PolicyDefinition::member("18", "3", Some("Organizer_7")),
        PolicyDefinition::member("19", "3", Some("Merchant_421")),
        PolicyDefinition::may("3", "100", "read", Some("Merchant_42")),
        PolicyDefinition::may("4", "101", "execute", None),
        PolicyDefinition::may("5", "100", "delete", None),
        PolicyDefinition::may("3", "999", "read", None),
    ];
    let own = PolicyDefinition {
        subject: ("User", "17".into()),
        effect: Some("deny".into()),
        ..PolicyDefinition::may("", "100", "update", None)
    };
    let no_action = PolicyDefinition {
        id: "none".into(),
        action: None,
        ..PolicyDefinition::may("3", "100", "", None)
    };
    // A second role in the same domain does not make the user two recipients, and a role is no user.
    let second = PolicyDefinition::member("17", "5000", Some("Merchant_42"));
    let a_role = PolicyDefinition {
        id: "role".into(),
        subject: ("Role", "21".into()),
        ..PolicyDefinition::member("", "3", Some("Merchant_42"))
    };
    definitions.extend([own, no_action, second, a_role]);
    Platform {
        permissions: vec![
            ("100".into(), "WebSocketClient.find".into()),
            ("101".into(), "WebSocketClient.send".into()),
        ],
        roles: vec![
            ("3".into(), "cashier".into()),
            ("4".into(), "sender".into()),
        ],
        definitions,
    }
}

/// authorization.md 4.2, 4.3, 4.4 and 6.1.
async fn assert_policies(policies: &dyn PolicyStore) {
    let merchant = Domain::Merchant("42".into());
    let organizer = Domain::Organizer("7".into());
    let nobody = Domain::Merchant("1'--".into());
    let users = policies
        .users_in(&[
            merchant.clone(),
            nobody,
            organizer.clone(),
            merchant.clone(),
        ])
        .await
        .unwrap();
    let want: HashMap<Domain, Arc<[String]>> = HashMap::from([
        (merchant, Arc::from(["17".to_owned(), "18".to_owned()])),
        (organizer, Arc::from(["18".to_owned()])),
    ]);
    assert_eq!(users, want);
    assert!(policies.users_in(&[]).await.unwrap().is_empty());
    assert_eq!(
        policies.domains_of("User", "18").await.unwrap(),
        [Domain::Merchant("42".into()), Domain::Organizer("7".into())]
    );
    assert!(policies.domains_of("User", "1").await.unwrap().is_empty());

    let Rules {
        policies: mut rules,
        mut groups,
    } = policies.rules_of("User", "17").await.unwrap();
    rules.sort_by(|a, b| a.subject.cmp(&b.subject));
    groups.sort_by(|a, b| a.role.cmp(&b.role));
    let rule = |subject: &str, domain: Option<&str>, code: &str, action: &str, allow| PolicyRow {
        subject: subject.into(),
        domain: domain.map(Into::into),
        target: Target::Code(code.into()),
        action: Some(action.into()),
        allow,
    };
    assert_eq!(
        rules,
        [
            rule(
                "Role_3",
                Some("Merchant_42"),
                "WebSocketClient.find",
                "read",
                true
            ),
            rule("Role_4", None, "WebSocketClient.send", "execute", true),
            rule("User_17", None, "WebSocketClient.find", "update", false),
        ]
    );
    let group = |role: &str, domain: Option<&str>| GroupRow {
        subject: "User_17".into(),
        role: role.into(),
        domain: domain.map(Into::into),
    };
    assert_eq!(
        groups,
        [
            group("Role_3", Some("Merchant_42")),
            group("Role_4", None),
            group("Role_5000", Some("Merchant_42"))
        ]
    );
    let nobody = policies.rules_of("User", "nobody").await.unwrap();
    assert_eq!(nobody, Rules::default());
    for refused in [
        policies
            .users_in(&[Domain::Merchant("\0".into())])
            .await
            .map(drop),
        policies.domains_of("User", "\0").await.map(drop),
        policies.rules_of("User", "\0").await.map(drop),
    ] {
        assert!(matches!(refused, Err(StoreError::Refused { .. })));
    }
}

/// authorization.md 4.1.
pub(super) async fn policies_are_read_with_text_ids(database: &TestDatabase) {
    let policies = database.open().await.policies;
    // Without the tables it is the deployment that is at fault, not the question.
    assert!(matches!(
        policies.rules_of("User", "17").await,
        Err(StoreError::Unavailable { .. })
    ));
    for _ in 0..2 {
        platform::seed(database.url(), &platform()).await.unwrap();
    }
    assert_policies(&*policies).await;
}

/// authorization.md 4.1.
pub(super) async fn policies_are_read_with_number_ids(database: &TestDatabase) {
    let policies = database.open().await.policies;
    database
        .execute(
            "CREATE TABLE policy_definition (
                id varchar(64) NOT NULL PRIMARY KEY, variant varchar(16) NOT NULL, subject_type varchar(16) NOT NULL, subject_id bigint NOT NULL,
                target_type varchar(16) NOT NULL, target_id integer NOT NULL, action varchar(16), effect varchar(16), domain varchar(64));
             CREATE TABLE permission (id integer NOT NULL PRIMARY KEY, code varchar(64) NOT NULL);",
        )
        .await;
    for row in platform().definitions {
        let text = |text: &Option<String>| {
            text.as_ref()
                .map_or("NULL".to_owned(), |text| format!("'{text}'"))
        };
        let (subject, target) = (row.subject, row.target);
        let (action, effect, domain) = (text(&row.action), text(&row.effect), text(&row.domain));
        let values = format!(
            "'{}', '{}', '{}', {}, '{}', {}, {action}, {effect}, {domain}",
            row.id, row.variant, subject.0, subject.1, target.0, target.1
        );
        database
            .execute(&format!("INSERT INTO policy_definition VALUES ({values})"))
            .await;
    }
    for (id, code) in platform().permissions {
        database
            .execute(&format!("INSERT INTO permission VALUES ({id}, '{code}')"))
            .await;
    }
    assert_policies(&*policies).await;
}

pub(super) async fn policies_may_live_in_another_database(database: &TestDatabase) {
    // The other kind where there is one, so that nothing is shared by accident.
    let other = TestDatabase::sqlite();
    platform::seed(other.url(), &platform()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    std::fs::write(&file, format!("{}\n", other.url().expose())).unwrap();
    let mut policy = Config::for_tests().policy;
    policy.url_file = SecretFile::new(&file);
    let shutdown = CancellationToken::new();
    let stores = open(&database.settings, &policy, shutdown.clone())
        .await
        .unwrap();
    assert_policies(&*stores.policies).await;
    stores
        .notifications
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();
    assert_eq!(
        other
            .number("SELECT count(*) FROM sqlite_master WHERE name LIKE 'signal%'")
            .await,
        0
    );
    assert_eq!(stores.tasks.len(), 1);
    shutdown.cancel();
    for task in stores.tasks {
        task.await.unwrap();
    }
}
