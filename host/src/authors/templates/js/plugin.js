// {{name}}: a plugin of Switchyard.

import { log } from "switchyard:pubsub/log@0.1.0";

import { encode } from "./utf8.js";

let ending;

export const lifecycle = {
  // Called once, before anything else, with what stands under [settings] in
  // {{name}}.toml. What it throws refuses the plugin, and says why.
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
  // One verdict for each submission, in order: a publication, and the connection
  // that it is from. This is where to go on: besides "replace" and "reject" there
  // are { tag: "continue" }, which lets it pass as it is, and "absorb". A payload is
  // a Uint8Array; utf8.js makes text of it.
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
