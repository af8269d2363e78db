//! Where a request comes from: the address behind trusted proxies, and the web page (`Origin`).
//!
//! Input: header fields, and `trusted_proxies` and `allowed_origins` of the live settings. Output: an address; yes or no. Used for REST and for the
//! opening handshake alike.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use signal_contract::{LOOPBACK_ORIGINS, NULL_ORIGIN};
use url::Url;

/// Who sent a request, as each proxy on its way saw it.
pub const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the peer of the TCP connection: the accept path puts it into the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub IpAddr);

/// Who sent a request through proxies: `X-Forwarded-For` is walked from the right for as long as the one who wrote the entry is trusted.
///
/// An entry that is no address ends the walk, so nothing left of it is believed.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    forwarded_for(
        peer,
        headers.get_all(FORWARDED).iter().map(HeaderValue::as_bytes),
        trusted,
    )
}

/// As [`client_address`], from the lines of `X-Forwarded-For`.
pub fn forwarded_for<'h>(
    peer: IpAddr,
    lines: impl DoubleEndedIterator<Item = &'h [u8]>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer.to_canonical();
    for entry in lines.rev().flat_map(|line| ascii(line).rsplit(',')) {
        if !is_in(client, trusted) {
            break;
        }
        let Some(address) = forwarded_address(entry.trim()) else {
            break;
        };
        client = address;
    }
    client
}

/// A line with anything else is no list of addresses.
fn ascii(line: &[u8]) -> &str {
    std::str::from_utf8(line)
        .ok()
        .filter(|line| line.is_ascii())
        .unwrap_or_default()
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`
fn forwarded_address(entry: &str) -> Option<IpAddr> {
    let address = entry.parse::<IpAddr>().ok();
    let with_port = || {
        entry
            .parse::<std::net::SocketAddr>()
            .ok()
            .map(|address| address.ip())
    };
    let in_brackets = || {
        entry
            .strip_prefix('[')?
            .strip_suffix(']')?
            .parse::<std::net::Ipv6Addr>()
            .ok()
            .map(IpAddr::V6)
    };
    address
        .or_else(with_port)
        .or_else(in_brackets)
        .map(|address| address.to_canonical())
}

/// Those who share what one peer may have: an IPv4 address, or a /64 of IPv6, which one customer is given as a whole (RFC 6177 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl Network {
    /// Returns the network of an address. An IPv4 address in IPv6 form (`::ffff:192.0.2.1`) is the IPv4 address.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let prefix = u128::from(address) & (u128::MAX << 64);
                IpAddr::V6(prefix.into())
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Returns whether a network of the list has the address, in whichever form the address is written.
pub fn is_in(address: IpAddr, networks: &[IpNet]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|net| net.contains(&address))
}

/// Whether a request with these `Origin` and `Host` headers may go on.
///
/// A request without `Origin` passes: it does not come from a web page. The origin that names the gateway's own host passes, whatever its scheme,
/// since a proxy may have ended TLS and some clients send the address of the WebSocket; so do the exact entries of `allowed`, of any scheme, subdomains
/// of any depth of entries such as `https://*.example.com`, and pages of the same machine where `loopback` is listed. Everything else is refused;
/// `null` (RFC 6454 section 7.3) unless it is listed.
pub fn origin_allowed(origin: Option<&str>, host: Option<&str>, allowed: &[String]) -> bool {
    let Some(origin) = origin else { return true };
    if is_serialized(origin) && allowed.iter().any(|entry| entry == origin) {
        return true;
    }
    let Some((scheme, rest)) = origin.split_once("://") else {
        return false;
    };
    let own = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => "http",
        "https" | "wss" => "https",
        _ => return false,
    };
    let Some(of_web) = Origin::of_host(own, rest) else {
        return false;
    };
    if host.and_then(|host| Origin::of_host(own, host)).as_ref() == Some(&of_web) {
        return true;
    }
    let is_page = scheme.eq_ignore_ascii_case(own);
    is_page
        && allowed.iter().any(|entry| {
            of_web.matches(entry) || (entry == LOOPBACK_ORIGINS && of_web.is_loopback())
        })
}

/// Returns whether a `Host` header names the machine of whoever sent it.
pub fn names_own_machine(host: &str) -> bool {
    Origin::of_host("http", host).is_some_and(|origin| origin.is_loopback())
}

/// Returns whether an `Origin` is that of a page that was served under this `Host`.
pub fn is_own_page(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(scheme, rest)| {
        let page = Origin::of_host(scheme, rest);
        page.is_some() && page == Origin::of_host(scheme, host)
    })
}

/// Returns whether a text can be an origin as a client sends it: no entry's wildcard or name for several is one.
fn is_serialized(origin: &str) -> bool {
    origin == NULL_ORIGIN || (origin.contains("://") && !origin.contains('*'))
}

