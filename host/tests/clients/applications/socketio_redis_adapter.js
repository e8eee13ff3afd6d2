// Socket.IO with @socket.io/redis-adapter: two servers in two processes, a client of each. The
// variant is the Redis client, or `sharded`: the adapter for shard channels, with node-redis.
"use strict";

const assert = require("node:assert");
const { once } = require("node:events");
const { createServer } = require("node:http");
const { createAdapter, createShardedAdapter } = require("@socket.io/redis-adapter");
const { Redis } = require("ioredis");
const { createClient } = require("redis");
const { Server } = require("socket.io");
const connect = require("socket.io-client");
const { Inbox, numbered, place, port, ready, reconnected, run, variant } = require("./common.js");

async function redisClient() {
  const client =
    variant === "ioredis" ? new Redis(port) : createClient({ url: `redis://127.0.0.1:${port}` });
  // Emitted when a connection is closed; without a listener, node-redis throws it.
  client.on("error", () => {});
  if (variant !== "ioredis") await client.connect();
  return client;
}

// A server with the handlers of the application, on a free port.
async function startNode(name) {
  const clients = [await redisClient(), await redisClient()];
  const http = createServer().listen(0, "127.0.0.1");
  await once(http, "listening");
  const adapter = variant === "sharded" ? createShardedAdapter : createAdapter;
  const io = new Server(http, { adapter: adapter(...clients) });
  io.on("connection", (socket) => {
    socket.on("say", (text) => io.emit("said", text));
    socket.on("say to", (room, text) => io.to(room).emit("said", text));
    socket.on("join", (room, done) => Promise.resolve(socket.join(room)).then(done));
    socket.on("question", (text, answer) => answer(`${name}: ${text}`));
  });
  io.on("name", (answer) => answer(name));
  return { io, url: `http://127.0.0.1:${http.address().port}` };
}

async function startClient(url, name) {
  const socket = connect(url, { transports: ["websocket"] });
  const inbox = new Inbox();
  socket.on("said", inbox.put);
  socket.on("question", (answer) => answer(name));
  await once(socket, "connect");
  return { socket, inbox };
}

async function peer() {
  const { io, url } = await startNode("peer");
  ready(url);
  const [socket] = await once(io, "connection");
  await once(socket, "disconnect");
}

async function main() {
  const { io, url } = await startNode("main");
  const here = await startClient(url, "here");
  const there = await startClient(place, "there");
  // Each server subscribes to its own response channel, and to one for requests.
  while ((await io.of("/").adapter.serverCount()) !== 2);

  async function exchange(name) {
    for (const client of [here, there]) {
      const texts = numbered(name);
      for (const text of texts) client.socket.emit("say", text);
      await here.inbox.expect(texts);
      await there.inbox.expect(texts);
    }
  }

  await exchange("first");
  await reconnected();
  await exchange("second");

  await there.socket.emitWithAck("join", "red");
  if (variant === "sharded") {
    // The room is a shard channel of its own, to which the adapter subscribes without waiting.
    const query = ["PUBSUB", "SHARDNUMSUB", "socket.io#/#red#"];
    while ((await io.of("/").adapter.pubClient.sendCommand(query))[1] !== 1);
  }
  here.socket.emit("say to", "red", "to red");
  await there.inbox.expect(["to red"]);
  io.in("red").socketsLeave("red");
  here.socket.emit("say to", "red", "to no client");

  // Questions to all servers, to all clients, and about all clients.
  assert.deepStrictEqual(await io.serverSideEmitWithAck("name"), ["peer"]);
  assert.deepStrictEqual((await io.timeout(30000).emitWithAck("question")).sort(), ["here", "there"]);
  const ids = (await io.fetchSockets()).map((socket) => socket.id);
  assert.deepStrictEqual(ids.sort(), [here.socket.id, there.socket.id].sort());

  // A server disconnects a client of the other, which ends then.
  io.in(there.socket.id).disconnectSockets();
  await once(there.socket, "disconnect");
  assert.deepStrictEqual([here.inbox.received, there.inbox.received], [[], []]);
}

run({ peer, main });
