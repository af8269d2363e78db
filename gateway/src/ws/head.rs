//! The first request head of a socket, perhaps incomplete: an opening handshake, or something else. No IO.
//!
//! It recognizes only a plain `GET` of a stream path without a body. hyper gets everything else, faults and doubts included, with the same bytes from the first
//! on, and answers as it always would. The parser is hyper's own: a head is complete, broken or too long exactly when it is for hyper.

use std::mem::MaybeUninit;

use http::header::{CONTENT_LENGTH, EXPECT, HeaderName, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use httparse::{Header, ParserConfig, Request, Status};
use smallvec::SmallVec;

use super::upgrade::Offer;
use crate::peer::FORWARDED;

/// Most header fields of a handshake that is read without hyper; browsers send about twenty.
const FIELDS: usize = 64;

/// Bounds of a request head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Its bytes.
    pub(super) bytes: usize,
    /// Its header fields.
    pub(super) fields: usize,
}

/// What the bytes of a new socket are.
#[derive(Debug)]
pub(super) enum Head<'b> {
    /// The beginning of a head.
    Partial,
    /// A request for a stream path.
    Stream {
        /// What it offers.
        offer: Offer<'b>,
        /// Its `X-Forwarded-For` lines.
        forwarded: SmallVec<[&'b [u8]; 1]>,
        /// Bytes of the head: frames begin behind them.
        length: usize,
    },
    /// Anything else.
    Other,
}

/// Reads a head. `before` is how many of the bytes were there at the last call, so that a head in pieces is parsed once and not for every piece.
pub(super) fn read<'b>(
    bytes: &'b [u8],
    before: usize,
    bounds: Bounds,
    stream_paths: &[String],
) -> Head<'b> {
    let unfinished = || {
        if bytes.len() >= bounds.bytes {
            Head::Other
        } else {
            Head::Partial
        }
    };
    if before > 0 && !may_be_whole(bytes, before) {
        return unfinished();
    }
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; FIELDS];
    let fields = &mut fields[..FIELDS.min(bounds.fields)];
    let mut request = Request::new(&mut []);
    let length = match ParserConfig::default().parse_request_with_uninit_headers(
        &mut request,
        bytes,
        fields,
    ) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return unfinished(),
        Err(_) => return Head::Other,
    };
    let is = |field: &Header<'_>, name: &HeaderName| field.name.eq_ignore_ascii_case(name.as_str());
    let has_body = |field: &Header<'_>| {
        [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT]
            .iter()
            .any(|name| is(field, name))
    };
    if length > bounds.bytes
        || request.method != Some("GET")
        || request.version != Some(1)
        || !request
            .path
            .is_some_and(|target| is_stream(target, stream_paths))
        || request.headers.iter().any(has_body)
    {
        return Head::Other;
    }
    Head::Stream {
        offer: Offer::new(
            true,
            true,
            request
                .headers
                .iter()
                .map(|field| (field.name, field.value)),
        ),
        forwarded: request
            .headers
            .iter()
            .filter(|field| is(field, &FORWARDED))
            .map(|field| field.value)
            .collect(),
        length,
    }
}

/// Returns whether an empty line ends among the new bytes.
fn may_be_whole(bytes: &[u8], before: usize) -> bool {
    let fresh = &bytes[before.saturating_sub(3)..];
    memchr::memmem::find(fresh, b"\n\r\n")
        .or_else(|| memchr::memmem::find(fresh, b"\n\n"))
        .is_some()
}

