// The activity of the whole server, second by second.

import { Table, ago, byId, bytes, count, duration, h, rate, say, time, versionElement } from "./dom.js";
import { Bars, Plot } from "./plot.js";

const perSecond = (title, format = (value) => `${rate(value)} /s`) =>
  new Plot({ title, format, series: [{ key: "value", label: title }] });

const plots = {
  publications: perSecond("Publications"),
  deliveries: perSecond("Deliveries"),
  connections: new Plot({ title: "Connections", format: count, series: [{ key: "value", label: "Connections" }] }),
  commands: perSecond("Commands"),
  bytes: new Plot({
    title: "Bytes",
    format: (value) => `${bytes(value)}/s`,
    base: 1024,
    series: [
      { key: "out", label: "to clients" },
      { key: "in", label: "from clients" },
    ],
  }),
  plugins: new Plot({
    title: "Time of a plugin's call",
    format: time,
    series: [],
    note: "99 of 100 calls of one second took no longer.",
  }),
};

const pauses = new Bars({
  title: "Swap pauses",
  format: time,
  value: (swap) => swap.pause_us,
  describe: (swap) => `${actionOf(swap)}, ${ago(swap.at_ms)}, by ${swap.by}`,
  empty: "Nothing was swapped yet.",
  count: 64,
});

const ACTIONS = {
  added: "was added",
  removed: "was removed",
  swapped: "was swapped",
  "rolled-back": "was rolled back",
  moved: "was moved",
  "engine-swapped": "was swapped",
  "engine-rolled-back": "was rolled back",
};

const actionOf = (swap) => `${swap.slot ?? "the engine"} ${ACTIONS[swap.deed] ?? swap.deed}`;

const changes = new Table({
  caption: "The last changes of plugins and engine",
  empty: "Nothing was changed since the server began.",
  key: (swap) => `${swap.at_ms} ${swap.slot} ${swap.to}`,
  columns: [
    { title: "When", cell: (swap) => ago(swap.at_ms) },
    { title: "What", cell: actionOf },
    { title: "From", cell: (swap) => versionElement(swap.from) },
    { title: "To", cell: (swap) => versionElement(swap.to) },
    { title: "Pause", className: "number", cell: (swap) => time(swap.pause_us) },
    { title: "By", cell: (swap) => swap.by },
  ],
});

const BUDGETS = {
  outboxes: "What waits to be sent",
  input: "Messages received in part",
  names: "Names",
  engine_and_plugins: "Engine and plugins",
};

const budgets = new Table({
  caption: "Memory by purpose",
  empty: "There is no bound.",
  key: ({ budget }) => budget,
  columns: [
    { title: "Memory for", cell: ({ budget }) => BUDGETS[budget] ?? budget },
    { title: "Used", className: "number", cell: (one) => bytes(one.used_bytes) },
    { title: "Limit", className: "number", cell: (one) => bytes(one.limit_bytes) },
    { title: "Used of it", className: "number", cell: (one) => `${Math.round((100 * one.used_bytes) / one.limit_bytes)} %` },
  ],
});

const holders = new Table({
  caption: "The connections that hold the most memory",
  empty: "No connection holds much.",
  key: ({ connection }) => connection,
  columns: [
    { title: "Connection", cell: ({ connection }) => `#${connection}` },
    { title: "Address", cell: ({ address }) => h("code", {}, address) },
    { title: "Waits to be sent", className: "number", cell: (one) => bytes(one.outbox_bytes) },
    { title: "Received in part", className: "number", cell: (one) => bytes(one.input_bytes) },
    { title: "Names", className: "number", cell: (one) => bytes(one.name_bytes) },
    { title: "Has not read for", className: "number", cell: (one) => (one.stalled_ms === null ? "–" : duration(one.stalled_ms)) },
  ],
});

const closedForMemory = ({ closed }) => closed.reduce((sum, one) => sum + one.closed, 0);

