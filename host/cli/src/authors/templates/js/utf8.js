// Converts text to bytes and back. QuickJS, which runs the plugin, has no TextEncoder.

const ASCII = /^[\0-\x7f]*$/;

// Half of a surrogate pair becomes U+FFFD.
export function encode(text) {
  const length = text.length;
  const bytes = new Uint8Array(ASCII.test(text) ? length : 3 * length);
  let end = 0;
  for (let at = 0; at < length; at++) {
    let code = text.charCodeAt(at);
    if (code < 0x80) {
      bytes[end++] = code;
      continue;
    }
    if (code < 0x800) {
      bytes[end++] = 0xc0 | (code >> 6);
    } else {
      if (code >= 0xd800 && code < 0xe000) {
        code = text.codePointAt(at);
        if (code < 0x10000) {
          code = 0xfffd;
        } else {
          at++;
        }
      }
      if (code < 0x10000) {
        bytes[end++] = 0xe0 | (code >> 12);
      } else {
        bytes[end++] = 0xf0 | (code >> 18);
        bytes[end++] = 0x80 | ((code >> 12) & 0x3f);
      }
      bytes[end++] = 0x80 | ((code >> 6) & 0x3f);
    }
    bytes[end++] = 0x80 | (code & 0x3f);
  }
  return bytes.subarray(0, end);
}

// Throws a URIError when the bytes are not UTF-8.
export function decode(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 4096) {
    binary += String.fromCharCode.apply(null, bytes.subarray(at, at + 4096));
  }
  return ASCII.test(binary) ? binary : decodeURIComponent(escape(binary));
}
