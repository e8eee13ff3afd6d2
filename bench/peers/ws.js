// Publish and subscribe as one writes it with Node and `ws`: a Map of Sets.
// node ws.js PORT
"use strict";
const { WebSocketServer } = require("ws");
const { message, ok, parse } = require("./commands.js");

const channels = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });

server.on("connection", (socket) => {
  const own = new Set();
  socket.on("message", (text) => {
    const [id, verb, args] = parse(text);
    if (verb === "SUBSCRIBE") {
      for (const channel of args) {
        if (!channels.has(channel)) channels.set(channel, new Set());
        channels.get(channel).add(socket);
        own.add(channel);
      }
      socket.send(ok(id, own.size));
    } else if (verb === "PUBLISH") {
      const [channel, payload] = args;
      const listeners = channels.get(channel);
      socket.send(ok(id, listeners ? listeners.size : 0));
      if (!listeners) return;
      const text = message(channel, payload);
      for (const listener of listeners) listener.send(text);
    }
  });
  socket.on("close", () => {
    for (const channel of own) {
      const listeners = channels.get(channel);
      listeners.delete(socket);
      if (listeners.size === 0) channels.delete(channel);
    }
  });
});
