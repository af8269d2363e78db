//! Every reason that the operator writes: of conditions and of Events. A reason is stable, people and alerts match it; a message is not.
//!
//! Both lists are enums, so that a reason outside of them cannot be written. The name of a variant is the text.

macro_rules! reasons {
    (
        $(#[$of_list:meta])*
        $list:ident { $($(#[$of_reason:meta])* $reason:ident,)* }
    ) => {
        $(#[$of_list])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $list {
            $($(#[$of_reason])* $reason,)*
        }

        impl $list {
            /// The whole list.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// CamelCase, as Kubernetes shows it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => stringify!($reason),)*
                }
            }
        }

        impl PartialEq<&str> for $list {
            fn eq(&self, text: &&str) -> bool {
                self.as_str() == *text
            }
        }
    };
}

reasons! {
    /// Reason of a condition. One reason may be used by several conditions: Ready repeats that of the condition which keeps it False.
    ConditionReason {
        /// No operator has looked at it. The definition writes this one.
        Unseen,
        /// The spec is valid.
        Accepted,
        /// A field of the spec has a value that cannot be used.
        InvalidSpec,
        /// `spec.podTemplate` has more than the operator's arguments allow.
        PodTemplateNotAllowed,
        /// The spec has a form of another release.
        SpecUnreadable,
        /// The ConfigMap of catalogs does not exist.
        CatalogsMissing,
        /// The ConfigMap of catalogs has a key that is not `LOCALE.ftl`.
        CatalogsInvalid,
        /// Every Secret and ConfigMap that the spec names exists and is usable.
        Resolved,
        /// A Secret does not exist.
        SecretMissing,
        /// A Secret does not have the key.
        SecretKeyMissing,
        /// The key of a Secret is empty.
        SecretValueEmpty,
        /// The key of a Secret is not one line of text.
        SecretValueInvalid,
        /// The key of a Secret holds no PEM certificates.
        AuthorityInvalid,
        /// A Secret's `tls.crt` and `tls.key` are not a certificate and its key.
        CertificateInvalid,
        /// The key of a Secret is not a `postgres://` URL.
        DatabaseURLInvalid,
        /// The key of a Secret is not a JSON array of users.
        BasicUsersInvalid,
        /// `spec.paused` is set.
        Paused,
        /// `spec.paused` is not set.
        NotPaused,
        /// `spec.stopped` is set.
        Stopped,
        /// `spec.replicas` is 0.
        ScaledToZero,
        /// Enough pods serve.
        PodsAvailable,
        /// Too few pods serve.
        PodsUnavailable,
        /// Nothing is wrong.
        AsExpected,
        /// An object of the same name belongs to someone else.
        NameOccupied,
        /// Somebody changes an object each time that the operator writes it.
        ObjectContested,
        /// An object is being deleted and does not go.
        ObjectTerminating,
        /// The API server refuses an object.
        ApplyRefused,
        /// The API server, or a webhook that it calls, failed while an object was applied.
        ApplyFailed,
        /// The API server did not let something be read.
        ReadFailed,
        /// The spec wants no such objects, or all are applied and serve.
        Applied,
        /// The API server does not know the kind of an object that the spec wants.
        KindMissing,
        /// The operator may not use the kind of an object that the spec wants.
        KindForbidden,
        /// A parent refuses the HTTPRoute.
        RouteNotAccepted,
        /// A parent cannot resolve what the HTTPRoute refers to.
        ReferencesNotResolved,
        /// No controller has answered for the HTTPRoute.
        Pending,
        /// An Ingress or a load balancer has no address.
        AddressNotAssigned,
        /// The rollout made no progress within its deadline.
        ProgressDeadlineExceeded,
        /// The migration Job failed.
        MigrationFailed,
        /// The migration Job has not completed.
        MigrationRunning,
        /// The ReplicaSet cannot create pods.
        ReplicaFailure,
        /// The image of a pod cannot be pulled.
        ImagePullBackOff,
        /// A container of a pod ends again and again.
        CrashLoopBackOff,
        /// A container of a pod was killed because it used more memory than its limit.
        OOMKilled,
        /// A container of a pod cannot be started as it is configured.
        ContainerCannotStart,
        /// No node has room for a pod.
        Unschedulable,
        /// A pod refuses its live settings.
        ConfigurationRefused,
        /// The annotation with the stages of a change cannot be read.
        RecordUnreadable,
        /// Pods have not acknowledged a stage within `spec.jwks.rotation.ackTimeout`.
        AcknowledgementTimedOut,
        /// Pods are being replaced.
        RolloutInProgress,
        /// Another version of the operator makes another pod template of the same spec.
        OperatorChanged,
        /// The pods have the template that the operator makes, or are on the way to it.
        UpToDate,
        /// One pod has the new template, and the others wait for it to stay good.
        CanaryObserved,
        /// The first pod of the new template is not good, and the others do not follow.
        CanaryFailed,
        /// Nobody has approved the new pod template.
        AwaitingApproval,
        /// Fewer pods serve than the spec wants.
        PodsStarting,
        /// The number of pods changes.
        ScalingInProgress,
        /// Gateways switch to another Redis.
        RedisMoving,
        /// Key sources or signing keys change.
        RotationInProgress,
        /// Nothing is in progress.
        Settled,
        /// The spec does not use this dependency.
        NotConfigured,
        /// No pod has reported.
        NotReported,
        /// A pod cannot use the Redis of the spec.
        NotReachable,
        /// A pod does not receive its own messages through Redis.
        SubscriptionStalled,
        /// Every pod receives its own messages through Redis.
        Subscribed,
        /// Partitions wait for a dependency.
        PipelineWaits,
        /// No pod has a partition.
        NoPartitions,
        /// Partitions are assigned.
        Consuming,
        /// No Job of the operator migrates.
        NotManaged,
        /// The migration Job completed.
        Migrated,
        /// A pod has no usable keys of a source.
        SourceUnhealthy,
        /// Every pod has usable keys of every source.
        Fetched,
        /// No source is between two stages.
        Complete,
        /// Sources lose trust in an emergency.
        Revoking,
        /// A source is between two stages.
        InProgress,
        /// Pods have not acknowledged the live settings of a stage.
        WaitingForPods,
        /// A pod cannot fetch a source that it trusts or is about to trust.
        SourceUnreachable,
        /// Sources that the spec does not name any more are accepted for the overlap.
        Overlap,
        /// Gateways take no further source until another one is removed.
        TooManySources,
        /// Sources are revoked everywhere, and `spec.jwks.rotation.emergency` is still set.
        EmergencyInForce,
        /// No emergency is declared.
        NotInForce,
        /// No signing key is added until an old one is dropped.
        TooManySigningKeys,
        /// Private parts of signing keys are gone; their public halves verify until no token of them can be valid.
        SigningKeysLost,
        /// The Secret holds every signing key that is still needed.
        Intact,
        /// A pod cannot reach the Redis that gateways switch to.
        RedisUnreachable,
        /// Nothing limits the number of pods.
        NotLimited,
        /// The number would be above `maxReplicas`.
        TooManyReplicas,
        /// The number would be below `minReplicas`.
        TooFewReplicas,
        /// Policies allow no faster way up.
        ScaleUpLimit,
        /// Policies allow no faster way down.
        ScaleDownLimit,
        /// The load is not known.
        MetricUnavailable,
        /// The number is as the load asks for.
        DesiredWithinRange,
        /// At zero pods autoscaling decides nothing, as the HorizontalPodAutoscaler does.
        ScalingDisabled,
        /// The HorizontalPodAutoscaler cannot write the number.
        UnableToScale,
        /// The HorizontalPodAutoscaler has no status yet.
        NotObserved,
        /// The HorizontalPodAutoscaler names another limit.
        ScalingLimited,
        /// Pods drain before they are deleted.
        Draining,
        /// All wanted pods serve with working parts.
        AllPodsReady,
    }
}

reasons! {
    /// Reason of an Event that a plan or the process publishes. A condition that turns is an Event with the condition's reason.
    EventReason {
        /// Pods fetch a new source before anyone trusts it.
        SourcePrepared,
        /// A source is accepted.
        SourceTrusted,
        /// A source is accepted until its overlap ends.
        SourceRetiring,
        /// A source that was retiring is trusted again.
        SourceTakenBack,
        /// A source is gone: its tokens are refused.
        SourceRemoved,
        /// A source lost trust in an emergency.
        SourceRevoked,
        /// Gateways begin to switch to another Redis.
        RedisSwitchStarted,
        /// Every gateway uses the new Redis.
        RedisSwitched,
        /// Pods have not acknowledged a stage within `spec.jwks.rotation.ackTimeout`.
        AcknowledgementTimedOut,
        /// A key is in the public set and signs nothing yet.
        SigningKeyPublished,
        /// The issuer signs with a key from now on.
        SigningKeyActivated,
        /// A key does not sign any more.
        SigningKeyRetired,
        /// No token of a key can be valid any more, and the key is removed.
        SigningKeyDropped,
        /// The Secret of signing keys does not hold what the operator wrote.
        SigningKeysDamaged,
        /// Keys are gone from their Secret; their public halves are still verified.
        SigningKeysLost,
        /// `signal.dev/rotate-now` has a new value.
        RotationRequested,
        /// `signal.dev/restarted-at` has a new value.
        RestartRequested,
        /// The live ConfigMap was gone, and the copy of its record counts.
        RecordRestored,
        /// The live ConfigMap was gone with every copy of its record.
        RecordLost,
        /// Pods begin to drain before scale-in.
        DrainStarted,
        /// Draining pods stay.
        DrainCancelled,
        /// The Deployment has more pods.
        ScaledOut,
        /// The Deployment has fewer pods.
        ScaledIn,
        /// Pods are deleted with connections open.
        DrainDeadlineExceeded,
        /// The API server does not know SignalCluster.
        CustomResourceDefinitionMissing,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The pattern of `reason` in metav1.Condition, without its punctuation.
    fn is_camel_case(reason: &str) -> bool {
        reason.starts_with(|first: char| first.is_ascii_uppercase())
            && reason.chars().all(|c| c.is_ascii_alphanumeric())
    }

    #[test]
    fn every_reason_is_listed_once_in_camel_case() {
        let conditions: Vec<_> = ConditionReason::ALL.iter().map(|it| it.as_str()).collect();
        let events: Vec<_> = EventReason::ALL.iter().map(|it| it.as_str()).collect();
        for list in [conditions, events] {
            assert!(list.iter().all(|reason| is_camel_case(reason)), "{list:?}");
            assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
        }
    }

    /// `| <a id="REASON"></a>`REASON` | meaning | what to look at | what to do |`: only where all is well there is nothing to look at.
    #[test]
    fn every_reason_has_an_entry_in_the_page_of_reasons_and_every_entry_is_a_reason() {
        let page = include_str!("../../docs/conditions.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .take_while(|line| !line.starts_with("## Alerts"))
            .filter(|line| line.starts_with("| <a id="))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let mut listed = BTreeSet::new();
        for row in &rows {
            let name = row[0].rsplit('`').nth(1).unwrap();
            assert_eq!(row[0], format!("<a id=\"{name}\"></a>`{name}`"));
            assert_eq!(row.len(), 4, "{name}");
            let [means, look, does] = [row[1], row[2], row[3]];
            assert!(!means.is_empty() && !does.is_empty(), "{name} says nothing");
            assert!(
                !look.is_empty() || does.split(' ').count() < 12,
                "{name}: {does}"
            );
            assert!(listed.insert(name), "{name} stands twice");
        }
        let conditions = ConditionReason::ALL.iter().map(|it| it.as_str());
        let events = EventReason::ALL.iter().map(|it| it.as_str());
        let written: BTreeSet<_> = conditions.chain(events).collect();
        assert_eq!(listed, written);
    }

    #[test]
    fn every_alert_of_the_chart_links_to_its_entry() {
        let page = include_str!("../../docs/conditions.md");
        let rule = include_str!("../../charts/signal-operator/templates/prometheusrule.yaml");
        let names = |begins: &str| -> Vec<String> {
            let lines = rule.lines().map(str::trim);
            lines
                .filter_map(|line| Some(line.strip_prefix(begins)?.to_owned()))
                .collect()
        };
        let alerts = names("- alert: ");
        assert!(alerts.len() >= 8, "{alerts:?}");
        let links = alerts
            .iter()
            .map(|alert| format!("{{{{ printf \"%s#{alert}\" $runbook }}}}"));
        assert_eq!(names("runbook_url: "), links.collect::<Vec<_>>());
        for alert in alerts {
            assert!(
                page.contains(&format!("<a id=\"{alert}\"></a>`{alert}` | ")),
                "{alert}"
            );
        }
    }

    /// The variants make every other reason impossible but for those that are written as plain text.
    #[test]
    fn no_source_writes_a_reason_as_text() {
        let mut folders = vec![std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src"
        ))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                assert!(
                    path.ends_with("tests.rs")
                        || path.components().any(|part| part.as_os_str() == "tests")
                        || !code.contains("reason: \""),
                    "{} writes a reason as text",
                    path.display()
                );
            }
        }
    }
}
