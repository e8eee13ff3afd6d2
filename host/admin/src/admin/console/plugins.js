// Shows and changes the chain of plugins and the engine.

import { get, offer, post, remove, words } from "./api.js";
import { Table, ago, announce, ask, byId, bytes, h, rate, say, time, versionElement } from "./dom.js";

/** By slot; the engine is at the end, and the empty place before it. */
const cards = new Map();
let engine;
let place;
let refresh = () => {};

/** Rates are not computed from readings that are closer together than this. */
const APART_MS = 500;

const isComponent = (file) => file.name.endsWith(".wasm");
const isConfig = (file) => file.name.endsWith(".toml");

/** The component and the settings among files that were dropped or chosen. */
async function sorted(files) {
  const [component, config] = [files.find(isComponent), files.find(isConfig)];
  if (!component && !config) throw new Error("that is neither a .wasm nor a .toml file");
  return { component, config: config ? await config.text() : undefined };
}

/** Makes an element accept files that are dropped on it. */
function dropZone(element, take) {
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    element.classList.toggle("over", depth > 0);
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  element.addEventListener("dragenter", (event) => hasFiles(event) && (event.preventDefault(), over(1)));
  element.addEventListener("dragleave", (event) => hasFiles(event) && over(-1));
  element.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  element.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    over(-depth);
    take([...event.dataTransfer.files]);
  });
}

/** A button to choose files without drag and drop. */
function fileButton(text, label, take, { className = "", accept = ".wasm,.toml" } = {}) {
  const input = h("input", { type: "file", accept, multiple: true, className: "unseen", "aria-label": label });
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    if (files.length > 0) take(files);
  });
  return h("label", { className: `button ${className}` }, text, input);
}

/** The outcome of the last action on a card. */
class Outcome {
  constructor() {
    this.words = h("span");
    const close = h("button", { type: "button", className: "quiet", "aria-label": "Dismiss", onclick: () => this.hide() }, "×");
    this.element = h("p", { className: "outcome", hidden: true }, this.words, close);
  }

  hide() {
    this.element.hidden = true;
  }

  say(kind, ...parts) {
    this.element.className = `outcome ${kind}`;
    this.words.replaceChildren(...parts);
    this.element.hidden = false;
    announce(this.words.textContent);
  }

  /** Runs an action, and shows its outcome. */
  async of(doing, action, kept = "") {
    this.say("busy", `${doing} …`);
    try {
      const swap = await action();
      this.say("good", ...done(swap));
      return swap;
    } catch (error) {
      const why = error.step ? `at the step ${error.step}: ${error.message}` : `: ${words(error)}`;
      this.say("bad", `Refused ${why}. ${kept}`.replace(" :", ":").trim());
      return null;
    } finally {
      refresh();
    }
  }
}

const VERBS = {
  added: "Added",
  removed: "Removed",
  swapped: "Swapped",
  moved: "Moved",
  "rolled-back": "Rolled back",
  "engine-swapped": "Swapped",
  "engine-rolled-back": "Rolled back",
};

function done(swap) {
  const pause = h("strong", {}, time(swap.pause_us));
  const verb = VERBS[swap.deed] ?? swap.deed;
  if (swap.deed === "moved") return [`${verb} to ${swap.slot}. Messages waited `, pause, "."];
  const from = swap.from ? [" from ", versionElement(swap.from)] : [];
  const to = swap.to ? [" to ", versionElement(swap.to)] : [];
  return [verb, ...from, ...to, ". Messages waited ", pause, "."];
}

const HOOKS = {
  lifecycle: null,
  admission: "connects",
  access: "permissions",
  messages: "messages in",
  deliveries: "messages out",
  snapshot: "keeps state",
};

