// The client against a real gateway while something breaks. At the end it shows exactly what the database has, always.

import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Client, ClientOptions, SignalError } from "../../src/index.js";
import { Gateway, binary, equals, online, pause, until } from "./gateway.js";

if (!binary) console.log("skipped: clients: conformance: SIGNAL_TEST_GATEWAY is not set");

describe.skipIf(!binary)("a real gateway", () => {
  let gateway: Gateway;
  let user = 100;
  const clients: Client[] = [];

  beforeAll(async () => {
    gateway = await Gateway.start();
  });
  afterAll(() => gateway?.close());
  afterEach(() => {
    for (const client of clients.splice(0)) client.close();
    gateway.proxy.mode = "open";
  });

  /** A person of the test's own, connected. */
  async function person(options: Partial<ClientOptions> = {}): Promise<{ me: string; client: Client; errors: SignalError[] }> {
    const me = String(++user);
    const client = gateway.client(me, options);
    const errors: SignalError[] = [];
    client.onError((error) => errors.push(error));
    clients.push(client);
    await online(client);
    return { me, client, errors };
  }

  test("connects, seals, and shows what comes", async () => {
    const { me, client } = await person();
    expect(client.connection.getSnapshot()).toMatchObject({ status: "online", userId: me, encrypted: true, error: null });
    await gateway.notify([me], 3);
    await until("they are shown", () => client.inbox.getSnapshot().items.length === 3);
    await equals(gateway, client, me);
  });

  test("a clear connection works as well", async () => {
    const { me, client } = await person({ encryption: "off" });
    expect(client.connection.getSnapshot().encrypted).toBe(false);
    await gateway.notify([me]);
    await until("it is shown", () => client.inbox.getSnapshot().items.length === 1);
  });

  test("reads and deletions show at once, on every device", async () => {
    const { me, client } = await person();
    const other = gateway.client(me);
    clients.push(other);
    await gateway.notify([me], 5);
    for (const each of [client, other]) await until("they are shown", () => each.inbox.getSnapshot().items.length === 5);
    const [first, second] = client.inbox.getSnapshot().items;
    const counts: number[] = [];
    client.inbox.subscribe(() => counts.push(client.inbox.getSnapshot().unreadCount));
    await Promise.all([client.inbox.read([first!.id]), client.inbox.remove(second!.id)]);
    await until("the other shows it", () => other.inbox.getSnapshot().unreadCount === 3);
    await client.inbox.readAll();
    await until("the other shows it", () => other.inbox.getSnapshot().unreadCount === 0);
    await equals(gateway, client, me);
    await equals(gateway, other, me);
    expect(counts.every((count, at) => at === 0 || count <= counts[at - 1]!), `never up: ${counts.join(" ")}`).toBe(true);
  });

  test("an event of the application comes to who listens, also in rooms", async () => {
    const me = "17";
    const client = gateway.client(me);
    clients.push(client);
    await online(client);
    const seen: unknown[] = [];
    client.on("order:updated", (data) => seen.push(data));
    expect(await client.join("merchant:42", "merchant:43")).toEqual({ acknowledged: true, rooms: ["merchant:42"], refused: ["merchant:43"] });
    await gateway.rest("1", "POST", `/socket/websocket/users/${me}/messages`, { event: "order:updated", data: { to: "user" } });
    await gateway.rest("1", "POST", "/socket/websocket/rooms/merchant:42/messages", { event: "order:updated", data: { to: "room" } });
    await until("both came", () => seen.length === 2);
    gateway.proxy.cut();
    await until("it is gone", () => client.connection.getSnapshot().status !== "online");
    await online(client);
    await until("the room is joined on the next connection", async () => {
      await gateway.rest("1", "POST", "/socket/websocket/rooms/merchant:42/messages", { event: "order:updated", data: { to: "again" } });
      await pause(100);
      return seen.length > 2;
    });
  });

  test("1,000 notifications while offline", async () => {
    const { me, client } = await person();
    await gateway.notify([me], 3);
    await until("they are shown", () => client.inbox.getSnapshot().items.length === 3);
    gateway.proxy.cut("refused");
    await gateway.notify([me], 1_000);
    await until("they are stored", async () => (await gateway.count(me)) === 1_003);
    const [one, two] = (await gateway.inbox(me)).items.slice(-2);
    await gateway.rest(me, "DELETE", `/notifications/${one!.id}`);
    await gateway.rest(me, "POST", "/notifications/read", { ids: [two!.id] });
    gateway.proxy.mode = "open";
    await equals(gateway, client, me);
  });

  test("a gateway that is killed and comes back", async () => {
    const { me, client, errors } = await person();
    await gateway.notify([me], 2);
    await until("they are shown", () => client.inbox.getSnapshot().items.length === 2);
    await gateway.end("SIGKILL");
    await until("the loss is noticed", () => client.connection.getSnapshot().status !== "online");
    // Tried until it is back.
    const read = client.inbox.read([client.inbox.getSnapshot().items[0]!.id]);
    expect(client.inbox.getSnapshot().unreadCount).toBe(2);
    await pause(0);
    expect(client.inbox.getSnapshot().unreadCount).toBe(1);
    await gateway.run();
    await read;
    await online(client);
    await gateway.notify([me]);
    await until("the next one comes", () => client.inbox.getSnapshot().items.length === 3);
    await equals(gateway, client, me);
    expect(errors.map(({ code }) => code)).toContain("connection_lost");
  });

  test("a drain: closed with 1001, refused with a hint for how long, and back", async () => {
    const { me, client, errors } = await person();
    await gateway.admin("POST", "/drain", { hold: true });
    await until("it was closed in order", () => errors.some(({ closeCode }) => closeCode === 1001));
    await until("it was told how long to wait", () => errors.some(({ retryAfterMs }) => retryAfterMs !== undefined), 10_000);
    await gateway.notify([me], 2);
    await gateway.admin("DELETE", "/drain");
    await online(client);
    await equals(gateway, client, me);
  });

  test("an end by SIGTERM, and another process", async () => {
    const { me, client, errors } = await person();
    await gateway.end("SIGTERM");
    await until("it was closed in order", () => errors.some(({ closeCode }) => closeCode === 1001));
    await gateway.run();
    await online(client);
    await gateway.notify([me]);
    await until("the next one comes", () => client.inbox.getSnapshot().items.length === 1);
  });

  test("rebalanced: connects again at once", async () => {
    const { client, errors } = await person();
    const before = await online(client);
    await gateway.admin("POST", "/shed", { count: 1 });
    await until("it was closed", () => errors.some(({ closeCode }) => closeCode === 4009));
    expect(await until("it is back", () => client.connection.getSnapshot().clientId, 3_000)).not.toBe(before);
  });

  test("closed by an administrator: stays closed until connect()", async () => {
    const { client, errors } = await person();
    await gateway.rest("1", "DELETE", `/socket/websocket/clients/${await online(client)}`);
    await until("it is closed", () => client.connection.getSnapshot().status === "closed");
    expect(errors.at(-1)).toMatchObject({ code: "disconnected", closeCode: 4007 });
    await pause(500);
    expect(client.connection.getSnapshot().status).toBe("closed");
    client.connect();
    await online(client);
  });

  test("revoked: the token is never used again, and one that was issued later is", async () => {
    const sent: string[] = [];
    let token = "";
    const me = String(++user);
    token = gateway.token(me);
    const client = gateway.client(me, {
      token: () => {
        sent.push(token);
        return token;
      },
    });
    clients.push(client);
    const errors: SignalError[] = [];
    client.onError((error) => errors.push(error));
    await online(client);
    await gateway.rest("1", "POST", "/socket/websocket/revocations", { userId: me });
    await until("it was closed", () => errors.some(({ code }) => code === "revoked"));
    await until("the old one was given again, and not used", () => errors.some(({ code }) => code === "token_refused"));
    expect(errors.every(({ closeCode }) => closeCode !== 4003)).toBe(true);
    await pause(1_100);
    token = gateway.token(me);
    await online(client);
    await gateway.notify([me]);
    await equals(gateway, client, me);
  });

  test("a token of nobody is refused, and token() is asked for another", async () => {
    let asked = 0;
    const me = String(++user);
    const client = gateway.client(me, { token: () => (++asked < 3 ? `no.token.${asked}` : gateway.token(me)) });
    clients.push(client);
    await online(client);
    expect(asked).toBe(3);
  });

  test("a network that swallows everything is noticed, and left", async () => {
    const { me, client, errors } = await person({ probeMs: 500 });
    gateway.proxy.mode = "silent";
    await gateway.notify([me], 2);
    await until("it is noticed", () => errors.some(({ code }) => code === "connection_lost"), 15_000);
    gateway.proxy.cut();
    await online(client);
    await equals(gateway, client, me);
  });

  test("another person with the same client sees nothing of the first", async () => {
    let me = String(++user);
    const first = me;
    const client = gateway.client(me, { token: () => gateway.token(me) });
    clients.push(client);
    await online(client);
    await gateway.notify([me], 2);
    await equals(gateway, client, me);
    me = String(++user);
    gateway.proxy.cut();
    await until("the other is online", () => client.connection.getSnapshot().userId === me && client.connection.getSnapshot().status === "online");
    expect(client.inbox.getSnapshot().items.filter(({ recipientId }) => recipientId === first)).toEqual([]);
    await equals(gateway, client, me);
  });
});