/// Scheme, host and port, normalized: lower case, Punycode, the default port filled in.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Reads `host[:port]` and nothing more (RFC 6454 section 6.2).
    fn of_host(scheme: &str, host: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        // What the URL parser would take for user, path, query or fragment, or strip.
        let strange = |c: char| {
            matches!(c, '@' | '/' | '\\' | '?' | '#' | '%' | '*')
                || c.is_whitespace()
                || c.is_control()
        };
        if !matches!(scheme.as_str(), "http" | "https")
            || host.is_empty()
            || host.ends_with(':')
            || host.contains(strange)
        {
            return None;
        }
        let url = Url::parse(&format!("{scheme}://{host}/")).ok()?;
        Some(Self {
            host: url.host_str()?.to_owned(),
            port: url.port_or_known_default()?,
            scheme,
        })
    }

    /// Returns whether the page comes from the client's own machine (RFC 6761 section 6.3, RFC 1122 section 3.2.1.3).
    fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "[::1]")
            || self
                .host
                .parse::<Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback())
    }

    fn matches(&self, entry: &str) -> bool {
        let Some((scheme, host)) = entry.split_once("://") else {
            return false;
        };
        match host.strip_prefix("*.") {
            None => Self::of_host(scheme, host).is_some_and(|entry| entry == *self),
            Some(parent) => Self::of_host(scheme, parent).is_some_and(|parent| {
                let below = self
                    .host
                    .strip_suffix(&parent.host)
                    .and_then(|rest| rest.strip_suffix('.'));
                self.scheme == parent.scheme
                    && self.port == parent.port
                    && below.is_some_and(|labels| !labels.is_empty())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of(peer: &str, forwarded: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_static(line));
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_peers_only() {
        assert_eq!(address_of("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(address_of("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(
            address_of("::ffff:10.0.0.1", &["198.51.100.7"]),
            "198.51.100.7"
        );
        assert_eq!(address_of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(address_of("fd00::1", &["2001:db8::9"]), "2001:db8::9");
    }

    #[test]
    fn the_walk_ends_at_the_first_stranger_from_the_right() {
        assert_eq!(
            address_of("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.0.0.2"]),
            "198.51.100.7"
        );
        assert_eq!(
            address_of(
                "10.0.0.1",
                &["1.1.1.1", "198.51.100.7,10.0.0.3", "10.0.0.2"]
            ),
            "198.51.100.7"
        );
        assert_eq!(address_of("10.0.0.1", &["10.0.0.9, 10.0.0.2"]), "10.0.0.9");
        assert_eq!(
            address_of("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"]),
            "10.0.0.2"
        );
        assert_eq!(address_of("10.0.0.1", &["1.1.1.1, , 10.0.0.2"]), "10.0.0.2");
    }

    #[test]
    fn forwarded_addresses_may_carry_ports_and_brackets() {
        for (text, address) in [
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("[2001:db8::1]:4711", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[192.0.2.1]", None),
            ("192.0.2", None),
            ("_hidden", None),
        ] {
            assert_eq!(
                forwarded_address(text).map(|a| a.to_string()).as_deref(),
                address,
                "{text}"
            );
        }
    }

    fn allowed(origin: &str, host: &str, list: &[&str]) -> bool {
        let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
        origin_allowed(Some(origin), Some(host), &list)
    }

    /// protocol.md 1.2.
    #[test]
    fn a_request_without_an_origin_passes_and_null_only_where_it_is_listed() {
        assert!(origin_allowed(None, Some("gw.example.com"), &[]));
        assert!(!allowed("null", "null", &["https://null", "loopback"]));
        assert!(allowed("null", "gw.example.com", &["null"]));
        assert!(!allowed("", "", &[""]));
        assert!(!origin_allowed(Some("https://gw.example.com"), None, &[]));
    }

    /// protocol.md 1.2.
    #[test]
    fn the_own_origin_passes_by_host_and_effective_port() {
        assert!(allowed("https://gw.example.com", "gw.example.com", &[]));
        assert!(allowed("http://gw.example.com", "gw.example.com", &[]));
        assert!(allowed("https://GW.Example.com", "gw.example.COM:443", &[]));
        assert!(allowed("http://localhost:8080", "localhost:8080", &[]));
        assert!(allowed("http://[::1]:8080", "[::1]:8080", &[]));
        assert!(!allowed("https://gw.example.com", "gw.example.com:80", &[]));
        assert!(!allowed("http://localhost:8081", "localhost:8080", &[]));
        assert!(!allowed("https://evil.com", "gw.example.com", &[]));
        assert!(!allowed("https://evil.com", "gw.example.com@evil.com", &[]));
        assert!(!allowed("https://evil.com", "evil.com/gw.example.com", &[]));
    }

    /// protocol.md 1.2.
    #[test]
    fn the_own_origin_passes_in_its_websocket_form_too() {
        for (origin, host) in [
            ("ws://gw.example.com", "gw.example.com"),
            ("wss://gw.example.com", "gw.example.com"),
            ("WSS://gw.example.com", "gw.example.com:443"),
            ("ws://localhost:8080", "localhost:8080"),
        ] {
            assert!(allowed(origin, host, &[]), "{origin}");
        }
        assert!(!allowed("wss://evil.com", "gw.example.com", &[]));
        assert!(!allowed("wss://gw.example.com", "gw.example.com:80", &[]));
        assert!(!allowed(
            "wss://shop.example.com",
            "gw",
            &["https://shop.example.com"]
        ));
    }

    /// protocol.md 1.2.
    #[test]
    fn an_origin_of_any_scheme_passes_where_it_is_listed_to_the_letter() {
        let list = [
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost",
        ];
        for good in list {
            assert!(allowed(good, "gw", &list), "{good}");
            assert!(
                !allowed(good, "localhost", &["https://localhost", "loopback"]),
                "{good}"
            );
        }
        for bad in [
            "capacitor://localhost:1",
            "capacitor://localhost/",
            "CAPACITOR://localhost",
            "electron://localhost",
        ] {
            assert!(!allowed(bad, "gw", &list), "{bad}");
        }
    }

    /// protocol.md 1.2.
    #[test]
    fn every_page_of_the_same_machine_passes_where_loopback_is_listed() {
        for good in [
            "http://localhost:3000",
            "https://localhost",
            "http://127.0.0.1:5173",
            "https://127.8.9.10:1",
            "http://[::1]:4200",
        ] {
            assert!(allowed(good, "gw", &["loopback"]), "{good}");
            assert!(!allowed(good, "gw", &[]), "{good}");
        }
        for bad in [
            "loopback",
            "null",
            "ws://localhost:3000",
            "http://localhost.evil.com",
            "http://127.0.0.1.evil.com",
            "http://128.0.0.1",
            "http://[::2]",
            "http://192.168.0.1",
            "file://",
        ] {
            assert!(!allowed(bad, "gw", &["loopback"]), "{bad}");
        }
    }

    #[test]
    fn a_network_is_an_address_of_ipv4_or_64_bits_of_ipv6() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(
            of("2001:db8:0:1::1"),
            of("2001:db8:0:1:ffff:ffff:ffff:ffff")
        );
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    }

    #[test]
    fn a_mapped_address_is_in_the_network_of_its_ipv4_form() {
        let networks = ["10.0.0.0/8".parse().unwrap()];
        assert!(is_in("::ffff:10.1.2.3".parse().unwrap(), &networks));
        assert!(!is_in("::ffff:11.1.2.3".parse().unwrap(), &networks));
    }

    #[test]
    fn an_exact_entry_fits_scheme_host_and_port() {
        let list = [
            "https://shop.example.com",
            "http://localhost:5173",
            "https://bücher.example",
        ];
        for good in [
            "https://shop.example.com",
            "https://shop.example.com:443",
            "HTTPS://SHOP.example.com",
            "http://localhost:5173",
        ] {
            assert!(allowed(good, "gw", &list), "{good}");
        }
        assert!(allowed("https://xn--bcher-kva.example", "gw", &list));
        for bad in [
            "http://shop.example.com",
            "https://shop.example.com:8443",
            "https://shop.example.com.evil.com",
            "https://shop.example.com.",
            "https://evil-shop.example.com",
            "https://a.shop.example.com",
            "https://shop.example.com@evil.com",
            "https://evil.com/https://shop.example.com",
            "https://shop.example.com/",
            "https://shop.example.com#",
            "https://shop.example.com ",
            "https://shop.example.com:",
            "https:shop.example.com",
            "http://localhost",
            "file://",
            "ftp://shop.example.com",
            "chrome-extension://shop.example.com",
        ] {
            assert!(!allowed(bad, "gw", &list), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_fits_subdomains_only() {
        let list = ["https://*.example.com"];
        for good in [
            "https://a.example.com",
            "https://a.b.example.com",
            "https://A.EXAMPLE.com:443",
        ] {
            assert!(allowed(good, "gw", &list), "{good}");
        }
        for bad in [
            "https://example.com",
            "https://evil-example.com",
            "https://evilexample.com",
            "https://.example.com",
            "https://*.example.com",
            "https://a.example.com.evil.com",
            "https://a.example.com:8443",
            "http://a.example.com",
            "https://a.example.com.",
            "https://a%2eexample.com",
        ] {
            assert!(!allowed(bad, "gw", &list), "{bad}");
        }
        assert!(allowed(
            "https://a.example.com:8443",
            "gw",
            &["https://*.example.com:8443"]
        ));
        assert!(!allowed(
            "https://a.example.com",
            "gw",
            &["*", "https://*", "*.example.com", "https://a.*.com"]
        ));
    }
}
