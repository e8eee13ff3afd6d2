// What each verb does, and the ground state that it changes: the connections and the
// subscriptions of each. The engine holds what is derived from that, and answers
// which connections must receive a publication.
//
// Nothing here waits, so each command is done before the next one begins. Hence
// all subscribers see the messages of a channel in one order, and the
// acknowledgement of a SUBSCRIBE comes before its first message.

import { Engine } from "./engine.js";
import { onPublish } from "./middleware.js";
import {
  Refusal,
  SUBPROTOCOL,
  checkName,
  checkPayload,
  expectArity,
  limits,
  parseName,
  parsePayload,
  parseText,
  spell,
  spellKey,
  spellName,
  upperCase,
} from "./protocol.js";

const engine = new Engine();
/** The open connections by their ids, which are never used again. */
export const connections = new Map();
/** The patterns that the engine's pattern ids stand for. */
const patternsById = [];
/** The middleware that decided; absent when it was the server. */
const MIDDLEWARE = "middleware.js@0.2.0";

/** Carries out one command, or answers why not. */
export function carryOut(connection, { id, verb, args, refusal }) {
  const answer = (value) => {
    if (id !== null) connection.say(JSON.stringify([id, "OK", value]));
  };
  try {
    if (refusal) throw refusal;
    const command = commands[upperCase(verb)];
    if (!command) throw new Refusal("UNKNOWN", `unknown verb ${JSON.stringify(verb.slice(0, 64))}`);
    command(connection, args, answer);
  } catch (problem) {
    // Anything else is a fault of this program or a trap of the engine, which cannot be
    // called any more: the process ends, and its clients reconnect. (The
    // Rust host rebuilds its engine from the ground state instead.)
    if (!(problem instanceof Refusal)) throw problem;
    const { code, message, by } = problem;
    // A message may quote half of a character, which strict readers of JSON refuse.
    const error = { code, message: message.toWellFormed(), by };
    connection.say(JSON.stringify([id, "ERR", error]));
  }
}

/** Ends all that this connection listens to. Twice is as good as once. */
export function leave(connection) {
  connections.delete(connection.id);
  engine.unsubscribe(connection.id, [...connection.channels]);
  engine.punsubscribe(connection.id, [...connection.patterns]);
  connection.channels.clear();
  connection.patterns.clear();
}

