//! How PostgreSQL answers among many rows: by indexes, and in a few milliseconds, whether it plans for the values or in general.

use super::*;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

/// Rows of the inbox that is looked at.
const LARGE: i64 = 100_000;
/// Rows of every other inbox.
const SMALL: i64 = 100;
/// Most time of a question.
const LIMIT_MS: f64 = 5.0;

/// Fills the tables: one inbox of [`LARGE`] rows, all unread, and others, an event for every row of the large one.
fn fill(rows: i64) -> String {
    let others = (rows - LARGE) / SMALL;
    format!(
        "INSERT INTO signal_event (source, event_id) SELECT 'test', n::text FROM generate_series(1, {LARGE}) n;
        INSERT INTO signal_text (event, text, kind, title, content, locale, data, created_at)
        SELECT n, n, 'K' || n % 500, 'title', repeat('content ', 20), 'vi', '{{}}', timestamptz '2027-01-01' + n * interval '1 second' FROM generate_series(1, {LARGE}) n;
        INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version) VALUES ('large', {LARGE}, {LARGE}, {LARGE});
        INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version) SELECT 'p' || n, {SMALL}, {SMALL}, {SMALL} FROM generate_series(1, {others}) n;
        INSERT INTO signal_notification (inbox, seq, event, kind, text) SELECT 1, n, n, n % 500, n FROM generate_series(1, {LARGE}) n;
        INSERT INTO signal_notification (inbox, seq, event, kind, text)
        SELECT p + 1, n, e, e % 500, e FROM (SELECT p, n, (p * {SMALL} + n * 997) % {LARGE} + 1 AS e FROM generate_series(1, {others}) p, generate_series(1, {SMALL}) n) AS rows;
        INSERT INTO signal_mark (inbox, seq, read_at) SELECT n, 0, now() FROM generate_series(2, {others}) n;
        ANALYZE signal_event, signal_text, signal_inbox, signal_notification, signal_mark, signal_tombstone;"
    )
}

/// A statement with the types and values of its parameters.
struct Question {
    name: &'static str,
    sql: &'static str,
    types: &'static str,
    values: String,
}

fn page(name: &'static str, is_read: Option<bool>, kind: Option<&str>) -> Question {
    let filter = Filter {
        is_read,
        kind: kind.map(Into::into),
    };
    Question {
        name,
        sql: sql::list(&filter),
        types: "text, bigint, bigint, text, bigint",
        values: format!("'large', {}, 51, 'K7', 7", i64::MAX),
    }
}

fn questions() -> Vec<Question> {
    let question = |name, sql, types, values: &str| Question {
        name,
        sql,
        types,
        values: values.to_owned(),
    };
    vec![
        page("first page", None, None),
        page("first unread page", Some(false), None),
        page("first read page", Some(true), None),
        page("first page of a type", None, Some("K7")),
        page("first unread page of a type", Some(false), Some("K7")),
        page("first read page of a type", Some(true), Some("K7")),
        question("unread count", sql::COUNTS, "text", "'large'"),
        question(
            "sync",
            sql::MISSED,
            "text, bigint, bigint",
            "'large', 50000, 201",
        ),
        question(
            "sync of what is new",
            sql::MISSED,
            "text, bigint, bigint",
            "'large', 99990, 201",
        ),
        question("one", sql::GET, "text, bigint", "'large', 50000"),
    ]
}

/// What marking everything as read runs; each of them is rolled back.
fn mark_all() -> Vec<Question> {
    let question = |name, sql, types, values: &str| Question {
        name,
        sql,
        types,
        values: values.to_owned(),
    };
    vec![
        question("lock", sql::LOCK, "text", "'large'"),
        question(
            "newest unread",
            sql::UNREAD,
            "bigint, bigint, bigint, bigint",
            "1, 0, 100000, 1000",
        ),
        question(
            "mark",
            sql::MARK,
            "bigint, bigint, timestamptz",
            "1, 100000, now()",
        ),
        question(
            "change",
            sql::CHANGED,
            "bigint, bigint, bigint",
            "1, 100000, 100000",
        ),
    ]
}

/// The plan, and the least time of some runs in milliseconds.
async fn explain(connection: &mut PgConnection, question: &Question) -> (String, f64) {
    let Question {
        sql, types, values, ..
    } = question;
    let prepare = format!("DEALLOCATE ALL; PREPARE question ({types}) AS {sql}");
    sqlx::raw_sql(AssertSqlSafe(prepare))
        .execute(&mut *connection)
        .await
        .unwrap();
    let run = format!("EXPLAIN (ANALYZE, BUFFERS) EXECUTE question ({values})");
    let mut least = f64::MAX;
    let mut plan = String::new();
    for _ in 0..10 {
        sqlx::raw_sql("BEGIN")
            .execute(&mut *connection)
            .await
            .unwrap();
        let rows = sqlx::raw_sql(AssertSqlSafe(run.as_str()))
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut *connection)
            .await
            .unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let time = |name: &str| -> f64 {
            let line = lines
                .iter()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.trim().trim_end_matches(" ms").parse().unwrap()
        };
        least = least.min(time("Execution Time:"));
        plan = lines.join("\n");
    }
    (plan, least)
}

async fn plans_hold(test: &str, rows: i64) {
    let Some(database) = TestDatabase::postgres(test).await else {
        return;
    };
    database.open().await.close().await;
    let mut url = url::Url::parse(database.url().expose()).unwrap();
    url.set_query(None);
    let options: sqlx::postgres::PgConnectOptions = url.as_str().parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    let begun = Instant::now();
    sqlx::raw_sql(AssertSqlSafe(fill(rows)))
        .execute(&mut connection)
        .await
        .unwrap();
    println!("{rows} rows in {:.0} s", begun.elapsed().as_secs_f64());
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let set = format!("SET plan_cache_mode = {mode}");
        sqlx::raw_sql(AssertSqlSafe(set))
            .execute(&mut connection)
            .await
            .unwrap();
        let mut slow = Vec::new();
        for question in questions() {
            let (plan, ms) = explain(&mut connection, &question).await;
            println!("{mode}: {}: {ms:.2} ms", question.name);
            assert_scans_nothing(&question, &plan);
            if ms > LIMIT_MS {
                slow.push(format!("{}: {ms} ms\n{plan}", question.name));
            }
        }
        let mut all = 0.0;
        for question in mark_all() {
            let (plan, ms) = explain(&mut connection, &question).await;
            assert_scans_nothing(&question, &plan);
            all += ms;
        }
        println!("{mode}: mark all: {all:.2} ms");
        assert!(
            slow.is_empty() && all <= LIMIT_MS,
            "mark all {all} ms, {slow:#?}"
        );
    }
}

fn assert_scans_nothing(question: &Question, plan: &str) {
    // The epoch is one row.
    let scans = plan.lines().any(|line| {
        line.contains("Bitmap") || line.contains("Seq Scan") && !line.contains("signal_epoch")
    });
    assert!(!scans, "{}: {plan}", question.name);
}

#[tokio::test]
async fn among_a_million_rows_no_question_scans_and_each_takes_less_than_5_ms() {
    plans_hold("among_a_million_rows", 1_000_000).await;
}

/// `cargo test -p signal-gateway --lib -- --ignored hundred_million --nocapture`; needs 20 GB of disk.
#[tokio::test]
#[ignore = "a hundred million rows take 20 minutes"]
async fn among_a_hundred_million_rows_no_question_scans_and_each_takes_less_than_5_ms() {
    plans_hold("among_a_hundred_million_rows", 100_000_000).await;
}
