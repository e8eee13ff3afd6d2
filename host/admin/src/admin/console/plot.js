// Curves and bars of recent values, on a canvas.

import { h, say } from "./dom.js";

const HEIGHT = 132;
const BOTTOM = 16;
const TOP = 8;
/** Longer than this between two readings is a gap, not a line. */
const GAP_MS = 3_500;
/** For how long curves go back, once the page has been open for that long. */
const WINDOW_MS = 120_000;
const WINDOW_MS_MIN = 30_000;
/** How many colours there are; further series start again with the first. */
const COLOURS = 6;

/** The smallest round number that is not below; of bytes, it is round in their units. */
function nice(number, base) {
  if (number <= 0) return 1;
  const unit = base === 1024 ? 1024 ** Math.max(0, Math.floor(Math.log2(number) / 10)) : 1;
  const power = unit * 10 ** Math.floor(Math.log10(number / unit));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((step) => step >= number * 0.999);
}

/** The base of curves and bars: a canvas with a text alternative. */
class Figure {
  constructor({ title, format, base = 10 }) {
    Object.assign(this, { title, format, base });
    this.now = h("output", { className: "now" });
    this.canvas = h("canvas", { role: "img", tabIndex: 0, height: HEIGHT });
    this.legend = h("ul", { className: "legend", hidden: true });
    this.note = h("p", { className: "note" });
    this.element = h(
      "figure",
      { className: "plot" },
      h("figcaption", {}, h("span", { className: "title" }, title), this.now),
      this.canvas,
      this.legend,
      this.note,
    );
    this.at = null;
    this.canvas.addEventListener("pointermove", (event) => this.look(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.look(null));
    this.canvas.addEventListener("blur", () => this.look(null));
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        this.step(step);
      }
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  look(x) {
    this.at = x;
    this.draw();
  }

  /** The context, cleared, and the current colours. */
  begin() {
    const width = this.canvas.clientWidth;
    const scale = window.devicePixelRatio || 1;
    if (width === 0) return null;
    if (this.canvas.width !== Math.round(width * scale)) this.canvas.width = Math.round(width * scale);
    if (this.canvas.height !== Math.round(HEIGHT * scale)) this.canvas.height = Math.round(HEIGHT * scale);
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, HEIGHT);
    context.font = "11px system-ui, sans-serif";
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    return { context, width, colour };
  }

  /** Lines for zero, half and all. */
  grid({ context, width, colour }, max) {
    context.lineWidth = 1;
    context.strokeStyle = colour("--line");
    for (const part of [0, 0.5, 1]) {
      const y = Math.round(this.y(max * part, max)) + 0.5;
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
    }
  }

  /** The labels of the lines, above the curves and outlined, so that they are legible. */
  scale({ context, colour }, max) {
    context.lineWidth = 3;
    context.lineJoin = "round";
    context.textAlign = "left";
    context.strokeStyle = colour("--surface");
    context.fillStyle = colour("--muted");
    // A half that is rounded has no label: it would be wrong, or that of the whole.
    const isExact = Number.isInteger(max / 2) || this.format(max / 2).includes(".");
    const parts = isExact ? [0.5, 1] : [1];
    for (const part of parts) {
      const y = Math.round(this.y(max * part, max)) + (part === 1 ? 3.5 : -1.5);
      context.textBaseline = part === 1 ? "top" : "bottom";
      context.strokeText(this.format(max * part), 2, y);
      context.fillText(this.format(max * part), 2, y);
    }
  }

  y(value, max) {
    return TOP + (HEIGHT - BOTTOM - TOP) * (1 - value / max);
  }
}

/** Values over time. */
export class Plot extends Figure {
  constructor({ title, format, base, series, note = "" }) {
    super({ title, format, base });
    this.points = [];
    this.setSeries(series);
    this.said = note;
  }

  /** `[{key, label}]`. */
  setSeries(series) {
    const text = series.map(({ label }) => label).join("\n");
    this.series = series;
    if (this.labels === text) return;
    this.labels = text;
    this.values = series.map(() => h("b"));
    const item = ({ label }, index) => h("li", { className: `series-${(index % COLOURS) + 1}` }, label, " ", this.values[index]);
    this.legend.replaceChildren(...series.map(item));
    this.legend.hidden = series.length < 2;
  }

  /** `values` by key; null is a gap. */
  push(at, values) {
    this.points.push({ at, values });
    while (this.points.length > 0 && this.points[0].at < at - WINDOW_MS - GAP_MS) this.points.shift();
    this.draw();
  }

  step(step) {
    const last = this.points.length - 1;
    if (last < 0) return;
    const index = this.at === null ? last : this.nearest(this.at) + step;
    const point = this.points[Math.min(last, Math.max(0, index))];
    this.look(this.x(point.at, this.canvas.clientWidth));
  }

  get window() {
    const age = (this.points.at(-1)?.at ?? 0) - (this.points[0]?.at ?? 0);
    return Math.min(WINDOW_MS, Math.max(WINDOW_MS_MIN, age));
  }

  x(at, width) {
    const end = this.points.at(-1)?.at ?? 0;
    return width * (1 - (end - at) / this.window);
  }

  nearest(x) {
    const width = this.canvas.clientWidth;
    const distance = ({ at }) => Math.abs(this.x(at, width) - x);
    return this.points.reduce((best, point, index) => (distance(point) < distance(this.points[best]) ? index : best), 0);
  }