/** What each verb does. It calls `answer` once, unless it throws a Refusal. */
const commands = {
  SUBSCRIBE(connection, args, answer) {
    expectArity("SUBSCRIBE", args, 1);
    const channels = notYetIn(connection.channels, args, connection);
    engine.subscribe(connection.id, channels);
    for (const channel of channels) connection.channels.add(channel);
    answer(connection.listening);
  },

  PSUBSCRIBE(connection, args, answer) {
    expectArity("PSUBSCRIBE", args, 1);
    const patterns = notYetIn(connection.patterns, args, connection);
    const ids = engine.psubscribe(connection.id, patterns);
    patterns.forEach((pattern, index) => {
      connection.patterns.add(pattern);
      patternsById[ids[index]] = pattern;
    });
    answer(connection.listening);
  },

  UNSUBSCRIBE(connection, args, answer) {
    const channels = args.length ? args.map(parseName) : [...connection.channels];
    engine.unsubscribe(connection.id, channels);
    for (const channel of channels) connection.channels.delete(channel);
    answer(connection.listening);
  },

  PUNSUBSCRIBE(connection, args, answer) {
    const patterns = args.length ? args.map(parseName) : [...connection.patterns];
    engine.punsubscribe(connection.id, patterns);
    for (const pattern of patterns) connection.patterns.delete(pattern);
    answer(connection.listening);
  },

  PUBLISH(connection, args, answer) {
    expectArity("PUBLISH", args, 2, 2);
    const { channel, payload } = askMiddleware(connection, {
      channel: parseName(args[0]),
      payload: parsePayload(args[1]),
    });
    const groups = engine.route([channel]);
    // The reply comes before the publisher's own copy.
    answer(groups.reduce((sum, group) => sum + group.connections.length, 0));
    const message = [spellName(channel), spell(payload)];
    for (const { pattern, connections: receivers } of groups) {
      const kind =
        pattern === undefined ? ["message"] : ["pmessage", spellName(patternsById[pattern])];
      // As bytes, so that it is encoded once for all receivers.
      const frame = Buffer.from(JSON.stringify([...kind, ...message]));
      // None: it was closed a moment ago, for being slow.
      for (const receiver of receivers) connections.get(receiver)?.say(frame);
    }
  },

  PUBSUB(_connection, args, answer) {
    expectArity("PUBSUB", args, 1);
    const [subcommand, ...rest] = args;
    const names = rest.map(parseName);
    switch (typeof subcommand === "string" && upperCase(subcommand)) {
      case "CHANNELS":
        expectArity("PUBSUB CHANNELS", names, 0, 1);
        return answer(engine.channels(names[0]).map(spellName));
      case "NUMSUB": {
        const counts = engine.subscriberCounts(names);
        return answer(Object.fromEntries(names.map((name, at) => [spellKey(name), counts[at]])));
      }
      case "NUMPAT":
        expectArity("PUBSUB NUMPAT", names, 0, 0);
        return answer(engine.patternCount());
      default:
        throw new Refusal("UNKNOWN", "PUBSUB takes CHANNELS, NUMSUB or NUMPAT");
    }
  },

  PING(_connection, args, answer) {
    expectArity("PING", args, 0, 1);
    answer(args.length ? spell(parseText(args[0])) : "PONG");
  },

  AUTH(_connection, args) {
    expectArity("AUTH", args, 1, 2);
    throw new Refusal("NOAUTH", "there is no plugin here that authenticates");
  },

  HELLO(connection, args, answer) {
    expectArity("HELLO", args, 0, 0);
    const server = { server: "switchyard", version: "0.1.0 (node-host)", protocol: SUBPROTOCOL };
    const credentials = { user: null, expires_in_ms: null };
    const more = { features: [], ...credentials, now_ms: Date.now() };
    answer({ ...server, connection: String(connection.id), limits, ...more });
  },

  QUIT(connection, args, answer) {
    expectArity("QUIT", args, 0, 0);
    answer("OK");
    connection.close(1000);
  },
};

/** The names that this adds to what is held, if there is room for all of them. */
function notYetIn(held, args, connection) {
  const names = [...new Set(args.map(parseName))].filter((name) => !held.has(name));
  if (connection.listening + names.length > limits.subscriptions_max) {
    const message = `a connection may listen to ${limits.subscriptions_max} names`;
    throw new Refusal("LIMIT", message);
  }
  return names;
}

/** What is published in the end. */
function askMiddleware(connection, { channel, payload }) {
  try {
    const verdict = onPublish(connection, Buffer.from(channel, "latin1"), payload);
    if (verdict === undefined) return { channel, payload };
    switch (verdict.tag) {
      case "replace": {
        const { channel: otherChannel, payload: otherPayload } = verdict.val;
        // They may be larger now.
        return {
          channel:
            otherChannel === undefined
              ? channel
              : checkName(Buffer.from(otherChannel)).toString("latin1"),
          payload: otherPayload === undefined ? payload : checkPayload(Buffer.from(otherPayload)),
        };
      }
      case "reject":
        throw new Refusal(verdict.val.code, verdict.val.message, MIDDLEWARE);
      default:
        throw new TypeError(`there is no verdict ${verdict.tag}`);
    }
  } catch (problem) {
    if (problem instanceof Refusal) throw problem;
    // When it fails, what it guards is refused.
    console.error("onPublish failed:", problem);
    throw new Refusal("UNAVAILABLE", "the middleware failed", MIDDLEWARE);
  }
}
