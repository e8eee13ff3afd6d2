// NestJS microservices over Transport.REDIS: two processes, each with a server and a client.
"use strict";

const assert = require("node:assert");
require("reflect-metadata");
const { Controller, Module } = require("@nestjs/common");
const { NestFactory } = require("@nestjs/core");
const microservices = require("@nestjs/microservices");
const { lastValueFrom, toArray } = require("rxjs");
const { Inbox, numbered, port, ready, reconnected, run } = require("./common.js");

const transport = microservices.Transport.REDIS;
const options = { host: "127.0.0.1", port, retryAttempts: 100, retryDelay: 20 };
const events = new Inbox();

// What the decorators of TypeScript do.
function handle(controller, method, decorator) {
  const descriptor = Object.getOwnPropertyDescriptor(controller.prototype, method);
  decorator(controller.prototype, method, descriptor);
}

// A controller that answers requests, and receives events.
async function startNode(name) {
  class Handlers {
    double(number) {
      return 2 * number;
    }
    event(text) {
      events.put(text);
    }
  }
  handle(Handlers, "double", microservices.MessagePattern(`${name}.double`));
  handle(Handlers, "event", microservices.EventPattern(`${name}.event`));
  Controller()(Handlers);
  class Root {}
  Module({ controllers: [Handlers] })(Root);
  const node = await NestFactory.createMicroservice(Root, { transport, options, logger: false });
  await node.listen();
  const client = microservices.ClientProxyFactory.create({ transport, options });
  client.logger.error = client.logger.log = () => {};
  await client.connect();
  return { node, client };
}

// The result of a request or an event. A client refuses them until its new connection is ready.
async function retried(request) {
  for (;;) {
    try {
      return await lastValueFrom(request(), { defaultValue: undefined });
    } catch (problem) {
      assert.match(String(problem), /Connection lost/);
      await new Promise(setImmediate);
    }
  }
}

// The transport subscribes without waiting.
async function subscribed(client, channel, count) {
  const [publisher] = client.unwrap();
  while ((await publisher.pubsub("NUMSUB", channel))[1] !== count);
}

async function peer() {
  const { node, client } = await startNode("peer");
  await subscribed(client, "peer.event", 1);
  await subscribed(client, "peer.double", 1);
  ready();
  let text;
  while ((text = await events.next()) !== "leave") {
    await retried(() => client.emit("main.event", text));
  }
  await node.close();
  await subscribed(client, "peer.event", 0);
  await retried(() => client.emit("main.event", "left"));
  await client.close();
}

async function main() {
  const { node, client } = await startNode("main");
  await subscribed(client, "main.event", 1);
  const emit = (text) => retried(() => client.emit("peer.event", text));

  async function exchange(name) {
    const texts = numbered(name);
    for (const text of texts) await emit(text);
    await events.expect(texts);
    // Requests that are under way together, over one channel for their replies.
    const answers = texts.map((_, number) => retried(() => client.send("peer.double", number)));
    assert.deepStrictEqual(await Promise.all(answers), texts.map((_, number) => 2 * number));
    // A request has one answer.
    const all = await retried(() => client.send("peer.double", 21).pipe(toArray()));
    assert.deepStrictEqual(all, [42]);
    await subscribed(client, "peer.double.reply", 0);
  }

  await exchange("first");
  await reconnected();
  await exchange("second");
  await emit("leave");
  await events.expect(["left"]);
  assert.deepStrictEqual(events.received, []);
  await client.close();
  await node.close();
}

run({ peer, main });
