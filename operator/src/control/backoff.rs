//! How long to wait before a failed reconcile is tried again. Pure: randomness is an argument.

use std::time::Duration;

use crate::act::apply::ApplyError;
use crate::act::writer::WriteError;
use crate::observe::ObserveError;
use crate::reconcile::context::Error;
use crate::time::growing;

/// The kinds of failure that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Another client wrote in between (409): reading again soon is enough.
    Conflict,
    /// The API server is overloaded (429), fails (5xx), or does not answer.
    Busy,
    /// The operator has no right to it (401, 403).
    Denied,
    /// The request itself is refused (other 4xx).
    Refused,
    /// Another process may hold the lease.
    NotHeld,
    /// An object of that name belongs to someone else, is changed by them, or is still being deleted.
    InTheWay,
}

impl ErrorClass {
    /// As the metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorClass::Conflict => "conflict",
            ErrorClass::Busy => "busy",
            ErrorClass::Denied => "denied",
            ErrorClass::Refused => "refused",
            ErrorClass::NotHeld => "not_held",
            ErrorClass::InTheWay => "in_the_way",
        }
    }

    /// Of a reconcile that failed.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Observe(ObserveError::Read { source, .. })
            | Error::Apply(ApplyError::Read { source, .. }) => Self::of_api(source),
            Error::Observe(ObserveError::Gone | ObserveError::Unreadable(_)) => Self::Refused,
            Error::Apply(ApplyError::Write(error)) | Error::Write(error) => match error {
                WriteError::NotHeld => Self::NotHeld,
                WriteError::Api { source, .. } => Self::of_api(source),
                WriteError::TimedOut { .. } => Self::Busy,
            },
            Error::Apply(
                ApplyError::Occupied { .. }
                | ApplyError::Leaving { .. }
                | ApplyError::Contested { .. },
            ) => Self::InTheWay,
            Error::InPart { source, .. } => Self::of(source),
            Error::Apply(ApplyError::UnknownKind(_) | ApplyError::Shape(_)) => Self::Refused,
        }
    }

    /// Of an answer of the API server.
    fn of_api(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => ErrorClass::Conflict,
                401 | 403 => ErrorClass::Denied,
                429 | 500.. => ErrorClass::Busy,
                _ => ErrorClass::Refused,
            },
            _ => ErrorClass::Busy,
        }
    }

    fn first_and_longest(self) -> (Duration, Duration) {
        match self {
            ErrorClass::Conflict => (Duration::from_millis(100), Duration::from_secs(5)),
            ErrorClass::Busy => (Duration::from_secs(1), Duration::from_secs(60)),
            ErrorClass::Denied | ErrorClass::Refused => {
                (Duration::from_secs(2), Duration::from_secs(300))
            }
            ErrorClass::NotHeld => (Duration::from_secs(5), Duration::from_secs(5)),
            ErrorClass::InTheWay => (Duration::from_secs(1), Duration::from_secs(30)),
        }
    }
}

/// The pause after this many failures in a row (1 is the first), as [`growing`] has it.
pub fn pause(class: ErrorClass, failures: u32, chance: f64) -> Duration {
    let (first, longest) = class.first_and_longest();
    growing(first, longest, failures, chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_never_fall_below_half() {
        assert_eq!(pause(ErrorClass::Busy, 1, 1.0), Duration::from_secs(1));
        assert_eq!(pause(ErrorClass::Busy, 4, 1.0), Duration::from_secs(8));
        assert_eq!(pause(ErrorClass::Busy, 4, 0.0), Duration::from_secs(4));
        assert_eq!(
            pause(ErrorClass::Busy, u32::MAX, 1.0),
            Duration::from_secs(60)
        );
        assert!(pause(ErrorClass::Conflict, 1, 1.0) < pause(ErrorClass::Busy, 1, 0.0));
    }

    #[test]
    fn every_code_has_its_class() {
        let of = |code| {
            ErrorClass::of_api(&kube::Error::Api(
                kube::core::Status {
                    code,
                    ..kube::core::Status::failure("x", "y")
                }
                .boxed(),
            ))
        };
        assert_eq!(
            [409, 403, 401, 429, 500, 503, 422].map(of),
            [
                ErrorClass::Conflict,
                ErrorClass::Denied,
                ErrorClass::Denied,
                ErrorClass::Busy,
                ErrorClass::Busy,
                ErrorClass::Busy,
                ErrorClass::Refused
            ]
        );
    }
}
