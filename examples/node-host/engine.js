// The engine: `guest-core.wasm` as jco transpiled it, behind the functions of
// wit/0.1.0/engine.wit.
//
// The contract is flat: names are passed end to end in one list of bytes. Here a name
// is a string with one character per byte (latin1), because JavaScript compares
// strings, and not Buffers, by what is in them: such names can be keys of a Map,
// whatever their bytes are.

import { readFileSync } from "node:fs";
import { instantiate } from "./transpiled/guest-core.js";

const module = (file) =>
  new WebAssembly.Module(readFileSync(new URL(`transpiled/${file}`, import.meta.url)));

/**
 * Which connections are subscribed to which names. Connection ids are BigInts, as
 * 64-bit numbers are in JavaScript.
 *
 * No call can fail. One that throws has trapped, and so does every call after it.
 */
export class Engine {
  #engine = instantiate(module, WASI).engine;

  subscribe(connection, channels) {
    this.#engine.subscribe(connection, flatten(channels));
  }

  unsubscribe(connection, channels) {
    this.#engine.unsubscribe(connection, flatten(channels));
  }

  /** Answers the id of each pattern, by which `route` will name it. */
  psubscribe(connection, patterns) {
    return this.#engine.psubscribe(connection, flatten(patterns));
  }

  punsubscribe(connection, patterns) {
    this.#engine.punsubscribe(connection, flatten(patterns));
  }

  /**
   * The receivers of a publication on each of these channels: groups of a
   * `publication` (its position in the list), the `pattern` that matched (none:
   * the channel itself) and `connections`. Many channels in one call cost little
   * more than one.
   */
  route(channels) {
    const { connections, groups } = this.#engine.route(flatten(channels));
    let start = 0;
    return groups.map(({ publication, pattern, end }) => {
      const group = { publication, pattern, connections: connections.subarray(start, end) };
      start = end;
      return group;
    });
  }

  /** Channels with subscribers, all of them or those that match a glob. */
  channels(matching) {
    const glob = matching === undefined ? undefined : Buffer.from(matching, "latin1");
    return unflatten(this.#engine.channels(glob));
  }

  subscriberCounts(channels) {
    return Array.from(this.#engine.subscriberCounts(flatten(channels)), Number);
  }

  patternCount() {
    return Number(this.#engine.patternCount());
  }
}

/** Several names in one piece: the bytes of all, and where each ends. */
function flatten(names) {
  let end = 0;
  return {
    bytes: Buffer.from(names.join(""), "latin1"),
    ends: new Uint32Array(names.map((name) => (end += name.length))),
  };
}

function unflatten({ bytes, ends }) {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
  return Array.from(ends, (end, index) => all.slice(ends[index - 1] ?? 0, end));
}

/** A resource that the engine is never given. */
class Never {}

/** When something can be written: at once. */
class Now {
  block() {}
}

/** Where the last words of a Rust panic go. */
class StandardError {
  checkWrite() {
    return 4096n;
  }
  write(bytes) {
    process.stderr.write(bytes);
  }
  blockingFlush() {}
  subscribe() {
    return new Now();
  }
}

/**
 * What every Rust component imports, needed or not. The engine gets a standard
 * error and nothing else: no environment, no input, no files, no network. (jco's
 * own @bytecodealliance/preview2-shim would grant it what this process has.)
 */
const WASI = {
  "wasi:cli/environment": { getEnvironment: () => [] },
  "wasi:cli/exit": {
    exit() {
      throw new Error("the engine wanted to exit");
    },
  },
  "wasi:cli/stdin": { getStdin: () => new Never() },
  "wasi:cli/stdout": { getStdout: () => new StandardError() },
  "wasi:cli/stderr": { getStderr: () => new StandardError() },
  "wasi:cli/terminal-input": { TerminalInput: Never },
  "wasi:cli/terminal-output": { TerminalOutput: Never },
  "wasi:cli/terminal-stdin": { getTerminalStdin: () => undefined },
  "wasi:cli/terminal-stdout": { getTerminalStdout: () => undefined },
  "wasi:cli/terminal-stderr": { getTerminalStderr: () => undefined },
  "wasi:io/error": { Error: Never },
  "wasi:io/poll": { Pollable: Now },
  "wasi:io/streams": { InputStream: Never, OutputStream: StandardError },
};
