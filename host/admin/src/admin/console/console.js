// The console: switches between views, and polls the server once a second while the page is
// visible.

import { get, words } from "./api.js";
import * as channels from "./channels.js";
import * as client from "./client.js";
import * as connections from "./connections.js";
import { byId, clock, say } from "./dom.js";
import * as overview from "./overview.js";
import * as plugins from "./plugins.js";
import * as trace from "./trace.js";

const EVERY_MS = 1_000;
/** Rates are not computed from readings that are closer together than this. */
const APART_MS = 500;

const views = { overview, plugins, connections, channels, trace, client };
const start = "overview";

let current = start;
let shownHash = null;
let lastSeen = null;
let before = null;
let timer = null;
let asking = false;
let again = false;

function state(kind, text) {
  const element = byId("state");
  element.className = `state ${kind}`;
  say(element.querySelector(".words"), text);
}

/** Dims what the page shows of the server while there is nothing newer. */
function isStale(stale) {
  byId("content").classList.toggle("stale", stale);
}

/** Requests the data of all views, and that of the current view. */
async function poll() {
  clearTimeout(timer);
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  again = false;
  try {
    const [stats, chain, memory] = await Promise.all([get("/v1/stats"), get("/v1/plugins"), get("/v1/memory")]);
    // Curves are drawn by the server's own clock: how long the response took does not matter.
    const reading = { at: stats.uptime_ms, stats, plugins: chain, memory };
    if (before && reading.at < before.at) {
      // The server was restarted: its counters began at zero, and this page may be outdated.
      if (stats.version !== before.stats.version) location.reload();
      overview.forget();
      before = null;
    }
    plugins.update(reading);
    if (!before || reading.at - before.at >= APART_MS) {
      overview.update(reading, before);
      before = reading;
    }
    await views[current].look?.();
    lastSeen = Date.now();
    isStale(false);
    state("good", `live, ${stats.version}`);
  } catch (error) {
    isStale(true);
    const since = lastSeen === null ? "" : `; figures of ${clock(lastSeen)}`;
    state("bad", `${words(error)}${since}`);
  }
  asking = false;
  if (document.hidden) state("", "paused");
  else timer = setTimeout(poll, again ? 0 : EVERY_MS);
}

function show() {
  const wanted = location.hash.slice(1);
  current = wanted in views ? wanted : start;
  // A dialog belongs to the view where it was opened, except that for the token.
  if (wanted !== shownHash) for (const dialog of document.querySelectorAll("dialog:not([data-global])")) dialog.close();
  shownHash = wanted;
  for (const view of Object.keys(views)) byId(`view-${view}`).hidden = view !== current;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current}`) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else {
      link.removeAttribute("aria-current");
    }
  }
  document.title = `${byId(`title-${current}`).textContent} · Switchyard`;
  window.scrollTo(0, 0);
  poll();
}

function go(view) {
  location.hash = view;
}

overview.prepare();
plugins.prepare(poll);
connections.prepare((id) => (go("trace"), trace.follow("connection", id)));
channels.prepare(
  (channel) => (go("client"), client.listenTo(channel)),
  (channel) => (go("trace"), trace.follow("channel", channel)),
);
trace.prepare();
client.prepare();

window.addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return poll();
  clearTimeout(timer);
  if (!asking) state("", "paused");
});
show();
