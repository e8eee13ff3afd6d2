// Makes elements, and formats numbers and names. Text is only inserted as text: nothing here
// makes elements from strings.

/** An element with properties, listeners (`onclick`) and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only if it changed, so that selections and screen readers are not disturbed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Announces a text to screen readers. */
export function announce(text) {
  byId("said").textContent = text;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (number) =>
  number === null || number === undefined ? "–" : number < 100_000 ? whole.format(number) : compact.format(number);

export function rate(number) {
  if (number === null || number === undefined) return "–";
  if (number > 0 && number < 10 && !Number.isInteger(number)) return number.toFixed(1);
  return number < 10_000 ? whole.format(number) : compact.format(number);
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) [number, unit] = [number / 1024, unit + 1];
  return `${unit === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

/** A time given in microseconds. */
export function time(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1_000) return `${us < 10 ? us.toFixed(1) : Math.round(us)} µs`;
  if (us < 1_000_000) return `${us < 10_000 ? (us / 1_000).toFixed(2) : (us / 1_000).toFixed(1)} ms`;
  return `${(us / 1_000_000).toFixed(1)} s`;
}

export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1_000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3_600)} h`;
}

export const ago = (ms) => `${duration(Date.now() - ms)} ago`;

const timeOfDay = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const clock = (ms) => timeOfDay.format(ms);
export const moment = (ms) => `${clock(ms)}.${String(Math.floor(ms % 1_000)).padStart(3, "0")}`;

/** A name or a payload, which need not be text. */
export const name = (value) =>
  value === null || value === undefined ? "" : typeof value === "string" ? value : `base64:${value.base64}`;

/** `redact@4be0c1d2…`, shortened to what distinguishes versions. */
export function version(text) {
  if (!text) return "–";
  const [plugin, hash = ""] = text.split("@");
  return hash.length > 10 ? `${plugin}@${hash.slice(0, 10)}` : text;
}

export const versionElement = (text) => h("code", { className: "version", title: text ?? "" }, version(text));

/** A table whose rows are kept by a key, so that they are updated in place. */
export class Table {
  /** `columns`: `{title, className, cell(row)}`; `cell` gives a text or a node. */
  constructor({ caption, columns, key, empty }) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.body = h("tbody");
    this.empty = h("p", { className: "empty" }, empty);
    const titles = columns.map(({ title, className }) => h("th", { scope: "col", className }, title));
    const head = h("thead", {}, h("tr", {}, titles));
    this.table = h("table", {}, h("caption", { className: "unseen" }, caption), head, this.body);
    this.element = h("div", { className: "table" }, this.table, this.empty);
    this.show([]);
  }

  show(rows) {
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0;
    const kept = new Map();
    let place = this.body.firstChild;
    for (const row of rows) {
      const key = this.key(row);
      const line = this.rows.get(key) ?? this.line(row);
      for (const [index, { cell }] of this.columns.entries()) {
        const value = cell(row);
        if (typeof value === "string") say(line.cells[index], value);
        else if (line.cells[index].childElementCount === 0) line.cells[index].append(value);
        else if (!line.cells[index].querySelector("button, a")) line.cells[index].replaceChildren(value);
      }
      if (line === place) place = place.nextSibling;
      else this.body.insertBefore(line, place);
      kept.set(key, line);
    }
    for (const [key, line] of this.rows) if (!kept.has(key)) line.remove();
    this.rows = kept;
  }

  line() {
    const cell = ({ title, className }) => h("td", { className, "data-title": title });
    return h("tr", {}, this.columns.map(cell));
  }
}

/** Shows a dialog, which a change of the view closes unless it is global. Resolves to the form's fields, or null if it was cancelled. */
export function ask({ title, words, fields = [], action, danger = false, isGlobal = false }) {
  const form = h(
    "form",
    { method: "dialog", className: "stack" },
    h("h2", { id: "dialog-title" }, title),
    words ? h("p", {}, words) : null,
    fields,
    h(
      "div",
      { className: "row end" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { value: "yes", className: danger ? "danger" : "primary" }, action),
    ),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", "data-global": isGlobal }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
  });
}
