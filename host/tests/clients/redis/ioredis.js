// ioredis against the server: `ioredis.js PORT PACKAGE`. Each line says what must
// come next, so it ends with 0 only if everything came, once and in order. It
// says how far it is. After `restart` it wants the server to be restarted; it says
// `back` when it listens again, and ends with a message on `restarted`.
"use strict";

const assert = require("node:assert");
const { once } = require("node:events");
const [, , port, name] = process.argv;
const Redis = require(name);

const ALL_BYTES = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));

// A client, and what it was sent.
class Listener {
  came = [];
  wake = () => {};

  static async connect() {
    const listener = new Listener();
    listener.redis = await connect();
    for (const kind of ["message", "pmessage", "smessage"]) {
      listener.redis.on(`${kind}Buffer`, (...what) => {
        listener.came.push([kind, ...what]);
        listener.wake();
      });
    }
    return listener;
  }

  async expect(kind, ...names) {
    while (this.came.length === 0) await new Promise((resolve) => (this.wake = resolve));
    // ioredis gives the pattern as a string, and all else as bytes.
    const [came, ...what] = this.came.shift();
    assert.deepStrictEqual([came, ...what.map(Buffer.from)], [kind, ...names.map((name) => Buffer.from(name))]);
  }
}

async function connect() {
  const redis = new Redis({ host: "127.0.0.1", port: Number(port), retryStrategy: () => 20 });
  // Emitted while the server is down.
  redis.on("error", () => {});
  await once(redis, "ready");
  return redis;
}

async function subscriptions(publisher) {
  const listener = await Listener.connect();
  const { redis } = listener;
  assert.strictEqual(await redis.subscribe("news", "sport"), 2);
  assert.strictEqual(await redis.psubscribe("n*"), 3);
  assert.strictEqual(await publisher.publish("news", "Grüße"), 2);
  await listener.expect("message", "news", "Grüße");
  await listener.expect("pmessage", "n*", "news", "Grüße");
  assert.strictEqual(await publisher.publish("sport", "2:1"), 1);
  await listener.expect("message", "sport", "2:1");

  assert.deepStrictEqual((await publisher.pubsub("CHANNELS")).sort(), ["news", "sport"]);
  assert.deepStrictEqual(await publisher.pubsub("CHANNELS", "s*"), ["sport"]);
  assert.deepStrictEqual(await publisher.pubsub("NUMSUB", "news", "nope"), ["news", 1, "nope", 0]);
  assert.strictEqual(await publisher.pubsub("NUMPAT"), 1);

  assert.strictEqual(await redis.unsubscribe("news"), 2);
  assert.strictEqual(await publisher.publish("news", "x"), 1);
  await listener.expect("pmessage", "n*", "news", "x");
  // With no names ioredis waits for a count of 0, so that comes last.
  assert.strictEqual(await redis.punsubscribe("n*"), 1);
  assert.strictEqual(await redis.unsubscribe(), 0);
  assert.strictEqual(await publisher.publish("news", "x"), 0);
  // It listens to nothing, so it may publish.
  assert.strictEqual(await redis.publish("news", "x"), 0);
  assert.deepStrictEqual(listener.came, []);
  redis.disconnect();
}

// In a connection of its own: ioredis takes the end of its last shard channel for
// the end of all its subscriptions.
async function shardChannels(publisher) {
  const listener = await Listener.connect();
  assert.strictEqual(await listener.redis.ssubscribe("shard"), 1);
  assert.strictEqual(await publisher.spublish("shard", "x"), 1);
  await listener.expect("smessage", "shard", "x");
  assert.deepStrictEqual(await publisher.pubsub("SHARDNUMSUB", "shard"), ["shard", 1]);
  assert.strictEqual(await listener.redis.sunsubscribe("shard"), 0);
  listener.redis.disconnect();
}

async function payloads(publisher) {
  const listener = await Listener.connect();
  const { redis } = listener;
  assert.strictEqual(await redis.subscribe(ALL_BYTES), 1);
  assert.strictEqual(await publisher.publish(ALL_BYTES, ALL_BYTES), 1);
  await listener.expect("message", ALL_BYTES, ALL_BYTES);
  const largest = Buffer.concat(Array(4096).fill(ALL_BYTES));
  assert.strictEqual(await publisher.publish(ALL_BYTES, largest), 1);
  await listener.expect("message", ALL_BYTES, largest);
  const tooLarge = Buffer.concat([largest, ALL_BYTES]);
  await assert.rejects(publisher.publish(ALL_BYTES, tooLarge), /TOOLARGE /);
  assert.strictEqual(await publisher.publish(ALL_BYTES, ""), 1);
  await listener.expect("message", ALL_BYTES, "");

  const channels = Array.from({ length: 1000 }, (_, number) => `channel-${number}`);
  assert.strictEqual(await redis.subscribe(...channels), 1001);
  const pipeline = publisher.pipeline();
  for (const channel of channels) pipeline.publish(channel, channel);
  assert.deepStrictEqual(await pipeline.exec(), Array(1000).fill([null, 1]));
  for (const channel of channels) await listener.expect("message", channel, channel);
  assert.strictEqual(await redis.unsubscribe(...channels), 1);
  redis.disconnect();
}

async function restart(publisher) {
  const listener = await Listener.connect();
  const { redis } = listener;
  await redis.subscribe("restarted");
  await redis.psubscribe("re?tarted");
  // Not `once`, which fails when a connection is refused before the event.
  const ready = new Promise((resolve) => redis.once("ready", resolve));
  console.log("restart");
  await ready;
  // It subscribes again by itself; the server knows when it has.
  while ((await publisher.pubsub("NUMSUB", "restarted"))[1] === 0);
  while ((await publisher.pubsub("NUMPAT")) === 0);
  console.log("back");
  await listener.expect("message", "restarted", "hello again");
  await listener.expect("pmessage", "re?tarted", "restarted", "hello again");
  assert.strictEqual(await publisher.publish("restarted", "x"), 2);
  redis.disconnect();
}

async function main() {
  const publisher = await connect();
  assert.strictEqual(await publisher.ping(), "PONG");
  await subscriptions(publisher);
  await shardChannels(publisher);
  console.log("subscriptions");
  await payloads(publisher);
  console.log("payloads");
  await restart(publisher);
  publisher.disconnect();
}

main().catch((problem) => {
  console.error(problem);
  process.exit(1);
});