describe.skipIf(!binary)("tokens that live for seconds", () => {
  let gateway: Gateway;
  beforeAll(async () => {
    gateway = await Gateway.start();
    gateway.set("[auth]\nclock_skew_secs = 1");
    await until("the settings hold", async () => {
      const status = (await (await gateway.admin("GET", "/status")).json()) as { liveRevision: string; liveError: string | null };
      if (status.liveError) throw new Error(status.liveError);
      return new RegExp("sha256:").test(status.liveRevision);
    });
    await pause(2_500);
  });
  afterAll(() => gateway?.close());

  test("a connection outlives its tokens by refreshing them", async () => {
    const client = gateway.client("500", { token: () => gateway.token("500", 8) });
    const first = await online(client);
    await pause(12_000);
    expect(client.connection.getSnapshot()).toMatchObject({ status: "online", clientId: first });
    await gateway.notify(["500"]);
    await equals(gateway, client, "500");
    client.close();
  });

  test("an old token from a cache leads to 4005, and is not used again", async () => {
    let token = gateway.token("501", 3);
    const client = gateway.client("501", { token: () => token });
    const errors: SignalError[] = [];
    client.onError((error) => errors.push(error));
    await online(client);
    await until("it ended", () => errors.some(({ closeCode }) => closeCode === 4005), 15_000);
    await until("the old one is not used", () => errors.some(({ code }) => code === "token_refused"));
    token = gateway.token("501");
    await online(client);
    client.close();
  });
});

