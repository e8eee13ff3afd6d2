// {{name}}: a plugin of Switchyard.

import { log } from "switchyard:pubsub/log@0.1.0";

import { encode } from "./utf8.js";

let ending;

export const lifecycle = {
  // Called once, before anything else, with the [settings] of {{name}}.toml. If it
  // throws, the plugin is refused with that message.
  init(settings) {
    const { ending: text } = JSON.parse(settings);
    if (typeof text !== "string") {
      throw "`ending` must be a string in the settings";
    }
    ending = encode(text);
    log("info", `it starts with the ending ${JSON.stringify(text)}`);
  },
};

export const messages = {
  // Returns one verdict for each submission, in order: a publication, and the
  // connection that it is from. Put your logic here. Besides "replace" and "reject"
  // there are { tag: "continue" }, which lets it pass unchanged, and "absorb". A
  // payload is a Uint8Array; utf8.js converts it to text.
  onPublish(submissions) {
    return submissions.map(({ publication: { channel, payload } }) => {
      if (payload.length === 0) {
        return { tag: "reject", val: { code: "EMPTY", message: "there is nothing in it" } };
      }
      const changed = new Uint8Array(payload.length + ending.length);
      changed.set(payload);
      changed.set(ending, payload.length);
      return { tag: "replace", val: { channel, payload: changed } };
    });
  },
};
