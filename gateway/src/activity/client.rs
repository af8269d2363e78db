//! The settings of librdkafka for each client of the pipeline, made from `[kafka]`.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::PipelineError;
use super::budget::prefetch_bytes;
use crate::config::{
    Kafka, KafkaAuth, KafkaMechanism, KafkaProtocol, KafkaSecurity, read_secret, read_username,
};

/// Properties that `kafka.properties` may not set, and what to do instead or why: what the pipeline guarantees depends on them.
const RESERVED: [(&str, &str); 40] = [
    ("bootstrap.servers", "set kafka.brokers"),
    ("metadata.broker.list", "set kafka.brokers"),
    ("group.id", "set kafka.group_id"),
    (
        "group.protocol",
        "partitions are handed over one by one, by the cooperative-sticky assignor",
    ),
    (
        "group.instance.id",
        "a changed password starts a second member while the first still runs",
    ),
    (
        "partition.assignment.strategy",
        "partitions are handed over one by one, by the cooperative-sticky assignor",
    ),
    ("session.timeout.ms", "set kafka.session_timeout_ms"),
    (
        "enable.auto.commit",
        "offsets are committed when rows are durable",
    ),
    (
        "auto.commit.enable",
        "offsets are committed when rows are durable",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed when rows are durable",
    ),
    ("auto.offset.reset", "set kafka.offset_reset"),
    ("topic.auto.offset.reset", "set kafka.offset_reset"),
    (
        "enable.partition.eof",
        "the end of a partition is no event here",
    ),
    ("security.protocol", "set kafka.security.protocol"),
    ("sasl.mechanism", "set kafka.security.auth.mechanism"),
    ("sasl.mechanisms", "set kafka.security.auth.mechanism"),
    ("sasl.username", "set kafka.security.auth.username"),
    ("sasl.password", "set kafka.security.auth.password_file"),
    (
        "sasl.oauthbearer.method",
        "set kafka.security.auth.token_url",
    ),
    (
        "sasl.oauthbearer.config",
        "set kafka.security.auth.token_url",
    ),
    (
        "sasl.oauthbearer.client.id",
        "set kafka.security.auth.username",
    ),
    (
        "sasl.oauthbearer.client.secret",
        "set kafka.security.auth.password_file",
    ),
    ("sasl.oauthbearer.scope", "set kafka.security.auth.scope"),
    (
        "sasl.oauthbearer.token.endpoint.url",
        "set kafka.security.auth.token_url",
    ),
    ("ssl.ca.location", "set kafka.security.ca_file"),
    (
        "ssl.certificate.location",
        "set kafka.security.certificate_file",
    ),
    ("ssl.key.location", "set kafka.security.key_file"),
    (
        "ssl.key.password",
        "settings are printed, and this one is a secret",
    ),
    (
        "ssl.key.pem",
        "settings are printed, and this one is a secret",
    ),
    (
        "ssl.keystore.password",
        "settings are printed, and this one is a secret",
    ),
    (
        "enable.idempotence",
        "a dead letter is confirmed before its record is committed",
    ),
    (
        "acks",
        "a dead letter is confirmed before its record is committed",
    ),
    (
        "request.required.acks",
        "a dead letter is confirmed before its record is committed",
    ),
    (
        "message.timeout.ms",
        "a dead letter that is not confirmed is sent again",
    ),
    (
        "delivery.timeout.ms",
        "a dead letter that is not confirmed is sent again",
    ),
    ("transactional.id", "the pipeline uses no transactions"),
    (
        "statistics.interval.ms",
        "lag, and which commits failed, is taken from the statistics",
    ),
    ("queued.min.messages", "set kafka.partition_queue"),
    ("fetch.queue.backoff.ms", "set kafka.partition_queue"),
    (
        "isolation.level",
        "records of aborted transactions are never read",
    ),
];

