//! What RFC 6455 and HTTP forbid: every violation gets its answer before the connection ends.

use std::time::{Duration, Instant};

use serde_json::json;
use signal_tests::raw::{Frame, Length, opcode, upgrade_request};
use signal_tests::{Client, Raw};

use crate::Stage;

/// Sends frames on a fresh connection and gives the code it is closed with.
async fn closes_with(stage: &Stage, frames: &[Frame]) -> Option<u16> {
    let mut raw = Raw::upgrade(stage.gateway.address()).await;
    for frame in frames {
        raw.send_frame(frame).await;
    }
    let close = raw.read_close().await;
    raw.expect_end(Duration::from_secs(10)).await;
    close.map(|(code, _)| code)
}

/// protocol.md 1.4 and 7.3.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn violations_of_the_framing_are_answered_with_1002() {
    let stage = Stage::new().await;
    let text = || Frame::new(opcode::TEXT, "{}");
    let fragment = |opcode, fin| Frame {
        fin,
        ..Frame::new(opcode, "{}")
    };
    for (what, frames) in [
        (
            "an unmasked frame",
            vec![Frame {
                masked: false,
                ..text()
            }],
        ),
        (
            "an unmasked close",
            vec![Frame {
                masked: false,
                ..Frame::close(1000, "")
            }],
        ),
        (
            "the first reserved bit",
            vec![Frame {
                reserved: 4,
                ..text()
            }],
        ),
        (
            "the second reserved bit",
            vec![Frame {
                reserved: 2,
                ..text()
            }],
        ),
        (
            "the third reserved bit",
            vec![Frame {
                reserved: 1,
                ..text()
            }],
        ),
        ("a reserved data opcode", vec![Frame::new(3, "")]),
        ("a reserved control opcode", vec![Frame::new(11, "")]),
        (
            "a fragmented ping",
            vec![Frame {
                fin: false,
                ..Frame::new(opcode::PING, "")
            }],
        ),
        (
            "a fragmented close",
            vec![Frame {
                fin: false,
                ..Frame::close(1000, "")
            }],
        ),
        (
            "a ping of 126 bytes",
            vec![Frame::new(opcode::PING, [0; 126])],
        ),
        (
            "a close of 126 bytes",
            vec![Frame::close(1000, &"x".repeat(124))],
        ),
        (
            "a continuation of nothing",
            vec![Frame::new(opcode::CONTINUATION, "{}")],
        ),
        (
            "a message inside a message",
            vec![fragment(opcode::TEXT, false), fragment(opcode::TEXT, true)],
        ),
        (
            "a short length in 16 bits",
            vec![Frame {
                length: Length::Sixteen,
                ..text()
            }],
        ),
        (
            "a short length in 64 bits",
            vec![Frame {
                length: Length::SixtyFour,
                ..text()
            }],
        ),
        (
            "a middling length in 64 bits",
            vec![Frame {
                length: Length::SixtyFour,
                ..Frame::new(opcode::TEXT, [b' '; 300])
            }],
        ),
        (
            "a length with its highest bit set",
            vec![Frame {
                length: Length::Claimed(1 << 63),
                ..text()
            }],
        ),
        ("a close of one byte", vec![Frame::new(opcode::CLOSE, [3])]),
        ("close code 0", vec![Frame::close(0, "")]),
        ("close code 999", vec![Frame::close(999, "")]),
        ("close code 1004", vec![Frame::close(1004, "")]),
        ("close code 1005", vec![Frame::close(1005, "")]),
        ("close code 1006", vec![Frame::close(1006, "")]),
        ("close code 1015", vec![Frame::close(1015, "")]),
        ("close code 1016", vec![Frame::close(1016, "")]),
        ("close code 2999", vec![Frame::close(2999, "")]),
        ("close code 5000", vec![Frame::close(5000, "")]),
    ] {
        assert_eq!(closes_with(&stage, &frames).await, Some(1002), "{what}");
    }
}

