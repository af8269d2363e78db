//! Whether the first pod of a new template is good enough for the others to follow: a pure function of what the Deployment remembers, of the pods, and of
//! the time.
//!
//! The state lies in an annotation of the Deployment, in the same write as the template that it is about, so an operator that is killed at any point goes on.
//! A canary that failed stays so until its revision is approved or another template is wanted.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use signal_contract::StatusReport;
use signal_crds::scaling::Rollout as Settings;

use crate::observe::fleet::{Fleet, Pod, PodProblemKind};
use crate::plan::rollout::Rollout;

/// What is remembered of the canary of one template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Hash of the template.
    pub template: String,
    /// Since when the template is rolled out.
    pub since: DateTime<Utc>,
    /// Since when its pod is good; `None` while it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_since: Option<DateTime<Utc>>,
    /// How it stands.
    pub state: CanaryState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Hash of the template that the other pods have; `None` where another version of the operator did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<String>,
}

impl Canary {
    /// Whether it is good and has no soak, so that the others follow only once a person approves them.
    pub fn awaits_approval(&self, settings: &Settings) -> bool {
        self.state == CanaryState::Observed && self.due(settings).is_none()
    }

    /// When it passes or fails by time alone; `None` where it waits for a person, or for nothing.
    pub fn due(&self, settings: &Settings) -> Option<DateTime<Utc>> {
        if self.state != CanaryState::Observed {
            return None;
        }
        match self.good_since {
            Some(since) => Some(since + span(settings.canary.as_ref()?.soak?)),
            None => Some(self.since + span(settings.progress_deadline)),
        }
    }
}

/// How a canary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CanaryState {
    /// One pod has the template, and is looked at.
    Observed,
    /// The others follow.
    Passed,
    /// The others do not follow.
    Failed,
}

/// What a step looks at.
#[derive(Debug, Clone, Copy)]
pub struct CanaryInput<'a> {
    /// Hash of the template that is applied.
    pub template: &'a str,
    /// Hash of the template in the cluster.
    pub current: Option<&'a str>,
    /// What the Deployment remembers.
    pub recorded: Option<&'a Canary>,
    /// Whether a person has approved the template.
    pub is_approved: bool,
    /// The spec.
    pub settings: &'a Settings,
    /// Which pods are of the newest revision.
    pub rollout: &'a Rollout,
    /// The pods.
    pub fleet: &'a Fleet,
}

impl CanaryInput<'_> {
    /// The canary after this step; `None` where there is none: the template was never rolled out as one.
    pub fn step(&self, now: DateTime<Utc>) -> Option<Canary> {
        step(self, now)
    }
}

fn step(input: &CanaryInput<'_>, now: DateTime<Utc>) -> Option<Canary> {
    let recorded = input
        .recorded
        .filter(|canary| canary.template == input.template);
    let mut canary = match recorded {
        Some(canary) => canary.clone(),
        None => begin(input, now)?,
    };
    if input.is_approved {
        canary.state = CanaryState::Passed;
        canary.why = String::new();
    }
    // Before the template is in the cluster, pods are those of the one before.
    if canary.state == CanaryState::Observed && input.current == Some(input.template) {
        observe(&mut canary, input, now);
    }
    Some(canary)
}

/// The canary of a template that is new. The template that the other pods have is none: going back to it takes away one pod, and has proved itself.
fn begin(input: &CanaryInput<'_>, now: DateTime<Utc>) -> Option<Canary> {
    let current = input.current.filter(|hash| *hash != input.template)?;
    let unfinished = input
        .recorded
        .filter(|canary| canary.template == current && canary.state != CanaryState::Passed);
    let others = match unfinished {
        Some(canary) => canary.others.clone(),
        None => Some(current.to_owned()),
    };
    let state = match others.as_deref() == Some(input.template) {
        true => CanaryState::Passed,
        false => CanaryState::Observed,
    };
    Some(Canary {
        template: input.template.to_owned(),
        since: now,
        good_since: None,
        state,
        why: String::new(),
        others,
    })
}

fn observe(canary: &mut Canary, input: &CanaryInput<'_>, now: DateTime<Utc>) {
    let alive = input.fleet.alive();
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = alive.partition(|pod| input.rollout.is_newest(pod));
    // Otherwise the newest revision is still that of the template before.
    let is_begun = input.rollout.going_on || old.is_empty();
    let new = if is_begun { new } else { Vec::new() };
    let is_due = |canary: &Canary| canary.due(input.settings).is_some_and(|due| now >= due);
    let fail = |canary: &mut Canary, why: String| {
        (canary.state, canary.why) = (CanaryState::Failed, why);
    };
    if let Some(why) = new.iter().find_map(|pod| wrong(pod, &old)) {
        return fail(canary, why);
    }
    let is_good = |pod: &&Pod| pod.ready && pod.report().is_some_and(|report| report.ready);
    if !new.is_empty() && new.iter().all(is_good) {
        canary.good_since.get_or_insert(now);
        if is_due(canary) {
            canary.state = CanaryState::Passed;
        }
        return;
    }
    let unready = new.iter().find(|pod| !pod.ready);
    match (canary.good_since, unready) {
        (Some(_), Some(pod)) => fail(canary, format!("pod {} is not ready any more", pod.name)),
        (None, _) if is_due(canary) => {
            let names: Vec<&str> = new.iter().map(|pod| pod.name.as_str()).collect();
            let names = match names.is_empty() {
                true => "none exists".to_owned(),
                false => names.join(", "),
            };
            fail(
                canary,
                format!("no good pod within progressDeadline: {names}"),
            );
        }
        // A pod that does not answer once is looked at again.
        _ => {}
    }
}

