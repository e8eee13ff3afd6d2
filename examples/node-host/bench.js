// What a call of the engine costs in Node: `npm run bench`, for ten seconds.
//
// Channels and subscriptions are those of `make bench`, which measures the Rust
// host. Times are those of the processor, the garbage collector's
// included, so that a busy machine disturbs them less; each is the median of many
// rounds, and the least of them.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { Engine } from "./engine.js";

const ROUNDS = 41;
const ROUND_MS = 40;

function report(what, namesACall, call) {
  // As many calls as fill a round. Finding that out warms the JIT up, too.
  let calls = 0;
  for (const end = performance.now() + 10 * ROUND_MS; performance.now() < end; calls++) call(calls);
  calls = Math.ceil(calls / 10);
  const times = Array.from({ length: ROUNDS }, () => {
    const start = process.cpuUsage();
    for (let index = 0; index < calls; index++) call(index);
    const { user, system } = process.cpuUsage(start);
    return ((user + system) * 1000) / (calls * namesACall);
  }).sort((a, b) => a - b);
  row(what, ...[times[ROUNDS >> 1], times[0]].map((time) => Math.round(time).toLocaleString("en")));
}

const row = (what, ...cells) =>
  console.log(what.padEnd(44), ...cells.map((cell) => cell.padStart(10)));

/** Many names, in lists of so many. */
function inCalls(channels, namesACall) {
  // Every channel once before one comes again, none beside its neighbours.
  const queried = channels.map((_, index) => channels[(index * 7_919) % channels.length]);
  const lists = Math.floor(queried.length / namesACall);
  return Array.from({ length: lists }, (_, at) =>
    queried.slice(at * namesACall, (at + 1) * namesACall),
  );
}

/** An engine with so many channels, and so many listeners to each. */
function audience(channelCount, receivers) {
  const name = (_, index) => `room:${String(index).padStart(6, "0")}:message`;
  const channels = Array.from({ length: channelCount }, name);
  const engine = new Engine();
  for (let id = 1; id <= receivers; id++) engine.subscribe(BigInt(id), channels);
  return { engine, channels };
}

console.log(
  `${new Date().toISOString().slice(0, 16)} UTC; ${cpus()[0].model}, ${cpus().length} cores`,
);
const component = readFileSync(new URL("../../target/components/guest-core.wasm", import.meta.url));
const hash = createHash("sha256").update(component).digest("hex").slice(0, 12);
console.log(`Node ${process.version}, guest-core@${hash}; load ${loadavg()[0].toFixed(1)}`);
row("", "median ns", "least ns");

const few = audience(10_000, 1);
report("pattern-count: no list in, none out", 1, () => few.engine.patternCount());
for (const namesACall of [1, 64]) {
  const calls = inCalls(few.channels, namesACall);
  const what = `route, a name with 1 receiver, ${namesACall} a call`;
  report(what, namesACall, (index) => few.engine.route(calls[index % calls.length]));
}
const many = audience(4, 10_000);
const calls = inCalls(many.channels, 1);
report("route, a name with 10,000 receivers, 1 a call", 1, (index) =>
  many.engine.route(calls[index % calls.length]),
);
