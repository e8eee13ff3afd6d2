// Makes JavaScript and core modules of the engine's component, in `transpiled/`.
//
// The component is used as `make components` leaves it. What comes out belongs
// to this version of it, so this runs before each start; it takes a second.

import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { relative } from "node:path";
import { fileURLToPath } from "node:url";

const path = (relativeUrl) => fileURLToPath(new URL(relativeUrl, import.meta.url));
const component = path("../../target/components/guest-core.wasm");
const output = path("transpiled");

if (!existsSync(component)) {
  console.error(
    `there is no engine at ${relative(".", component)}: run \`make components\` in ${path("../..")}`,
  );
  process.exit(1);
}

// Only now, so that the message above needs no `npm install`.
const { transpile } = await import("@bytecodealliance/jco-transpile");
const { files } = await transpile(component, {
  outDir: output,
  // As a function of its imports: engine.js decides what the component may do.
  instantiation: "sync",
  nodejsCompat: false,
  emitTypescriptDeclarations: false,
});
mkdirSync(output, { recursive: true });
for (const [file, bytes] of Object.entries(files)) {
  // By a rename, so that a server that starts at the same time reads no incomplete file.
  writeFileSync(`${file}.${process.pid}`, bytes);
  renameSync(`${file}.${process.pid}`, file);
}