/// protocol.md 1.4 and 7.4.
#[tokio::test]
async fn text_that_is_not_utf_8_is_answered_with_1007() {
    let stage = Stage::new().await;
    let split = |first: &[u8], second: &[u8]| {
        vec![
            Frame {
                fin: false,
                ..Frame::new(opcode::TEXT, first)
            },
            Frame::new(opcode::CONTINUATION, second),
        ]
    };
    for (what, frames) in [
        (
            "a byte that begins nothing",
            vec![Frame::new(opcode::TEXT, [0xff])],
        ),
        (
            "an overlong form",
            vec![Frame::new(opcode::TEXT, [0xc0, 0xaf])],
        ),
        (
            "a surrogate",
            vec![Frame::new(opcode::TEXT, [0xed, 0xa0, 0x80])],
        ),
        (
            "beyond the last code point",
            vec![Frame::new(opcode::TEXT, [0xf4, 0x90, 0x80, 0x80])],
        ),
        (
            "a character cut off at the end",
            vec![Frame::new(opcode::TEXT, &"é".as_bytes()[..1])],
        ),
        ("a bad byte in the second fragment", split(b"{", &[0xff])),
        (
            "a reason that is not UTF-8",
            vec![Frame::new(opcode::CLOSE, [0x03, 0xe8, 0xff])],
        ),
    ] {
        assert_eq!(closes_with(&stage, &frames).await, Some(1007), "{what}");
    }
}

/// protocol.md 1.4 and 7.5.
#[tokio::test]
async fn what_is_too_long_is_answered_with_1009_before_it_has_come() {
    let stage = Stage::with(|settings| settings.live("limits.frame_bytes", 1000)).await;
    let claimed = |bytes| Frame {
        length: Length::Claimed(bytes),
        ..Frame::new(opcode::TEXT, "{")
    };
    assert_eq!(
        closes_with(&stage, &[claimed(1 << 40)]).await,
        Some(1009),
        "a terabyte in one frame"
    );
    assert_eq!(
        closes_with(&stage, &[Frame::new(opcode::TEXT, [b' '; 1001])]).await,
        Some(1009),
        "one byte too many"
    );
    let part = |opcode, fin| Frame {
        fin,
        ..Frame::new(opcode, [b' '; 600])
    };
    let parts = [part(opcode::TEXT, false), part(opcode::CONTINUATION, true)];
    assert_eq!(
        closes_with(&stage, &parts).await,
        Some(1009),
        "too long in two fragments"
    );
}

#[tokio::test]
async fn what_the_framing_allows_is_taken() {
    // Each fragment is a frame, and there are more of them here than a burst may have.
    let stage = Stage::with(|settings| settings.live("limits.inbound_frames_per_second", 0)).await;
    let mut raw = Raw::upgrade(stage.gateway.address()).await;
    let token = stage.issuer.token("17");
    let authenticate = json!({"event": "authenticate", "data": {"type": "Bearer", "token": token, "note": "xin chào"}}).to_string();
    // Every byte a fragment of its own, a ping in the middle, and all of it in one write.
    let bytes = authenticate.as_bytes();
    let mut stream = Vec::new();
    for (n, byte) in bytes.iter().enumerate() {
        let opcode = if n == 0 {
            opcode::TEXT
        } else {
            opcode::CONTINUATION
        };
        stream.extend(
            Frame {
                fin: n + 1 == bytes.len(),
                ..Frame::new(opcode, [*byte])
            }
            .encode(),
        );
        if n == 5 {
            stream.extend(Frame::new(opcode::PING, "in between").encode());
        }
        if n == 6 {
            stream.extend(
                Frame {
                    fin: false,
                    ..Frame::new(opcode::CONTINUATION, "")
                }
                .encode(),
            );
        }
    }
    raw.send(&stream).await;
    let pong = raw.read_frame().await.unwrap();
    assert_eq!(
        (pong.opcode, pong.payload.as_slice()),
        (opcode::PONG, &b"in between"[..])
    );
    let connected = raw.read_frame().await.unwrap();
    assert!(
        String::from_utf8(connected.payload)
            .unwrap()
            .contains("\"connected\"")
    );
    raw.send_frame(&Frame::new(opcode::PONG, "unasked")).await;
    raw.send_frame(&Frame::new(opcode::PING, [7; 125])).await;
    assert_eq!(raw.read_frame().await.unwrap().payload, [7; 125]);
    for code in [1000, 1001, 1011, 1012, 1014, 3000, 4999] {
        assert_eq!(
            closes_with(&stage, &[Frame::close(code, "")]).await,
            Some(code)
        );
    }
}

