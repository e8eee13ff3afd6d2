// A Pub/Sub server on Switchyard's engine: the sockets, and the life of a
// connection. From here on down, a message passes protocol.js (frames to
// commands), commands.js (what they do), middleware.js and engine.js.

import { parseArgs } from "node:util";
import { WebSocket, WebSocketServer } from "ws";
import { carryOut, connections, leave } from "./commands.js";
import { SUBPROTOCOL, badFrame, limits, parseFrame } from "./protocol.js";

const PING_INTERVAL_MS = 25_000;
const PONG_TIMEOUT_MS = 10_000;
const CLOSE_TIMEOUT_MS = 5_000;
let lastId = 0n;

/** A WebSocket, and what it listens to. */
class Connection extends WebSocket {
  id = ++lastId;
  channels = new Set();
  patterns = new Set();
  badFrames = 0;
  isAlive = true;

  get listening() {
    return this.channels.size + this.patterns.size;
  }

  /** Sends a frame of text, and gives up on a client that reads too slowly. */
  say(frame) {
    this.send(frame, { binary: false });
    if (this.bufferedAmount > limits.outbox_bytes_max) {
      this.close(4202, `too slow: ${this.bufferedAmount} bytes waited in the outbox`);
    }
  }

  /** Overridden because `ws` answers a client's Close by this: it has left by then. */
  close(code, reason) {
    leave(this);
    super.close(code, code === 1009 ? "the message is over message_bytes_max" : reason);
  }
}

function takeFrame(connection, bytes, isBinary) {
  const requests = isBinary
    ? [badFrame("a binary frame: commands are JSON arrays in text frames")]
    : parseFrame(bytes.toString());
  for (const request of requests) {
    // After a QUIT, for instance, further commands are not executed.
    if (connection.readyState === WebSocket.OPEN) carryOut(connection, request);
  }
  const isBad = requests.every((request) => request.refusal);
  connection.badFrames = isBad ? connection.badFrames + 1 : 0;
  if (connection.badFrames > limits.bad_frames_max) {
    connection.close(4009, "too many bad frames in a row");
  }
}

const { values: flags } = parseArgs({
  options: {
    port: { type: "string", default: process.env.PORT ?? "8080" },
    limit: { type: "string", multiple: true, default: [] },
  },
});
for (const [name, value] of flags.limit.map((limit) => limit.split("="))) {
  const isLimit = Object.hasOwn(limits, name) && value > 0;
  if (!isLimit) throw new Error(`no such limit: ${name}=${value}`);
  limits[name] = Number(value);
}

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(flags.port),
  WebSocket: Connection,
  maxPayload: limits.message_bytes_max,
  closeTimeout: CLOSE_TIMEOUT_MS,
  handleProtocols: () => SUBPROTOCOL,
  verifyClient({ req: request }, accept) {
    const offered = request.headers["sec-websocket-protocol"]?.split(",");
    if (request.url.split("?")[0] !== "/ws") {
      accept(false, 404, "not found; the WebSocket is at /ws");
    } else if (offered && !offered.some((name) => name.trim() === SUBPROTOCOL)) {
      accept(false, 400, `no sub-protocol that is known here; there is ${SUBPROTOCOL}`);
    } else {
      accept(true);
    }
  },
});

server.on("connection", (connection, request) => {
  connection.on("error", () => {}); // Whatever broke, "close" follows.
  connection.on("close", () => leave(connection));
  if (connections.size >= limits.connections_max) {
    return connection.close(4101, "the server is at connections_max");
  }
  connections.set(connection.id, connection);
  // For the middleware.
  Object.assign(connection, { path: request.url, headers: request.headers });
  connection.on("pong", () => (connection.isAlive = true));
  connection.on("message", (bytes, isBinary) => {
    connection.isAlive = true;
    takeFrame(connection, bytes, isBinary);
  });
});

server.on("listening", () => console.log(`ws://127.0.0.1:${server.address().port}/ws`));
server.on("error", (problem) => {
  console.error(problem.message);
  process.exitCode = 1;
});

// A peer that disappeared does not close its connection: it misses a ping.
setInterval(() => {
  for (const connection of connections.values()) {
    connection.isAlive = false;
    connection.ping();
  }
  setTimeout(() => {
    for (const connection of connections.values()) {
      if (!connection.isAlive) connection.close(4201, "no answer to a ping");
    }
  }, PONG_TIMEOUT_MS).unref();
}, PING_INTERVAL_MS).unref();

// The first signal ends the server gracefully, a second one at once.
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => {
    const reason = "the server is shutting down";
    const goaway = JSON.stringify(["goaway", { reason, reconnect_within_ms: [500, 5_000] }]);
    server.close();
    for (const connection of connections.values()) {
      connection.say(goaway);
      connection.close(1001, reason);
    }
    // The process exits by itself when all connections are closed; the timeout closes the rest.
    setTimeout(() => process.exit(), CLOSE_TIMEOUT_MS).unref();
  });
}