/// How long the producer tries to send a dead letter before it reports an error.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How often librdkafka reports the end and the committed offset of each partition.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(2);
/// How much of one partition is fetched at once.
const PARTITION_FETCH_BYTES: usize = 256 << 10;
/// Larger than any broker takes, so that the broker's own limit decides.
const MAX_MESSAGE_BYTES: usize = 100 << 20;

/// Returns every problem of `[kafka]` that only the pipeline can find, by name; an empty list is good.
pub fn check(config: &Kafka) -> Vec<String> {
    let mut problems: Vec<String> = RESERVED
        .iter()
        .filter(|(name, _)| config.properties.contains_key(*name))
        .map(|(name, why)| format!("kafka.properties.{name}: cannot be set here: {why}"))
        .collect();
    let suffix = &config.dead_letter_suffix;
    for topic in &config.topics {
        let name = |topic: &str| {
            !topic.is_empty()
                && topic.len() <= 249
                && topic
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !name(topic) || !name(&format!("{topic}{suffix}")) {
            problems.push(format!("kafka.topics: {topic:?} with {suffix:?} is no topic's name: letters, digits and ._- only, at most 249"));
        }
        if config
            .topics
            .iter()
            .any(|other| *topic == format!("{other}{suffix}"))
        {
            problems.push(format!(
                "kafka.topics: {topic:?} is the dead-letter topic of another one"
            ));
        }
    }
    problems
}

/// The mechanism as librdkafka names it.
fn mechanism(mechanism: KafkaMechanism) -> &'static str {
    match mechanism {
        KafkaMechanism::Plain => "PLAIN",
        KafkaMechanism::ScramSha256 => "SCRAM-SHA-256",
        KafkaMechanism::ScramSha512 => "SCRAM-SHA-512",
        KafkaMechanism::OAuthBearer => "OAUTHBEARER",
    }
}

fn base(config: &Kafka) -> Result<ClientConfig, PipelineError> {
    let problems = check(config);
    if !problems.is_empty() {
        return Err(PipelineError::Settings(problems));
    }
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", "signal-gateway")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Info);
    let (protocol, is_sasl, is_tls) = match config.security.protocol {
        KafkaProtocol::Plaintext => ("plaintext", false, false),
        KafkaProtocol::Ssl => ("ssl", false, true),
        KafkaProtocol::SaslPlaintext => ("sasl_plaintext", true, false),
        KafkaProtocol::SaslSsl => ("sasl_ssl", true, true),
    };
    client.set("security.protocol", protocol);
    if is_sasl {
        login(&config.security.auth, &mut client)?;
    }
    if is_tls {
        certificates(&config.security, &mut client);
    }
    for (name, value) in &config.properties {
        client.set(name, value);
    }
    Ok(client)
}

/// Sets what brokers ask for by SASL. With OAUTHBEARER that is a token, which [`super::login`] gets.
fn login(auth: &KafkaAuth, client: &mut ClientConfig) -> Result<(), PipelineError> {
    client.set("sasl.mechanism", mechanism(auth.mechanism));
    if auth.mechanism == KafkaMechanism::OAuthBearer {
        return Ok(());
    }
    let failed = |why: String| {
        PipelineError::Settings(vec![format!("kafka.security.auth.password_file: {why}")])
    };
    let password = read_secret(&auth.password_file)
        .map_err(|error| failed(error.to_string()))?
        .ok_or_else(|| failed("is not set".into()))?;
    let username = read_username(&auth.username, &auth.username_file).map_err(|error| {
        PipelineError::Settings(vec![format!("kafka.security.auth.username_file: {error}")])
    })?;
    client
        .set("sasl.username", username)
        .set("sasl.password", password.expose());
    Ok(())
}

/// librdkafka reads the files when a client is made.
fn certificates(security: &KafkaSecurity, client: &mut ClientConfig) {
    let authorities = security.ca_file.to_string_lossy();
    let authorities = if authorities.is_empty() {
        "probe"
    } else {
        &authorities
    };
    client.set("ssl.ca.location", authorities);
    if let Some(key) = security.key_file.path() {
        let certificate = security.certificate_file.to_string_lossy();
        client
            .set("ssl.certificate.location", certificate)
            .set("ssl.key.location", key.to_string_lossy());
    }
}

