//! What keeps a pod from serving, from what its status says of its containers and of its place. Pure.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStatus, Pod as KubePod, PodStatus,
};

use crate::observe::fleet::{PodProblem, PodProblemKind as Kind};
use crate::time::from_k8s;

/// Longest text that is kept of what a container said last, or of what Kubernetes says, in characters.
const MAX_TEXT: usize = 200;
/// How long a container that was killed for want of memory is told after it runs again.
const TOLD: TimeDelta = TimeDelta::minutes(10);
/// Kubernetes' reason of a container that was killed for want of memory.
const OOM_KILLED: &str = "OOMKilled";

/// The worst of what keeps a pod from serving; `None` for one that serves, starts as usual, or terminates.
pub(super) fn problem(pod: &KubePod, now: DateTime<Utc>) -> Option<PodProblem> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let all = [&status.init_container_statuses, &status.container_statuses];
    let containers = all.into_iter().flatten().flatten();
    let of_containers = containers.filter_map(|container| of_container(container, now));
    of_containers
        .min_by_key(|problem| rank(problem.kind))
        .or_else(|| unschedulable(status))
}

/// When [`problem`] says something else of the same object, if ever.
pub(super) fn changes_at(pod: &KubePod, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let status = pod.status.as_ref()?;
    let all = [&status.init_container_statuses, &status.container_statuses];
    let told_until = |container: &ContainerStatus| {
        let last = container.last_state.as_ref()?.terminated.as_ref()?;
        let ended = last.finished_at.as_ref().map(from_k8s)?;
        (kind_of_end(last) == Kind::OutOfMemory).then_some(ended + TOLD)
    };
    let containers = all.into_iter().flatten().flatten();
    let times = containers.filter_map(told_until);
    times.filter(|at| *at > now).min()
}

/// What has to be mended first comes first.
fn rank(kind: Kind) -> usize {
    [
        Kind::Image,
        Kind::Configuration,
        Kind::OutOfMemory,
        Kind::Crash,
        Kind::Unschedulable,
    ]
    .iter()
    .position(|one| *one == kind)
    .unwrap_or_default()
}

fn unschedulable(status: &PodStatus) -> Option<PodProblem> {
    let mut conditions = status.conditions.iter().flatten();
    let condition = conditions.find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    Some(PodProblem {
        kind: Kind::Unschedulable,
        message: line(condition.message.as_deref().unwrap_or_default()),
    })
}

fn of_container(container: &ContainerStatus, now: DateTime<Utc>) -> Option<PodProblem> {
    let said = |kind, text: &str| {
        let name = &container.name;
        let text = line(text);
        Some(PodProblem {
            kind,
            message: match text.is_empty() {
                true => format!("container {name}"),
                false => format!("container {name}: {text}"),
            },
        })
    };
    let last = container.last_state.as_ref();
    let last = last.and_then(|state| state.terminated.as_ref());
    let state = container.state.as_ref();
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let text = waiting.message.as_deref().unwrap_or_default();
        return match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => said(Kind::Image, text),
            "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "PreStartHookError"
            | "PostStartHookError" => said(Kind::Configuration, text),
            "CrashLoopBackOff" => match last {
                Some(last) => said(kind_of_end(last), &end(last)),
                None => said(Kind::Crash, text),
            },
            _ => None,
        };
    }
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        return (ended.exit_code != 0)
            .then(|| said(kind_of_end(ended), &end(ended)))
            .flatten();
    }
    // It runs again, and is not well yet.
    let last = last.filter(|last| last.exit_code != 0)?;
    let ended = last.finished_at.as_ref().map(from_k8s);
    let is_fresh = ended.is_some_and(|ended| now - ended < TOLD);
    let is_killed = kind_of_end(last) == Kind::OutOfMemory && is_fresh;
    let comes_again = !container.ready && container.restart_count >= 2;
    (is_killed || comes_again)
        .then(|| said(kind_of_end(last), &end(last)))
        .flatten()
}

fn kind_of_end(ended: &ContainerStateTerminated) -> Kind {
    match ended.reason.as_deref() {
        Some(OOM_KILLED) => Kind::OutOfMemory,
        _ => Kind::Crash,
    }
}

/// How a container ended, and the last line that it said.
fn end(ended: &ContainerStateTerminated) -> String {
    let said = ended.message.as_deref().unwrap_or_default();
    let last = said
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    let code = ended.exit_code;
    match last {
        Some(last) => format!("it ended with code {code}: {last}"),
        None => format!("it ended with code {code}"),
    }
}