#[tokio::test]
async fn nothing_after_a_close_is_acted_on() {
    let stage = Stage::new().await;
    let mut raw = Raw::upgrade(stage.gateway.address()).await;
    let mut bytes = Frame::close(1000, "").encode();
    bytes.extend(Frame::new(opcode::TEXT, "not json").encode());
    bytes.extend(Frame::new(opcode::PING, "still there?").encode());
    raw.send(&bytes).await;
    assert_eq!(
        raw.read_frame().await.map(|frame| frame.opcode),
        Some(opcode::CLOSE)
    );
    assert!(raw.read_to_end().await.is_empty());
}

#[tokio::test]
async fn bytes_that_are_no_frames_do_no_harm() {
    let stage = Stage::new().await;
    for seed in 0..20u8 {
        let mut raw = Raw::upgrade(stage.gateway.address()).await;
        let noise: Vec<u8> = (0..2000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed)
            .collect();
        raw.send(&noise).await;
        drop(raw);
    }
    let mut raw = Raw::upgrade(stage.gateway.address()).await;
    raw.send(&[0x81, 0xfe]).await;
    drop(raw);
    stage.client("17").await;
}

/// Sends a request head and gives the answer's status and one of its header fields.
async fn answer(stage: &Stage, request: &str, field: &str) -> (u16, String) {
    let mut raw = Raw::connect(stage.gateway.address()).await;
    raw.send(request.as_bytes()).await;
    let head = raw
        .read_head()
        .await
        .unwrap_or_else(|| panic!("no answer to {request:?}"));
    (head.status, head.header(field).to_owned())
}

#[tokio::test]
async fn a_request_without_one_good_host_is_400() {
    let stage = Stage::new().await;
    assert_eq!(answer(&stage, &upgrade_request("X: y"), "").await.0, 400);
    assert_eq!(
        answer(&stage, &upgrade_request("Host: a\r\nHost: b"), "")
            .await
            .0,
        400
    );
    assert_eq!(
        answer(&stage, "GET /openapi.json HTTP/1.1\r\n\r\n", "")
            .await
            .0,
        400
    );
}

/// protocol.md 1.3.
#[tokio::test]
async fn an_upgrade_that_is_not_quite_one_is_refused() {
    let stage = Stage::new().await;
    let good = upgrade_request(&format!("Host: {}", stage.gateway.address()));
    let without = |line: &str| {
        let cut: String = good
            .split_inclusive("\r\n")
            .filter(|l| !l.starts_with(line))
            .collect();
        assert!(cut.len() < good.len(), "{line}");
        cut
    };
    assert_eq!(
        answer(&stage, &good, "sec-websocket-accept").await,
        (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into())
    );
    for version in ["8", "12", "14", "", "x"] {
        let request = good.replace("Version: 13", &format!("Version: {version}"));
        assert_eq!(
            answer(&stage, &request, "sec-websocket-version").await,
            (426, "13".into()),
            "{version:?}"
        );
    }
    assert_eq!(
        answer(
            &stage,
            &without("Sec-WebSocket-Version"),
            "sec-websocket-version"
        )
        .await
        .1,
        "13"
    );
    let bad_key = good.replace("dGhlIHNhbXBsZSBub25jZQ==", "too short");
    assert_eq!(answer(&stage, &bad_key, "").await.0, 400);
    assert_eq!(
        answer(&stage, &without("Sec-WebSocket-Key"), "").await.0,
        400
    );
    for cut in [
        without("Upgrade"),
        without("Connection"),
        good.replace("GET ", "POST "),
    ] {
        let status = answer(&stage, &cut, "").await.0;
        assert!([400, 405, 426].contains(&status), "{status} to {cut}");
    }
}

