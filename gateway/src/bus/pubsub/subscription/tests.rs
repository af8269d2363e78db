//! Subscriptions against a server of the test's own: what is sent, and every way in which it can be cut into reads.

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::*;

const HELLO: &[u8] = b"%1\r\n$5\r\nproto\r\n:3\r\n";
const LIMIT: Duration = Duration::from_secs(10);

/// Channel and payload.
type Message = (String, String);

async fn session(answer: &[u8]) -> (RedisResult<Session>, DuplexStream) {
    let (client, mut server) = tokio::io::duplex(1 << 20);
    server.write_all(answer).await.unwrap();
    let session = Session::log_in(Box::new(client), "", None, LIMIT).await;
    (session, server)
}

async fn subscription(
    is_sharded: bool,
) -> (Subscription, mpsc::UnboundedReceiver<Message>, DuplexStream) {
    let (session, mut server) = session(HELLO).await;
    sent(&mut server, "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n").await;
    let (sender, messages) = mpsc::unbounded_channel();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let subscription = session
        .unwrap()
        .receive(is_sharded, move |channel, payload| {
            sender.send((text(channel), text(payload))).unwrap();
        });
    (subscription, messages, server)
}

/// Reads what the client is expected to send.
async fn sent(server: &mut DuplexStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    let read = timeout(LIMIT, server.read_exact(&mut bytes)).await;
    read.expect("the client sends it").unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

fn message(channel: &str, payload: &str) -> String {
    push(
        "message",
        channel,
        &format!("${}\r\n{payload}\r\n", payload.len()),
    )
}

fn confirmed(kind: &str, channel: &str, count: usize) -> String {
    push(kind, channel, &format!(":{count}\r\n"))
}

fn push(kind: &str, channel: &str, last: &str) -> String {
    let (kinds, channels) = (kind.len(), channel.len());
    format!(">3\r\n${kinds}\r\n{kind}\r\n${channels}\r\n{channel}\r\n{last}")
}

#[tokio::test]
async fn a_login_names_the_user_and_its_refusal_is_told() {
    for (user, password, expected) in [
        (
            "",
            Some("p"),
            "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$1\r\np\r\n",
        ),
        (
            "u",
            Some("p"),
            "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n",
        ),
        (
            "u",
            None,
            "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$0\r\n\r\n",
        ),
    ] {
        let (client, mut server) = tokio::io::duplex(1 << 10);
        server.write_all(b"-WRONGPASS invalid\r\n").await.unwrap();
        let refused = Session::log_in(Box::new(client), user, password, LIMIT).await;
        let error = refused.err().expect("it is refused");
        assert_eq!(error.code(), Some("WRONGPASS"));
        sent(&mut server, expected).await;
    }
    let (client, server) = tokio::io::duplex(1 << 10);
    drop(server);
    let closed = Session::log_in(Box::new(client), "", None, LIMIT).await;
    assert!(closed.err().expect("it is closed").is_io_error());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_an_error() {
    let (late, _server) = session(b"").await;
    assert!(late.err().unwrap().is_timeout());
    let (mut subscription, _messages, mut server) = subscription(false).await;
    server
        .write_all(confirmed("subscribe", "a", 1).as_bytes())
        .await
        .unwrap();
    let channels = ["a".to_owned(), "b".to_owned()];
    let late = subscription.subscribe(&channels).await;
    assert!(late.unwrap_err().is_timeout(), "one of two is confirmed");
}

#[tokio::test]
async fn frames_are_the_same_however_they_are_cut_into_reads() {
    let frames = [
        confirmed("subscribe", "a", 1),
        message("a", "1"),
        confirmed("subscribe", "b", 2),
        message("b", "\u{1F600}\r\n2"),
        message("a", ""),
    ]
    .concat();
    for cut in 1..frames.len() {
        let (mut subscription, mut messages, mut server) = subscription(false).await;
        let channels = ["a".to_owned(), "b".to_owned()];
        let serve = async {
            sent(
                &mut server,
                "*3\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$1\r\nb\r\n",
            )
            .await;
            for piece in [&frames.as_bytes()[..cut], &frames.as_bytes()[cut..]] {
                server.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (subscribed, ()) = tokio::join!(subscription.subscribe(&channels), serve);
        subscribed.unwrap();
        for expected in [("a", "1"), ("b", "\u{1F600}\r\n2"), ("a", "")] {
            let (channel, payload) = messages.recv().await.unwrap();
            assert_eq!((&*channel, &*payload), expected, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_refused_command_is_an_error_and_the_connection_stays() {
    let (mut subscription, mut messages, mut server) = subscription(false).await;
    let channels = ["a".to_owned()];
    let serve = async {
        sent(&mut server, "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n").await;
        let refusal = b"-NOPERM no permissions\r\n";
        server.write_all(refusal).await.unwrap();
    };
    let refused = tokio::join!(subscription.subscribe(&channels), serve).0;
    assert_eq!(refused.unwrap_err().code(), Some("NOPERM"));
    server
        .write_all(message("a", "1").as_bytes())
        .await
        .unwrap();
    assert_eq!(messages.recv().await.unwrap().1, "1");
}

#[tokio::test]
async fn the_end_of_the_connection_and_what_is_no_resp3_are_noticed() {
    for last in ["", "what is this\r\n", ">1\r\n"] {
        let (mut subscription, _messages, mut server) = subscription(false).await;
        server.write_all(last.as_bytes()).await.unwrap();
        drop(server);
        timeout(LIMIT, subscription.gone()).await.unwrap();
        let failed = subscription.subscribe(&["a".to_owned()]).await;
        assert!(failed.is_err(), "{last:?}");
    }
}

#[tokio::test]
async fn a_frame_that_does_not_end_costs_no_more_memory_than_any_may() {
    let (subscription, mut messages, mut server) = subscription(false).await;
    // The longest payload that is read passes.
    let longest = "x".repeat(MAX_PAYLOAD_BYTES);
    server
        .write_all(message("a", &longest).as_bytes())
        .await
        .unwrap();
    assert_eq!(messages.recv().await.unwrap().1.len(), longest.len());
    let head = format!(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n", 1 << 30);
    server.write_all(head.as_bytes()).await.unwrap();
    let endless = async {
        let mut written = 0;
        while written < 2 * MAX_FRAME_BYTES {
            server.write_all(&[b'x'; 1 << 16]).await.unwrap();
            written += 1 << 16;
        }
    };
    tokio::select! {
        () = subscription.gone() => {}
        () = endless => panic!("it is still read"),
    }
}

#[tokio::test]
async fn a_subscription_of_a_segment_that_is_taken_back_ends_the_connection() {
    let (mut subscription, _messages, mut server) = subscription(true).await;
    let channels = ["{1}a".to_owned(), "{1}b".to_owned()];
    for (command, kind) in [
        ("SSUBSCRIBE", "ssubscribe"),
        ("SUNSUBSCRIBE", "sunsubscribe"),
    ] {
        let serve = async {
            let length = command.len();
            let command =
                format!("*3\r\n${length}\r\n{command}\r\n$4\r\n{{1}}a\r\n$4\r\n{{1}}b\r\n");
            sent(&mut server, &command).await;
            for channel in &channels {
                let one = confirmed(kind, channel, 1);
                server.write_all(one.as_bytes()).await.unwrap();
            }
        };
        let done = async {
            match command {
                "SSUBSCRIBE" => subscription.subscribe(&channels).await,
                _ => subscription.unsubscribe(&channels).await,
            }
        };
        tokio::join!(done, serve).0.unwrap();
        assert!(!subscription.gone.is_cancelled());
    }
    let taken = confirmed("sunsubscribe", "{1}c", 0);
    server.write_all(taken.as_bytes()).await.unwrap();
    timeout(LIMIT, subscription.gone()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_subscription_closes_its_connection() {
    let (subscription, _messages, mut server) = subscription(false).await;
    drop(subscription);
    let mut rest = Vec::new();
    let end = timeout(LIMIT, server.read_to_end(&mut rest)).await;
    assert_eq!(end.expect("it is closed").unwrap(), 0);
}