  draw() {
    const last = this.points.at(-1);
    const looked = this.at === null ? last : this.points[this.nearest(this.at)];
    const texts = this.series.map(({ key }) => {
      const value = looked?.values[key];
      return value === null || value === undefined ? "–" : this.format(value);
    });
    texts.forEach((text, index) => say(this.values[index], text));
    const isAlone = this.series.length === 1;
    const when = looked && looked !== last ? [`${Math.round((last.at - looked.at) / 1_000)} s ago`] : [];
    say(this.now, [...when, ...(isAlone ? texts : [])].join(": "));
    const seen = this.points.flatMap(({ values }) => this.series.map(({ key }) => values[key] ?? 0));
    const highest = Math.max(0, ...seen);
    say(this.note, this.said || (isAlone ? `at most ${this.format(highest)}` : ""));
    this.note.hidden = this.note.textContent === "";
    this.canvas.setAttribute(
      "aria-label",
      `${this.title}: ${texts.map((text, index) => (isAlone ? text : `${this.series[index].label} ${text}`)).join(", ") || "nothing yet"}; highest ${this.format(highest)}`,
    );
    const begun = this.begin();
    if (!begun) return;
    const { context, width, colour } = begun;
    const max = nice(highest, this.base);
    this.grid(begun, max);
    context.fillStyle = colour("--muted");
    context.textAlign = "left";
    context.textBaseline = "bottom";
    const seconds = Math.round(this.window / 1_000);
    context.fillText(seconds === 120 ? "2 min ago" : `${seconds} s ago`, 2, HEIGHT);
    context.textAlign = "right";
    context.fillText("now", width - 2, HEIGHT);
    for (const [index, { key }] of this.series.entries()) {
      context.strokeStyle = context.fillStyle = colour(`--series-${(index % COLOURS) + 1}`);
      this.curve(context, width, max, key);
    }
    this.scale(begun, max);
    if (looked && this.at !== null) {
      const x = this.x(looked.at, width);
      context.strokeStyle = colour("--muted");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(Math.round(x) + 0.5, TOP);
      context.lineTo(Math.round(x) + 0.5, HEIGHT - BOTTOM);
      context.stroke();
      for (const [index, { key }] of this.series.entries()) {
        const value = looked.values[key];
        if (value === null || value === undefined) continue;
        context.fillStyle = colour(`--series-${(index % COLOURS) + 1}`);
        context.beginPath();
        context.arc(x, this.y(value, max), 3.5, 0, 7);
        context.fill();
      }
    }
  }

  /** Stretches without a gap, each a line; a single curve also has its area filled. */
  curve(context, width, max, key) {
    let stretch = [];
    const finish = () => {
      if (stretch.length === 0) return;
      const [first] = stretch;
      const [endX] = stretch.at(-1);
      const line = new Path2D();
      if (stretch.length === 1) line.arc(first[0], first[1], 1, 0, 7);
      for (const [x, y] of stretch) line.lineTo(x, y);
      context.lineWidth = 1.75;
      context.lineJoin = "round";
      context.stroke(line);
      if (this.series.length === 1) {
        const area = new Path2D(line);
        area.lineTo(endX, HEIGHT - BOTTOM);
        area.lineTo(first[0], HEIGHT - BOTTOM);
        context.globalAlpha = 0.12;
        context.fill(area);
        context.globalAlpha = 1;
      }
      stretch = [];
    };
    let before = null;
    for (const { at, values } of this.points) {
      const value = values[key];
      if (value === null || value === undefined || (before !== null && at - before > GAP_MS)) finish();
      if (value !== null && value !== undefined) {
        stretch.push([this.x(at, width), this.y(value, max)]);
        before = at;
      }
    }
    finish();
  }
}

/** One bar for each of the last events, the latest at the right. */
export class Bars extends Figure {
  /** `describe(item)` is the text for the selected item. */
  constructor({ title, format, value, describe, empty, count }) {
    super({ title, format });
    Object.assign(this, { value, describe, empty, count, items: [] });
  }

  show(items) {
    this.items = items.slice(-this.count);
    this.draw();
  }

  step(step) {
    const last = this.items.length - 1;
    const index = this.at === null ? last : this.index(this.at) + step;
    const slot = this.canvas.clientWidth / this.count;
    const place = Math.min(last, Math.max(0, index)) + this.count - this.items.length;
    if (last >= 0) this.look((place + 0.5) * slot);
  }

  index(x) {
    const place = Math.floor((x / this.canvas.clientWidth) * this.count) - (this.count - this.items.length);
    return Math.min(this.items.length - 1, Math.max(0, place));
  }

  draw() {
    const last = this.items.length - 1;
    const looked = last < 0 ? null : this.at === null ? last : this.index(this.at);
    say(this.now, looked === null ? "" : this.format(this.value(this.items[looked])));
    say(this.note, looked === null ? this.empty : this.describe(this.items[looked]));
    this.canvas.setAttribute("aria-label", `${this.title}: ${looked === null ? this.empty : `${this.now.textContent}, ${this.note.textContent}`}`);
    const begun = this.begin();
    if (!begun) return;
    const { context, width, colour } = begun;
    const max = nice(Math.max(0, ...this.items.map(this.value)), this.base);
    this.grid(begun, max);
    const slot = width / this.count;
    for (const [index, item] of this.items.entries()) {
      const x = (index + this.count - this.items.length) * slot;
      const y = this.y(this.value(item), max);
      const height = Math.max(2, HEIGHT - BOTTOM - y);
      context.fillStyle = colour("--series-2");
      context.globalAlpha = index === looked ? 1 : 0.55;
      context.beginPath();
      context.roundRect(x + 1, HEIGHT - BOTTOM - height, Math.max(1.5, Math.min(10, slot - 2)), height, [2, 2, 0, 0]);
      context.fill();
    }
    context.globalAlpha = 1;
    this.scale(begun, max);
  }
}