class Card {
  constructor(slot) {
    this.slot = slot;
    this.past = null;
    this.speeds = new Map();
    this.outcome = new Outcome();
    const button = (text, act, className = "") => h("button", { type: "button", className, onclick: act }, text);
    this.title = h("h2");
    this.position = h("span", { className: "node", "aria-hidden": "true" });
    this.badge = h("span", { className: "badge" });
    this.version = h("span");
    this.facts = h("dl", { className: "facts small" });
    this.hooks = new Table({
      caption: "Calls of its hooks",
      empty: "It was not called yet.",
      key: ({ hook }) => hook.hook,
      columns: [
        { title: "Hook", cell: ({ hook }) => h("code", {}, hook.hook) },
        { title: "Items", className: "number", cell: ({ speed }) => (speed === null ? "–" : `${rate(speed)} /s`) },
        { title: "Half within", className: "number", cell: ({ hook }) => time(hook.time.p50_us) },
        { title: "99 of 100", className: "number", cell: ({ hook }) => time(hook.time.p99_us) },
        { title: "Verdicts", cell: ({ hook }) => verdicts(hook) },
      ],
    });
    this.failures = h("ul", { className: "failures" });
    this.failed = h("details", { hidden: true }, (this.failedTitle = h("summary")), this.failures);
    this.up = button("↑", () => this.move("before", this.above), "icon");
    this.down = button("↓", () => this.move("after", this.below), "icon");
    this.back = button("Roll back", () => this.rollBack());
    this.choose = fileButton("Swap…", `Swap ${slot} for a file`, (files) => this.take(files), { className: "primary" });
    this.element = h(
      "li",
      { className: "card plugin" },
      this.position,
      h("div", { className: "head" }, this.title, this.badge, this.version),
      this.outcome.element,
      this.facts,
      this.hooks.element,
      this.failed,
      h(
        "div",
        { className: "row actions" },
        this.choose,
        this.back,
        this.up,
        this.down,
        button("Remove", () => this.remove(), "quiet danger"),
      ),
    );
    this.element.dataset.slot = slot;
    this.element.dataset.drop = "Drop to swap it";
    dropZone(this.element, (files) => this.take(files));
  }

  get path() {
    return `/v1/plugins/${encodeURIComponent(this.slot)}`;
  }

  async take(files) {
    try {
      const { component, config } = await sorted(files);
      const kept = "The version in use stays.";
      if (component) await this.outcome.of(`Swapping for ${component.name}`, () => offer(`${this.path}/swap`, component, config), kept);
      else await this.outcome.of("Reloading with other settings", () => post(`${this.path}/reload`, { config }), "The settings in use stay.");
    } catch (error) {
      this.outcome.say("bad", words(error));
    }
  }

  rollBack() {
    return this.outcome.of("Rolling back", () => post(`${this.path}/rollback`), "The version in use stays.");
  }

  /** A moved plugin gets another slot, and with it another card. */
  async move(where, neighbour) {
    const moved = await this.outcome.of("Moving", () => post(`${this.path}/move`, { [where]: neighbour }), "It stays where it is.");
    if (moved) moves.set(moved.slot, { from: this.slot, swap: moved });
  }

  async remove() {
    const sure = await ask({
      title: `Remove ${this.slot}?`,
      words: "It no longer processes messages. Its settings stay on disk if there is a plugin directory.",
      action: "Remove",
      danger: true,
    });
    if (!sure) return;
    const removed = await this.outcome.of("Removing", () => remove(this.path), "It stays.");
    if (removed) place.outcome.say("good", `${this.slot}: `, ...done(removed));
  }

