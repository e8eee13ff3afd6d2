// Publishes to itself over wss. The second word is the CA.
"use strict";
const fs = require("fs");
const WebSocket = require("ws");

const [, , url, ca] = process.argv;
const socket = new WebSocket(url, { ca: fs.readFileSync(ca) });
socket.on("open", () => socket.send('[["SUBSCRIBE","node"],["PUBLISH","node","over TLS"]]'));
socket.on("message", (text) => {
  if (String(text) !== '["message","node","over TLS"]') throw new Error(`it said ${text}`);
  socket.close(1000);
});
socket.on("close", (code) => process.exit(code === 1000 ? 0 : 1));
