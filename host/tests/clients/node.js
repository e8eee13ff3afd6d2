// One half of a conversation; python.py is the other. Each line says which reply or which
// message must come next, so both end with 0 only if everything came, once and in order. A
// message of another client may come before the reply to what it answers.
"use strict";

const assert = require("node:assert");
const { once } = require("node:events");
const WebSocket = require("ws");

async function main() {
  // `ws` offers permessage-deflate, which the server declines.
  const socket = new WebSocket(process.argv[2], "switchyard.v1.json");
  const replies = [];
  const messages = [];
  let wake = () => {};
  socket.on("message", (bytes, isBinary) => {
    assert(!isBinary, "JSON travels as text");
    const frame = JSON.parse(bytes.toString());
    (Number.isInteger(frame[0]) ? replies : messages).push(frame);
    wake();
  });
  const closed = once(socket, "close");
  closed.then(() => wake());
  const next = async (queue) => {
    while (queue.length === 0) {
      assert(socket.readyState === WebSocket.OPEN, "the connection was closed");
      await new Promise((resolve) => (wake = resolve));
    }
    return queue.shift();
  };
  const expect = async (expected) => {
    const queue = Number.isInteger(expected[0]) ? replies : messages;
    assert.deepStrictEqual(await next(queue), expected);
  };
  const say = (command) => socket.send(JSON.stringify(command));

  await once(socket, "open");
  assert.strictEqual(socket.protocol, "switchyard.v1.json");
  assert.strictEqual(socket.extensions, "");
  socket.ping("are you there?");
  const [body] = await once(socket, "pong");
  assert.strictEqual(body.toString(), "are you there?");

  say([1, "SUBSCRIBE", "to-node"]);
  await expect([1, "OK", 1]);
  say([2, "PSUBSCRIBE", "chat.*"]);
  await expect([2, "OK", 2]);
  console.log("ready");

  await expect(["message", "to-node", "Grüße aus Python 🦀 \u0000\u2028"]);
  say([3, "PUBLISH", "to-python", "Grüße aus Node 🦀 \u0000\u2028"]);
  await expect([3, "OK", 1]);

  await expect(["message", "to-node", { base64: Buffer.from([0, 255, 254, 128]).toString("base64") }]);
  say([4, "PUBLISH", "to-python", { base64: Buffer.from([255, 0, 193]).toString("base64") }]);
  await expect([4, "OK", 1]);

  // 300 KB, which Python sends in parts; and so does this.
  const [kind, channel, long] = await next(messages);
  assert.deepStrictEqual([kind, channel, long], ["message", "to-node", "ä".repeat(150_000)]);
  const text = JSON.stringify([5, "PUBLISH", "to-python", "ö".repeat(150_000)]);
  socket.send(text.slice(0, 70_000), { fin: false });
  socket.send(text.slice(70_000, 70_001), { fin: false });
  socket.send(text.slice(70_001), { fin: true });
  await expect([5, "OK", 1]);

  // Both listen to the pattern, so each receives its own messages as well, after
  // its reply.
  await expect(["pmessage", "chat.*", "chat.ü", "one"]);
  say([6, "PUBLISH", "chat.ü", "two"]);
  await expect([6, "OK", 2]);
  await expect(["pmessage", "chat.*", "chat.ü", "two"]);

  // A burst, in order.
  for (let number = 0; number < 1000; number++) {
    await expect(["message", "to-node", String(number)]);
  }
  say([7, "UNSUBSCRIBE"]);
  await expect([7, "OK", 1]);
  say([8, "PUBLISH", "to-python", "done"]);
  await expect([8, "OK", 1]);
  say([9, "QUIT"]);
  await expect([9, "OK", "OK"]);
  const [code] = await closed;
  assert.strictEqual(code, 1000);
  assert.deepStrictEqual([...replies, ...messages], []);
}

main().catch((problem) => {
  console.error(problem);
  process.exit(1);
});
