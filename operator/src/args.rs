//! Arguments, each with its name in the environment.

use std::net::SocketAddr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Reconciles SignalClusters: gateways that scale, route and rotate trust without dropping people.
#[derive(Debug, Parser)]
#[command(name = "signal-operator", version, about, propagate_version = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile until SIGTERM
    Run(Box<Run>),
    /// Print the CustomResourceDefinitions as YAML
    Crd,
    /// Ask a running operator for its health; exits 0 or 1
    Healthcheck {
        /// URL to fetch: `http://signal-operator:8080/readyz`
        #[arg(long)]
        url: String,
    },
}

/// How to reconcile.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// Namespace to look for SignalClusters in; may be repeated, or separated by commas; none: all of them
    #[arg(
        long = "namespace",
        value_name = "NAMESPACE",
        env = "SIGNAL_OPERATOR_NAMESPACES",
        value_delimiter = ','
    )]
    pub namespaces: Vec<String>,
    /// Label selector of the SignalClusters to reconcile: `signal.dev/operator=canary`, or `!signal.dev/operator`; empty: all
    #[arg(
        long,
        value_name = "SELECTOR",
        env = "SIGNAL_OPERATOR_SELECTOR",
        default_value = ""
    )]
    pub selector: String,
    /// Address of /livez, /readyz and /metrics
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "SIGNAL_OPERATOR_ADMIN_ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub admin_address: SocketAddr,
    /// Address of KEDA's external scaler (gRPC)
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "SIGNAL_OPERATOR_SCALER_ADDRESS",
        default_value = "0.0.0.0:9443"
    )]
    pub scaler_address: SocketAddr,
    /// SignalClusters that are reconciled at the same time
    #[arg(long, value_name = "COUNT", env = "SIGNAL_OPERATOR_CONCURRENCY", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,
    /// The pods of a SignalCluster without changes are asked again after about so many seconds
    #[arg(long, value_name = "SECONDS", env = "SIGNAL_OPERATOR_RESYNC_SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub resync_secs: u64,
    /// What `spec.podTemplate` may have beyond the restricted Pod Security standard
    #[command(flatten)]
    pub allow: Allow,
    /// The Lease whose holder writes
    #[command(flatten)]
    pub lease: Lease,
    /// Format of the log
    #[arg(
        long,
        value_name = "FORMAT",
        env = "SIGNAL_OPERATOR_LOG_FORMAT",
        default_value = "json"
    )]
    pub log_format: LogFormat,
    /// What is logged: `info`, or `signal_operator=debug,warn`
    #[arg(
        long,
        value_name = "FILTER",
        env = "SIGNAL_OPERATOR_LOG_FILTER",
        default_value = "info"
    )]
    pub log_filter: String,
    /// Name of the pod this runs in
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Namespace of the pod this runs in
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
}

/// What `spec.podTemplate` may have beyond the restricted Pod Security standard.
#[derive(Debug, Clone, Copy, Args)]
pub struct Allow {
    /// Lets podTemplate name any account of the namespace, and mount its tokens
    #[arg(long, env = "SIGNAL_OPERATOR_ALLOW_SERVICE_ACCOUNTS", value_parser = BoolishValueParser::new())]
    pub allow_service_accounts: bool,
    /// Lets podTemplate read any Secret of the namespace
    #[arg(long, env = "SIGNAL_OPERATOR_ALLOW_SECRET_VOLUMES", value_parser = BoolishValueParser::new())]
    pub allow_secret_volumes: bool,
    /// Lets podTemplate add containers and init containers
    #[arg(long, env = "SIGNAL_OPERATOR_ALLOW_EXTRA_CONTAINERS", value_parser = BoolishValueParser::new())]
    pub allow_extra_containers: bool,
    /// Lets podTemplate take privileges, capabilities, and the node's namespaces, ports and folders
    #[arg(long, env = "SIGNAL_OPERATOR_ALLOW_HOST_ACCESS", value_parser = BoolishValueParser::new())]
    pub allow_host_access: bool,
}

/// The Lease whose holder writes.
#[derive(Debug, Clone, Args)]
pub struct Lease {
    /// Name of the Lease whose holder writes
    #[arg(
        long,
        value_name = "NAME",
        env = "SIGNAL_OPERATOR_LEASE_NAME",
        default_value = "signal-operator"
    )]
    pub lease_name: String,
    /// Its namespace; none: that of the pod
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "SIGNAL_OPERATOR_LEASE_NAMESPACE"
    )]
    pub lease_namespace: Option<String>,
    /// Another process takes the Lease over when it was not renewed for so many seconds
    #[arg(long, value_name = "SECONDS", env = "SIGNAL_OPERATOR_LEASE_DURATION_SECS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=300))]
    pub lease_duration_secs: u64,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl Run {
    /// The pods of a SignalCluster without changes are asked again after about this time.
    pub fn resync(&self) -> Duration {
        Duration::from_secs(self.resync_secs)
    }
}

impl Lease {
    /// Another process takes the Lease over when it was not renewed for this long.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.lease_duration_secs)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_namespaces_may_be_given_both_ways() {
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from([
            "signal-operator",
            "run",
            "--namespace",
            "a,b",
            "--namespace",
            "c",
        ])
        .unwrap();
        let Command::Run(run) = parsed.command else {
            panic!("not run")
        };
        assert_eq!(run.namespaces, ["a", "b", "c"]);
        assert_eq!(
            (run.concurrency, run.lease.duration()),
            (4, Duration::from_secs(15))
        );
        assert!(
            Arguments::try_parse_from(["signal-operator", "run", "--lease-duration-secs", "1"])
                .is_err()
        );
    }
}
