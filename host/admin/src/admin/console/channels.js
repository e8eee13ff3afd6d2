// The channels with the most subscribers, what they retain, and their members.

import { get } from "./api.js";
import { Table, byId, count, h, moment, name, say } from "./dom.js";

const SHOWN = 50;

let listen = () => {};
let follow = () => {};
let most = 1;

const table = new Table({
  caption: "Channels by their number of subscribers",
  empty: "No channel has subscribers.",
  key: ({ channel }) => name(channel),
  columns: [
    { title: "Channel", cell: ({ channel }) => h("code", {}, name(channel)) },
    { title: "Subscribers", className: "number", cell: ({ subscribers }) => count(subscribers) },
    { title: "", className: "share", cell: ({ subscribers }) => h("meter", { min: 0, max: most, value: subscribers, "aria-label": "of the most" }) },
    {
      title: "Look",
      cell: ({ channel }) =>
        typeof channel === "string"
          ? h(
              "span",
              { className: "row" },
              h("button", { type: "button", className: "link", "aria-label": `Listen to ${channel}`, onclick: () => listen(channel) }, "Listen"),
              h("button", { type: "button", className: "link", "aria-label": `Trace ${channel}`, onclick: () => follow(channel) }, "Trace"),
            )
          : "",
    },
  ],
});

const histories = new Table({
  caption: "Histories of channels",
  empty: "No channel has a history now.",
  key: ({ channel }) => name(channel),
  columns: [
    { title: "Channel", cell: ({ channel }) => h("code", {}, name(channel)) },
    { title: "Messages", className: "number", cell: ({ messages }) => count(messages) },
    { title: "Bytes", className: "number", cell: ({ bytes }) => count(bytes) },
    { title: "Listeners", className: "number", cell: ({ listeners }) => count(listeners) },
    { title: "Position", cell: ({ position }) => h("code", {}, position) },
  ],
});

const rooms = new Table({
  caption: "Channels with members or watchers",
  empty: "No channel has members now.",
  key: ({ channel }) => name(channel),
  columns: [
    { title: "Channel", cell: ({ channel }) => h("code", {}, name(channel)) },
    { title: "Members", className: "number", cell: ({ members: all }) => count(all) },
    { title: "Users", className: "number", cell: ({ users }) => count(users) },
    { title: "Watchers", className: "number", cell: ({ watchers }) => count(watchers) },
    {
      title: "Look",
      cell: ({ channel }) =>
        typeof channel === "string"
          ? h("button", { type: "button", className: "link", "aria-label": `Members of ${channel}`, onclick: () => lookAt(channel) }, "Members")
          : "",
    },
  ],
});

const members = new Table({
  caption: "Members of a channel",
  empty: "It has no members now.",
  key: ({ connection }) => String(connection),
  columns: [
    { title: "Connection", cell: ({ connection }) => h("code", {}, String(connection)) },
    { title: "User", cell: ({ user }) => user ?? "" },
    { title: "Data", cell: ({ data }) => h("code", {}, JSON.stringify(data)) },
  ],
});

let room = null;

async function lookAt(channel) {
  room = channel;
  await lookAtMembers();
}

async function lookAtMembers() {
  if (room === null) return;
  const page = await get(`/v1/presence/members?limit=${SHOWN}&channel=${encodeURIComponent(room)}`);
  byId("members").hidden = false;
  byId("members-title").textContent = `Members of ${room}: ${count(page.count)}${page.next === null ? "" : `, the first ${SHOWN}`}`;
  members.show(page.members);
}

async function lookAtRetained() {
  const [kept, present] = await Promise.all([get(`/v1/history?limit=${SHOWN}`), get(`/v1/presence?limit=${SHOWN}`)]);
  byId("retained").hidden = !kept.in_backplane && kept.channels === 0 && present.channels === 0;
  histories.show(kept.page);
  rooms.show(present.page);
  const { idle, streams, messages } = kept.evicted;
  const evicted = idle + streams + messages === 0 ? "" : ` Ended early by a bound: ${count(idle)} empty histories, ${count(streams)} others, ${count(messages)} messages.`;
  const totals = `${count(kept.channels)} channels retain ${count(kept.messages)} messages, ${count(kept.bytes)} bytes.`;
  say(byId("histories-count"), kept.in_backplane ? "The backplane keeps the histories of all nodes." : `${totals}${evicted}`);
  say(byId("rooms-count"), `${count(present.members)} members and ${count(present.watchers)} watchers in ${count(present.channels)} channels.`);
  await lookAtMembers();
}

export function prepare(listenTo, followChannel) {
  [listen, follow] = [listenTo, followChannel];
  byId("channels").append(table.element);
  byId("histories").append(histories.element);
  byId("rooms").append(rooms.element);
  byId("members-table").append(members.element);
}

export async function look() {
  const { channels, count: all, is_whole: isWhole, counted_ms: counted } = await get(`/v1/pubsub/top?limit=${SHOWN}`);
  most = Math.max(1, ...channels.map(({ subscribers }) => subscribers));
  table.show(channels);
  const part = isWhole ? "" : " Not all subscriptions were counted: a channel may be missing.";
  const engine = all === null ? "The engine cannot be asked now." : `${count(all)} channels have subscribers.`;
  say(byId("channels-count"), `${engine} Here are those with the most, as of ${moment(counted).slice(0, 8)}.${part}`);
  await lookAtRetained();
}