/// What is wrong with a pod of the template and with none of the others: then the template is to blame.
fn wrong(pod: &Pod, others: &[&Pod]) -> Option<String> {
    if pod.restarts > 0 {
        return Some(format!("pod {}: its container was restarted", pod.name));
    }
    let crash = pod.problem.as_ref().filter(|problem| {
        use PodProblemKind::{Configuration, Crash, OutOfMemory};
        matches!(problem.kind, Crash | OutOfMemory | Configuration)
    });
    if let Some(problem) = crash {
        return Some(format!("pod {}: {}", pod.name, problem.message));
    }
    let report = pod.report()?;
    let kinds: [fn(&StatusReport) -> Option<String>; 4] = [
        |report| report.redis.error.clone(),
        |report| report.live_error.clone(),
        |report| {
            let mut sources = report.key_sources.iter();
            sources.find_map(|source| {
                Some(format!(
                    "source {}: {}",
                    source.name,
                    source.error.as_ref()?
                ))
            })
        },
        |report| {
            let kafka = report.kafka.as_ref()?;
            let waits = kafka.retrying > 0 || !kafka.stuck.is_empty();
            waits.then(|| "partitions wait for a dependency".to_owned())
        },
    ];
    let mut own = kinds.iter().filter(|kind| {
        let mut reports = others.iter().filter_map(|other| other.report());
        !reports.any(|report| kind(report).is_some())
    });
    let error = own.find_map(|kind| kind(report))?;
    Some(format!("pod {}: {error}", pod.name))
}

fn span(duration: signal_crds::Duration) -> TimeDelta {
    TimeDelta::from_std(duration.std()).unwrap_or(TimeDelta::days(36_500))
}

#[cfg(test)]
mod tests {
    use signal_contract::KafkaReport;
    use signal_crds::Duration;
    use signal_crds::scaling::{CanarySettings, RolloutStrategy};

    use super::*;
    use crate::observe::fleet::PodProblem;

