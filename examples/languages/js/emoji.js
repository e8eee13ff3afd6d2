// Writes 👍 for `:+1:`, and so on, in what is published.

import { decode, encode } from "./utf8.js";

const EMOJI = { "+1": "👍", heart: "❤️", smile: "😄", tada: "🎉", wave: "👋" };
const NAMES = /:(\+1|heart|smile|tada|wave):/g;
const COLON = 0x3a;

export const lifecycle = {
  init(settings) {},
};

export const messages = {
  onPublish(submissions) {
    return submissions.map(({ publication }) => verdict(publication));
  },
};

function verdict({ channel, payload }) {
  // Making text of bytes is most of what a message costs, and few need it.
  if (!payload.includes(COLON)) {
    return { tag: "continue" };
  }
  let text;
  try {
    text = decode(payload);
  } catch {
    return { tag: "continue" };
  }
  const written = text.replace(NAMES, (_, name) => EMOJI[name]);
  if (written === text) {
    return { tag: "continue" };
  }
  return { tag: "replace", val: { channel, payload: encode(written) } };
}