const FACTS = [
  ["Running for", (stats) => duration(stats.uptime_ms)],
  ["Channels", (stats) => count(stats.channels)],
  ["Patterns", (stats) => count(stats.patterns)],
  ["Connections since the start", (stats) => count(stats.connections_total)],
  ["Rejected", (stats) => count(stats.connections_rejected)],
  ["Closed as too slow", (stats) => count(stats.outbox_overflows)],
  ["Closed for memory", (_, memory) => count(closedForMemory(memory))],
  ["Memory", (_, { resident_bytes, bytes_max }) => `${bytes(resident_bytes)}${bytes_max === null ? "" : ` of ${bytes(bytes_max)}`}`],
];

const facts = FACTS.map(([title, value]) => ({ value, title, element: h("dd", {}, "–") }));

export function prepare() {
  byId("facts").append(...facts.map(({ title, element }) => h("div", {}, h("dt", {}, title), element)));
  byId("plots").append(...Object.values(plots).map((plot) => plot.element), pauses.element);
  byId("changes").append(changes.element);
  byId("budgets").append(budgets.element);
  byId("holders").append(holders.element);
}

/** Drops the readings of a server that has ended. */
export function forget() {
  for (const plot of Object.values(plots)) plot.points = [];
}

/** The increase of a counter per second, or null where it cannot be computed. */
function speed(now, before, seconds) {
  if (now === undefined || now === null || before === undefined || before === null) return null;
  return now < before || seconds <= 0 ? null : (now - before) / seconds;
}

/** All hooks of a plugin: how many calls fell into each bucket. */
function buckets(plugin) {
  const sums = new Map();
  for (const { time } of plugin?.stats ?? []) {
    for (const { up_to_us, count } of time.buckets) sums.set(up_to_us, (sums.get(up_to_us) ?? 0) + count);
  }
  return sums;
}

/** The 99th percentile of the call times between two readings. */
function slowest(now, before) {
  const [after, first] = [buckets(now), buckets(before)];
  const counts = [...after].map(([bound, count]) => [bound ?? Infinity, count - (first.get(bound) ?? 0)]);
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  if (all <= 0 || counts.some(([, count]) => count < 0)) return null;
  counts.sort(([a], [b]) => a - b);
  let sum = 0;
  let lower = 0;
  for (const [bound, count] of counts) {
    if (sum + count >= all * 0.99) {
      const upper = bound === Infinity ? lower * 2 : bound;
      return lower + (upper - lower) * ((all * 0.99 - sum) / count);
    }
    sum += count;
    lower = bound;
  }
  return lower;
}

/** Two readings, about one second apart; `before` may be missing. */
export function update({ at, stats, plugins, memory }, before) {
  const seconds = before ? (at - before.at) / 1_000 : 0;
  const faster = (key) => speed(stats[key], before?.stats[key], seconds);
  for (const { value, element } of facts) say(element, value(stats, memory));
  budgets.show(memory.budgets);
  holders.show(memory.connections);
  for (const key of ["publications", "deliveries"]) {
    plots[key].element.hidden = stats[key] === undefined;
    plots[key].push(at, { value: faster(key) });
  }
  plots.connections.push(at, { value: stats.connections });
  plots.commands.push(at, { value: faster("commands") });
  plots.bytes.push(at, { out: faster("bytes_written"), in: faster("bytes_read") });
  plots.plugins.setSeries(plugins.plugins.map(({ slot, name }) => ({ key: slot, label: name })));
  const past = new Map(before?.plugins.plugins.map((plugin) => [plugin.slot, plugin]));
  const times = plugins.plugins.map((plugin) => [plugin.slot, before ? slowest(plugin, past.get(plugin.slot)) : null]);
  plots.plugins.push(at, Object.fromEntries(times));
  pauses.show(stats.swaps);
  changes.show(stats.swaps.slice(-20).reverse());
}
