//! Forwards one connection between a Kafka client and the mock cluster, byte for byte, but for `ApiVersions` ([`super::versions`]).
//!
//! Requests and answers are passed on as they arrive, so a large one takes no memory here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::versions::{self, RequestHeader};

/// Longest request or answer, as with Kafka's `socket.request.max.bytes`.
const MAX_BYTES: i32 = 100 * 1024 * 1024;
/// Longest `ApiVersions` and its answer, which are read whole.
const MAX_WHOLE_BYTES: usize = 64 * 1024;
/// Most `ApiVersions` of one connection that wait for their answer.
const MAX_ASKED: usize = 16;

/// The `ApiVersions` that the mock has not answered yet.
type Asked = Arc<Mutex<Vec<RequestHeader>>>;

/// Forwards until either side ends the connection.
///
/// # Errors
/// A side that is lost, or sends what is not Kafka's protocol.
pub(super) async fn forward(client: TcpStream, mock_address: SocketAddr) -> io::Result<()> {
    let mock = TcpStream::connect(mock_address).await?;
    client.set_nodelay(true)?;
    mock.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_mock, mut to_mock) = mock.into_split();
    let asked = Asked::default();
    let requests = async {
        while forward_request(&mut from_client, &mut to_mock, &asked).await? {}
        to_mock.shutdown().await?;
        // What was asked is still answered; the mock ends the connection then.
        std::future::pending().await
    };
    let answers = async {
        while forward_answer(&mut from_mock, &mut to_client, &asked).await? {}
        to_client.shutdown().await
    };
    tokio::select! {
        ended = requests => ended,
        ended = answers => ended,
    }
}

/// Forwards one request; false at the end of the stream.
async fn forward_request(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    asked: &Asked,
) -> io::Result<bool> {
    let Some(length) = read_length(from, RequestHeader::SIZE).await? else {
        return Ok(false);
    };
    let mut bytes = [0; RequestHeader::SIZE];
    from.read_exact(&mut bytes).await?;
    let header = RequestHeader::read(bytes);
    let rest = length - RequestHeader::SIZE;
    if !header.asks_for_versions() {
        pass_on(from, to, length, &bytes, rest).await?;
        return Ok(true);
    }
    read_whole(from, rest).await?;
    {
        let mut asked = asked.lock();
        if asked.len() >= MAX_ASKED {
            return Err(invalid("too many requests wait for their answer"));
        }
        asked.push(header);
    }
    to.write_all(&versions::question(header.correlation))
        .await?;
    Ok(true)
}

/// Forwards one answer; false at the end of the stream.
async fn forward_answer(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    asked: &Asked,
) -> io::Result<bool> {
    let Some(length) = read_length(from, size_of::<i32>()).await? else {
        return Ok(false);
    };
    let mut bytes = [0; size_of::<i32>()];
    from.read_exact(&mut bytes).await?;
    let correlation = i32::from_be_bytes(bytes);
    let rest = length - bytes.len();
    let header = {
        let mut asked = asked.lock();
        let at = asked.iter().position(|a| a.correlation == correlation);
        at.map(|at| asked.remove(at))
    };
    let Some(header) = header else {
        pass_on(from, to, length, &bytes, rest).await?;
        return Ok(true);
    };
    let mocks = read_whole(from, rest).await?;
    let answer = versions::answer(header, &mocks)
        .ok_or_else(|| invalid("the mock's answer to ApiVersions cannot be read"))?;
    to.write_all(&answer).await?;
    Ok(true)
}

/// Reads how many bytes follow; `None` at the end of the stream.
async fn read_length(
    from: &mut (impl AsyncRead + Unpin),
    least: usize,
) -> io::Result<Option<usize>> {
    let mut bytes = [0; size_of::<i32>()];
    if from.read(&mut bytes[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut bytes[1..]).await?;
    let length = i32::from_be_bytes(bytes);
    usize::try_from(length)
        .ok()
        .filter(|bytes| *bytes >= least && length <= MAX_BYTES)
        .map(Some)
        .ok_or_else(|| invalid("a length that no request or answer has"))
}

async fn read_whole(from: &mut (impl AsyncRead + Unpin), bytes: usize) -> io::Result<Vec<u8>> {
    if bytes > MAX_WHOLE_BYTES {
        return Err(invalid("an ApiVersions that is too long"));
    }
    let mut whole = vec![0; bytes];
    from.read_exact(&mut whole).await?;
    Ok(whole)
}

/// Writes the length and what was read of a frame, and then the `rest` of it as it arrives.
async fn pass_on(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    length: usize,
    begun: &[u8],
    rest: usize,
) -> io::Result<()> {
    let length = i32::try_from(length).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes(), begun].concat())
        .await?;
    let copied = tokio::io::copy(&mut from.take(rest as u64), to).await?;
    if copied == rest as u64 {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&(body.len() as i32).to_be_bytes(), body].concat()
    }

    async fn requests(bytes: &[u8]) -> (io::Result<bool>, Vec<u8>, Vec<RequestHeader>) {
        let (mut from, mut to, asked) = (bytes, Vec::new(), Asked::default());
        let mut last = Ok(true);
        while matches!(last, Ok(true)) {
            last = forward_request(&mut from, &mut to, &asked).await;
        }
        let asked = asked.lock().clone();
        (last, to, asked)
    }

    #[tokio::test]
    async fn all_but_api_versions_is_forwarded_byte_for_byte() {
        let produce = frame(&[&[0, 0, 0, 9, 0, 0, 0, 1][..], &[7; 20_000]].concat());
        let versions = frame(&[0, 18, 0, 3, 0, 0, 0, 2, 0, 1, b'x', 0, 2, b'a', 2, b'b', 0]);
        let sent = [&produce[..], &versions, &produce].concat();
        let (ended, forwarded, asked) = requests(&sent).await;
        assert!(!ended.unwrap());
        assert_eq!(asked.len(), 1);
        let question = versions::question(2);
        assert_eq!(forwarded, [&produce[..], &question, &produce].concat());
    }

    #[tokio::test]
    async fn an_answer_is_changed_only_where_its_request_was() {
        let asked = Asked::default();
        asked
            .lock()
            .push(RequestHeader::read([0, 18, 0, 3, 0, 0, 0, 2]));
        let other = frame(&[0, 0, 0, 1, 9, 9, 9]);
        let versions = frame(&[0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        let sent = [&other[..], &versions, &versions].concat();
        let (mut from, mut to) = (&sent[..], Vec::new());
        while forward_answer(&mut from, &mut to, &asked).await.unwrap() {}
        let changed = frame(&[0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(to, [&other[..], &changed, &versions].concat());
    }

    #[tokio::test]
    async fn what_is_not_kafka_and_what_is_too_much_ends_the_connection() {
        let length = |n: i32| n.to_be_bytes().to_vec();
        let many = frame(&[0, 18, 0, 3, 0, 0, 0, 2]).repeat(MAX_ASKED + 1);
        let long = [
            &length(MAX_WHOLE_BYTES as i32 + 9)[..],
            &[0, 18, 0, 3, 0, 0, 0, 2],
        ]
        .concat();
        for wrong in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            length(-1),
            length(7),
            length(MAX_BYTES + 1),
            length(8)[..2].to_vec(),
            frame(&[0; 9])[..12].to_vec(),
            long,
            many,
        ] {
            assert!(requests(&wrong).await.0.is_err(), "{wrong:?}");
        }
        assert!(
            !requests(&[]).await.0.unwrap(),
            "an end between two requests"
        );
    }
}
