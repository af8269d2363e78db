//! The table of close codes: cause -> code and reason text (protocol.md 7.1 to 7.16; RFC 6455 sections 7.4 and 5.5).

/// Makes [`Close`] from one row per cause: its variant, its code and its reason.
macro_rules! close_codes {
    ($($(#[doc = $doc:literal])* $cause:ident = $code:literal, $reason:literal;)*) => {
        /// Why the server closes a connection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Close {
            $(
                #[doc = concat!(stringify!($code), ".")]
                $(#[doc = $doc])*
                $cause,
            )*
        }

        impl Close {
            /// All causes, in the order of their codes.
            pub const ALL: [Self; [$($code),*].len()] = [$(Self::$cause),*];

            /// Returns the code on the wire.
            pub const fn code(self) -> u16 {
                match self { $(Self::$cause => $code,)* }
            }

            /// Returns the code as the label of a metric.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$cause => stringify!($code),)* }
            }

            /// Returns the reason on the wire, of at most [`MAX_CLOSE_REASON`](super::bounds::MAX_CLOSE_REASON) bytes.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$cause => $reason,)* }
            }
        }
    };
}

close_codes! {
    /// The peer closed.
    Normal = 1000, "";
    /// Drain or shutdown.
    ShuttingDown = 1001, "Server shutting down";
    /// A frame breaks RFC 6455.
    ProtocolError = 1002, "Protocol error";
    /// Text that is not UTF-8.
    InvalidPayload = 1007, "Invalid payload";
    /// A message is longer than the limit.
    TooBig = 1009, "Message too big";
    /// The server failed.
    InternalError = 1011, "Internal error";
    /// `authenticate` did not come in time, or took too long.
    AuthenticationTimeout = 4001, "Authentication timeout";
    /// No frame for too long.
    HeartbeatTimeout = 4002, "Heartbeat timeout";
    /// The token is refused, or could not be verified.
    AuthenticationFailed = 4003, "Authentication failed";
    /// Encryption is required, or was asked for with an unusable key.
    EncryptionRequired = 4004, "Encryption required";
    /// The token ended; refresh and reconnect.
    TokenExpired = 4005, "Token expired";
    /// The token was revoked; do not reconnect with it.
    Revoked = 4006, "Revoked";
    /// An administrator closed it.
    Disconnected = 4007, "Disconnected by administrator";
    /// It reads too slowly; reconnect, then sync.
    SlowConsumer = 4008, "Slow consumer";
    /// Reconnect at once, elsewhere.
    Rebalanced = 4009, "Rebalanced";
    /// Too many connections of this user, or frames per second.
    LimitExceeded = 4010, "Limit exceeded";
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
