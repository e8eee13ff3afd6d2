// Uses the console as a person does, in a real Chromium without a window. The first
// word is the name of what is to be done, the second the console's URL, the rest is
// said at each. It ends with 0 only if all of it came to pass and the browser had
// nothing to complain about.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const { chromium } = require("playwright-core");

/** The server is on this machine; what takes longer does not come. */
const PATIENCE_MS = 15_000;
/** All of it together. */
const LIFE_MS = 120_000;

function browserProgram() {
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  const found = folders.map((folder) => path.join(folder, "chromium")).find((file) => fs.existsSync(file));
  assert(found, "there is no chromium; run host/tests/clients/install.sh");
  return found;
}

/** Waits until a text is somewhere in an element. */
const says = (element, text) => element.filter({ hasText: text }).first().waitFor({ timeout: PATIENCE_MS });

const view = (page, name) => page.getByRole("navigation").getByRole("link", { name }).click();
const card = (page, slot) => page.locator(`.card[data-slot="${slot}"]`);
const outcome = (page, slot) => card(page, slot).locator(".outcome");
const file = (name, from) => ({ name, mimeType: "application/wasm", buffer: fs.readFileSync(from) });

/** How a swap is reported: what for what, and for how long messages waited. */
async function pauseOf(outcome, verb) {
  await says(outcome, verb);
  const text = await outcome.innerText();
  const pause = /Messages waited ([\d.]+) (µs|ms|s)\./.exec(text);
  assert(pause, `no pause in: ${text}`);
  return text;
}

/** Drops a file on an element, as if it had been dragged there. */
async function drop(page, element, name, from) {
  const bytes = fs.readFileSync(from).toString("base64");
  const transfer = await page.evaluateHandle(
    ([name, bytes]) => {
      const transfer = new DataTransfer();
      const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
      transfer.items.add(new File([content], name, { type: "application/wasm" }));
      return transfer;
    },
    [name, bytes],
  );
  for (const kind of ["dragenter", "dragover", "drop"]) await element.dispatchEvent(kind, { dataTransfer: transfer });
}

