// Publishes with the framework's own emitter over Redis: one message of each kind.
// Arguments: port of Redis, client id, user id, room, client id to leave out of the room.
import { RedisHelper, WebSocketEmitter } from "@venizia/ignis-helpers";

const [port, clientId, userId, room, excluded] = process.argv.slice(2);
const redisConnection = new RedisHelper({ name: "emitter", host: "127.0.0.1", port: Number(port), password: "" });
const emitter = new WebSocketEmitter({ redisConnection });
await emitter.configure();
await emitter.toClient({ clientId, event: "to:client", data: { n: 1 } });
await emitter.toUser({ userId, event: "to:user", data: [2] });
await emitter.toRoom({ room, event: "to:room", data: "three", exclude: [excluded] });
await emitter.broadcast({ event: "to:all", data: null });
await emitter.broadcast({ event: "without:data" });
await emitter.shutdown();
redisConnection.getClient().disconnect();