/** How long; a longer run finds more. */
const CHAOS_SECONDS = Number(process.env["SIGNAL_TEST_CHAOS_SECONDS"] ?? 15);

describe.skipIf(!binary)("chaos", () => {
  test("50 clients of 10 people, through kills, cuts, drains and rebalancing: all show what the database has", { timeout: (CHAOS_SECONDS + 120) * 1000 }, async () => {
    const gateway = await Gateway.start();
    const users = Array.from({ length: 10 }, (_, n) => String(900 + n));
    const clients = users.flatMap((me) => [1, 2, 3, 4, 5].map(() => ({ me, client: gateway.client(me) })));
    try {
      for (const { client } of clients) {
        client.inbox.subscribe(() => {
          const { items, unreadCount } = client.inbox.getSnapshot();
          expect(new Set(items.map(({ id }) => id)).size).toBe(items.length);
          expect(unreadCount).toBeGreaterThanOrEqual(0);
        });
      }
      const pick = <T>(list: readonly T[]): T => list[Math.floor(Math.random() * list.length)]!;
      const faults = [
        async () => gateway.proxy.cut(),
        async () => {
          gateway.proxy.cut("refused");
          await pause(700);
        },
        async () => {
          await gateway.end("SIGKILL");
          await gateway.run();
        },
        async () => void (await gateway.admin("POST", "/shed", { count: 10 })),
        async () => {
          await gateway.admin("POST", "/drain", { hold: true });
          await pause(500);
          await gateway.admin("DELETE", "/drain");
        },
      ];
      const end = Date.now() + CHAOS_SECONDS * 1000;
      let isBusy = true;
      const people = (async () => {
        while (isBusy) {
          const { client } = pick(clients);
          const { items } = client.inbox.getSnapshot();
          const dice = Math.random();
          const ignore = (): void => {};
          if (items.length > 0 && dice < 0.4) void client.inbox.read([pick(items).id]).catch(ignore);
          else if (items.length > 0 && dice < 0.7) void client.inbox.remove(pick(items).id).catch(ignore);
          else if (dice < 0.75) void client.inbox.readAll().catch(ignore);
          await pause(30);
        }
      })();
      const producing = (async () => {
        while (isBusy) {
          await gateway.notify(users.filter(() => Math.random() < 0.5).concat(users[0]!), 3).catch(() => {});
          await pause(100);
        }
      })();
      for (let fault = 0; Date.now() < end; fault++) {
        await (faults[fault % faults.length] as () => Promise<void>)();
        gateway.proxy.mode = "open";
        await pause(500 + Math.random() * 1_500);
      }
      isBusy = false;
      await Promise.all([people, producing]);
      await pause(1_000);
      await Promise.all(clients.map(({ me, client }) => equals(gateway, client, me, 60_000)));
    } finally {
      for (const { client } of clients) client.close();
      await gateway.close();
    }
  });
});
