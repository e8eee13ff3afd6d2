// The commands and replies of the benchmark's clients: the part of Switchyard's JSON
// sub-protocol that the load uses, so that one load serves every WebSocket server.
"use strict";

// Answers [id, verb, arguments] or throws.
exports.parse = (text) => {
  const [id, verb, ...args] = JSON.parse(text);
  return [id, verb, args];
};

exports.ok = (id, value) => JSON.stringify([id, "OK", value]);

exports.message = (channel, payload) => JSON.stringify(["message", channel, payload]);
