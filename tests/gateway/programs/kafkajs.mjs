// Produces with kafkajs and its defaults, which are not idempotent.
// Arguments: broker, topic, and one record as JSON.
import kafkajs from "kafkajs";

const [broker, topic, record] = process.argv.slice(2);
const kafka = new kafkajs.Kafka({ clientId: "kafkajs", brokers: [broker], logLevel: kafkajs.logLevel.ERROR });
const producer = kafka.producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner });
await producer.connect();
await producer.send({ topic, acks: -1, messages: [{ key: "42", value: record }] });
await producer.disconnect();
