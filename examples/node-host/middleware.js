// Middleware: what may be published, and how it is changed. Copy from here.
//
// The three answers are those of `publish-verdict` in wit/messages.wit, in the
// shape in which a component written in JavaScript gives them to the Rust host.

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

  // Changed: this is published instead.
  if (name.startsWith("shout.")) {
    return { tag: "replace", val: { channel, payload: payload.toString().toUpperCase() } };
  }

  // On to the engine as it is.
  return { tag: "continue" };
}
