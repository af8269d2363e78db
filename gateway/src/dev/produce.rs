//! `signal-gateway dev produce`: produces one record to the embedded broker, so that no other producer is needed.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

/// The record that is produced by default: a payment at merchant 42.
pub(super) const SAMPLE: &str = r#"{"type":"PAYMENT_SUCCESS","actorId":"17","recipientType":"merchant","merchantId":"42","data":{"amount":150000,"currency":"VND","orderId":"DH-1001"}}"#;
/// Longest wait for the broker's confirmation.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The record to produce.
#[derive(Debug, clap::Args)]
pub struct Record {
    /// The record as JSON, or - to read it from standard input; without it, a payment at merchant 42
    #[arg(value_name = "JSON", default_value = SAMPLE, hide_default_value = true)]
    value: String,
    /// Key of the record; records of one key stay in order
    #[arg(long, default_value = "42")]
    key: String,
    /// A header, such as traceparent=00-...; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("must be NAME=VALUE")?;
    Ok((name.into(), value.into()))
}

/// Produces the record and waits for the broker's confirmation. Does not check the record; the pipeline does.
///
/// # Errors
/// The broker cannot be reached.
pub(super) fn produce(broker: &str, topic: &str, record: &Record) -> anyhow::Result<()> {
    let mut value = record.value.clone();
    if value == "-" {
        value.clear();
        std::io::stdin()
            .read_to_string(&mut value)
            .context("cannot read standard input")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (partition, offset) = runtime.block_on(async {
        let producer = producer(broker)?;
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(value),
                })
            });
        let record = FutureRecord::to(topic)
            .key(&record.key)
            .payload(&value)
            .headers(headers);
        let sent = producer.send(record, TIMEOUT).await;
        let sent = sent
            .map_err(|(error, _)| error)
            .with_context(|| format!("no answer from {broker}: is dev mode running?"))?;
        anyhow::Ok((sent.partition, sent.offset))
    })?;
    Ok(writeln!(
        std::io::stdout(),
        "produced to {topic}, partition {partition}, offset {offset}"
    )?)
}

/// Makes a producer for the embedded broker.
///
/// # Errors
/// librdkafka cannot start it.
pub(super) fn producer(broker: &str) -> anyhow::Result<FutureProducer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker)
        .set("acks", "all")
        .set("message.timeout.ms", TIMEOUT.as_millis().to_string());
    Ok(config.create()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::decode::{self, decode};

    #[test]
    fn the_sample_is_a_valid_record() {
        let record = decode::Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            timestamp: Some(1),
            key: None,
            value: Some(SAMPLE.into()),
            headers: vec![],
        };
        assert_eq!(
            decode(&record).unwrap().audience,
            decode::Audience::Merchant("42".into())
        );
    }

    #[test]
    fn a_header_has_a_name() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(header("=b").is_err() && header("ab").is_err());
    }
}
