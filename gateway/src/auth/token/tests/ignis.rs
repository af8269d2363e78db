//! Tokens of services built on `@venizia/ignis`. `fixture/ignis.json` was made by that library itself.

use std::path::PathBuf;

use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};

use super::*;
use crate::config::{SecretFile, SourcePreset};

fn made_by_the_library() -> Value {
    serde_json::from_str(include_str!("../../fixture/ignis.json")).unwrap()
}

fn secret_file(dir: &tempfile::TempDir, secret: &str) -> SecretFile {
    let path: PathBuf = dir.path().join("secret");
    std::fs::write(&path, secret).unwrap();
    SecretFile::new(path)
}

/// A source of the preset that names nothing else, with the library's keys or another's.
async fn ignis(issuer: &Issuer, secret: SecretFile) -> Rig {
    let mut main = source("main", issuer);
    main.preset = SourcePreset::Ignis;
    (main.issuer, main.audiences) = (String::new(), vec![]);
    main.trust_roles = true;
    main.application_secret_file = secret;
    Rig::start(vec![main]).await
}

async fn library_keys() -> (Issuer, Value) {
    let made = made_by_the_library();
    let issuer = Issuer::start(&[]).await;
    issuer.answer(200, made["jwks"].to_string());
    (issuer, made)
}

fn token<'v>(made: &'v Value, name: &str) -> &'v str {
    made[name].as_str().unwrap()
}

/// authorization.md 1.9, 1.14 and 2.12.
#[tokio::test]
async fn tokens_of_the_framework_are_read_in_clear_and_encrypted() {
    let (issuer, made) = library_keys().await;
    let dir = tempfile::tempdir().unwrap();
    for (name, user) in [("clear", "17"), ("short", "17"), ("long", "u-17")] {
        let secret = match made["secrets"][name].as_str() {
            // Editors end a file with a line feed.
            Some(secret) => secret_file(&dir, &format!("{secret}\n")),
            None => SecretFile::default(),
        };
        let rig = ignis(&issuer, secret).await;
        let principal = rig.verify(token(&made, name)).await.unwrap();
        assert_eq!(&*principal.subject, user, "{name}: not its `sub`");
        assert_eq!(&*principal.kind, "Staff");
        assert_eq!(*principal.roles, ["999_super-admin", "clerk"]);
        assert_eq!(
            facts(&principal).expires_at.unwrap().timestamp(),
            NOW + 3600
        );
        rig.clock.advance_ms(3_630_000);
        assert_eq!(
            rig.verify(token(&made, name)).await,
            refused(TokenFault::Expired)
        );
    }
}

/// authorization.md 1.14.
#[tokio::test]
async fn a_wrong_secret_is_a_refused_token() {
    let (issuer, made) = library_keys().await;
    let dir = tempfile::tempdir().unwrap();
    for (name, secret) in [
        ("short", "Application"),
        ("short", "application1"),
        ("short", "0"),
        ("long", "application"),
        // A source that expects encryption takes nothing in clear.
        ("clear", "application"),
    ] {
        let rig = ignis(&issuer, secret_file(&dir, secret)).await;
        assert_eq!(
            rig.verify(token(&made, name)).await,
            refused(TokenFault::Malformed),
            "{name} with {secret}"
        );
    }
    // And one that expects none finds nobody, unless it looks into `sub`, which is clear.
    let rig = ignis(&issuer, SecretFile::default()).await;
    rig.change(|live| live.jwks.sources[0].subject_claims = vec!["userId".into()]);
    crate::auth::fixture::until(|| {
        let table = rig.auth.inner.sets.table();
        table.sources[0].source.subject_claims.len() == 1
    })
    .await;
    assert_eq!(
        rig.verify(token(&made, "short")).await,
        refused(TokenFault::Subject)
    );
}

/// authorization.md 1.11 and 1.14.
#[tokio::test]
async fn the_signature_comes_before_the_payload() {
    let (issuer, made) = library_keys().await;
    let dir = tempfile::tempdir().unwrap();
    let rig = ignis(&issuer, secret_file(&dir, "application")).await;
    let good = token(&made, "short");
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (_, other) = token(&made, "long").rsplit_once('.').unwrap();
    for token in [
        format!("{message}.{other}"),
        format!("{message}.{}A", &signature[..signature.len() - 1]),
    ] {
        let outcome = rig.verify(&token).await;
        assert!(
            matches!(
                outcome,
                Err(VerifyError::Refused(
                    TokenFault::Signature | TokenFault::Malformed
                ))
            ),
            "{outcome:?}"
        );
    }
    rig.verify(good).await.unwrap();
}

