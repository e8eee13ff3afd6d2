// Traces the decisions of plugins about messages as they pass.

import { request, words } from "./api.js";
import { byId, count, h, moment, name, say, time, version } from "./dom.js";

/** How many lines are kept on the page. */
const LINES = 500;

let looking = null;
let waiting = [];
let drawing = false;
let seen = 0;
let dropped = 0;

const body = h("tbody");
const TITLES = ["Time", "From", "Action", "Channel", "Plugin", "Hook", "Verdict", "Took", "What"];
const table = h(
  "table",
  { hidden: true },
  h("caption", { className: "unseen" }, "The plugins' decisions, the latest first"),
  h("thead", {}, h("tr", {}, TITLES.map((title) => h("th", { scope: "col" }, title)))),
  body,
);

export function prepare() {
  byId("trace-lines").append(h("div", { className: "table trace" }, table));
  const form = byId("trace-form");
  form.what.addEventListener("change", () => {
    const isChannel = form.what.value === "channel";
    say(byId("trace-label"), isChannel ? "Channel or glob" : "Id of the connection");
    form.text.inputMode = isChannel ? "text" : "numeric";
    form.text.value = isChannel ? "*" : "";
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (looking) stop("stopped");
    else start(form.what.value, form.text.value.trim().replace(/^#/, form.what.value === "connection" ? "" : "#"));
  });
  byId("trace-clear").addEventListener("click", () => {
    waiting = [];
    body.replaceChildren();
    table.hidden = true;
  });
}

/** Follows a channel or a connection, whatever was followed before. */
export function follow(what, text) {
  const form = byId("trace-form");
  form.what.value = what;
  form.what.dispatchEvent(new Event("change"));
  form.text.value = text;
  if (looking) stop("stopped");
  start(what, String(text));
}

function state(kind, text) {
  const element = byId("trace-state");
  element.className = `notice ${kind}`;
  say(element, text);
  const button = byId("trace-form").querySelector("button.primary");
  say(button, looking ? "Stop" : "Follow");
}

function stop(why, kind = "") {
  looking?.abort();
  looking = null;
  state(kind, `${why}: ${count(seen)} lines${dropped > 0 ? `, ${count(dropped)} were dropped because they came too fast` : ""}`);
}

async function start(what, text) {
  const mine = new AbortController();
  looking = mine;
  [seen, dropped] = [0, 0];
  state("busy", "connecting …");
  try {
    const response = await request("GET", `/v1/trace?${new URLSearchParams({ [what]: text })}`, { signal: mine.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line && looking === mine) take(JSON.parse(line));
    }
    if (looking === mine) stop("the server ended the trace");
  } catch (error) {
    if (error.name !== "AbortError" && looking === mine) {
      looking = null;
      state("bad", words(error));
    }
  }
}

function take(line) {
  if (line.kind === "began") return state("good", "following; a line appears for each decision of a plugin from now on");
  if (line.kind === "ended") return stop(line.why);
  if (line.kind === "dropped") dropped += line.count;
  else seen += 1;
  waiting.push(line);
  if (waiting.length > LINES) waiting.shift();
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(draw);
  }
}

function draw() {
  drawing = false;
  body.prepend(...waiting.reverse().map(row));
  waiting = [];
  table.hidden = body.childElementCount === 0;
  while (body.childElementCount > LINES) body.lastChild.remove();
  const shown = seen > LINES ? `, the latest ${LINES} are shown` : "";
  if (looking) state("good", `following: ${count(seen)} lines${shown}${dropped > 0 ? `, ${count(dropped)} were dropped because they came too fast` : ""}`);
}

function row(line) {
  if (line.kind === "dropped") {
    return h("tr", { className: "muted" }, h("td", { colSpan: TITLES.length }, `${line.count} were dropped because they came too fast`));
  }
  const channel = line.channel_after ? `${name(line.channel)} → ${name(line.channel_after)}` : name(line.channel);
  const what = [];
  if (line.code) what.push(`${line.code} ${line.message ?? ""}`.trim());
  if (line.bytes_before !== null && line.bytes_before !== undefined) {
    const isSame = line.bytes_before === line.bytes_after;
    what.push(isSame ? `${line.bytes_before} bytes` : `${line.bytes_before} → ${line.bytes_after} bytes`);
  }
  if (line.recipients_before !== null && line.recipients_before !== undefined) {
    const isSame = line.recipients_before === line.recipients_after;
    what.push(isSame ? `to ${line.recipients_before}` : `to ${line.recipients_before} → ${line.recipients_after}`);
  }
  const took = line.items > 1 ? `${time(line.took_us)} for ${line.items}` : time(line.took_us);
  const cells = [
    moment(line.at_ms),
    `#${line.connection}`,
    line.action,
    h("code", {}, channel),
    h("code", { title: line.plugin }, version(line.plugin)),
    line.hook,
    h("span", { className: `verdict ${line.verdict}` }, line.verdict),
    took,
    what.join(", "),
  ];
  return h("tr", {}, cells.map((cell, index) => h("td", { "data-title": TITLES[index] }, cell)));
}
