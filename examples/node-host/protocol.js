// `switchyard.v1.json`: text frames on one side, commands, names and payloads on
// the other. It knows neither sockets nor the engine.
//
// Payloads are Buffers. Names are strings with one character per byte, as in
// engine.js.

import { isUtf8 } from "node:buffer";

export const SUBPROTOCOL = "switchyard.v1.json";

/** What a client may ask for; `--limit name_bytes_max=8` changes one. */
export const limits = {
  /** A larger frame or message closes its connection, before it is in memory. */
  message_bytes_max: (1 << 20) + (64 << 10),
  payload_bytes_max: 1 << 20,
  name_bytes_max: 1 << 10,
  /** Channels and patterns of one connection. */
  subscriptions_max: 10_000,
  connections_max: 10_000,
  /** Frames in a row that are no commands. */
  bad_frames_max: 5,
  /** What may wait for a client that reads too slowly. */
  outbox_bytes_max: 32 << 20,
};

/** Why something is refused: a word for programs, and one for people. */
export class Refusal extends Error {
  constructor(code, message, by) {
    super(message);
    Object.assign(this, { code, by });
  }
}

/**
 * The commands in a frame, each as its `id` (null: none), `verb` and `args`, or
 * as the `refusal` that answers it. One command or an array of them.
 */
export function parseFrame(text) {
  let frame;
  try {
    frame = JSON.parse(text, replaceHalfCharacters);
  } catch (problem) {
    return [badFrame(`the frame is not JSON: ${problem.message}`)];
  }
  if (Array.isArray(frame) && Array.isArray(frame[0])) {
    return frame.map(parseCommand);
  }
  // JSON.parse makes 1 of 1.0 and 100 of 1e2, which are no ids: only the text
  // shows the difference. (In a frame of several they pass. Looking for them there
  // takes more of a parser than this example wants.)
  if (typeof frame?.[0] === "number" && !/^\s*\[\s*\d+\s*[,\]]/.test(text)) {
    return [badFrame(ID)];
  }
  return [parseCommand(frame)];
}

const ID = "a command begins with its verb, or with an id: an integer from 0 to 2^53 - 1";

/** Half of a surrogate pair has no UTF-8: it is read as U+FFFD. */
function replaceHalfCharacters(_key, value) {
  return typeof value === "string" ? value.toWellFormed() : value;
}

function parseCommand(command) {
  if (!Array.isArray(command)) {
    return badFrame('a command is an array such as [1,"SUBSCRIBE","news"]');
  }
  const hasId = typeof command[0] !== "string";
  const [id, verb, ...args] = hasId ? command : [null, ...command];
  if (hasId && !(Number.isSafeInteger(id) && id >= 0)) return badFrame(ID);
  if (typeof verb !== "string") return badFrame("after the id stands the verb, a string");
  return { id, verb, args };
}

export function badFrame(message) {
  return { id: null, refusal: new Refusal("BADFRAME", message) };
}

/** A verb as commands are called; only ASCII letters have an upper case here. */
export function upperCase(verb) {
  return verb.replace(/[a-z]/g, (letter) => letter.toUpperCase());
}

/** Refuses a command that has fewer or more arguments than it takes. */
export function expectArity(verb, args, least, most = Infinity) {
  if (args.length >= least && args.length <= most) return;
  const range = most === least ? least : `${least} to ${most}`;
  const count = most === Infinity ? `${least} or more` : range;
  throw new Refusal("ARITY", `${verb} takes ${count} arguments`);
}

/** The bytes that a string or `{"base64": "…"}` stands for. */
function bytesOf(value) {
  if (typeof value === "string") return Buffer.from(value);
  if (typeof value?.base64 !== "string" || Object.keys(value).length !== 1) {
    const right = 'a string, for instance the text of a JSON document, or {"base64": "…"}';
    throw new Refusal("BADVALUE", `a name or payload must be ${right}`);
  }
  const bytes = Buffer.from(value.base64, "base64");
  // Buffer takes what the protocol does not: the alphabet for URLs, no padding,
  // white space. None of these is what it would write itself.
  if (bytes.toString("base64") !== value.base64) {
    throw new Refusal(
      "BADVALUE",
      "a name or payload is not base64 in the standard alphabet, padded",
    );
  }
  return bytes;
}

/** The text that a JSON value stands for and that is only sent back. */
export const parseText = bytesOf;

/** The payload that a JSON value stands for. */
export const parsePayload = (value) => checkPayload(bytesOf(value));

/** The name that a JSON value stands for. */
export const parseName = (value) => checkName(bytesOf(value)).toString("latin1");

export const checkPayload = (bytes) => checkSize("payload", bytes, limits.payload_bytes_max);
export const checkName = (bytes) => checkSize("name", bytes, limits.name_bytes_max);

function checkSize(what, bytes, max) {
  if (bytes.length <= max) return bytes;
  throw new Refusal("TOOLARGE", `a ${what} of ${bytes.length} bytes is over the limit of ${max}`);
}

/** The JSON value that stands for these bytes: a string where they are text. */
export function spell(bytes) {
  return isUtf8(bytes) ? bytes.toString() : { base64: bytes.toString("base64") };
}

/** The JSON value that stands for this name. */
export const spellName = (name) => spell(Buffer.from(name, "latin1"));

/** The same as the key of a JSON object, which is always a string. */
export function spellKey(name) {
  const spelled = spellName(name);
  return typeof spelled === "string" ? spelled : JSON.stringify(spelled);
}