/// authorization.md 1.14 and 2.12.
#[tokio::test]
async fn another_secret_in_the_file_counts_from_then_on() {
    let (issuer, made) = library_keys().await;
    let dir = tempfile::tempdir().unwrap();
    let file = secret_file(&dir, "application");
    let rig = ignis(&issuer, file).await;
    rig.verify(token(&made, "short")).await.unwrap();
    secret_file(&dir, made["secrets"]["long"].as_str().unwrap());
    // As the watcher of files does: the same settings come again.
    rig.change(|_| {});
    crate::auth::fixture::until(|| rig.auth.verify_cached(token(&made, "short")).is_none()).await;
    assert_eq!(
        rig.verify(token(&made, "short")).await,
        refused(TokenFault::Malformed),
        "a remembered token is opened again"
    );
    rig.verify(token(&made, "long")).await.unwrap();
    // A file that cannot be used keeps the last good secret, and is reported.
    for bad in ["", "mật khẩu"] {
        secret_file(&dir, bad);
        rig.change(|_| {});
        crate::auth::fixture::until(|| {
            let error = rig.auth.status()[0].error.clone();
            error.is_some_and(|why| why.starts_with("the application secret cannot be used"))
        })
        .await;
        rig.verify(token(&made, "long")).await.unwrap();
    }
}

/// What an issuer with the key of `application` would write.
fn sealed(text: &str) -> String {
    let key = *b"application000000000000000000000";
    let iv = [7; 16];
    let encryptor = cbc::Encryptor::<aes::Aes256>::new(&key.into(), &iv.into());
    let text = encryptor.encrypt_padded_vec::<Pkcs7>(text.as_bytes());
    base64_simd::STANDARD.encode_to_string([&iv[..], &text].concat())
}

/// authorization.md 1.14.
#[tokio::test]
async fn a_payload_that_is_not_encrypted_as_a_whole_is_refused() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let dir = tempfile::tempdir().unwrap();
    let rig = ignis(&issuer, secret_file(&dir, "application")).await;
    let payload = |members: &[(&str, &str)]| {
        let members = members.iter();
        let members: serde_json::Map<String, Value> = members
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let mut payload = json!({"exp": NOW + 3600, "sub": "other"});
        payload.as_object_mut().unwrap().extend(members);
        payload
    };
    let (user, number) = (sealed("userId"), sealed("17"));
    let (user, number) = (user.as_str(), number.as_str());
    let good = rig.verify(&signer.sign(&payload(&[(user, number)]))).await;
    assert_eq!(&*good.unwrap().subject, "17");
    let cut = &number[..number.len() - 24];
    let (note, not_json) = (sealed("note"), sealed("not json"));
    let (exp, empty, line) = (sealed("exp"), sealed(""), sealed("user\nId"));
    // The same name once more, under another IV.
    let again = "AAAAAAAAAAAAAAAAAAAAAA==";
    for members in [
        vec![(user, "17")],
        vec![("userId", "17")],
        vec![("userId", number)],
        vec![(user, number), ("note", "x")],
        vec![(user, number), (&note, cut)],
        vec![(user, number), (&note, &not_json)],
        vec![(user, number), (&note, "")],
        vec![(user, number), (&note, again)],
        vec![(user, number), (&exp, number)],
        vec![(&empty, number)],
        vec![(&line, number)],
    ] {
        let token = signer.sign(&payload(&members));
        assert_eq!(
            rig.verify(&token).await,
            refused(TokenFault::Malformed),
            "{members:?}"
        );
    }
    let mut numbers = payload(&[]);
    numbers[user] = json!(17);
    assert_eq!(
        rig.verify(&signer.sign(&numbers)).await,
        refused(TokenFault::Malformed)
    );
}

/// authorization.md 2.12.
#[tokio::test]
async fn the_preset_checks_issuer_and_audience_where_they_are_named() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let mut main = source("main", &issuer);
    main.preset = SourcePreset::Ignis;
    let rig = Rig::start(vec![main]).await;
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
    assert_eq!(
        rig.verify(&signer.sign(&with("iss", json!("https://other.test/"))))
            .await,
        refused(TokenFault::Issuer)
    );
    assert_eq!(
        rig.verify(&signer.sign(&with("aud", json!("other")))).await,
        refused(TokenFault::Audience)
    );
}
