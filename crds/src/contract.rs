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
    gateway::ClientFrames => ClientFrames { Any, Encrypted }
    gateway::Unmatched => Unmatched { Deny, Allow }
    data::RedisMode => RedisMode { Standalone, Sentinel, Cluster }
    data::OffsetReset => OffsetReset { Earliest, Latest }
    data::KafkaProtocol => KafkaProtocol { Plaintext, Ssl, SaslPlaintext, SaslSsl }
    data::KafkaMechanism => KafkaMechanism { Plain, ScramSha256, ScramSha512 }
    pod::LogFormat => LogFormat { Json, Text }
    jwks::Algorithm => Algorithm { ES256, ES384, RS256, RS384, RS512, PS256, PS384, PS512, EdDSA }
    status::SourceStage => SourceState { Prepared, Trusted, Retiring }
}
