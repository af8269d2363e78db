use super::*;

fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
    let mut request = Request::builder()
        .uri("/stream")
        .header("host", "edge.example.com")
        .header("upgrade", "WebSocket")
        .header("connection", "keep-alive, Upgrade")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(())
        .unwrap();
    change(&mut request);
    request
}

fn accept<'h>(offer: &Offer<'h>, origins: &[String]) -> Result<Accept<'h>, Refusal> {
    super::accept(offer, origins, &["*".into()])
}

fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Request<()>) {
    move |r| {
        r.headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
}

/// protocol.md 1.1.
#[test]
fn the_nonce_of_rfc_6455_section_1_3_gets_its_answer() {
    let request = request(set("sec-websocket-protocol", "chat, v2"));
    let accept = accept(&Offer::of(&request), &[]).unwrap();
    assert_eq!(accept.key, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(accept.subprotocol, Some("chat"));
    let by_hyper = response(&accept);
    let bytes = response_bytes(&accept);
    let mut fields = [httparse::EMPTY_HEADER; 8];
    let mut direct = httparse::Response::new(&mut fields);
    assert_eq!(
        direct.parse(&bytes),
        Ok(httparse::Status::Complete(bytes.len()))
    );
    assert_eq!(direct.code, Some(by_hyper.status().as_u16()));
    let fields: Vec<_> = by_hyper
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    assert_eq!(
        direct
            .headers
            .iter()
            .map(|field| (field.name, field.value))
            .collect::<Vec<_>>(),
        fields
    );
}

/// protocol.md 1.8.
#[test]
fn of_the_subprotocols_asked_for_the_first_that_is_known_is_answered() {
    let answered = |asked: &[&'static str], known: &[&str]| {
        let mut request = request(|_| {});
        for line in asked {
            request
                .headers_mut()
                .append("sec-websocket-protocol", HeaderValue::from_static(line));
        }
        let known: Vec<String> = known.iter().map(|name| (*name).to_owned()).collect();
        super::accept(&Offer::of(&request), &[], &known)
            .unwrap()
            .subprotocol
            .map(str::to_owned)
    };
    for (asked, known, name) in [
        (&["chat"][..], &["*"][..], Some("chat")),
        (&["v2, v1"], &["*"], Some("v2")),
        (&["v3, v2", "v1"], &["v1", "v2"], Some("v2")),
        (&["v3", "v1"], &["v1"], Some("v1")),
        (&["v3"], &["v1"], None),
        (&["chat"], &[], None),
        (&["a b, , chat"], &["*"], Some("chat")),
        (&["Chat"], &["chat"], None),
        (&[], &["*"], None),
    ] {
        assert_eq!(
            answered(asked, known).as_deref(),
            name,
            "{asked:?} of {known:?}"
        );
    }
}

/// protocol.md 1.3.
#[test]
fn a_key_is_sixteen_bytes_whatever_its_unused_bits_are() {
    for good in [
        "dGhlIHNhbXBsZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25jZR==",
        "////////////////////+/==",
    ] {
        assert!(
            accept(&Offer::of(&request(set("sec-websocket-key", good))), &[]).is_ok(),
            "{good}"
        );
    }
    for bad in [
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZQQ=",
        "dGhlIHNhbXBsZSBub25jZQAA",
        "dGhlIHNhbXBsZSBub25jZ===",
        "dGhlIHNhbXBs_SBub25jZQ==",
    ] {
        assert_eq!(
            accept(&Offer::of(&request(set("sec-websocket-key", bad))), &[]),
            Err(Refusal::Key),
            "{bad}"
        );
    }
}

/// protocol.md 1.3.
#[test]
fn a_handshake_that_announces_a_body_is_refused() {
    for (name, value, refused) in [
        ("content-length", "0", false),
        ("content-length", "1", true),
        ("content-length", "00", true),
        ("transfer-encoding", "chunked", true),
        ("transfer-encoding", "identity", true),
    ] {
        let result = accept(&Offer::of(&request(set(name, value))), &[]).err();
        assert_eq!(result, refused.then_some(Refusal::Body), "{name}: {value}");
    }
    let response = Refusal::Body.response();
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["connection"]
        ),
        (400, &HeaderValue::from_static("close"))
    );
}

/// protocol.md 1.3.
#[test]
fn each_fault_has_its_refusal() {
    let refusal = |request: Request<()>| {
        accept(&Offer::of(&request), &["https://shop.example.com".into()]).unwrap_err()
    };
    assert_eq!(
        refusal(request(|r| *r.method_mut() = Method::POST)),
        Refusal::Method
    );
    assert_eq!(
        refusal(request(|r| *r.version_mut() = Version::HTTP_10)),
        Refusal::NotAnUpgrade
    );
    assert_eq!(
        refusal(request(set("upgrade", "h2c"))),
        Refusal::NotAnUpgrade
    );
    assert_eq!(
        refusal(request(set("connection", "close"))),
        Refusal::NotAnUpgrade
    );
    assert_eq!(
        refusal(request(set("sec-websocket-version", "8"))),
        Refusal::Version
    );
    assert_eq!(
        refusal(request(set("sec-websocket-key", "c2hvcnQ="))),
        Refusal::Key
    );
    assert_eq!(
        refusal(request(set("sec-websocket-key", "not base64"))),
        Refusal::Key
    );
    assert_eq!(
        refusal(request(set("origin", "https://evil.example.net"))),
        Refusal::Origin
    );
    assert_eq!(refusal(request(set("origin", "null"))), Refusal::Origin);
    let twice = |name: &'static str, value: &'static str| {
        move |r: &mut Request<()>| {
            r.headers_mut()
                .append(name, HeaderValue::from_static(value));
        }
    };
    assert_eq!(
        refusal(request(twice("sec-websocket-version", "13"))),
        Refusal::Version
    );
    assert_eq!(
        refusal(request(twice(
            "sec-websocket-key",
            "dGhlIHNhbXBsZSBub25jZQ=="
        ))),
        Refusal::Key
    );
    let origins = |r: &mut Request<()>| {
        set("origin", "https://shop.example.com")(r);
        twice("origin", "https://shop.example.com")(r);
    };
    assert_eq!(refusal(request(origins)), Refusal::Origin);
}

/// protocol.md 1.2.
#[test]
fn the_same_origin_and_a_listed_one_pass() {
    for origin in ["https://edge.example.com", "https://shop.example.com"] {
        assert!(
            accept(
                &Offer::of(&request(set("origin", origin))),
                &["https://shop.example.com".into()]
            )
            .is_ok(),
            "{origin}"
        );
    }
}

/// protocol.md 1.3.
#[test]
fn a_wrong_version_is_told_the_right_one() {
    let response = Refusal::Version.response();
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["sec-websocket-version"]
        ),
        (426, &HeaderValue::from_static("13"))
    );
    assert!(
        Refusal::Full
            .response()
            .headers()
            .contains_key("retry-after")
    );
}