const scenarios = {
  /** Curves move, and what happens is in the figures. */
  async overview(page) {
    await says(page.locator("#state"), "live");
    for (const title of ["Connections", "Commands", "Bytes", "Swap pauses"]) {
      await page.locator(".plot", { hasText: title }).first().locator("canvas").waitFor();
    }
    const connections = page.getByRole("img", { name: /^Connections: 2/ });
    await connections.waitFor({ timeout: PATIENCE_MS });
    const drawn = await connections.evaluate((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((value) => value !== 0);
    });
    assert(drawn, "nothing was drawn");
    await says(page.locator("#changes"), "10-probe was added");
    await view(page, "Connections");
    await says(page.locator("#connections-count"), "2 of 2 shown");
    await page.getByLabel("Search").fill("no such address");
    await says(page.locator("#connections"), "No matching connections");
    await page.getByLabel("Search").fill("");
    await page.getByRole("button", { name: "Details of connection" }).first().click();
    const dialog = page.getByRole("dialog");
    await says(dialog, "watched.*");
    await dialog.getByRole("button", { name: "Close connection" }).click();
    await page.getByRole("dialog").last().getByRole("button", { name: "Close it" }).click();
    await says(page.locator("#connections-count"), "1 of 1 shown");
    await view(page, "Channels");
    await says(page.locator("#channels tr", { hasText: "busy" }), "1");
  },

  /** Users are found, and all connections of one are closed. */
  async users(page) {
    await view(page, "Connections");
    await says(page.locator("#connections tr", { hasText: "worker-7" }), "ann");
    await page.getByLabel("Search").fill("ANN");
    await says(page.locator("#connections-count"), "2 of 3 shown");
    await page.getByRole("button", { name: "Details of connection" }).first().click();
    const dialog = page.getByRole("dialog");
    await says(dialog.locator("dl").last(), "ann");
    await dialog.getByRole("button", { name: "Close all of this user" }).click();
    const question = page.getByRole("dialog").last();
    await says(question, "Close all connections of ann?");
    await question.getByRole("button", { name: "Cancel" }).click();
    await says(page.locator("#connections-count"), "2 of 3 shown");
    await dialog.getByRole("button", { name: "Close all of this user" }).click();
    await page.getByRole("dialog").last().getByRole("button", { name: "Close them" }).click();
    await says(page.locator("#connections-count"), "0 of 1 shown");
  },

  /** A dialog ends with its view; figures are dimmed and dated when the server is gone; words say what is meant. */
  async details(page) {
    await says(page.locator("#state"), "live");
    await view(page, "Connections");
    await page.getByRole("button", { name: "Details of connection" }).first().click();
    await page.getByRole("dialog").waitFor();
    await page.evaluate(() => (location.hash = "channels"));
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await view(page, "Trace");
    await says(page.locator("#trace-state"), "Nothing is followed");
    assert.strictEqual(await page.locator("#trace-lines thead").isVisible(), false, "an empty table has a head");
    await view(page, "Overview");
    // The highest value of the curve of connections is 1: the label of its half would be 1, too.
    const labels = await page.evaluate(async () => {
      const said = [];
      const context = CanvasRenderingContext2D.prototype;
      const fill = context.fillText;
      context.fillText = function (text, ...rest) {
        if (this.canvas.getAttribute("aria-label").startsWith("Connections:")) said.push(text);
        return fill.call(this, text, ...rest);
      };
      await new Promise((done) => {
        const look = () => (said.filter((text) => text === "now").length > 1 ? done() : requestAnimationFrame(look));
        look();
      });
      context.fillText = fill;
      return said.slice(said.indexOf("now") + 1, said.lastIndexOf("now") + 1);
    });
    const figures = labels.filter((text) => /^[\d.]+$/.test(text));
    assert.deepStrictEqual(figures, ["1"], `the labels are ${labels}`);
    await page.route("**/v1/**", (route) => route.abort());
    await says(page.locator("#state"), /the server does not answer; figures of \d\d:\d\d:\d\d/);
    const opacity = () => page.locator("#facts").evaluate((facts) => Number(getComputedStyle(facts).opacity));
    assert((await opacity()) < 0.6, "the figures are not dimmed");
    await page.unroute("**/v1/**");
    await says(page.locator("#state"), "live");
    assert.strictEqual(await opacity(), 1);
  },

  /** The page for trying the server out: a token, and nothing is shown as sent that was not. */
  async try_page(page, [token]) {
    const state = page.locator("#state");
    await says(state, "closed (4001)");
    await page.getByRole("button", { name: "Publish" }).click();
    await says(state, "PUBLISH was not sent");
    assert.strictEqual(await page.locator("#log li").count(), 0, "it shows what it did not send");
    await page.getByLabel("Token").fill(token);
    await page.getByRole("button", { name: "Connect" }).click();
    await says(state, "connected to ws://");
    assert(!(await page.locator("body").innerText()).includes(token), "the token is shown");
    await page.getByRole("button", { name: "Subscribe" }).click();
    await says(page.locator("#log li"), '"OK",1]');
    await page.getByRole("button", { name: "Publish" }).click();
    await says(page.locator("#log li"), '["pmessage","news.*","news.world","hello"]');
    const icon = await page.locator("link[rel=icon]").getAttribute("href");
    await page.evaluate((icon) => new Promise((loaded, failed) => Object.assign(new Image(), { src: icon, onload: loaded, onerror: failed })), icon);
    for (const width of [1280, 390]) {
      await page.setViewportSize({ width, height: 844 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert(wide <= 0, `at ${width} it is ${wide} pixels too wide`);
    }
  },

  /** Screenshots for a person to look at: the views at two widths, light and dark. */
  async pictures(page, [folder]) {
    const isConsole = (await page.locator("nav").count()) > 0;
    const views = isConsole ? ["Overview", "Plugins", "Connections", "Channels", "Trace", "Client"] : ["Try"];
    for (const [width, scheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) {
      await page.setViewportSize({ width, height: 844 });
      await page.emulateMedia({ colorScheme: scheme });
      for (const name of views) {
        if (isConsole) await view(page, name);
        await page.waitForTimeout(1_500);
        await page.screenshot({ path: path.join(folder, `${name}-${width}-${scheme}.png`), fullPage: true });
      }
    }
  },

  /** The page sends no requests while it is hidden. */
  async hidden(page) {
    // From here on the test controls the page's clock.
    await page.clock.install();
    await page.reload();
    await says(page.locator("#state"), "live");
    let requested = 0;
    page.on("request", () => (requested += 1));
    const next = page.waitForResponse("**/v1/plugins");
    await page.clock.runFor(1_000);
    await next;
    const setHidden = (hidden) =>
      page.evaluate((hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    await setHidden(true);
    await says(page.locator("#state"), "paused");
    const before = requested;
    await page.clock.runFor(60_000);
    await page.evaluate(() => fetch("/console/icon.svg"));
    assert.strictEqual(requested, before + 1, "the hidden page sent a request");
    await setHidden(false);
    await says(page.locator("#state"), "live");
  },

  /** Subscribes, publishes, and sees the message arrive. */
  async client(page) {
    await view(page, "Client");
    await says(page.locator("#client-state"), /connected to ws:.* as #\d+/);
    await page.getByLabel("Channel or pattern", { exact: true }).fill("user.*");
    await page.getByRole("button", { name: "Subscribe", exact: true }).click();
    await says(page.locator("#client-names li"), "user.*");
    await page.getByLabel("Channel", { exact: true }).fill("user.ü");
    await page.getByLabel("Payload").fill("grüße <b>🦀</b>");
    await page.getByRole("button", { name: "Publish", exact: true }).click();
    await says(page.locator("#client-published"), "delivered 1 time");
    const message = page.locator("#client-log li").first();
    await says(message, "grüße <b>🦀</b>");
    await says(message, "by user.*");
    await page.getByRole("button", { name: "Unsubscribe from user.*" }).click();
    await page.locator("#client-names li").waitFor({ state: "detached" });
    await page.getByRole("button", { name: "Publish", exact: true }).click();
    await says(page.locator("#client-published"), "delivered 0 times");
    assert.strictEqual(await page.locator("#client-log li").count(), 1, "it listens no more");
    await page.locator("#view-client summary").click();
    await page.getByLabel("Token or password").fill("secret");
    await page.getByRole("button", { name: "Authenticate" }).click();
    await says(page.locator("#client-log li"), "NOAUTH");
    await page.getByRole("button", { name: "Disconnect" }).click();
    await says(page.locator("#client-state"), "closed (1000");
  },

  /** Swaps by the file button and by dropping, and sees what became of it. */
  async plugins(page, [second, garbage, engine]) {
    await view(page, "Plugins");
    const probe = card(page, "10-probe");
    await says(probe, "running");
    const first = await probe.locator(".head .version").getAttribute("title");

    await page.getByLabel("Swap 10-probe for a file").setInputFiles(file("second.wasm", second));
    const said = await pauseOf(outcome(page, "10-probe"), "Swapped");
    assert(said.includes("from probe@") && said.includes("to probe@"), said);
    const version = probe.locator(`.head .version:not([title="${first}"])`);
    await version.waitFor({ timeout: PATIENCE_MS });

    await drop(page, probe, "garbage.wasm", garbage);
    await says(outcome(page, "10-probe"), "Refused at the step compile: not a WebAssembly file.");
    await says(outcome(page, "10-probe"), "The version in use stays.");

    await probe.getByRole("button", { name: "Roll back" }).click();
    await pauseOf(outcome(page, "10-probe"), "Rolled back");
    await probe.locator(`.head .version[title="${first}"]`).waitFor({ timeout: PATIENCE_MS });

    // A second one, dropped on the empty place.
    await drop(page, page.locator(".card.place"), "other.wasm", second);
    const dialog = page.getByRole("dialog");
    assert.strictEqual(await dialog.getByLabel("Slot").inputValue(), "20-other");
    await dialog.getByRole("button", { name: "Add" }).click();
    await says(card(page, "20-other"), "running");
    const order = () => page.locator(".card.plugin h2").allInnerTexts();
    assert.deepStrictEqual(await order(), ["probe", "other"]);
    await page.getByRole("button", { name: "Move 20-other up" }).press("Enter");
    await page.locator('.card.plugin:first-child h2:text("other")').waitFor({ timeout: PATIENCE_MS });
    assert.deepStrictEqual(await order(), ["other", "probe"]);
    await page.locator(".card.plugin").first().getByRole("button", { name: "Remove" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
    await page.locator('.card.plugin h2:text("other")').waitFor({ state: "detached" });

    const core = page.locator(".card.engine");
    await page.getByLabel("Swap the engine for a file").setInputFiles(file("engine.wasm", engine));
    await pauseOf(core.locator(".outcome"), "Swapped");
    await core.getByRole("button", { name: "Roll back" }).click();
    await pauseOf(core.locator(".outcome"), "Rolled back");
  },

  /** Sees what a plugin says of a message that passes. */
  async trace(page) {
    await view(page, "Trace");
    await page.getByRole("textbox", { name: "Channel or glob" }).fill("seen.*");
    await page.getByRole("button", { name: "Follow" }).click();
    await says(page.locator("#trace-state"), "following");
    await view(page, "Client");
    await says(page.locator("#client-state"), /as #\d+/);
    for (const channel of ["unseen.a", "seen.a"]) {
      await page.getByLabel("Channel", { exact: true }).fill(channel);
      await page.getByRole("button", { name: "Publish", exact: true }).click();
      await says(page.locator("#client-published"), "delivered 0 times");
    }
    await view(page, "Trace");
    const line = page.locator("#trace-lines tbody tr", { hasText: "on-publish" });
    await says(line, "seen.a");
    await says(line, "replace");
    assert.strictEqual(await page.locator("#trace-lines", { hasText: "unseen" }).count(), 0);
    await page.getByRole("button", { name: "Stop" }).click();
    await says(page.locator("#trace-state"), "stopped");
  },

  /** Where a token is required, the page requests it. */
  async token(page, [token]) {
    const dialog = page.getByRole("dialog");
    await says(dialog, "A token is required");
    assert(!(await dialog.innerText()).includes("Authorization"), "the words of the API are shown");
    await dialog.getByLabel("Token").fill("not the right one at all");
    await dialog.getByRole("button", { name: "Sign in" }).click();
    await says(page.getByRole("dialog"), "The server does not know this token");
    await page.getByRole("dialog").getByLabel("Token").fill(token);
    await page.getByRole("dialog").getByRole("button", { name: "Sign in" }).click();
    await says(page.locator("#state"), "live");
    const kept = await page.evaluate(() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]);
    assert.deepStrictEqual(kept, [[token], [], ""]);
    await page.reload();
    await says(page.locator("#state"), "live");
  },

  /** Nothing is wider than the page, and every control has a name. */
  async shapes(page) {
    for (const [width, scheme] of [[1280, "light"], [390, "dark"]]) {
      await page.setViewportSize({ width, height: 844 });
      await page.emulateMedia({ colorScheme: scheme });
      for (const name of ["Overview", "Plugins", "Connections", "Channels", "Trace", "Client"]) {
        await view(page, name);
        await page.getByRole("heading", { level: 1 }).waitFor();
        const { wide, nameless } = await page.evaluate(() => {
          const controls = [...document.querySelectorAll("button, input, select, textarea")];
          const isNamed = (control) =>
            control.getAttribute("aria-label") || control.textContent.trim() || control.labels?.[0]?.textContent.trim();
          return {
            wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
            nameless: controls.filter((control) => !isNamed(control)).map((control) => control.outerHTML),
          };
        });
        assert(wide <= 0, `${name} at ${width} is ${wide} pixels too wide`);
        assert.deepStrictEqual(nameless, [], `${name} has controls without a name`);
      }
    }
  },
};

async function main() {
  const [what, url, ...words] = process.argv.slice(2);
  const scenario = scenarios[what];
  assert(scenario, `there is no ${what}`);
  setTimeout(() => {
    console.error(`${what} is not over after ${LIFE_MS} ms`);
    process.exit(1);
  }, LIFE_MS).unref();
  const browser = await chromium.launch({
    executablePath: browserProgram(),
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    page.setDefaultTimeout(PATIENCE_MS);
    const complaints = [];
    // A refusal is shown in the page, and the browser notes it besides.
    const isRefusal = (text) => /^Failed to load resource: (.* (401|409|422) |net::ERR_FAILED)/.test(text);
    page.on("console", (said) => {
      if (["error", "warning"].includes(said.type()) && !isRefusal(said.text())) complaints.push(said.text());
    });
    page.on("pageerror", (error) => complaints.push(String(error)));
    await page.goto(url);
    try {
      await scenario(page, words);
    } catch (problem) {
      console.error(`the page shows:\n${await page.locator("body").innerText()}`);
      console.error(`the browser says: ${complaints.join("\n")}`);
      throw problem;
    }
    assert.deepStrictEqual(complaints, [], "the browser complains");
  } finally {
    await browser.close();
  }
}

main().catch((problem) => {
  console.error(problem);
  process.exit(1);
});
