// Writes 👍 for `:+1:`, and so on, in what is published.

import { decode, encode } from "./utf8.js";

const EMOJI = { "+1": "👍", heart: "❤️", smile: "😄", tada: "🎉", wave: "👋" };
const NAMES = /:(\+1|heart|smile|tada|wave):/g;
const COLON = 0x3a;

export const lifecycle = {
  init(settings) {},
};

export const messages = {
  onPublish(submissions, extras) {
    const decisions = [];
    submissions.forEach(({ payload }, position) => {
      const changed = withEmoji(payload);
      if (changed !== undefined) {
        decisions.push({ position, verdict: { tag: "replace", val: { payload: changed } } });
      }
    });
    return decisions;
  },
};

// The payload with emoji; undefined: there is none in it.
function withEmoji(payload) {
  // Making text of bytes is most of what a message costs, and few need it.
  if (!payload.includes(COLON)) {
    return undefined;
  }
  let text;
  try {
    text = decode(payload);
  } catch {
    return undefined;
  }
  const written = text.replace(NAMES, (_, name) => EMOJI[name]);
  return written === text ? undefined : encode(written);
}