/// protocol.md 1.1 and 1.8.
#[tokio::test]
async fn extensions_that_were_offered_are_not_taken_and_a_subprotocol_is_answered() {
    let stage = Stage::new().await;
    let address = stage.gateway.address();
    let request = upgrade_request(&format!(
        "Host: {address}\r\nSec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat, v2"
    ));
    assert_eq!(
        answer(&stage, &request, "sec-websocket-extensions").await,
        (101, String::new())
    );
    assert_eq!(
        answer(&stage, &request, "sec-websocket-protocol").await,
        (101, "chat".into())
    );
    // A head that only hyper takes gets the same answer.
    let by_hyper = request.replacen("\r\n", "\r\nContent-Length: 0\r\n", 1);
    assert_eq!(
        answer(&stage, &by_hyper, "sec-websocket-protocol").await,
        (101, "chat".into())
    );
}

/// protocol.md 1.1 and 1.8.
#[tokio::test]
async fn every_listed_path_opens_a_websocket_and_only_listed_subprotocols_are_answered() {
    let stage = Stage::with(|settings| {
        settings
            .set("server.stream_paths", vec!["/ws", "/live/stream"])
            .set("server.subprotocols", vec!["v1", "v2"])
    })
    .await;
    let address = stage.gateway.address();
    let request = upgrade_request(&format!(
        "Host: {address}\r\nSec-WebSocket-Protocol: v3, v2, v1"
    ));
    for length in ["", "\r\nContent-Length: 0"] {
        let request = request.replacen("\r\n", &format!("{length}\r\n"), 1);
        for (path, status, subprotocol) in [
            ("/ws", 101, "v2"),
            ("/ws?room=1", 101, "v2"),
            ("/live/stream", 101, "v2"),
            ("/stream", 404, ""),
            ("/ws/", 404, ""),
        ] {
            assert_eq!(
                answer(
                    &stage,
                    &request.replace("/stream", path),
                    "sec-websocket-protocol"
                )
                .await,
                (status, subprotocol.to_owned()),
                "{path}{length}"
            );
        }
    }
    let none = upgrade_request(&format!("Host: {address}\r\nSec-WebSocket-Protocol: v3"))
        .replace("/stream", "/ws");
    assert_eq!(
        answer(&stage, &none, "sec-websocket-protocol").await,
        (101, String::new())
    );
}

/// protocol.md 1.3.
#[tokio::test]
async fn a_handshake_that_announces_a_body_is_400_and_ends_the_connection() {
    let stage = Stage::new().await;
    let address = stage.gateway.address();
    for (line, body) in [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let request = upgrade_request(&format!("Host: {address}\r\n{line}"));
        assert_eq!(
            answer(&stage, &format!("{request}{body}"), "connection").await,
            (400, "close".into()),
            "{line}"
        );
    }
}

/// protocol.md 1.1.
#[tokio::test]
async fn a_key_with_bits_that_are_not_used_is_a_key() {
    let stage = Stage::new().await;
    let good = upgrade_request(&format!("Host: {}", stage.gateway.address()));
    let loose = good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZf==");
    assert_eq!(answer(&stage, &loose, "").await.0, 101);
}

