// Middleware: what may be published, and how it is changed. Copy from here.
//
// The answers are those of `publish-verdict` in wit/messages.wit, in the shape in
// which a component written in JavaScript gives them to the Rust host. There, a call
// has many publications, and only those that do not pass unchanged are answered; here
// it has one, and `undefined` means that it passes unchanged.

/**
 * Called before each publication. `connection` is the publisher: its `id`, and the
 * `path` and `headers` of its upgrade request. `channel` and `payload` are
 * Buffers, because names and payloads are bytes, and need not be text.
 */
export function onPublish(connection, channel, payload) {
  const name = channel.toString();

  // Refused: the publisher receives a code for programs and a message for people.
  if (name.startsWith("system.")) {
    const message = "only the server publishes on system.*";
    return { tag: "reject", val: { code: "NOPERM", message } };
  }

  // Changed: this payload is published instead. The channel could be changed as well;
  // what is left out stays as it is.
  if (name.startsWith("shout.")) {
    return { tag: "replace", val: { payload: payload.toString().toUpperCase() } };
  }

  // On to the engine as it is.
  return undefined;
}
