// {{name}}: a plugin of Switchyard.

import { log } from "switchyard:pubsub/log@0.2.0";

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
  // Returns the decisions about submissions that do not pass unchanged, in order. A
  // submission is a publication and its origin; its channel is undefined where it is
  // that of the submission before it. Put your logic here. Besides "replace" and
  // "reject" there is "absorb". What a "replace" leaves out stays as it is. A payload
  // is a Uint8Array; utf8.js converts it to text. The extras are the keys, versions
  // and tags of the few submissions that have some.
  onPublish(submissions, extras) {
    const decisions = [];
    submissions.forEach((submission, position) => {
      const verdict = decide(submission);
      if (verdict !== undefined) {
        decisions.push({ position, verdict });
      }
    });
    return decisions;
  },
};

// Returns undefined for a submission that passes unchanged.
function decide({ payload }) {
  if (payload.length === 0) {
    return { tag: "reject", val: { code: "EMPTY", message: "there is nothing in it" } };
  }
  if (ending.length === 0) {
    return undefined;
  }
  const changed = new Uint8Array(payload.length + ending.length);
  changed.set(payload);
  changed.set(ending, payload.length);
  return { tag: "replace", val: { payload: changed } };
}
