// node-redis against the server: `node_redis.js PORT PACKAGE PROTOCOL`. Each line
// says what must come next, so it ends with 0 only if everything came, once and in
// order. It says how far it is. After `restart` it wants the server to be restarted;
// it says `back` when it listens again, and ends with a message on `restarted`.
"use strict";

const assert = require("node:assert");
const [, , port, name, protocol] = process.argv;
const { createClient } = require(name);

const ALL_BYTES = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));

// The received messages, and a way to wait for them.
class Inbox {
  came = [];
  wake = () => {};
  put = (...what) => {
    this.came.push(what);
    this.wake();
  };
  async expect(...expected) {
    while (this.came.length === 0) await new Promise((resolve) => (this.wake = resolve));
    assert.deepStrictEqual(this.came.shift(), expected);
  }
}

async function connect() {
  const client = createClient({
    RESP: Number(protocol),
    socket: { host: "127.0.0.1", port: Number(port), reconnectStrategy: 20 },
  });
  // Emitted while the server is down; without a listener, it is thrown.
  client.on("error", () => {});
  return client.connect();
}

async function subscriptions(publisher) {
  const client = await connect();
  const inbox = new Inbox();
  await client.subscribe(["news", "sport"], (text, channel) => inbox.put("message", channel, text));
  await client.pSubscribe("n*", (text, channel) => inbox.put("pmessage", channel, text));
  assert.strictEqual(await publisher.publish("news", "Grüße"), 2);
  await inbox.expect("message", "news", "Grüße");
  await inbox.expect("pmessage", "news", "Grüße");
  assert.strictEqual(await publisher.publish("sport", "2:1"), 1);
  await inbox.expect("message", "sport", "2:1");

  assert.deepStrictEqual((await publisher.pubSubChannels()).sort(), ["news", "sport"]);
  assert.deepStrictEqual(await publisher.pubSubChannels("s*"), ["sport"]);
  assert.deepStrictEqual({ ...(await publisher.pubSubNumSub(["news", "nope"])) }, { news: 1, nope: 0 });
  assert.strictEqual(await publisher.pubSubNumPat(), 1);

  await client.sSubscribe("shard", (text, channel) => inbox.put("smessage", channel, text));
  assert.strictEqual(await publisher.sPublish("shard", "x"), 1);
  await inbox.expect("smessage", "shard", "x");
  assert.deepStrictEqual(await publisher.pubSubShardChannels(), ["shard"]);
  await client.sUnsubscribe("shard");

  // In RESP3 a client may do other things while it listens.
  if (protocol === "3") {
    assert.strictEqual(await client.publish("news", "self"), 2);
    await inbox.expect("message", "news", "self");
    await inbox.expect("pmessage", "news", "self");
  }
  assert.match(await client.ping(), /^PONG$/i);

  await client.unsubscribe("news");
  assert.strictEqual(await publisher.publish("news", "x"), 1);
  await inbox.expect("pmessage", "news", "x");
  // With no names version 4 waits for a count of 0.
  await (name === "redis-4" ? client.pUnsubscribe("n*") : client.pUnsubscribe());
  await client.unsubscribe();
  assert.strictEqual(await publisher.publish("news", "x"), 0);
  assert.deepStrictEqual(inbox.came, []);
  await leave(client);
}

async function payloads(publisher) {
  const client = await connect();
  const inbox = new Inbox();
  const receive = (payload, channel) => inbox.put(channel, payload);
  await client.subscribe(ALL_BYTES.toString("latin1"), () => assert.fail(), false);
  await client.subscribe("bytes", receive, true);
  const bytes = Buffer.from("bytes");
  assert.strictEqual(await publisher.publish("bytes", ALL_BYTES), 1);
  await inbox.expect(bytes, ALL_BYTES);
  const largest = Buffer.concat(Array(4096).fill(ALL_BYTES));
  assert.strictEqual(await publisher.publish("bytes", largest), 1);
  await inbox.expect(bytes, largest);
  await assert.rejects(publisher.publish("bytes", Buffer.concat([largest, bytes])), /^.*TOOLARGE /);
  assert.strictEqual(await publisher.publish("bytes", ""), 1);
  await inbox.expect(bytes, Buffer.alloc(0));

  const channels = Array.from({ length: 1000 }, (_, number) => `channel-${number}`);
  await client.subscribe(channels, (text, channel) => inbox.put(channel, text));
  // Sent together, as one pipeline.
  const counts = await Promise.all(channels.map((channel) => publisher.publish(channel, channel)));
  assert.deepStrictEqual(counts, Array(1000).fill(1));
  for (const channel of channels) await inbox.expect(channel, channel);
  await client.unsubscribe(channels);
  assert.deepStrictEqual(await publisher.pubSubChannels("channel-*"), []);
  await leave(client);
}

async function restart(publisher) {
  const client = await connect();
  const inbox = new Inbox();
  await client.subscribe("restarted", (text, channel) => inbox.put("message", channel, text));
  await client.pSubscribe("re?tarted", (text, channel) => inbox.put("pmessage", channel, text));
  const ready = new Promise((resolve) => client.once("ready", resolve));
  console.log("restart");
  await ready;
  // `ready` comes when the subscriptions have been requested; their
  // acknowledgements are known to have come when this is answered.
  await client.ping();
  console.log("back");
  await inbox.expect("message", "restarted", "hello again");
  await inbox.expect("pmessage", "restarted", "hello again");
  assert.strictEqual(await publisher.publish("restarted", "x"), 2);
  await leave(client);
}

// Version 4 has another word for it.
const leave = (client) => (client.close && name === "redis" ? client.close() : client.disconnect());

async function main() {
  const publisher = await connect();
  assert.strictEqual(await publisher.ping(), "PONG");
  await subscriptions(publisher);
  console.log("subscriptions");
  await payloads(publisher);
  console.log("payloads");
  await restart(publisher);
  await leave(publisher);
}

main().catch((problem) => {
  console.error(problem);
  process.exit(1);
});
