use super::*;
use crate::activity::testing;
use std::time::Duration;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn broken(files: &[(&str, &str)]) -> CatalogError {
    let dir = folder(files);
    match Catalogs::load(dir.path(), "vi") {
        Ok(_) => panic!("{files:?} was taken"),
        Err(error) => CatalogError {
            at: error.at.replace(&dir.path().display().to_string(), ""),
            ..error
        },
    }
}

fn title(catalogs: &Catalogs, kind: &str, locale: &str) -> Option<String> {
    catalogs
        .render(&testing::activity(&format!(
            r#"{{"type":"{kind}","locale":"{locale}"}}"#
        )))
        .ok()
        .map(|text| text.title)
}

#[test]
fn a_folder_adds_types_and_locales_and_replaces_what_ships() {
    let dir = folder(&[
        (
            "en/a.ftl",
            "-brand = Signal\nWELCOME =\n .title = Welcome to { -brand }\n .content = { shared }\nshared = Hello",
        ),
        (
            "en/payments.ftl",
            "PAYMENT_SUCCESS =\n .title = Paid\n .content = Thank you",
        ),
        (
            "de/a.ftl",
            "WELCOME =\n .title = Willkommen\n .content = Hallo",
        ),
        ("README.md", "not a catalog"),
        ("en/notes.txt", "neither"),
        ("..data/x/y.ftl", "broken"),
    ]);
    let catalogs = Catalogs::load(dir.path(), "vi").unwrap();
    assert_eq!(catalogs.locales(), ["de", "en", "vi"]);
    assert_eq!(
        title(&catalogs, "WELCOME", "en").as_deref(),
        Some("Welcome to Signal")
    );
    assert_eq!(
        title(&catalogs, "WELCOME", "de-AT").as_deref(),
        Some("Willkommen")
    );
    assert_eq!(
        title(&catalogs, "PAYMENT_SUCCESS", "en").as_deref(),
        Some("Paid")
    );
    assert_ne!(
        catalogs.revision(),
        Catalogs::load(Path::new(""), "vi").unwrap().revision()
    );
}

#[test]
fn a_broken_catalog_is_refused_with_its_file_and_line() {
    let error = broken(&[(
        "vi/a.ftl",
        "# fine\nOK =\n .title = a\n .content = b\n\nBROKEN { oops\n",
    )]);
    assert_eq!(
        (error.at.as_str(), error.line),
        ("/vi/a.ftl", Some(6)),
        "{error}"
    );
    for (text, line, word) in [
        ("A =\n .title = only", 1, ".title and .content"),
        (
            "\nA =\n .title = a\n .content = b\n .contnet = c",
            2,
            "nothing else",
        ),
        ("A =\n .title = { -none }\n .content = b", 1, "-none"),
        ("A =\n .title = { other }\n .content = b", 1, "other"),
        (
            "A =\n .title = { $n ->\n   *[other] { A.none }\n }\n .content = b",
            1,
            "A.none",
        ),
        ("A =\n .title = { PLURAL($n) }\n .content = b", 1, "PLURAL"),
        ("A =\n .title = { \"\\u0000\" }\n .content = b", 1, "U+0000"),
        (
            "A =\n .title = a\n .content = b\n\nA =\n .title = a\n .content = b",
            1,
            "already",
        ),
    ] {
        let error = broken(&[("en/a.ftl", text)]);
        assert_eq!(
            (error.at.as_str(), error.line),
            ("/en/a.ftl", Some(line)),
            "{error}"
        );
        assert!(error.problem.contains(word), "{error}");
    }
    let twice = "A =\n .title = a\n .content = b";
    assert_eq!(
        broken(&[("en/a.ftl", twice), ("en/b.ftl", twice)]).at,
        "/en/b.ftl"
    );
    assert_eq!(
        broken(&[("not a locale!/a.ftl", twice)]).at,
        "/not a locale!"
    );
}

