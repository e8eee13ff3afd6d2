// Text to bytes and back. QuickJS, which runs the plugin, has no TextEncoder.

export function encode(text) {
  const bytes = [];
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code < 0x80) {
      bytes.push(code);
    } else if (code < 0x800) {
      bytes.push(0xc0 | (code >> 6), 0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 0x3f), 0x80 | (code & 0x3f));
    } else {
      bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 0x3f));
      bytes.push(0x80 | ((code >> 6) & 0x3f), 0x80 | (code & 0x3f));
    }
  }
  return Uint8Array.from(bytes);
}

// Throws a URIError when the bytes are not UTF-8.
export function decode(bytes) {
  let text = "";
  let isAscii = true;
  for (let at = 0; at < bytes.length; at += 4096) {
    const part = bytes.subarray(at, at + 4096);
    isAscii &&= part.every((byte) => byte < 0x80);
    text += String.fromCharCode(...part);
  }
  return isAscii ? text : decodeURIComponent(escape(text));
}