    /// What happens to a pod.
    type Change = fn(&mut Pod);

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(secs)
    }

    /// Two old pods and a new one.
    fn fleet() -> Fleet {
        let of = |name: &str, hash: &str| {
            let mut pod = Pod {
                template_hash: hash.into(),
                ..crate::fixture::pod(name)
            };
            pod.report = Ok(StatusReport {
                ready: true,
                ..StatusReport::default()
            });
            pod
        };
        Fleet {
            pods: vec![of("a", "old"), of("b", "old"), of("c", "new")],
        }
    }

    fn report(pod: &mut Pod) -> &mut StatusReport {
        pod.report.as_mut().unwrap()
    }

    /// One step a minute after another, for ten minutes, on pods that change; the state after each.
    fn course(
        soak: Option<Duration>,
        change: impl Fn(i64, &mut Fleet),
    ) -> Vec<(CanaryState, String)> {
        let settings = Settings {
            strategy: RolloutStrategy::Canary,
            canary: Some(CanarySettings { soak }),
            progress_deadline: Duration::secs(300),
            ..Settings::default()
        };
        let rollout = Rollout {
            going_on: true,
            newest: Some("new".into()),
            updated: 1,
            stuck: None,
        };
        let mut recorded: Option<Canary> = None;
        let mut states = Vec::new();
        for minute in 0..11 {
            let mut fleet = fleet();
            change(minute, &mut fleet);
            let input = CanaryInput {
                template: "t2",
                current: Some(if minute == 0 { "t1" } else { "t2" }),
                recorded: recorded.as_ref(),
                is_approved: false,
                settings: &settings,
                rollout: &rollout,
                fleet: &fleet,
            };
            let next = step(&input, at(60 * minute)).unwrap();
            // As an annotation keeps it.
            recorded = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
            assert_eq!(recorded.as_ref(), Some(&next));
            states.push((next.state, next.why));
        }
        states
    }

    fn ended(states: &[(CanaryState, String)]) -> (usize, CanaryState, &str) {
        let last = states.last().unwrap();
        let since = states.iter().position(|state| state == last).unwrap();
        (since, last.0, &last.1)
    }

    #[test]
    fn a_canary_that_stays_good_for_its_soak_passes_and_one_without_a_soak_waits() {
        let states = course(Some(Duration::secs(180)), |_, _| {});
        assert_eq!(ended(&states), (4, CanaryState::Passed, ""));
        let states = course(None, |_, _| {});
        assert_eq!(ended(&states), (0, CanaryState::Observed, ""));
        // The soak begins when it is good, and one answer that is missing changes nothing.
        let states = course(Some(Duration::secs(180)), |minute, fleet| {
            fleet.pods[2].ready = minute >= 3;
            if minute == 4 {
                fleet.pods[2].report = Err("timed out".into());
            }
        });
        assert_eq!(ended(&states), (6, CanaryState::Passed, ""));
    }

    #[test]
    fn a_bad_canary_fails_and_stays_so() {
        let soak = Some(Duration::secs(3600));
        let once = |change: Change| {
            course(soak, move |minute, fleet| {
                if minute == 2 {
                    change(&mut fleet.pods[2]);
                }
            })
        };
        let cases: [(Change, &str); 5] = [
            (|pod| pod.restarts = 1, "pod c: its container was restarted"),
            (|pod| pod.ready = false, "pod c is not ready any more"),
            (
                |pod| report(pod).redis.error = Some("refused".into()),
                "pod c: refused",
            ),
            (
                |pod| {
                    let kafka = KafkaReport {
                        retrying: 1,
                        ..KafkaReport::default()
                    };
                    report(pod).kafka = Some(kafka);
                },
                "pod c: partitions wait for a dependency",
            ),
            (
                |pod| {
                    let kind = PodProblemKind::OutOfMemory;
                    pod.problem = Some(PodProblem {
                        kind,
                        message: "out of memory".into(),
                    });
                },
                "pod c: out of memory",
            ),
        ];
        for (change, why) in cases {
            assert_eq!(ended(&once(change)), (2, CanaryState::Failed, why));
        }
        let never = course(soak, |_, fleet| fleet.pods[2].ready = false);
        assert_eq!(
            ended(&never),
            (
                5,
                CanaryState::Failed,
                "no good pod within progressDeadline: c"
            )
        );
        let none = course(soak, |_, fleet| drop(fleet.pods.pop()));
        assert_eq!(
            ended(&none),
            (
                5,
                CanaryState::Failed,
                "no good pod within progressDeadline: none exists"
            )
        );
    }

    #[test]
    fn what_ails_the_old_pods_too_is_not_the_fault_of_the_canary() {
        let states = course(Some(Duration::secs(180)), |_, fleet| {
            for pod in &mut fleet.pods {
                report(pod).redis.error = Some("refused".into());
            }
        });
        assert_eq!(ended(&states), (4, CanaryState::Passed, ""));
    }

    #[test]
    fn an_approval_ends_it_and_a_template_that_is_there_already_needs_none() {
        let (fleet, settings) = (fleet(), Settings::default());
        let failed = Canary {
            template: "t2".into(),
            since: at(0),
            good_since: None,
            state: CanaryState::Failed,
            why: "bad".into(),
            others: None,
        };
        let input = CanaryInput {
            template: "t2",
            current: Some("t2"),
            recorded: Some(&failed),
            is_approved: true,
            settings: &settings,
            rollout: &Rollout::default(),
            fleet: &fleet,
        };
        let passed = step(&input, at(9)).unwrap();
        assert_eq!(
            (passed.state, passed.why.as_str()),
            (CanaryState::Passed, "")
        );
        let of_another = CanaryInput {
            template: "t3",
            current: Some("t3"),
            is_approved: false,
            ..input
        };
        assert_eq!(step(&of_another, at(9)), None);
        let first = CanaryInput {
            current: None,
            recorded: None,
            ..of_another
        };
        assert_eq!(step(&first, at(9)), None, "nothing runs yet");
    }

    #[test]
    fn going_back_to_the_template_of_the_others_needs_no_canary() {
        let (fleet, settings) = (fleet(), Settings::default());
        let turn = |recorded: Option<&Canary>, current: &str, template: &str| {
            let input = CanaryInput {
                template,
                current: Some(current),
                recorded,
                is_approved: false,
                settings: &settings,
                rollout: &Rollout::default(),
                fleet: &fleet,
            };
            step(&input, at(0)).unwrap()
        };
        let second = turn(None, "t1", "t2");
        let failed = Canary {
            state: CanaryState::Failed,
            why: "bad".into(),
            ..second
        };
        assert_eq!(turn(Some(&failed), "t2", "t1").state, CanaryState::Passed);
        // Also after a further attempt.
        let third = turn(Some(&failed), "t2", "t3");
        assert_eq!(third.state, CanaryState::Observed);
        assert_eq!(turn(Some(&third), "t3", "t1").state, CanaryState::Passed);
        assert_eq!(turn(Some(&third), "t3", "t2").state, CanaryState::Observed);
        // The others followed: the one before is as new to them as any.
        let passed = Canary {
            state: CanaryState::Passed,
            ..third
        };
        assert_eq!(turn(Some(&passed), "t3", "t1").state, CanaryState::Observed);
    }
}