  update(plugin, { at, above, below }) {
    Object.assign(this, { above, below });
    this.up.disabled = above === null;
    this.down.disabled = below === null;
    this.up.setAttribute("aria-label", `Move ${plugin.slot} up`);
    this.down.setAttribute("aria-label", `Move ${plugin.slot} down`);
    this.back.disabled = plugin.previous === null;
    this.back.title = plugin.previous ? `Back to ${plugin.previous}` : "There is no version before";
    say(this.position, String(plugin.position));
    say(this.title, plugin.name);
    this.element.dataset.state = plugin.state;
    say(this.badge, plugin.state);
    this.badge.className = `badge ${plugin.state}`;
    if (this.version.dataset.version !== plugin.version) {
      this.version.dataset.version = plugin.version;
      const own = plugin.own_version ? h("span", { className: "muted" }, plugin.own_version) : null;
      this.version.replaceChildren(...[versionElement(plugin.version), own].filter(Boolean));
    }
    const memory = plugin.memory_bytes.filter((held) => held !== null);
    const held = memory.reduce((sum, held) => sum + held, 0);
    const spent = (plugin) => plugin.stats.reduce((sum, { time }) => sum + time.sum_us, 0);
    const seconds = this.past && at - this.past.at >= APART_MS ? (at - this.past.at) / 1_000 : 0;
    const busy = seconds > 0 ? Math.max(0, spent(plugin) - spent(this.past.plugin)) / seconds : null;
    if (busy !== null) this.busy = busy;
    const kinds = plugin.hooks.map((hook) => HOOKS[hook] ?? hook).filter(Boolean);
    facts(this.facts, [
      ["Slot", plugin.slot],
      ["Sees", kinds.join(", ") || "nothing"],
      ["When it fails", plugin.policy === "closed" ? "refuses" : "is skipped"],
      ["Time", this.busy === undefined ? "–" : `${time(this.busy)} per s`],
      ["Memory", `${bytes(held)} of ${bytes(plugin.limits.memory_bytes_max * plugin.instances)}`],
      ["Since", `${ago(plugin.since_ms)}, by ${plugin.by}`],
    ]);
    const before = new Map(this.past?.plugin.stats.map((hook) => [hook.hook, hook.items]));
    const rows = plugin.stats.map((hook) => {
      const more = hook.items - (before.get(hook.hook) ?? 0);
      if (seconds > 0) this.speeds.set(hook.hook, Math.max(0, more) / seconds);
      return { hook, speed: this.speeds.get(hook.hook) ?? null };
    });
    this.hooks.show(rows);
    const failures = plugin.failures.slice(-5).reverse();
    this.failed.hidden = failures.length === 0;
    const rebuilt = plugin.rebuilds > 0 ? `, rebuilt ${plugin.rebuilds} times` : "";
    say(this.failedTitle, `Last failures${rebuilt}`);
    const text = JSON.stringify(failures);
    if (this.failures.dataset.text !== text) {
      this.failures.dataset.text = text;
      const line = (failure) => h("li", {}, h("strong", {}, failure.step), ` ${failure.message} `, h("span", { className: "muted" }, new Date(failure.at_ms).toLocaleString()));
      this.failures.replaceChildren(...failures.map(line));
    }
    if (!this.past || at - this.past.at >= APART_MS) this.past = { at, plugin };
    this.choose.hidden = false;
  }
}

/** The moves of cards, until the cards are shown in their new place. */
const moves = new Map();

function verdicts(hook) {
  const chips = hook.verdicts.map(({ verdict, count }) => h("span", { className: `verdict ${verdict}` }, `${verdict} ${rate(count)}`));
  if (hook.faults > 0) chips.push(h("span", { className: "verdict failed-closed" }, `faults ${rate(hook.faults)}`));
  return chips.length > 0 ? h("span", { className: "verdicts" }, chips) : "";
}

function facts(list, pairs) {
  if (list.childElementCount !== pairs.length) {
    list.replaceChildren(...pairs.map(([title]) => h("div", {}, h("dt", {}, title), h("dd"))));
  }
  pairs.forEach(([, text], index) => say(list.children[index].lastChild, text));
}

class EngineCard {
  constructor() {
    this.outcome = new Outcome();
    this.version = h("span");
    this.facts = h("dl", { className: "facts small" });
    this.back = h("button", { type: "button", onclick: () => this.outcome.of("Rolling back", () => post("/v1/engine/rollback"), "The engine in use stays.") }, "Roll back");
    const take = (files) => this.take(files);
    this.element = h(
      "li",
      { className: "card engine" },
      h("span", { className: "node", "aria-hidden": "true" }, "◆"),
      h("div", { className: "head" }, h("h2", {}, "Engine"), this.version),
      this.outcome.element,
      this.facts,
      h("div", { className: "row actions" }, fileButton("Swap…", "Swap the engine for a file", take, { className: "primary", accept: ".wasm" }), this.back),
    );
    this.element.dataset.drop = "Drop to swap the engine";
    dropZone(this.element, take);
  }

  take(files) {
    const component = files.find(isComponent);
    if (!component) return this.outcome.say("bad", "that is no .wasm file");
    return this.outcome.of(`Swapping for ${component.name}`, () => offer("/v1/engine/swap", component), "The engine in use stays.");
  }