/// The consumer's longest time between two polls, which is also how long a rebalance waits for it.
const REBALANCE: &str = "max.poll.interval.ms";
const REBALANCE_LIMIT_MS: u64 = 60_000;

/// A member of the group. Only the pipeline commits.
pub(super) fn consumer(config: &Kafka) -> Result<ClientConfig, PipelineError> {
    let mut client = base(config)?;
    client
        .set("group.id", &config.group_id)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", config.session_timeout_ms.to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // What can be had is read. `kafka.offset_reset` is about a group that is new to a topic: see `consumer::start`.
        .set("auto.offset.reset", "earliest")
        .set(
            "statistics.interval.ms",
            STATISTICS_INTERVAL.as_millis().to_string(),
        )
        // A pause throws away what was fetched ahead, so that is no more than may wait in the queue.
        .set(
            "queued.min.messages",
            config.partition_queue.clamp(1, 10_000_000).to_string(),
        )
        // By default librdkafka waits a second before it fetches again after that many were there.
        .set("fetch.queue.backoff.ms", "10");
    // A rebalance waits so long for a member that is alive and does not come. The consumer's thread waits for nothing longer than its share of a hand-over, so
    // a minute is more than enough for it, and the whole group would stand still for the five minutes that are usual.
    if !config.properties.contains_key(REBALANCE) {
        let limit = REBALANCE_LIMIT_MS.max(config.session_timeout_ms);
        client.set(REBALANCE, limit.to_string());
    }
    let prefetch = prefetch_bytes(config.memory_bytes);
    // What is fetched at once belongs to it; and of one partition only a little, because a pause throws it away. A record that is larger comes alone.
    for (name, value) in [
        ("queued.max.messages.kbytes", prefetch >> 10),
        ("fetch.max.bytes", prefetch),
        ("fetch.message.max.bytes", PARTITION_FETCH_BYTES),
    ] {
        if !config.properties.contains_key(name) {
            client.set(name, value.to_string());
        }
    }
    Ok(client)
}

/// A consumer that names its partitions itself, for `dlq replay`; `group` holds the offsets.
pub(super) fn reader(config: &Kafka, group: &str) -> Result<ClientConfig, PipelineError> {
    let mut client = base(config)?;
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest");
    Ok(client)
}

/// A client that creates topics.
pub(super) fn administrator(config: &Kafka) -> Result<ClientConfig, PipelineError> {
    base(config)
}

/// A producer whose record is confirmed when every in-sync replica has it, once.
pub(super) fn producer(config: &Kafka) -> Result<ClientConfig, PipelineError> {
    let mut client = base(config)?;
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", SEND_TIMEOUT.as_millis().to_string())
        .set("message.max.bytes", MAX_MESSAGE_BYTES.to_string())
        .set("linger.ms", "5");
    Ok(client)
}

