// A regular client, which uses the JSON protocol over a WebSocket.

import { get, words } from "./api.js";
import { byId, count, h, moment, name, say } from "./dom.js";

/** How many messages are kept on the page. */
const LINES = 300;
/** How much of a payload is shown. */
const SHOWN = 4_096;

const CLOSES = {
  1000: "closed",
  1001: "the server is ending",
  1006: "the connection was lost",
  1011: "the server failed",
  4001: "authentication required",
  4002: "the credentials expired",
  4003: "forbidden",
  4009: "protocol error",
  4100: "the server is ending",
  4101: "too many connections",
  4102: "a plugin is not available",
  4103: "too many connections from this address",
  4104: "too many commands",
  4105: "closed by an operator",
  4106: "over a plugin's limit",
  4107: "the server is at its memory bound",
  4201: "no answer to a ping",
  4202: "the client read too slowly",
  4203: "idle for too long",
  4204: "messages were missed",
};

let socket = null;
let lastId = 0;
const answers = new Map();
const names = new Map();
let lines = [];
let came = 0;
let drawing = false;

const form = (id) => byId(`client-${id}`);

/** Where the server's WebSocket is, as seen from this page. */
async function locate() {
  const { websocket } = await get("/v1/server");
  const url = new URL(websocket);
  // A wildcard or loopback address is reached under the host name of this page.
  if (/^(127\.|0\.0\.0\.0$|\[::1?\]$)/.test(url.hostname)) url.hostname = location.hostname;
  return url.href;
}

export function prepare() {
  form("open").addEventListener("submit", (event) => {
    event.preventDefault();
    if (socket) socket.close(1000);
    else connect(form("open").url.value);
  });
  form("subscribe").addEventListener("submit", (event) => {
    event.preventDefault();
    const { name: field, kind } = event.target;
    listen(field.value, kind.value);
  });
  form("publish").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { channel, payload } = event.target;
    const said = byId("client-published");
    const { answer, error } = await command("PUBLISH", channel.value, payload.value);
    said.className = error ? "bad" : "good";
    say(said, error ?? `delivered ${answer} time${answer === 1 ? "" : "s"}`);
  });
  form("auth").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { user, secret } = event.target;
    const { error } = await command("AUTH", ...[user.value, secret.value].filter(Boolean));
    secret.value = "";
    write(error ? "bad" : "good", "AUTH", error ?? "authenticated");
  });
  byId("client-clear").addEventListener("click", () => {
    lines = [];
    came = 0;
    say(byId("client-count"), "");
    byId("client-log").replaceChildren();
  });
}

/** The first time this view is opened, it connects. */
let opening = null;
export function look() {
  opening ??= locate().then(
    (url) => {
      form("open").url.value = url;
      return connect(url);
    },
    (error) => {
      opening = null;
      state("bad", words(error));
    },
  );
}

function state(kind, text) {
  byId("client-state").className = `notice ${kind}`;
  say(byId("client-state"), text);
  say(form("open").querySelector("button"), socket ? "Disconnect" : "Connect");
}

/** Settles when the socket is open, or failed to open. */
function connect(url) {
  return new Promise((settled) => {
    let mine;
    try {
      mine = new WebSocket(url, "switchyard.v1.json");
    } catch (problem) {
      state("bad", problem.message);
      return settled();
    }
    socket = mine;
    let wasOpen = false;
    state("busy", `connecting to ${url}`);
    mine.addEventListener("open", async () => {
      wasOpen = true;
      state("good", `connected to ${url}`);
      settled();
      const { answer } = await command("HELLO");
      if (answer && socket === mine) state("good", `connected to ${url} as #${answer.connection}`);
    });
    mine.addEventListener("message", ({ data }) => hear(JSON.parse(data)));
    mine.addEventListener("close", ({ code, reason }) => {
      if (socket === mine) socket = null;
      for (const settle of answers.values()) settle({ error: "the connection was closed" });
      answers.clear();
      names.clear();
      showNames();
      const why = CLOSES[code] ?? "closed";
      const refused = `It cannot be reached, or does not let pages of ${location.origin} connect (see http.origins).`;
      if (wasOpen) state(code === 1000 ? "" : "bad", `${why} (${code}${reason ? `: ${reason}` : ""})`);
      else state("bad", code === 1006 ? `${url} was not opened. ${refused}` : `${why} (${code}: ${reason})`);
      settled();
    });
  });
}

