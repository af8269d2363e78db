//! Conversions between the enums of the spec and those of the gateway's settings, one for each enum.

use crate::{data, gateway, jwks, pod, status};

/// Converts between enums with the same variants; a variant on one side only does not compile.
macro_rules! same_variants {
    ($($from:ty => $to:ident { $($variant:ident),+ $(,)? })+) => {$(
        impl From<$from> for signal_contract::$to {
            fn from(from: $from) -> Self {
                match from {
                    $(<$from>::$variant => Self::$variant,)+
                }
            }
        }
    )+};
}

same_variants! {
    gateway::EncryptionMode => EncryptionMode { Disabled, Optional, Required }
    gateway::TlsVersion => TlsVersion { V1_2, V1_3 }
    gateway::ClientFrames => ClientFrames { Any, Encrypted }
    gateway::Unmatched => Unmatched { Deny, Allow }
    data::RedisMode => RedisMode { Standalone, Sentinel, Cluster }
    data::OffsetReset => OffsetReset { Earliest, Latest }
    data::KafkaProtocol => KafkaProtocol { Plaintext, Ssl, SaslPlaintext, SaslSsl }
    data::KafkaMechanism => KafkaMechanism { Plain, ScramSha256, ScramSha512, OAuthBearer }
    pod::LogFormat => LogFormat { Json, Text }
    jwks::SourcePreset => SourcePreset { Standard, Ignis }
    status::SourceStage => SourceState { Prepared, Trusted, Retiring }
}

impl From<jwks::Algorithm> for signal_contract::Algorithm {
    fn from(from: jwks::Algorithm) -> Self {
        use jwks::Algorithm as Named;
        match from {
            Named::ES256 | Named::ESP256 => Self::ES256,
            Named::ES384 | Named::ESP384 => Self::ES384,
            Named::RS256 => Self::RS256,
            Named::RS384 => Self::RS384,
            Named::RS512 => Self::RS512,
            Named::PS256 => Self::PS256,
            Named::PS384 => Self::PS384,
            Named::PS512 => Self::PS512,
            Named::EdDSA | Named::Ed25519 => Self::EdDSA,
        }
    }
}
