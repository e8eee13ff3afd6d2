// graphql-redis-subscriptions: GraphQL subscriptions in two processes.
"use strict";

const assert = require("node:assert");
const { buildSchema, parse, subscribe } = require("graphql");
const { RedisPubSub } = require("graphql-redis-subscriptions");
const { Inbox, numbered, port, ready, reconnected, run } = require("./common.js");

const schema = buildSchema(`
  type Query { none: String }
  type Subscription { said: String, any: String }
`);

// An engine that uses ioredis, and what fails when a connection is closed is left to it.
const pubsub = new RedisPubSub({
  connection: { host: "127.0.0.1", port },
  connectionListener: () => {},
});

// Starts a GraphQL subscription to a field, which is the channel or pattern `trigger`.
async function start(field, trigger, options) {
  const rootValue = { [field]: () => pubsub.asyncIterableIterator(trigger, options) };
  const document = parse(`subscription { ${field} }`);
  const iterator = await subscribe({ schema, document, rootValue });
  assert.ok(iterator.next, JSON.stringify(iterator));
  const inbox = new Inbox();
  (async () => {
    for await (const result of iterator) inbox.put(result.data[field]);
  })();
  return { inbox, end: () => iterator.return() };
}

// The engine does not wait for the acknowledgement.
async function subscribed(channel, count) {
  while ((await pubsub.getPublisher().pubsub("NUMSUB", channel))[1] !== count);
}

async function peer() {
  const { inbox, end } = await start("said", "to-peer");
  await subscribed("to-peer", 1);
  ready();
  let text;
  while ((text = await inbox.next()) !== "leave") await pubsub.publish("to-main", { said: text });
  await end();
  await subscribed("to-peer", 0);
  await pubsub.publish("to-main", { said: "left" });
  await pubsub.close();
}

async function main() {
  const said = await start("said", "to-main");
  const any = await start("any", "to-*", { pattern: true });
  await subscribed("to-main", 1);
  while ((await pubsub.getPublisher().pubsub("NUMPAT")) !== 1);
  const say = (text) => pubsub.publish("to-peer", { said: text, any: text });

  async function thereAndBack(name) {
    const texts = numbered(name);
    for (const text of texts) await say(text);
    await said.inbox.expect(texts);
    // The pattern matches both channels. What the peer publishes does not have the field `any`.
    const seen = [];
    for (const _ of [...texts, ...texts]) seen.push(await any.inbox.next());
    assert.deepStrictEqual(seen.filter((text) => text !== null), texts);
  }

  await thereAndBack("first");
  await reconnected();
  await thereAndBack("second");
  await say("leave");
  await said.inbox.expect(["left"]);
  await any.inbox.expect(["leave", null]);
  assert.strictEqual(await pubsub.getPublisher().publish("to-peer", "{}"), 1);
  await any.inbox.expect([null]);
  await any.end();
  await said.end();
  await subscribed("to-main", 0);
  await pubsub.close();
}

run({ peer, main });
