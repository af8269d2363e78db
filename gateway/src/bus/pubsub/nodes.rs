//! Nodes of a Redis: how they are written, what a cluster reports of them, and the order in which they are tried. No IO.

use rand::seq::SliceRandom;
use redis::Value;

use crate::bus::BusError;

/// Host and port.
pub(super) type Address = (String, u16);

/// Which node a connection prefers where several would do.
#[derive(Debug, Clone)]
pub(super) enum Prefer {
    /// Any node.
    Any,
    /// This node where it can be reached: two connections to one node receive the same messages in the same order.
    Same(Address),
    /// Another node than this: what is published there arrives here only while the nodes reach each other.
    Other(Address),
    /// In a cluster the master that has this slot, and no other.
    Owner(u16),
}

/// Parses `host:port`, with an IPv6 host in brackets.
pub(super) fn parse(text: &str) -> Result<Address, BusError> {
    let wrong = || BusError::Misconfigured(format!("redis.nodes: {text:?} is not host:port"));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() {
        Err(wrong())
    } else {
        Ok((host.to_owned(), port))
    }
}

/// Returns the master in one entry of `CLUSTER SLOTS`: `[from, to, [host, port, ..], ..]`. A node that does not know its own
/// host sends none, and the host of the seed stands for it.
pub(super) fn master_of(range: &Value, seed_host: &str) -> Option<Address> {
    let Value::Array(range) = range else {
        return None;
    };
    let Value::Array(node) = range.get(2)? else {
        return None;
    };
    let host = redis::from_redis_value_ref::<Option<String>>(node.first()?).ok()?;
    let port = redis::from_redis_value_ref::<u16>(node.get(1)?).ok()?;
    Some((
        host.filter(|h| !h.is_empty() && h != "?")
            .unwrap_or_else(|| seed_host.to_owned()),
        port,
    ))
}

/// Whether an entry of `CLUSTER SLOTS` holds this slot.
pub(super) fn holds_slot(range: &Value, slot: u16) -> bool {
    let Value::Array(range) = range else {
        return false;
    };
    let bound = |at: usize| match range.get(at) {
        Some(Value::Int(bound)) => Some(*bound),
        _ => None,
    };
    let (from, to) = (bound(0), bound(1));
    from.is_some_and(|from| from <= i64::from(slot)) && to.is_some_and(|to| i64::from(slot) <= to)
}

/// Puts nodes into the order in which they are tried: at random where there is no preference, so that instances spread.
pub(super) fn ordered(mut nodes: Vec<Address>, prefer: &Prefer) -> Vec<Address> {
    nodes.shuffle(&mut rand::rng());
    match prefer {
        Prefer::Any | Prefer::Owner(_) => {}
        Prefer::Same(same) => nodes.sort_by_key(|node| node != same),
        Prefer::Other(other) => nodes.sort_by_key(|node| node == other),
    }
    nodes
}

/// Formats an address as `host:port`, with an IPv6 host in brackets.
pub(super) fn format((host, port): &Address) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_host_and_port() {
        assert_eq!(parse("redis:6379").unwrap(), ("redis".to_owned(), 6379));
        assert_eq!(parse("[::1]:7000").unwrap(), ("::1".to_owned(), 7000));
        for bad in ["redis", ":6379", "redis:", "redis:99999", "redis:x"] {
            assert!(
                matches!(parse(bad), Err(BusError::Misconfigured(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_preference_decides_which_node_comes_first_and_none_is_left_out() {
        let nodes: Vec<Address> = (1..=3).map(|port| ("h".to_owned(), port)).collect();
        for _ in 0..20 {
            let same = ordered(nodes.clone(), &Prefer::Same(nodes[1].clone()));
            assert_eq!((&same[0], same.len()), (&nodes[1], 3));
            let other = ordered(nodes.clone(), &Prefer::Other(nodes[1].clone()));
            assert_eq!((&other[2], other.len()), (&nodes[1], 3));
        }
    }

    #[test]
    fn a_cluster_node_that_does_not_know_its_host_is_reached_by_the_host_of_the_seed() {
        let node = |host: Value| {
            Value::Array(vec![
                Value::Int(0),
                Value::Int(5),
                Value::Array(vec![
                    host,
                    Value::Int(7001),
                    Value::BulkString(b"id".to_vec()),
                ]),
            ])
        };
        for (slot, holds) in [(0, true), (5, true), (6, false)] {
            assert_eq!(holds_slot(&node(Value::Nil), slot), holds, "{slot}");
        }
        assert!(!holds_slot(&Value::Nil, 0));
        assert_eq!(
            master_of(&node(Value::BulkString(b"10.0.0.1".to_vec())), "seed"),
            Some(("10.0.0.1".into(), 7001))
        );
        for unknown in [
            Value::Nil,
            Value::BulkString(Vec::new()),
            Value::BulkString(b"?".to_vec()),
        ] {
            assert_eq!(
                master_of(&node(unknown), "seed"),
                Some(("seed".into(), 7001))
            );
        }
    }
}