/// A producer whose records never share a batch.
pub(super) fn one_by_one(producer: &mut ClientConfig) -> &mut ClientConfig {
    producer
        .set("batch.num.messages", "1")
        .set("linger.ms", "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings() -> Kafka {
        Kafka {
            brokers: vec!["127.0.0.1:1".into()],
            ..Config::for_tests().kafka
        }
    }

    #[test]
    fn a_rebalance_waits_a_minute_for_a_member_unless_told_otherwise() {
        let mut config = settings();
        let limit = |config: &Kafka| consumer(config).unwrap().get(REBALANCE).map(str::to_owned);
        assert_eq!(limit(&config).as_deref(), Some("60000"));
        // librdkafka refuses one that is below the session timeout.
        config.session_timeout_ms = 90_000;
        assert_eq!(limit(&config).as_deref(), Some("90000"));
        config.properties.insert(REBALANCE.into(), "120000".into());
        assert_eq!(limit(&config).as_deref(), Some("120000"));
    }

    #[test]
    fn properties_that_the_pipeline_relies_on_are_refused_by_name_and_others_pass() {
        let mut config = settings();
        config.properties.insert("client.rack".into(), "a".into());
        assert_eq!(consumer(&config).unwrap().get("client.rack"), Some("a"));
        config
            .properties
            .insert("enable.auto.commit".into(), "true".into());
        config.properties.insert("acks".into(), "0".into());
        let Err(PipelineError::Settings(problems)) = producer(&config) else {
            panic!("taken")
        };
        assert_eq!(problems.len(), 2);
        assert!(
            problems[0].starts_with("kafka.properties.enable.auto.commit: ")
                && problems[1].starts_with("kafka.properties.acks: ")
        );
    }

    #[test]
    fn topics_are_names_and_never_patterns_or_dead_letters_of_each_other() {
        for topics in [
            vec!["^activity.*"],
            vec![""],
            vec!["a", "a.dlq"],
            vec!["a b"],
        ] {
            let config = Kafka {
                topics: topics.iter().map(|t| (*t).to_owned()).collect(),
                ..settings()
            };
            assert!(!check(&config).is_empty(), "{topics:?}");
        }
        assert_eq!(check(&settings()), Vec::<String>::new());
    }

    #[test]
    fn every_property_is_one_that_librdkafka_knows() {
        use rdkafka::consumer::BaseConsumer;
        use rdkafka::producer::BaseProducer;
        let config = settings();
        let _: BaseConsumer = consumer(&config).unwrap().create().unwrap();
        let _: BaseConsumer = reader(&config, "g").unwrap().create().unwrap();
        let _: BaseProducer = producer(&config).unwrap().create().unwrap();
        let typo = Kafka {
            properties: [("clinet.rack".to_owned(), "a".to_owned())].into(),
            ..config
        };
        assert!(consumer(&typo).unwrap().create::<BaseConsumer>().is_err());
    }

    #[test]
    fn a_password_comes_from_its_file_and_a_missing_one_is_an_error_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        let mut config = settings();
        config.security.protocol = KafkaProtocol::SaslSsl;
        config.security.auth.username = "signal".into();
        let Err(PipelineError::Settings(problems)) = consumer(&config) else {
            panic!("taken")
        };
        assert!(problems[0].starts_with("kafka.security.auth.password_file"));
        config.security.auth.password_file = crate::config::SecretFile::new(file.path());
        let client = consumer(&config).unwrap();
        assert_eq!(
            (client.get("sasl.password"), client.get("ssl.ca.location")),
            (Some("hunter2"), Some("probe"))
        );
        assert_eq!(client.get("sasl.username"), Some("signal"));
        assert!(!format!("{client:?}").contains("hunter2"));
        config.security.auth.username_file = crate::config::SecretFile::new(file.path());
        let client = consumer(&config).unwrap();
        assert_eq!(client.get("sasl.username"), Some("hunter2"), "of its file");
        let gone = crate::config::SecretFile::new("/nowhere");
        config.security.auth.username_file = gone;
        let Err(PipelineError::Settings(problems)) = consumer(&config) else {
            panic!("taken")
        };
        assert!(problems[0].starts_with("kafka.security.auth.username_file"));
    }

    #[test]
    fn a_certificate_comes_from_its_files_and_a_token_from_none() {
        let mut config = settings();
        config.security.protocol = KafkaProtocol::SaslSsl;
        config.security.auth.mechanism = KafkaMechanism::OAuthBearer;
        config.security.certificate_file = "/c/tls.crt".into();
        config.security.key_file = crate::config::SecretFile::new("/c/tls.key");
        let client = consumer(&config).unwrap();
        let found = [
            "sasl.mechanism",
            "sasl.password",
            "ssl.certificate.location",
            "ssl.key.location",
        ]
        .map(|name| client.get(name));
        assert_eq!(
            found,
            [
                Some("OAUTHBEARER"),
                None,
                Some("/c/tls.crt"),
                Some("/c/tls.key")
            ]
        );
    }
}
