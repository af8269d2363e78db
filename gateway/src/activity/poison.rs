//! Records that can never become notifications, and the closed list of reasons why.

use std::fmt;

/// Why a record is a dead letter. The text of each is a metric label, a header of the dead letter and a filter of `dlq replay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadLetterReason {
    /// There is no value, or it is not UTF-8 text with one JSON object.
    NotJson,
    /// A field has the wrong type, is too long, or holds a character that the database refuses.
    InvalidField,
    /// A field that every activity needs is missing.
    MissingField,
    /// The attributes of CloudEvents 1.0 are incomplete, or of another version or content type.
    InvalidCloudEvent,
    /// `recipientType` is none of `org`, `merchant`, `users`.
    UnknownRecipientType,
    /// `recipientType` names an audience whose id is not given.
    MissingAudience,
    /// More recipients than `kafka.max_recipients`.
    TooManyRecipients,
    /// No recipient was found and there is no `actorId`.
    Nobody,
    /// There is no template for the type, or one of its parameters is missing, and the producer gave no text.
    NoTemplate,
    /// A catalog made a text that is longer than one of a record may be.
    TextTooLong,
    /// The database refuses a value.
    Refused,
    /// The registry has no schema of the record's id.
    UnknownSchema,
    /// The value cannot be read with its schema.
    SchemaMismatch,
}

impl DeadLetterReason {
    /// Every reason there is.
    pub const ALL: [Self; 13] = [
        Self::NotJson,
        Self::InvalidField,
        Self::MissingField,
        Self::InvalidCloudEvent,
        Self::UnknownRecipientType,
        Self::MissingAudience,
        Self::TooManyRecipients,
        Self::Nobody,
        Self::NoTemplate,
        Self::TextTooLong,
        Self::Refused,
        Self::UnknownSchema,
        Self::SchemaMismatch,
    ];

    /// The text of this reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::InvalidField => "invalid_field",
            Self::MissingField => "missing_field",
            Self::InvalidCloudEvent => "invalid_cloud_event",
            Self::UnknownRecipientType => "unknown_recipient_type",
            Self::MissingAudience => "missing_audience",
            Self::TooManyRecipients => "too_many_recipients",
            Self::Nobody => "nobody",
            Self::NoTemplate => "no_template",
            Self::TextTooLong => "text_too_long",
            Self::Refused => "refused",
            Self::UnknownSchema => "unknown_schema",
            Self::SchemaMismatch => "schema_mismatch",
        }
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no [`DeadLetterReason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no reason of a dead letter; there are: not_json, invalid_field, missing_field, invalid_cloud_event, \
         unknown_recipient_type, missing_audience, too_many_recipients, nobody, no_template, \
         text_too_long, refused, unknown_schema, schema_mismatch"
)]
pub struct UnknownDeadLetterReason(pub String);

impl std::str::FromStr for DeadLetterReason {
    type Err = UnknownDeadLetterReason;

    fn from_str(text: &str) -> Result<Self, UnknownDeadLetterReason> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownDeadLetterReason(text.to_owned()))
    }
}

/// A record that can never become a notification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Poison {
    /// The reason.
    pub reason: DeadLetterReason,
    /// What exactly is wrong, for the author of the producer. Names fields, never their values.
    pub detail: String,
}

impl Poison {
    /// `detail` is logged and travels in a header: it must not hold personal data.
    pub fn new(reason: DeadLetterReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back_from_its_text_and_is_named_by_the_error() {
        let named = UnknownDeadLetterReason("x".into()).to_string();
        for reason in DeadLetterReason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert!(named.contains(reason.as_str()), "{reason}");
        }
        assert!("".parse::<DeadLetterReason>().is_err());
    }
}