/// One short line.
fn line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let plain = plain.trim();
    match plain.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &plain[..end]),
        None => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: Value) -> Option<(Kind, String)> {
        let pod = json!({"metadata": {"name": "edge-1"}, "status": status});
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let found = problem(&serde_json::from_value(pod).unwrap(), now)?;
        Some((found.kind, found.message))
    }

    /// A pod whose gateway is in this state.
    fn gateway(state: Value) -> Option<(Kind, String)> {
        let mut container = json!({"name": "gateway", "ready": false, "restartCount": 3, "image": "", "imageID": ""});
        let members = container.as_object_mut().unwrap();
        members.extend(state.as_object().unwrap().clone());
        of(json!({"containerStatuses": [container]}))
    }

    fn waiting(reason: &str) -> Value {
        json!({"state": {"waiting": {"reason": reason, "message": "why\nit is so"}}})
    }

    fn ended(reason: &str, at: &str) -> Value {
        json!({"exitCode": 137, "reason": reason, "finishedAt": at, "message": "starting\nno such file: /x\n\n"})
    }

    #[test]
    fn each_state_that_a_container_does_not_leave_by_itself_is_named() {
        for (reason, kind) in [
            ("ImagePullBackOff", Kind::Image),
            ("ErrImagePull", Kind::Image),
            ("InvalidImageName", Kind::Image),
            ("CreateContainerConfigError", Kind::Configuration),
            ("RunContainerError", Kind::Configuration),
            ("CrashLoopBackOff", Kind::Crash),
        ] {
            let found = gateway(waiting(reason));
            let message = "container gateway: why it is so".to_owned();
            assert_eq!(found, Some((kind, message)), "{reason}");
        }
        for reason in ["ContainerCreating", "PodInitializing"] {
            assert_eq!(gateway(waiting(reason)), None);
        }
    }

    #[test]
    fn a_crash_loop_is_told_with_the_last_line_of_the_container() {
        let mut state = waiting("CrashLoopBackOff");
        state["lastState"] = json!({"terminated": ended("Error", "2026-01-01T00:00:00Z")});
        let message = "container gateway: it ended with code 137: no such file: /x";
        assert_eq!(gateway(state), Some((Kind::Crash, message.into())));
        let again = json!({"state": {"running": {}}, "lastState": {"terminated": ended("Error", "2026-01-01T00:00:00Z")}});
        assert_eq!(
            gateway(again.clone()).unwrap().0,
            Kind::Crash,
            "between two ends"
        );
        let mut well = again;
        well["ready"] = json!(true);
        assert_eq!(gateway(well), None);
        let over = json!({"state": {"terminated": ended("Error", "2026-01-01T00:00:00Z")}});
        assert_eq!(gateway(over).unwrap().0, Kind::Crash);
    }

    #[test]
    fn want_of_memory_is_told_for_a_while_after_the_container_runs_again() {
        let killed = |at: &str| json!({"ready": true, "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": ended("OOMKilled", at)}});
        let status = json!({"containerStatuses": [{"name": "gateway", "image": "", "imageID": "", "ready": true, "restartCount": 1,
            "lastState": {"terminated": ended("OOMKilled", "2026-01-01T00:05:00Z")}}]});
        let pod = serde_json::from_value(json!({"metadata": {"name": "edge-1"}, "status": status}))
            .unwrap();
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let until = changes_at(&pod, at("2026-01-01T00:10:00Z"));
        assert_eq!(until, Some(at("2026-01-01T00:15:00Z")));
        assert_eq!(changes_at(&pod, at("2026-01-01T00:15:00Z")), None);
        let fresh = gateway(killed("2026-01-01T00:05:00Z"));
        assert_eq!(fresh.unwrap().0, Kind::OutOfMemory);
        assert_eq!(gateway(killed("2025-12-31T23:59:00Z")), None);
        let mut looping = waiting("CrashLoopBackOff");
        looping["lastState"] = json!({"terminated": ended("OOMKilled", "2025-12-31T00:00:00Z")});
        assert_eq!(gateway(looping).unwrap().0, Kind::OutOfMemory);
    }

    #[test]
    fn a_pod_without_a_node_is_told_with_what_the_scheduler_says() {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"});
        let found = of(json!({"conditions": [condition]}));
        let message = "0/3 nodes are available".to_owned();
        assert_eq!(found, Some((Kind::Unschedulable, message)));
        let gated = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"});
        assert_eq!(of(json!({"conditions": [gated]})), None);
    }

    #[test]
    fn what_has_to_be_mended_first_is_told_and_a_long_text_is_cut() {
        let container = |name: &str, reason: &str, text: &str| {
            json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"waiting": {"reason": reason, "message": text}}})
        };
        let found = of(json!({
            "initContainerStatuses": [container("proxy", "CrashLoopBackOff", "a")],
            "containerStatuses": [container("gateway", "ErrImagePull", &"\u{e9}\u{0}".repeat(900))],
        }));
        let (kind, message) = found.unwrap();
        assert_eq!(kind, Kind::Image);
        let length = message.chars().count();
        assert!(
            length < MAX_TEXT + 30 && message.ends_with("..."),
            "{length}"
        );
    }
}
