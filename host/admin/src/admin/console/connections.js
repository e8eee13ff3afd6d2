// Lists connections, and closes one, or all of a user.

import { get, remove, words } from "./api.js";
import { Table, ago, announce, ask, byId, bytes, count, h, name, say } from "./dom.js";

/** How many are shown; a search finds others. */
const SHOWN = 100;

let follow = () => {};

const table = new Table({
  caption: "Connections",
  empty: "No matching connections.",
  key: (connection) => connection.id,
  columns: [
    { title: "Id", cell: (connection) => details(connection) },
    { title: "Door", cell: (connection) => connection.door },
    { title: "Address", cell: (connection) => h("code", {}, connection.address) },
    { title: "User", cell: (connection) => connection.user ?? "" },
    { title: "Client name", cell: (connection) => connection.name ?? "" },
    { title: "Since", cell: (connection) => ago(connection.opened_ms) },
    { title: "Channels", className: "number", cell: (connection) => count(connection.channels + connection.shard_channels) },
    { title: "Patterns", className: "number", cell: (connection) => count(connection.patterns) },
    { title: "Waiting", className: "number", cell: (connection) => bytes(connection.outbox_bytes) },
  ],
});

const details = ({ id }) =>
  h("button", { type: "button", className: "link", onclick: () => open(id), "aria-label": `Details of connection ${id}` }, `#${id}`);

export function prepare(followConnection) {
  follow = followConnection;
  byId("connections").append(table.element);
  const form = byId("connections-search");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.text.addEventListener("input", () => look().catch((error) => say(byId("connections-count"), words(error))));
}

export async function look() {
  const search = byId("connections-search").text.value.trim().replace(/^#/, "").toLowerCase();
  const found = await get(`/v1/connections?${new URLSearchParams({ limit: SHOWN, search })}`);
  // The search text has changed since the request was sent, so this reply is stale.
  if (search !== byId("connections-search").text.value.trim().replace(/^#/, "").toLowerCase()) return;
  table.show(found.connections);
  const more = found.next_after === null ? "" : "the first ";
  say(byId("connections-count"), `${more}${count(found.connections.length)} of ${count(found.count)} shown`);
}

async function open(id) {
  let connection;
  try {
    connection = await get(`/v1/connections/${id}`);
  } catch (error) {
    return announce(words(error));
  }
  const { names } = connection;
  const list = (title, names, total) =>
    total === 0
      ? null
      : h(
          "div",
          {},
          h("h3", {}, `${title} (${count(total)})`),
          h("ul", { className: "chips" }, names.slice(0, 200).map((one) => h("li", {}, h("code", {}, name(one))))),
          total > 200 ? h("p", { className: "muted" }, `and ${count(total - 200)} more`) : null,
        );
  const { user, name: clientName } = connection;
  const pairs = [
    ["Door", connection.door],
    ["Address", connection.address],
    ["User", user ?? "none"],
    ["Client name", clientName ?? "none"],
    ["Since", ago(connection.opened_ms)],
    ["Waits to be sent", bytes(connection.outbox_bytes)],
    ["Received in part", bytes(connection.input_bytes)],
  ];
  const attributes = Object.entries(connection.attributes ?? {});
  const said = h("p", { className: "outcome bad", hidden: true });
  /** Asks for a confirmation, and has the server do it. */
  const confirm = async (question, act) => {
    if (!(await ask({ ...question, danger: true }))) return;
    try {
      announce(await act());
      dialog.close();
      await look();
    } catch (error) {
      say(said, words(error));
      said.hidden = false;
    }
  };
  const closeOne = () =>
    confirm({ title: `Close connection ${id}?`, words: "Its client receives the close code 4105.", action: "Close it" }, async () => {
      await remove(`/v1/connections/${id}`);
      return `Connection ${id} was closed.`;
    });
  const closeAll = () =>
    confirm(
      { title: `Close all connections of ${user}?`, words: "Their clients receive the close code 4105.", action: "Close them" },
      async () => {
        let closed = 0;
        for (let more = true; more; ) {
          const answer = await remove(`/v1/connections?${new URLSearchParams({ user })}`);
          closed += answer.closed;
          more = answer.has_more && answer.closed > 0;
        }
        return `${count(closed)} connections of ${user} were closed.`;
      },
    );
  const dialog = h(
    "dialog",
    { "aria-labelledby": "connection-title", className: "wide" },
    h("h2", { id: "connection-title" }, `Connection #${id}`),
    said,
    h("dl", { className: "facts small" }, pairs.map(([title, text]) => h("div", {}, h("dt", {}, title), h("dd", {}, text)))),
    attributes.length === 0
      ? null
      : h(
          "div",
          {},
          h("h3", {}, "Attributes"),
          h("dl", { className: "facts small" }, attributes.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value)))),
        ),
    list("Channels", names.channels, connection.channels),
    list("Patterns", names.patterns, connection.patterns),
    list("Shard channels", names.shard_channels, connection.shard_channels),
    h(
      "div",
      { className: "row end" },
      h("button", { type: "button", className: "danger", onclick: closeOne }, "Close connection"),
      user ? h("button", { type: "button", className: "danger", onclick: closeAll }, "Close all of this user") : null,
      h("button", { type: "button", onclick: () => (dialog.close(), follow(id)) }, "Trace"),
      h("button", { type: "button", className: "primary", autofocus: true, onclick: () => dialog.close() }, "Done"),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