/** Sends a command. Resolves to `{answer}` or `{error}`, a message. */
function command(...parts) {
  if (socket?.readyState !== WebSocket.OPEN) return Promise.resolve({ error: "not connected" });
  const id = ++lastId;
  socket.send(JSON.stringify([id, ...parts]));
  return new Promise((settle) => answers.set(id, settle));
}

const problem = ({ code, message, by }) => `${code}: ${message}${by ? ` (${by})` : ""}`;

function hear(frame) {
  const [head, kind, ...rest] = frame;
  if (head === "message") return write("message", name(kind), name(rest[0]));
  if (head === "pmessage") return write("message", name(rest[0]), name(rest[1]), name(kind));
  if (head === "goaway") {
    const { reason, reconnect_within_ms: [from, to] } = kind;
    return write("bad", "goaway", `${reason}; reconnect in ${from} to ${to} ms`);
  }
  if (head === "unsubscribed") {
    for (const text of kind.channels) names.delete(`false ${name(text)}`);
    for (const text of kind.patterns) names.delete(`true ${name(text)}`);
    showNames();
    const ended = [...kind.channels, ...kind.patterns].map(name).join(" ");
    return write("bad", "unsubscribed", `${ended}: ${problem(kind)}`);
  }
  const settle = answers.get(head);
  answers.delete(head);
  const answer = kind === "ERR" ? { error: problem(rest[0]) } : { answer: rest[0] };
  if (settle) settle(answer);
  else if (answer.error) write("bad", "error", answer.error);
}

/** Subscribes; with the kind `auto`, the name decides between channel and pattern. */
async function listen(text, kind) {
  const isPattern = kind === "PSUBSCRIBE" || (kind === "auto" && /[*?[]/.test(text));
  const { error } = await command(isPattern ? "PSUBSCRIBE" : "SUBSCRIBE", text);
  if (error) return write("bad", text, error);
  names.set(`${isPattern} ${text}`, { text, isPattern });
  showNames();
}

/** Opens the view's connection if necessary, and subscribes to a channel. */
export async function listenTo(channel) {
  look();
  await opening;
  await listen(channel, "SUBSCRIBE");
}

async function leave(key, { text, isPattern }) {
  const { error } = await command(isPattern ? "PUNSUBSCRIBE" : "UNSUBSCRIBE", text);
  if (error) return write("bad", text, error);
  names.delete(key);
  showNames();
}

function showNames() {
  const chip = ([key, name]) =>
    h(
      "li",
      {},
      h("code", {}, name.text),
      name.isPattern ? h("span", { className: "muted" }, " pattern") : null,
      h("button", { type: "button", className: "quiet", "aria-label": `Unsubscribe from ${name.text}`, onclick: () => leave(key, name) }, "×"),
    );
  byId("client-names").replaceChildren(...[...names].map(chip));
}

function write(kind, channel, text, pattern) {
  came += 1;
  lines.push({ kind, channel, text, pattern, at: Date.now() });
  if (lines.length > LINES) lines.shift();
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(draw);
  }
}

function draw() {
  drawing = false;
  const log = byId("client-log");
  log.prepend(...lines.reverse().map(line));
  lines = [];
  while (log.childElementCount > LINES) log.lastChild.remove();
  say(byId("client-count"), came > LINES ? `the latest ${LINES} of ${count(came)}` : count(came));
}

function line({ kind, channel, text, pattern, at }) {
  const shown = text.length > SHOWN ? `${text.slice(0, SHOWN)}… (${text.length} characters)` : text;
  return h(
    "li",
    { className: kind },
    h("span", { className: "meta" }, h("code", { className: "channel" }, channel), pattern ? h("span", { className: "muted" }, `by ${pattern}`) : null, h("time", {}, moment(at))),
    h("span", { className: "payload" }, shown),
  );
}
