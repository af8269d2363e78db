//! The header of PROXY protocol version 2, with which a balancer says for whom it opens a socket.
//!
//! Input: the first bytes of a socket whose peer is in `proxy_protocol_from`. Output: the address of the client. The header is taken off before anything
//! else is read, exactly to its end, so that what follows is a socket like every other. It is demanded there and read nowhere else, because whoever sends
//! one chooses the address.

use std::io::{self, Read};
use std::net::{IpAddr, TcpStream};

use proxy_header::{Error, ParseConfig, ProxyHeader};

/// Longest header, with its TLVs; the address takes 52 bytes of it. The longest form that the specification knows is far below, but for certificates.
const LONGEST: usize = 4096;
/// The bytes with which each header begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Its fixed part: the signature, version and command, the family, the length of the rest.
const FIXED: usize = 16;

/// What the first bytes of a socket are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Proxied {
    /// The beginning of a header.
    Partial,
    /// A header, which is taken off the socket.
    Whole {
        /// For whom the proxy opened the socket; `None` if for itself, such as a health check, or for somebody without an IP address.
        client: Option<IpAddr>,
    },
    /// No header that is accepted.
    Refused(Fault),
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The text form.
    Version1,
    /// Something else, or a header that breaks the specification.
    Malformed,
    /// Longer than [`LONGEST`].
    TooLong,
    /// The socket ended.
    Ended,
}

impl Fault {
    /// Returns what the log says.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Version1 => {
                "version 1 of the PROXY protocol is not read; set the proxy to version 2"
            }
            Self::Malformed => {
                "no header of the PROXY protocol, which proxy_protocol_from demands of this peer"
            }
            Self::TooLong => "the header of the PROXY protocol is too long",
            Self::Ended => "the socket ended in the header of the PROXY protocol",
        }
    }
}

/// Takes the header off a socket that does not block, if it has come whole.
///
/// # Errors
/// Those of the socket.
pub(super) fn take(stream: &TcpStream) -> io::Result<Proxied> {
    let mut bytes = [0; LONGEST];
    let seen = match stream.peek(&mut bytes) {
        Ok(0) => return Ok(Proxied::Refused(Fault::Ended)),
        Ok(seen) => seen,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            return Ok(Proxied::Partial);
        }
        Err(error) => return Err(error),
    };
    let (proxied, length) = read(&bytes[..seen]);
    // All of it has come, so this does not wait.
    (&*stream).read_exact(&mut bytes[..length])?;
    Ok(proxied)
}

/// Reads a header, and returns its length.
pub(super) fn read(bytes: &[u8]) -> (Proxied, usize) {
    let refused = |fault| (Proxied::Refused(fault), 0);
    let begins = |with: &[u8]| {
        let length = bytes.len().min(with.len());
        bytes[..length] == with[..length]
    };
    if !begins(SIGNATURE) {
        return match () {
            () if bytes.starts_with(b"PROXY ") => refused(Fault::Version1),
            () if begins(b"PROXY ") => (Proxied::Partial, 0),
            () => refused(Fault::Malformed),
        };
    }
    let Some(fixed) = bytes.first_chunk::<FIXED>() else {
        return (Proxied::Partial, 0);
    };
    let length = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > LONGEST {
        return refused(Fault::TooLong);
    }
    let config = ParseConfig {
        include_tlvs: false,
        allow_v1: false,
        allow_v2: true,
    };
    match ProxyHeader::parse(bytes, config) {
        Ok((header, length)) => {
            let client = header.proxied_address().map(|address| address.source.ip());
            (Proxied::Whole { client }, length)
        }
        Err(Error::BufferTooShort) if bytes.len() < length => (Proxied::Partial, 0),
        Err(_) => refused(Fault::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener};

    use proxy_header::{ProxiedAddress, Tlv};

    use super::*;

    fn header(source: &str, tlvs: &[Tlv<'_>]) -> Vec<u8> {
        let source: SocketAddr = source.parse().unwrap();
        let destination = SocketAddr::new(source.ip(), 443);
        let mut header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
        for tlv in tlvs {
            header.append_tlv(tlv.clone());
        }
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    fn local() -> Vec<u8> {
        [&SIGNATURE[..], b"\x20\0\0\0"].concat()
    }

    fn client(address: &str) -> Proxied {
        Proxied::Whole {
            client: Some(address.parse().unwrap()),
        }
    }

    #[test]
    fn a_header_names_the_client_and_its_tlvs_are_skipped() {
        let tlvs = [
            Tlv::Authority("edge.example.com".into()),
            Tlv::Custom(0xea, vec![1; 64].into()),
        ];
        for (source, address) in [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
        ] {
            for tlvs in [&[][..], &tlvs] {
                let bytes = [header(source, tlvs), b"GET /".to_vec()].concat();
                let length = bytes.len() - 5;
                assert_eq!(read(&bytes), (client(address), length));
                for cut in 0..length {
                    assert_eq!(read(&bytes[..cut]), (Proxied::Partial, 0), "{cut}");
                }
            }
        }
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_or_for_a_unix_socket_names_nobody() {
        let own = Proxied::Whole { client: None };
        assert_eq!(read(&local()), (own, FIXED));
        let unspecified = [&SIGNATURE[..], b"\x21\0\0\x03abc"].concat();
        assert_eq!(read(&unspecified), (Proxied::Whole { client: None }, 19));
        let unix = [&SIGNATURE[..], b"\x21\x31\0\xd8", &[b'x'; 216]].concat();
        assert_eq!(read(&unix), (Proxied::Whole { client: None }, 232));
    }

    #[test]
    fn everything_else_is_refused() {
        let with = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        for (bytes, fault) in [
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
                Fault::Version1,
            ),
            (b"GET / HTTP/1.1\r\n".to_vec(), Fault::Malformed),
            (b"\x16\x03\x01".to_vec(), Fault::Malformed),
            (b"\r\n\r\nX".to_vec(), Fault::Malformed),
            (with(b"\x11\x11\0\x0c"), Fault::Malformed),
            (with(b"\x22\x11\0\x0c"), Fault::Malformed),
            (with(b"\x21\x41\0\0"), Fault::Malformed),
            (with(b"\x21\x11\0\x04abcd"), Fault::Malformed),
            (with(b"\x21\x21\0\x0cabcdefghijkl"), Fault::Malformed),
            (with(b"\x21\x11\xff\xff"), Fault::TooLong),
        ] {
            let (proxied, _) = read(&[bytes.clone(), vec![0; 64]].concat());
            assert_eq!(proxied, Proxied::Refused(fault), "{bytes:?}");
        }
    }

    #[test]
    fn exactly_the_header_is_taken_off_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        assert_eq!(take(&stream).unwrap(), Proxied::Partial);
        let bytes = [header("192.0.2.1:1", &[]), b"GET /".to_vec()].concat();
        sender.write_all(&bytes).unwrap();
        let mut taken = take(&stream).unwrap();
        while taken == Proxied::Partial {
            taken = take(&stream).unwrap();
        }
        assert_eq!(taken, client("192.0.2.1"));
        let mut rest = [0; 16];
        assert_eq!((&stream).read(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"GET /");
        drop(sender);
        while take(&stream).unwrap() == Proxied::Partial {}
        assert_eq!(take(&stream).unwrap(), Proxied::Refused(Fault::Ended));
    }
}
