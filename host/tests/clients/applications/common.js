// What the Node applications share: the words of the command line, and waiting for events.
"use strict";

const assert = require("node:assert");
const { once } = require("node:events");
const readline = require("node:readline");

const [, , port, role, variant, place] = process.argv;
const COUNT = 100;

// Values that are received, in their order.
class Inbox {
  received = [];
  wake = () => {};

  put = (value) => {
    this.received.push(value);
    this.wake();
  };

  async next() {
    while (this.received.length === 0) await new Promise((resolve) => (this.wake = resolve));
    return this.received.shift();
  }

  async expect(values) {
    for (const value of values) assert.deepStrictEqual(await this.next(), value);
  }
}

const numbered = (name) => Array.from({ length: COUNT }, (_, number) => `${name} ${number} é`);

const ready = (text = "") => console.log(`ready ${text}`);

// Has all connections closed, and waits until all subscriptions are there again.
async function reconnected() {
  const input = readline.createInterface({ input: process.stdin });
  console.log("reconnect");
  assert.deepStrictEqual(await once(input, "line"), ["reconnected"]);
}

// Runs the function of the role, and ends the process.
function run(roles) {
  roles[role]().then(
    () => process.exit(0),
    (problem) => {
      console.error(problem);
      process.exit(1);
    },
  );
}

module.exports = { Inbox, numbered, place, port: Number(port), ready, reconnected, run, variant };
