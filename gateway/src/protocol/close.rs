//! The table of close codes: cause -> code and reason text (protocol.md 7.1 to 7.16; RFC 6455 sections 7.4 and 5.5).

/// Why the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// 1000: the peer closed.
    Normal,
    /// 1001: drain or shutdown.
    ShuttingDown,
    /// 1002: a frame breaks RFC 6455.
    ProtocolError,
    /// 1007: text that is not UTF-8.
    InvalidPayload,
    /// 1009: a message is longer than the limit.
    TooBig,
    /// 1011: the server failed.
    InternalError,
    /// 4001: `authenticate` did not come in time, or took too long.
    AuthenticationTimeout,
    /// 4002: no frame for too long.
    HeartbeatTimeout,
    /// 4003: the token is refused, or could not be verified.
    AuthenticationFailed,
    /// 4004: encryption is required, or was asked for with an unusable key.
    EncryptionRequired,
    /// 4005: the token ended; refresh and reconnect.
    TokenExpired,
    /// 4006: the token was revoked; do not reconnect with it.
    Revoked,
    /// 4007: an administrator closed it.
    Disconnected,
    /// 4008: it reads too slowly; reconnect, then sync.
    SlowConsumer,
    /// 4009: reconnect at once, elsewhere.
    Rebalanced,
    /// 4010: too many connections of this user, or frames per second.
    LimitExceeded,
}

impl Close {
    /// All causes.
    pub const ALL: [Self; 16] = [
        Self::Normal,
        Self::ShuttingDown,
        Self::ProtocolError,
        Self::InvalidPayload,
        Self::TooBig,
        Self::InternalError,
        Self::AuthenticationTimeout,
        Self::HeartbeatTimeout,
        Self::AuthenticationFailed,
        Self::EncryptionRequired,
        Self::TokenExpired,
        Self::Revoked,
        Self::Disconnected,
        Self::SlowConsumer,
        Self::Rebalanced,
        Self::LimitExceeded,
    ];

    /// Returns the code on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::ShuttingDown => 1001,
            Self::ProtocolError => 1002,
            Self::InvalidPayload => 1007,
            Self::TooBig => 1009,
            Self::InternalError => 1011,
            Self::AuthenticationTimeout => 4001,
            Self::HeartbeatTimeout => 4002,
            Self::AuthenticationFailed => 4003,
            Self::EncryptionRequired => 4004,
            Self::TokenExpired => 4005,
            Self::Revoked => 4006,
            Self::Disconnected => 4007,
            Self::SlowConsumer => 4008,
            Self::Rebalanced => 4009,
            Self::LimitExceeded => 4010,
        }
    }

    /// Returns the code as the label of a metric.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Normal => "1000",
            Self::ShuttingDown => "1001",
            Self::ProtocolError => "1002",
            Self::InvalidPayload => "1007",
            Self::TooBig => "1009",
            Self::InternalError => "1011",
            Self::AuthenticationTimeout => "4001",
            Self::HeartbeatTimeout => "4002",
            Self::AuthenticationFailed => "4003",
            Self::EncryptionRequired => "4004",
            Self::TokenExpired => "4005",
            Self::Revoked => "4006",
            Self::Disconnected => "4007",
            Self::SlowConsumer => "4008",
            Self::Rebalanced => "4009",
            Self::LimitExceeded => "4010",
        }
    }

    /// Returns the reason on the wire, of at most [`MAX_CLOSE_REASON`](super::bounds::MAX_CLOSE_REASON) bytes.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::ShuttingDown => "Server shutting down",
            Self::ProtocolError => "Protocol error",
            Self::InvalidPayload => "Invalid payload",
            Self::TooBig => "Message too big",
            Self::InternalError => "Internal error",
            Self::AuthenticationTimeout => "Authentication timeout",
            Self::HeartbeatTimeout => "Heartbeat timeout",
            Self::AuthenticationFailed => "Authentication failed",
            Self::EncryptionRequired => "Encryption required",
            Self::TokenExpired => "Token expired",
            Self::Revoked => "Revoked",
            Self::Disconnected => "Disconnected by administrator",
            Self::SlowConsumer => "Slow consumer",
            Self::Rebalanced => "Rebalanced",
            Self::LimitExceeded => "Limit exceeded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::bounds::MAX_CLOSE_REASON;

    #[test]
    fn reasons_fit_a_control_frame_and_codes_are_distinct() {
        let mut codes: Vec<u16> = Close::ALL.iter().map(|c| c.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Close::ALL.len());
        assert!(
            Close::ALL
                .iter()
                .all(|c| c.reason().len() <= MAX_CLOSE_REASON)
        );
        assert!(Close::ALL.iter().all(|c| c.label() == c.code().to_string()));
    }

    /// protocol.md 7.1 to 7.16. No client can cause protocol.md 7.6, so only this test holds it.
    #[test]
    fn codes_and_reasons_are_those_of_the_page() {
        let page = include_str!("../../../docs/protocol.md");
        let rows = page
            .lines()
            .filter(|line| line.starts_with("| <a id=\"7."))
            .map(|line| {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                let reason = cells[3].split('`').nth(1).unwrap_or_default();
                (cells[2].to_owned(), reason.to_owned())
            });
        let codes = Close::ALL.map(|close| (close.code().to_string(), close.reason().to_owned()));
        assert_eq!(rows.collect::<Vec<_>>(), codes);
    }
}
