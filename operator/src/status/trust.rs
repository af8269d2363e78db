//! What a person has to know about trust that is not as usual: an emergency in force, and signing keys that are gone.

use signal_crds::SignalClusterSpec;

use super::conditions::{ConditionType as Type, Finding, State};
use crate::decide::PlannedCluster;
use crate::reasons::ConditionReason;

/// Names every source that the emergency is about, and what became of it.
pub(super) fn emergency(spec: &SignalClusterSpec, plan: &PlannedCluster) -> Finding {
    let find =
        |state, reason, message| Finding::new(Type::EmergencyInForce, state, reason, message);
    let rotation = &spec.jwks.rotation;
    if !rotation.emergency {
        return find(State::False, ConditionReason::NotInForce, String::new());
    }
    let jwks = &plan.facts.record.jwks;
    let became = |name: &String| {
        let has =
            |known: &str| known == name || known.strip_prefix(name.as_str()).is_some_and(is_hash);
        if jwks.revoked_sources.iter().any(|revoked| has(revoked)) {
            return format!("{name} lost trust");
        }
        let is_wanted = spec.jwks.sources.iter().any(|source| source.name == *name);
        match is_wanted {
            true => {
                format!("{name} is in the spec as before and keeps trust: replace or remove it")
            }
            false => format!("{name} is not known"),
        }
    };
    let about: Vec<String> = match rotation.emergency_sources.is_empty() {
        true => vec!["every source that leaves the spec loses trust at once".to_owned()],
        false => rotation.emergency_sources.iter().map(became).collect(),
    };
    let message = format!(
        "{}; set spec.jwks.rotation.emergency to false once it is over",
        about.join("; ")
    );
    find(State::True, ConditionReason::EmergencyInForce, message)
}

/// Whether this is what a gateway's name has after the declared one.
fn is_hash(rest: &str) -> bool {
    rest.strip_prefix('-')
        .is_some_and(|digits| digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Names the keys whose private parts are gone.
pub(super) fn signing_keys(spec: &SignalClusterSpec, plan: &PlannedCluster) -> Finding {
    let find =
        |state, reason, message| Finding::new(Type::SigningKeysIntact, state, reason, message);
    if spec.jwks.managed.is_none() {
        let message = "the spec has no managed keys".to_owned();
        return find(State::True, ConditionReason::NotConfigured, message);
    }
    let said: Vec<String> = plan
        .lost_keys
        .iter()
        .map(|key| {
            let until = key
                .verify_until
                .map(|until| until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
            format!("{} until {}", key.kid, until.unwrap_or_default())
        })
        .collect();
    if said.is_empty() {
        return find(State::True, ConditionReason::Intact, String::new());
    }
    let message = format!(
        "keys are gone from their Secret and sign nothing more; their public halves are verified: {}",
        said.join(", ")
    );
    find(State::False, ConditionReason::SigningKeysLost, message)
}