  update(engine) {
    if (this.version.dataset.version !== engine.version) {
      this.version.dataset.version = engine.version;
      this.version.replaceChildren(versionElement(engine.version));
    }
    this.back.disabled = engine.previous === null;
    this.back.title = engine.previous ? `Back to ${engine.previous}` : "There is no engine before";
    facts(this.facts, [
      ["From", engine.origin],
      ["Shards", String(engine.shards)],
      ["Size", bytes(engine.component_bytes)],
      ["Since", `${ago(engine.since_ms)}, by ${engine.by}`],
    ]);
  }
}

/** The place for a new plugin. */
class EmptyPlace {
  constructor() {
    this.outcome = new Outcome();
    const take = (files) => this.take(files);
    this.element = h(
      "li",
      { className: "card place" },
      h("span", { className: "node", "aria-hidden": "true" }, "+"),
      h("p", {}, "Drop a .wasm file here to add a plugin, with its .toml if it has one, or ", fileButton("choose files", "Choose the files of a plugin to add", take, { className: "small" })),
      this.outcome.element,
    );
    this.element.dataset.drop = "Drop to add it";
    dropZone(this.element, take);
  }

  async take(files) {
    try {
      const { component, config } = await sorted(files);
      if (!component) throw new Error("a plugin is a .wasm file");
      const given = component.name.replace(/\.wasm$/, "");
      const isNumbered = /^\d+-/.test(given);
      const next = Math.max(0, ...[...cards.keys()].map((slot) => Number.parseInt(slot, 10) || 0)) + 10;
      const fields = await ask({
        title: `Add ${component.name}`,
        words: "Plugins are called in the order of their slots.",
        fields: [
          h("label", {}, "Slot ", h("input", { name: "slot", required: true, pattern: "[A-Za-z0-9._\\-]{1,128}", value: isNumbered ? given : `${next}-${given}`, autocomplete: "off", spellcheck: "false" })),
          h("label", {}, "Settings, as its .toml file (optional) ", h("textarea", { name: "config", rows: "6", spellcheck: "false" }, config ?? "")),
        ],
        action: "Add",
      });
      if (!fields) return;
      const path = `/v1/plugins/${encodeURIComponent(fields.slot)}`;
      await this.outcome.of(`Adding ${fields.slot}`, () => offer(path, component, fields.config.trim() ? fields.config : undefined), "The chain stays as it is.");
    } catch (error) {
      this.outcome.say("bad", words(error));
    }
  }
}

const refused = new Table({
  caption: "Files that were refused",
  empty: "",
  key: (file) => file.slot,
  columns: [
    { title: "Slot", cell: (file) => h("code", {}, file.slot) },
    { title: "When", cell: (file) => ago(file.at_ms) },
    { title: "Step", cell: (file) => file.step },
    { title: "Why", cell: (file) => file.message },
  ],
});

export function prepare(again) {
  refresh = again;
  engine = new EngineCard();
  place = new EmptyPlace();
  byId("chain").append(place.element, engine.element);
  byId("refused").append(h("h2", {}, "Refused"), refused.element);
  // A file that is dropped elsewhere must not be opened in place of this page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
}

export function update({ at, plugins }) {
  const { plugins: all, refused: files } = plugins;
  const seen = new Set(all.map(({ slot }) => slot));
  for (const [slot, card] of cards) {
    if (seen.has(slot)) continue;
    card.element.remove();
    cards.delete(slot);
  }
  let before = null;
  all.forEach((plugin, index) => {
    const card = cards.get(plugin.slot) ?? new Card(plugin.slot);
    cards.set(plugin.slot, card);
    card.update(plugin, { at, above: all[index - 1]?.slot ?? null, below: all[index + 1]?.slot ?? null });
    const moved = moves.get(plugin.slot);
    if (moved) {
      moves.delete(plugin.slot);
      card.outcome.say("good", ...done(moved.swap));
      card.up.disabled ? card.down.focus() : card.up.focus();
    }
    const next = before ? before.nextSibling : byId("chain").firstChild;
    if (next !== card.element) byId("chain").insertBefore(card.element, next);
    before = card.element;
  });
  byId("refused").hidden = files.length === 0;
  refused.show(files);
}

/** Requests that are sent only while this view is open. */
export async function look() {
  engine.update(await get("/v1/engine"));
}
