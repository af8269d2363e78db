use super::*;

fn options(arguments: &[&str]) -> Options {
    #[derive(clap::Parser)]
    struct Whole {
        #[command(flatten)]
        dev: Arguments,
    }
    let whole = <Whole as clap::Parser>::try_parse_from([&["dev"], arguments].concat()).unwrap();
    whole.dev.split().ok().unwrap()
}

#[test]
fn addresses_that_other_machines_can_reach_must_be_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for argument in ["--public", "--admin"] {
        let options = options(&["--data-dir", data.to_str().unwrap(), argument, "0.0.0.0:0"]);
        let error = options
            .prepare(std::iter::empty())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.starts_with(argument) && error.contains("--allow-non-loopback"),
            "{error}"
        );
        assert!(!data.exists(), "nothing is written");
    }
    let any = |public: &str| {
        [
            "--public",
            public,
            "--admin",
            "[::1]:0",
            "--kafka-port",
            "0",
            "--issuer-port",
            "0",
        ]
        .map(str::to_owned)
    };
    for (public, allow) in [("127.0.0.1:0", false), ("0.0.0.0:0", true)] {
        let mut arguments = vec!["--data-dir".to_owned(), data.display().to_string()];
        arguments.extend(any(public));
        arguments.extend(allow.then(|| "--allow-non-loopback".to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let prepared = options(&arguments).prepare(std::iter::empty()).unwrap();
        assert!(
            prepared.addresses.rest.starts_with("http://127.0.0.1:"),
            "{}",
            prepared.addresses.rest
        );
    }
}

#[tokio::test]
async fn rows_that_are_deleted_from_the_platform_stay_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    seed(&folder).await.unwrap();
    let url = settings::platform(&folder).unwrap();
    let pool = sqlx::SqlitePool::connect(url.expose()).await.unwrap();
    let count = || {
        sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM policy_definition WHERE subject_id = '18'",
        )
        .fetch_one(&pool)
    };
    assert_eq!(count().await.unwrap(), 2);
    sqlx::query("DELETE FROM policy_definition WHERE subject_id = '18'")
        .execute(&pool)
        .await
        .unwrap();
    seed(&folder).await.unwrap();
    assert_eq!(count().await.unwrap(), 0);
}