/// protocol.md 12.4.
#[test]
fn an_option_that_cannot_be_honoured_is_refused_with_its_place() {
    for (call, problem) in [
        (
            "NUMBER($n, style: \"unit\")",
            "option style of NUMBER is \"unit\"; it may be decimal, percent, currency",
        ),
        (
            "NUMBER($n, style: \"currency\")",
            "option currency of NUMBER is missing; style is currency",
        ),
        (
            "NUMBER($n, style: \"currency\", currency: \"DONG\")",
            "option currency of NUMBER is \"DONG\", which is no code such as VND",
        ),
        (
            "NUMBER($n, maximumFractionDigits: 101)",
            "option maximumFractionDigits of NUMBER is \"101\"; it may be a number from 0 to 100",
        ),
        (
            "NUMBER($n, minimumFractionDigits: 3, maximumFractionDigits: 2)",
            "option minimumFractionDigits of NUMBER is greater than maximumFractionDigits",
        ),
        (
            "NUMBER($n, notation: \"compact\")",
            "option notation of NUMBER is not supported",
        ),
        (
            "NUMBER($n, fractionDigits: 2)",
            "option fractionDigits of NUMBER is not supported",
        ),
        (
            "NUMBER($n, useGrouping: \"always\")",
            "option useGrouping of NUMBER is \"always\"; it may be true, auto, false, min2",
        ),
        (
            "NUMBER(\"5\")",
            "calls NUMBER with something other than one variable",
        ),
        (
            "DATETIME($n, timeZone: \"Mars/Base\", dateStyle: \"long\")",
            "option timeZone of DATETIME is \"Mars/Base\", which is no zone such as Asia/Ho_Chi_Minh",
        ),
        (
            "DATETIME($n, dateStyle: \"long\", month: \"long\")",
            "option month of DATETIME is not supported",
        ),
        (
            "DATETIME($n)",
            "DATETIME needs dateStyle, timeStyle, or the parts that it writes",
        ),
        (
            "$n ->\n   *[other] { NUMBER($n, compactDisplay: \"long\") }\n",
            "option compactDisplay of NUMBER is not supported",
        ),
        (
            "NUMBER($n, style: \"percent\") ->\n   *[other] b\n",
            "option style of NUMBER is not supported in a selector",
        ),
        (
            "DATETIME($n, dateStyle: \"long\") ->\n   *[other] b\n",
            "selects by DATETIME, which makes texts only",
        ),
    ] {
        let text = format!(
            "# A comment\nOTHER =\n .title = a\n .content = b\nPAID =\n .title = a\n .content = {{ {call} }}\n"
        );
        let error = broken(&[("vi/a.ftl", &text)]);
        assert_eq!(
            (error.at.as_str(), error.line),
            ("/vi/a.ftl", Some(5)),
            "{error}"
        );
        assert!(error.problem.contains(problem), "{error}\n{problem}");
    }
}

#[test]
fn a_message_may_have_the_name_of_a_call() {
    let dir = folder(&[(
        "en/a.ftl",
        "CALL-0 =\n .title = { $actorId ->\n    [1] one\n   *[other] { NUMBER(2) }\n }\n .content = b",
    )]);
    let catalogs = Catalogs::load(dir.path(), "vi").unwrap();
    let activity = r#"{"type":"CALL-0","locale":"en","actorId":17}"#;
    let text = catalogs.render(&testing::activity(activity)).unwrap();
    assert_eq!(text.title, "2");
}

#[test]
fn a_folder_that_is_not_there_and_a_default_locale_without_a_catalog_are_refused() {
    assert!(Catalogs::load(Path::new("/does/not/exist"), "vi").is_err());
    let Err(error) = Catalogs::load(Path::new(""), "fr") else {
        panic!("there is no French catalog")
    };
    assert_eq!(error.at, "notifications.default_locale");
    for good in ["vi", "vi-VN", "en", "en-GB"] {
        assert!(Catalogs::load(Path::new(""), good).is_ok(), "{good}");
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

#[tokio::test]
async fn a_changed_folder_is_reloaded_and_a_broken_change_leaves_what_was() {
    let welcome = |title: &str| format!("WELCOME =\n .title = {title}\n .content = c");
    let dir = folder(&[("en/a.ftl", &welcome("One"))]);
    let catalogs = Arc::new(Catalogs::load(dir.path(), "vi").unwrap());
    let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
    let watching = tokio::spawn(catalogs.clone().watch_every(
        dir.path().to_owned(),
        Duration::from_millis(10),
        metrics.clone(),
        shutdown.clone(),
    ));
    let file = dir.path().join("en/a.ftl");
    std::fs::write(&file, welcome("Two")).unwrap();
    until("the change is seen", || {
        title(&catalogs, "WELCOME", "en").as_deref() == Some("Two")
    })
    .await;
    let revision = catalogs.revision();
    std::fs::write(&file, "WELCOME {").unwrap();
    let errors = metrics
        .config_reloads
        .get_or_create(&Metrics::kind("catalog_error"))
        .clone();
    until("the broken change is counted", || errors.get() == 1).await;
    assert_eq!(
        (
            title(&catalogs, "WELCOME", "en").as_deref(),
            catalogs.revision()
        ),
        (Some("Two"), revision)
    );
    std::fs::write(&file, welcome("Three")).unwrap();
    until("the mended one is seen", || {
        title(&catalogs, "WELCOME", "en").as_deref() == Some("Three")
    })
    .await;
    shutdown.cancel();
    watching.await.unwrap();
}

#[test]
fn every_type_that_ships_has_texts_in_every_language() {
    let types = |text: &str| -> Vec<String> {
        let messages = text.lines().filter_map(|line| line.strip_suffix(" ="));
        messages
            .filter(|name| !name.starts_with(['#', ' ']))
            .map(str::to_owned)
            .collect()
    };
    let all = BUILT_IN.map(|(_, _, text)| types(text));
    assert!(!all[0].is_empty());
    assert!(all.iter().all(|types| *types == all[0]), "{all:?}");
}
