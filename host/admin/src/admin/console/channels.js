// The channels with the most subscribers.

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

export function prepare(listenTo, followChannel) {
  [listen, follow] = [listenTo, followChannel];
  byId("channels").append(table.element);
}

export async function look() {
  const { channels, count: all, is_whole: isWhole, counted_ms: counted } = await get(`/v1/pubsub/top?limit=${SHOWN}`);
  most = Math.max(1, ...channels.map(({ subscribers }) => subscribers));
  table.show(channels);
  const part = isWhole ? "" : " Not all subscriptions were counted: a channel may be missing.";
  const engine = all === null ? "The engine cannot be asked now." : `${count(all)} channels have subscribers.`;
  say(byId("channels-count"), `${engine} Here are those with the most, as of ${moment(counted).slice(0, 8)}.${part}`);
}
