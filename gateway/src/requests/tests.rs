use std::sync::Arc;

use super::*;
use crate::peer::Network;
use crate::places::{Bounds, Places};
use tokio::io::DuplexStream;

const BOUNDS: Bounds = Bounds {
    total: 2,
    per_network: 2,
    evicts_serving: false,
};
const TIMERS: Timers = Timers {
    head: Duration::from_secs(10),
    idle: Duration::from_secs(620),
};
const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

async fn answer(request: Request<Incoming>) -> Response<Body> {
    if request.uri().path() == "/slow" {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    Response::new(Body::from("answer"))
}

struct Server {
    client: DuplexStream,
    ended: tokio::task::JoinHandle<Ended>,
}

impl Server {
    fn start(places: &Arc<Places>) -> Self {
        let place = places
            .claim(Network::of([192, 0, 2, 1].into()), false, BOUNDS)
            .unwrap();
        let (client, stream) = tokio::io::duplex(4096);
        let ended = tokio::spawn(async move {
            let stop = CancellationToken::new();
            serve(&Builder::new(), TIMERS, stream, place, &stop, answer).await
        });
        Self { client, ended }
    }

    async fn request(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"answer") {
            assert!(
                self.client.read_buf(&mut seen).await.unwrap() > 0,
                "{seen:?}"
            );
        }
    }

    /// Returns what still comes, how it ended, and how long that took.
    async fn end(mut self) -> (String, Ended, u64) {
        let begun = Instant::now();
        let mut rest = String::new();
        self.client.read_to_string(&mut rest).await.unwrap();
        let seconds = begun.elapsed().as_secs();
        drop(self.client);
        (rest, self.ended.await.unwrap(), seconds)
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays_for_its_own_time_and_serves_the_next_request() {
    let places = Arc::default();
    let mut server = Server::start(&places);
    for _ in 0..3 {
        server.request(REQUEST).await;
        tokio::time::sleep(Duration::from_secs(619)).await;
    }
    server.request(REQUEST).await;
    assert_eq!(server.end().await, (String::new(), Ended::Idle, 620));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_must_come_whole_and_is_told_so() {
    let places = Arc::default();
    let mut server = Server::start(&places);
    server.request(REQUEST).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let (first, rest) = REQUEST.split_at(5);
    server.client.write_all(first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    server.request(rest).await;
    server.client.write_all(first).await.unwrap();
    let (answer, ended, seconds) = server.end().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!((ended, seconds), (Ended::HeadLate, 10));
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_neither_idle_nor_late() {
    let places = Arc::default();
    let mut server = Server::start(&places);
    server
        .request(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await;
    assert_eq!(server.end().await.1, Ended::Idle);
}

#[tokio::test(start_paused = true)]
async fn of_a_full_table_the_idle_connection_goes_and_the_unfinished_request_is_told() {
    let places = Arc::default();
    let mut unfinished = Server::start(&places);
    unfinished.client.write_all(b"GET /").await.unwrap();
    let mut idle = Server::start(&places);
    idle.request(REQUEST).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let newcomer = Server::start(&places);
    assert_eq!(idle.end().await, (String::new(), Ended::Evicted, 0));
    let another = Server::start(&places);
    let (answer, ended, _) = unfinished.end().await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: "),
        "{answer}"
    );
    assert_eq!(ended, Ended::Evicted);
    drop((newcomer, another));
}

#[tokio::test]
async fn a_refused_peer_reads_why_even_if_it_sends_on() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    client.write_all(&[b'x'; 10_000]).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let answer = busy();
    let lingering = Arc::new(Places::default()).linger();
    let reading = async {
        client.write_all(&[b'x'; 10_000]).await.unwrap();
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        drop(client);
        seen
    };
    let ((), seen) = tokio::join!(refuse(stream, &answer, lingering), reading);
    assert_eq!(seen, answer);
}
