//! Records with schemas, through the whole pipeline.

use serde_json::json;

use super::*;
use crate::activity::schema::testing::{Answering, RegistryStub, avro_bytes, with_id};

const ACTIVITY: &str = r#"{"type":"record","name":"Activity","fields":[
    {"name":"id","type":"string"},{"name":"type","type":"string"},{"name":"actorId","type":"string"},
    {"name":"title","type":"string"},{"name":"content","type":"string"}]}"#;

fn activity(id: &str) -> Vec<u8> {
    let fields = [id, "T", "17", "t", "c"].map(avro_bytes);
    with_id(1, &fields.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_holds_the_partition_and_an_unknown_id_is_a_dead_letter() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    let (stub, url) = RegistryStub::start().await;
    stub.add(1, "AVRO", ACTIVITY, json!([]));
    stub.answer(Answering::Error(503));
    stage.config.registry.url = url;
    stage.config.registry.topics = stage.config.topics.clone();
    let unknown = with_id(2, b"whatever");
    for value in [&activity("a"), &unknown, &activity("b")] {
        stage.produce_with(0, value, OwnedHeaders::new()).await;
    }
    stage.produce_many(0, "json", "17", 1).await;
    let running = stage.run();
    // The lanes ask together whether it is back.
    until("the registry was asked again and again", || {
        stub.asked() >= 4 && stage.metrics.pipeline_retries.get() >= 1
    })
    .await;
    assert_eq!(stage.committed(0).await, 0);
    assert_eq!(stage.rows.count(), 0);
    stub.answer(Answering::Well);
    stage.until_committed(0, 4).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), ["a", "b", "json0"]);
    let letter = stage.dead_letters(1).await.remove(0);
    assert_eq!(
        (letter.header(dead_letter::REASON), letter.value.as_ref()),
        (Some("unknown_schema"), Some(&unknown))
    );
}
