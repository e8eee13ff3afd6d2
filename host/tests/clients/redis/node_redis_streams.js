// node-redis reads the history of a channel: `node_redis_streams.js PORT PACKAGE PROTOCOL`. It appends
// and looks back, and then tails `chat.tail` by XREAD BLOCK, going on from its last ID whenever its
// connection ends. It prints `tails` when it begins, `got N.` for each message, and `done` after 200.
"use strict";

const assert = require("node:assert");
const [, , port, name, protocol] = process.argv;
const { createClient } = require(name);

async function connect() {
  const client = createClient({
    RESP: Number(protocol),
    socket: { host: "127.0.0.1", port: Number(port), reconnectStrategy: 20 },
  });
  // Emitted when the connection ends; without a listener, it is thrown.
  client.on("error", () => {});
  return client.connect();
}

// Entries as pairs of ID and payload.
const pairs = (entries) => entries.map(({ id, message }) => [id, message.payload]);

async function streams(client) {
  const ids = [];
  for (let number = 0; number < 5; number++) {
    ids.push(await client.xAdd("chat.1", "*", { payload: String(number) }));
  }
  assert.strictEqual(await client.xLen("chat.1"), 5);
  const all = ids.map((id, number) => [id, String(number)]);
  assert.deepStrictEqual(pairs(await client.xRange("chat.1", "-", "+")), all);
  assert.deepStrictEqual(pairs(await client.xRange("chat.1", `(${ids[1]}`, ids[3])), all.slice(2, 4));
  assert.deepStrictEqual(pairs(await client.xRevRange("chat.1", "+", "-", { COUNT: 2 })), [all[4], all[3]]);
  const read = await client.xRead([{ key: "chat.1", id: ids[2] }, { key: "chat.2", id: "0" }]);
  assert.strictEqual(read.length, 1);
  assert.strictEqual(read[0].name, "chat.1");
  assert.deepStrictEqual(pairs(read[0].messages), all.slice(3));
  assert.strictEqual(await client.xRead({ key: "chat.1", id: "$" }, { BLOCK: 1 }), null);
  const info = await client.xInfoStream("chat.1");
  assert.strictEqual(info.length, 5);
  assert.strictEqual(info["last-generated-id"] ?? info.lastGeneratedId, ids[4]);
  await assert.rejects(client.xAdd("news", "*", { payload: "x" }), /NOHISTORY/);
}

async function tail(client) {
  let [last, number] = ["0", 0];
  console.log("tails");
  while (number < 200) {
    let reply;
    try {
      reply = await client.xRead({ key: "chat.tail", id: last }, { COUNT: 7, BLOCK: 0 });
    } catch {
      continue; // it reconnects by itself
    }
    for (const { id, message } of reply[0].messages) {
      assert.strictEqual(message.payload, String(number));
      console.log(`got ${number}.`);
      [last, number] = [id, number + 1];
    }
  }
}

(async () => {
  const client = await connect();
  await streams(client);
  await tail(client);
  client.destroy();
  console.log("done");
})();