#[tokio::test]
async fn a_head_that_dribbles_in_is_cut_off() {
    let stage = Stage::with(|settings| settings.set("server.header_read_timeout_secs", 1)).await;
    let mut raw = Raw::connect(stage.gateway.address()).await;
    let begun = Instant::now();
    let dribble = async {
        for byte in upgrade_request("Host: x").bytes().cycle() {
            raw.send(&[byte]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if begun.elapsed() > Duration::from_secs(3) {
                break;
            }
        }
        let rest = raw.read_to_end().await;
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
    };
    dribble.await;
    let mut idle = Raw::connect(stage.gateway.address()).await;
    idle.expect_end(Duration::from_secs(10)).await;
    stage.client("17").await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_431() {
    let stage = Stage::new().await;
    let large = format!("Host: x\r\nX-Large: {}", "x".repeat(40_000));
    assert_eq!(answer(&stage, &upgrade_request(&large), "").await.0, 431);
    let many: String = (0..100).map(|n| format!("\r\nX-{n}: y")).collect();
    assert_eq!(
        answer(&stage, &upgrade_request(&format!("Host: x{many}")), "")
            .await
            .0,
        431
    );
    assert!(
        [414, 431].contains(
            &answer(
                &stage,
                &format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(40_000)),
                ""
            )
            .await
            .0
        )
    );
}

#[tokio::test]
async fn bytes_that_are_no_http_are_answered_and_cut_off() {
    let stage = Stage::new().await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\n\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut raw = Raw::connect(stage.gateway.address()).await;
        raw.send(garbage).await;
        raw.send(b"\r\n\r\n").await;
        let answer = raw.read_to_end().await;
        assert!(
            answer.is_empty()
                || answer.starts_with(b"HTTP/1.1 4")
                || answer.starts_with(b"HTTP/1.1 505"),
            "{answer:?}"
        );
    }
    stage.client("17").await;
}

/// protocol.md 1.2.
#[tokio::test]
async fn another_origin_is_403_and_the_own_and_listed_ones_pass() {
    let origins = vec![
        "https://shop.example.com",
        "https://*.partner.example",
        "capacitor://localhost",
    ];
    let stage = Stage::with(|settings| settings.live("allowed_origins", origins)).await;
    let address = stage.gateway.address();
    let own = format!("http://{address}");
    let own_websocket = format!("ws://{address}");
    for (origin, pass) in [
        ("", true),
        (own.as_str(), true),
        (own_websocket.as_str(), true),
        ("capacitor://localhost", true),
        ("ionic://localhost", false),
        ("https://shop.example.com", true),
        ("https://a.partner.example", true),
        ("https://partner.example", false),
        ("https://evil.example", false),
        ("http://shop.example.com", false),
        ("https://shop.example.com:8443", false),
        ("https://shop.example.com.evil.example", false),
        ("https://evilpartner.example", false),
        ("null", false),
    ] {
        let header = [("origin", origin)];
        let headers = if origin.is_empty() {
            &[][..]
        } else {
            &header[..]
        };
        match Client::try_connect(address, headers).await {
            Ok(_) => assert!(pass, "{origin} passed"),
            Err(error) => {
                assert!(!pass, "{origin}: {error}");
                let status = answer(
                    &stage,
                    &upgrade_request(&format!("Host: {address}\r\nOrigin: {origin}")),
                    "",
                )
                .await
                .0;
                assert_eq!(status, 403, "{origin}");
            }
        }
    }
}

#[tokio::test]
async fn the_conformance_mode_echoes_over_the_same_codec() {
    let stage = Stage::with(|settings| settings.set("session.conformance_echo", true)).await;
    let mut raw = Raw::upgrade(stage.gateway.address()).await;
    for (opcode, payload) in [
        (opcode::TEXT, &b"hello"[..]),
        (opcode::BINARY, &[0, 255, 7][..]),
        (opcode::TEXT, &b""[..]),
    ] {
        raw.send_frame(&Frame::new(opcode, payload)).await;
        let echo = raw.read_frame().await.unwrap();
        assert_eq!((echo.opcode, echo.payload.as_slice()), (opcode, payload));
    }
    raw.send_frame(&Frame::new(opcode::TEXT, [0xff])).await;
    assert_eq!(raw.read_close().await.map(|(code, _)| code), Some(1007));
}
