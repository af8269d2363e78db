// Produces with @platformatic/kafka, which asks for ApiVersions 3 alone: with its defaults, idempotent, and through the framework's own helper.
// Arguments: broker, topic, and three records as JSON.
import { Producer, stringSerializers } from "@platformatic/kafka";
import { KafkaProducerHelper } from "@venizia/ignis-helpers/kafka";

const [broker, topic, ...records] = process.argv.slice(2);
const options = { clientId: "platformatic", bootstrapBrokers: [broker], serializers: stringSerializers };
for (const [at, more] of [{}, { idempotent: true, acks: -1 }].entries()) {
  const producer = new Producer({ ...options, ...more });
  await producer.send({ messages: [{ topic, key: "42", value: records[at] }] });
  await producer.close();
}
const helper = KafkaProducerHelper.newInstance({ ...options, acks: -1, idempotent: true });
await helper.getProducer().send({ messages: [{ topic, key: "42", value: records[2] }] });
await helper.close();
