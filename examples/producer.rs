//! A producer: reports one payment to Signal by way of Kafka and waits for the broker's confirmation.
//!
//! ```sh
//! cargo run --bin example-producer -- --merchant 42 --order DH-2001
//! ```
//!
//! Every user of the merchant (authorization.md 6.1) finds a notification in the inbox, and sees it at once where a client is connected.
//! `/asyncapi.json` of a gateway describes every member of an activity.

#![expect(clippy::print_stdout, reason = "it speaks to its terminal")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;

/// Reports one payment, and waits until Kafka has it.
#[derive(Parser)]
struct Arguments {
    /// Brokers, as host:port, separated by commas
    #[arg(long, default_value = "127.0.0.1:9092")]
    brokers: String,
    /// The topic that the gateways consume
    #[arg(long, default_value = "activity-notification")]
    topic: String,
    /// The merchant whose users are notified
    #[arg(long, default_value = "42")]
    merchant: String,
    /// The order that was paid. Reporting the same order again notifies nobody twice
    #[arg(long, default_value = "DH-2001")]
    order: String,
    /// The amount in VND
    #[arg(long, default_value_t = 150_000)]
    amount: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &arguments.brokers)
        // Retries inside the library neither repeat a record nor change the order.
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "30000")
        .create()?;

    // `id` is the identity of the event: Signal stores one notification per id and recipient, however often the record comes.
    let id = format!("payment-{}", arguments.order);
    let activity = json!({
        "id": id,
        // Selects the template; `data` holds the values in it.
        "type": "PAYMENT_SUCCESS",
        "data": {"amount": arguments.amount, "currency": "VND", "orderId": arguments.order},
        // Whom it concerns: `merchant` with `merchantId`, `org` with `organizerId`, or `users` with `recipientIds`.
        "recipientType": "merchant",
        "merchantId": arguments.merchant,
        // Who caused it.
        "actorId": "17",
    })
    .to_string();

    // Records of one key stay in order.
    let record = FutureRecord::to(&arguments.topic)
        .key(&arguments.merchant)
        .payload(&activity);
    let stored = producer
        .send(record, Duration::from_secs(30))
        .await
        .map_err(|(error, _)| error)
        .with_context(|| format!("{} did not confirm the record", arguments.brokers))?;
    println!(
        "{id} is in {}, partition {}, offset {}",
        arguments.topic, stored.partition, stored.offset
    );
    Ok(())
}
