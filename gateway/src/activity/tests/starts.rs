//! Where partitions begin: topics that are made again, partitions that are added, records that are deleted, transactions. What can be had is read, and what
//! cannot is said.

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::*;
use crate::config::OffsetReset;
use crate::metrics::Partition;

async fn latest(test: &str, partitions: i32) -> Option<Stage> {
    let mut stage = Stage::new(Broker::real_or_skip(test)?, partitions).await;
    stage.config.offset_reset = OffsetReset::Latest;
    stage
        .config
        .properties
        .insert("topic.metadata.refresh.interval.ms".into(), "500".into());
    Some(stage)
}

fn missed(stage: &Stage, partition: i32) -> u64 {
    let label = Partition {
        topic: stage.topic().to_owned(),
        partition,
    };
    stage.metrics.missed.get_or_create(&label).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_begins_with_the_next_record_once_and_never_passes_over_one_again() {
    let test = "latest_begins_with_the_next_record_once_and_never_passes_over_one_again";
    let Some(stage) = latest(test, 2).await else {
        return;
    };
    stage.produce_many(0, "old", "17", 3).await;
    let running = stage.run();
    until("both are assigned", || stage.status.facts().partitions == 2).await;
    stage.until_committed(0, 3).await;
    running.stop().await;
    // Partition 1 has never had a record, and gets its first while nobody reads.
    stage.produce_many(0, "new", "17", 2).await;
    stage.produce_many(1, "first", "18", 2).await;
    let running = stage.run();
    stage.until_committed(0, 5).await;
    stage.until_committed(1, 2).await;
    assert_eq!(stage.rows.of("17"), ids("new", 2));
    assert_eq!(stage.rows.of("18"), ids("first", 2));
    // A partition that is added gets records before anybody knows it.
    let topic = stage.topic().to_owned();
    stage
        .broker
        .admin()
        .create_partitions([&NewPartitions::new(&topic, 3)], &AdminOptions::new())
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let started = Instant::now();
    loop {
        let producer: rdkafka::producer::FutureProducer = stage.broker.client().create().unwrap();
        let record = rdkafka::producer::FutureRecord::<(), _>::to(&topic)
            .partition(2)
            .payload(r#"{"id":"added","type":"T","title":"t","content":"c","actorId":"19"}"#);
        if producer.send(record, Duration::from_secs(1)).await.is_ok() {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
    }
    stage.until_committed(2, 1).await;
    assert_eq!(stage.rows.of("19"), ["added"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_with_fewer_records_is_read_from_its_first() {
    let test = "a_topic_that_is_made_again_with_fewer_records_is_read_from_its_first";
    let Some(stage) = latest(test, 1).await else {
        return;
    };
    let running = stage.run();
    until("it is assigned", || stage.status.facts().partitions == 1).await;
    stage.produce_many(0, "a", "17", 9).await;
    stage.until_committed(0, 9).await;
    let topic = stage.topic().to_owned();
    let admin = stage.broker.admin();
    admin
        .delete_topics(&[&topic], &AdminOptions::new())
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let started = Instant::now();
    loop {
        let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
        let made = admin.create_topics([&new], &AdminOptions::new()).await;
        if made.unwrap().remove(0).is_ok() {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.produce_many(0, "b", "18", 3).await;
    until("the new records are read", || {
        stage.rows.of("18").len() == 3
    })
    .await;
    assert_eq!(stage.rows.of("18"), ids("b", 3));
    stage.until_committed(0, 3).await;
    until("its lag is right", || {
        stage.status.facts().max_lag == Some(0)
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_deleted_unread_are_counted_and_the_rest_is_read() {
    let test = "records_that_were_deleted_unread_are_counted_and_the_rest_is_read";
    let Some(stage) = latest(test, 1).await else {
        return;
    };
    let running = stage.run();
    until("it is assigned", || stage.status.facts().partitions == 1).await;
    stage.produce_many(0, "a", "17", 2).await;
    stage.until_committed(0, 2).await;
    running.stop().await;
    stage.produce_many(0, "gone", "17", 5).await;
    stage.produce_many(0, "left", "17", 2).await;
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(stage.topic(), 0, Offset::Offset(7))
        .unwrap();
    stage
        .broker
        .admin()
        .delete_records(&before, &AdminOptions::new())
        .await
        .unwrap();
    let running = stage.run();
    stage.until_committed(0, 9).await;
    until("it is said", || missed(&stage, 0) > 0).await;
    assert_eq!(missed(&stage, 0), 5);
    running.stop().await;
    assert_eq!(stage.rows.of("17"), [ids("a", 2), ids("left", 2)].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_topic_with_transactions_goes_to_zero_and_counts_no_open_one() {
    let test = "the_lag_of_a_topic_with_transactions_goes_to_zero_and_counts_no_open_one";
    let Some(broker) = Broker::real_or_skip(test) else {
        return;
    };
    let stage = Stage::new(broker, 1).await;
    let running = stage.run();
    let producer: BaseProducer = stage
        .broker
        .client()
        .set("transactional.id", stage.topic())
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    let send = |id: &str| {
        let value =
            format!(r#"{{"id":"{id}","type":"T","title":"t","content":"c","actorId":"17"}}"#);
        let record = BaseRecord::<(), _>::to(stage.topic())
            .partition(0)
            .payload(&value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    };
    producer.begin_transaction().unwrap();
    send("a");
    producer.commit_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send("b");
    producer.abort_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send("open");
    until("what may be read is", || stage.rows.of("17") == ["a"]).await;
    until("nothing is left to read", || {
        stage.status.facts().max_lag == Some(0)
    })
    .await;
    producer.commit_transaction(PATIENCE).unwrap();
    until("the rest is read", || stage.rows.of("17") == ["a", "open"]).await;
    until("nothing is left", || {
        stage.status.facts().max_lag == Some(0)
    })
    .await;
    running.stop().await;
}