fn is_stream(target: &str, stream_paths: &[String]) -> bool {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let is_plain = path.len() == target.len();
    stream_paths.iter().any(|stream| stream == path)
        && (is_plain
            || target
                .parse::<PathAndQuery>()
                .is_ok_and(|target| target.path() == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], before: usize, bounds: Bounds) -> Head<'_> {
        super::read(bytes, before, bounds, &["/stream".into(), "/ws".into()])
    }

    const BOUNDS: Bounds = Bounds {
        bytes: 16384,
        fields: 64,
    };
    const GOOD: &str = "GET /stream HTTP/1.1\r\nHost: edge.example.com\r\nUPGRADE: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: 192.0.2.1\r\nx-forwarded-for: 192.0.2.2\r\n\r\n";

    fn is_other(bytes: &[u8]) -> bool {
        matches!(read(bytes, 0, BOUNDS), Head::Other)
    }

    /// Returns the result for bytes that come in pieces, and how many of them it took.
    fn in_pieces<'b>(bytes: &'b [u8], cuts: &[usize], bounds: Bounds) -> (Head<'b>, usize) {
        let mut before = 0;
        for end in cuts.iter().copied().chain([bytes.len()]) {
            let head = read(&bytes[..end], before, bounds);
            if !matches!(head, Head::Partial) {
                return (head, end);
            }
            before = end;
        }
        (Head::Partial, bytes.len())
    }

    #[test]
    fn a_handshake_is_the_same_cut_anywhere_and_byte_by_byte() {
        let bytes = [GOOD.as_bytes(), b"\x81\x80frames"].concat();
        let check = |(head, seen): (Head<'_>, usize)| {
            let Head::Stream {
                offer,
                forwarded,
                length,
            } = head
            else {
                panic!("{head:?} of {seen} bytes")
            };
            let accept = super::super::upgrade::accept(&offer, &[], &[]).expect("a handshake");
            let answer = String::from_utf8(super::super::upgrade::response_bytes(&accept)).unwrap();
            assert!(
                answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
                "{answer}"
            );
            assert!(offer.has_one_host());
            assert_eq!(
                (&forwarded[..], length),
                (&[&b"192.0.2.1"[..], b"192.0.2.2"][..], GOOD.len())
            );
        };
        for cut in 1..bytes.len() {
            check(in_pieces(&bytes, &[cut], BOUNDS));
        }
        check(in_pieces(
            &bytes,
            &(1..bytes.len()).collect::<Vec<_>>(),
            BOUNDS,
        ));
    }

    #[test]
    fn bare_line_feeds_end_a_head_as_they_do_for_hyper() {
        let bytes = GOOD.replace("\r\n", "\n");
        let all: Vec<usize> = (1..bytes.len()).collect();
        assert!(matches!(
            in_pieces(bytes.as_bytes(), &all, BOUNDS).0,
            Head::Stream { .. }
        ));
    }

    #[test]
    fn hyper_gets_what_is_not_plainly_a_handshake() {
        let with = |line: &str| GOOD.replacen("\r\n", &format!("\r\n{line}\r\n"), 1);
        for other in [
            GOOD.replace("GET ", "POST "),
            GOOD.replace("HTTP/1.1", "HTTP/1.0"),
            GOOD.replace("/stream", "/streams"),
            GOOD.replace("/stream", "/"),
            GOOD.replace("/stream", "/wss"),
            GOOD.replace("/stream", "/ws/"),
            GOOD.replace("/stream", "/%77s"),
            GOOD.replace("/stream", "/ws#x"),
            GOOD.replace("/stream", "http://edge.example.com/stream"),
            GOOD.replace("/stream", "*"),
            with("Content-Length: 0"),
            with("transfer-encoding: chunked"),
            with("Expect: 100-continue"),
            with("No colon"),
            "\x16\x03\x01\x02".into(),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        ] {
            assert!(is_other(other.as_bytes()), "{other:?}");
        }
        for stream in [
            GOOD.replace("/stream", "/stream?v=1&w=%20"),
            GOOD.replace("/stream", "/ws"),
            GOOD.replace("/stream", "/ws?"),
            format!("\r\n{GOOD}"),
        ] {
            assert!(
                matches!(read(stream.as_bytes(), 0, BOUNDS), Head::Stream { .. }),
                "{stream:?}"
            );
        }
    }

    #[test]
    fn hyper_gets_heads_that_are_too_long_or_have_too_many_fields() {
        let long = GOOD.replacen(
            "\r\n",
            &format!("\r\nX-Long: {}\r\n", "x".repeat(BOUNDS.bytes)),
            1,
        );
        assert!(is_other(long.as_bytes()));
        let (head, seen) = in_pieces(
            long.as_bytes(),
            &(1..long.len()).collect::<Vec<_>>(),
            BOUNDS,
        );
        assert!(
            matches!(head, Head::Other) && seen == BOUNDS.bytes,
            "{seen}"
        );
        let fill = BOUNDS.bytes - GOOD.len() - "X-Long: \r\n".len();
        let just = GOOD.replacen("\r\n", &format!("\r\nX-Long: {}\r\n", "x".repeat(fill)), 1);
        assert!(
            just.len() == BOUNDS.bytes
                && matches!(read(just.as_bytes(), 0, BOUNDS), Head::Stream { .. })
        );

        let fields = GOOD.matches(':').count();
        assert!(matches!(
            read(GOOD.as_bytes(), 0, Bounds { fields, ..BOUNDS }),
            Head::Stream { .. }
        ));
        assert!(matches!(
            read(
                GOOD.as_bytes(),
                0,
                Bounds {
                    fields: fields - 1,
                    ..BOUNDS
                }
            ),
            Head::Other
        ));
        let many = GOOD.replacen("\r\n", &format!("\r\n{}", "X: y\r\n".repeat(FIELDS)), 1);
        assert!(matches!(
            read(
                many.as_bytes(),
                0,
                Bounds {
                    fields: 1000,
                    ..BOUNDS
                }
            ),
            Head::Other
        ));
    }
}
