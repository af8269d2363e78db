// Produces with @platformatic/kafka, which asks for ApiVersions 3 alone: with acks=all, and through the framework's own helper.
// Arguments: broker, topic, and two records as JSON.
import { Producer, stringSerializers } from "@platformatic/kafka";
import { KafkaProducerHelper } from "@venizia/ignis-helpers/kafka";

const [broker, topic, ...records] = process.argv.slice(2);
const options = { clientId: "platformatic", bootstrapBrokers: [broker], serializers: stringSerializers };
const producer = new Producer({ ...options, acks: -1 });
await producer.send({ messages: [{ topic, key: "42", value: records[0] }] });
await producer.close();
// The helper hands on timeouts that are not given as undefined, and the client takes that for no time at all.
const timeouts = { connectTimeout: 5000, requestTimeout: 30000 };
const helper = KafkaProducerHelper.newInstance({ ...options, ...timeouts, acks: -1 });
await helper.getProducer().send({ messages: [{ topic, key: "42", value: records[1] }] });
await helper.close();
// Its connections would keep the process.
process.exit(0);
