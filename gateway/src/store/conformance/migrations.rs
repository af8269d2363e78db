//! Migrating: several instances at once, a schema that is ahead or behind.

use super::*;

pub(super) async fn instances_migrate_together_and_a_later_schema_is_accepted(
    database: &TestDatabase,
) {
    let mut starts = JoinSet::new();
    for _ in 0..5 {
        let settings = database.settings.clone();
        starts.spawn(async move { migrate(&settings).await.unwrap() });
    }
    let done = starts.join_all().await;
    assert_eq!(
        done.iter().filter(|m| !m.applied.is_empty()).count(),
        1,
        "{done:?}"
    );
    assert!(
        done.iter()
            .all(|m| m.version == done[0].version && m.version >= 1)
    );

    let store = database.open().await.notifications;
    assert_eq!(store.version().await.unwrap(), Some(done[0].version));

    // What the next release will have applied.
    database
        .execute(
            "ALTER TABLE signal_notification ADD COLUMN later text;
             INSERT INTO signal_migration (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)",
        )
        .await;
    assert_eq!(
        store.version().await.unwrap(),
        Some(9999),
        "a store that is open already reports it as well"
    );
    database
        .execute("UPDATE signal_migration SET success = false WHERE version = 9999")
        .await;
    assert_eq!(
        store.version().await.unwrap(),
        Some(done[0].version),
        "what failed half-way does not count"
    );
    database
        .execute("UPDATE signal_migration SET success = true WHERE version = 9999")
        .await;
    let store = database.open().await.notifications;
    store
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();
    assert_eq!(all(&*store, "x").await.len(), 1);
    assert_eq!(
        migrate(&database.settings).await.unwrap(),
        Migrated {
            applied: vec![],
            version: 9999
        }
    );
    let settings = config_without_migrations(database);
    open(
        &settings,
        &Config::for_tests().policy,
        CancellationToken::new(),
    )
    .await
    .unwrap();
}

fn config_without_migrations(database: &TestDatabase) -> crate::config::Database {
    let mut settings = database.settings.clone();
    settings.migrate = false;
    settings
}

pub(super) async fn missing_and_changed_migrations_are_named(database: &TestDatabase) {
    let settings = config_without_migrations(database);
    let open = async |settings| {
        super::open(
            &settings,
            &Config::for_tests().policy,
            CancellationToken::new(),
        )
        .await
        .map(drop)
    };
    let behind = open(settings.clone()).await;
    assert!(
        matches!(&behind, Err(OpenError::Behind(missing)) if missing.contains(&1)),
        "{behind:?}"
    );
    migrate(&database.settings).await.unwrap();
    open(settings.clone()).await.unwrap();
    database
        .execute("UPDATE signal_migration SET checksum = '' WHERE version = 1")
        .await;
    for settings in [settings, database.settings.clone()] {
        let changed = open(settings).await;
        assert!(matches!(changed, Err(OpenError::Changed(1))), "{changed:?}");
    }
    let wrong = crate::config::Database {
        url: Secret::new("mysql://u:hunter2@h/d"),
        ..database.settings.clone()
    };
    let wrong = open(wrong).await.unwrap_err();
    assert!(
        matches!(wrong, OpenError::Setting { .. }) && !wrong.to_string().contains("hunter2"),
        "{wrong}"
    );
}
