// Transactions of node-redis and ioredis, which the variant names: two processes, and each message
// that is published in a transaction arrives once.
"use strict";

const assert = require("node:assert");
const { Redis } = require("ioredis");
const { createClient } = require("redis");
const { Inbox, numbered, port, ready, run, variant } = require("./common.js");

// The two libraries in the same words.
const libraries = {
  "node-redis": async () => {
    const client = await createClient({ url: `redis://127.0.0.1:${port}` }).connect();
    return {
      subscribe: (channel, inbox) => client.subscribe(channel, inbox.put),
      unsubscribe: (channel) => client.unsubscribe(channel),
      publish: (channel, text) => client.publish(channel, text),
      transaction: (commands) =>
        commands.reduce((multi, words) => multi.addCommand(words), client.multi()).exec(),
      watch: () => client.watch("key"),
    };
  },
  ioredis: async () => {
    const client = new Redis(port);
    return {
      subscribe: async (channel, inbox) => {
        client.on("message", (_channel, text) => inbox.put(text));
        await client.subscribe(channel);
      },
      unsubscribe: (channel) => client.unsubscribe(channel),
      publish: (channel, text) => client.publish(channel, text),
      transaction: async (commands) =>
        (await client.multi(commands).exec()).map(([problem, result]) => problem ?? result),
      watch: () => client.watch("key"),
    };
  },
};

const publications = (channel, texts) => texts.map((text) => ["publish", channel, text]);

async function peer() {
  const [subscriber, publisher] = [await libraries[variant](), await libraries[variant]()];
  const inbox = new Inbox();
  await subscriber.subscribe("to-peer", inbox);
  ready();
  const received = [];
  for (let text; (text = await inbox.next()) !== "leave"; ) received.push(text);
  await subscriber.unsubscribe("to-peer");
  // All of it in one transaction.
  const counts = await publisher.transaction(publications("to-main", [...received, "left"]));
  assert.deepStrictEqual(counts, [...received, "left"].map(() => 1));
}

async function main() {
  const [subscriber, publisher] = [await libraries[variant](), await libraries[variant]()];
  const inbox = new Inbox();
  await subscriber.subscribe("to-main", inbox);
  const sent = numbered("in a transaction");
  for (const text of sent) {
    const results = await publisher.transaction([...publications("to-peer", [text]), ["ping"]]);
    assert.deepStrictEqual(results, [1, "PONG"]);
  }
  // Transactions that are under way together, on one connection.
  const pairs = numbered("together").map((text) => [`${text} a`, `${text} b`]);
  const results = pairs.map((pair) => publisher.transaction(publications("to-peer", pair)));
  assert.deepStrictEqual(await Promise.all(results), pairs.map(() => [1, 1]));
  sent.push(...pairs.flat());
  // A command that is refused while it is queued: nothing is published.
  const wrong = publisher.transaction([...publications("to-peer", ["aborted"]), ["publish", "x"]]);
  await assert.rejects(wrong, /EXECABORT|wrong number of arguments/);
  await publisher.watch();
  const watched = publisher.transaction(publications("to-peer", ["watched", "leave"]));
  assert.deepStrictEqual(await watched, [1, 1]);
  await inbox.expect([...sent, "watched", "left"]);
  assert.strictEqual(await publisher.publish("to-peer", "unread"), 0);
  assert.deepStrictEqual(inbox.received, []);
}

run({ peer, main });
