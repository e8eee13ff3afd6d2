// Requests to the admin API, and the token for it, which only this tab keeps.

import { ask as askInDialog, h } from "./dom.js";

const TOKEN = "switchyard.admin-token";

/** An error of the API, or of the connection to it. */
export class ApiError extends Error {
  constructor(status, { code, message, step } = {}) {
    super(message ?? `the server answered ${status}`);
    Object.assign(this, { status, code, step });
  }

  /** One sentence, with the step that failed where there is one. */
  get words() {
    return this.step ? `${this.message} (step ${this.step})` : this.message;
  }
}

let asking = null;

/** Shows a dialog that asks the user for a token. Concurrent requests share one dialog. */
function askForToken(why) {
  asking ??= askInDialog({
    title: "A token is required",
    isGlobal: true,
    words: `${why} It is kept in this tab until the tab is closed.`,
    fields: [h("label", {}, "Token ", h("input", { name: "token", type: "password", required: true, autocomplete: "off" }))],
    action: "Sign in",
  }).then((fields) => {
    asking = null;
    if (fields) sessionStorage.setItem(TOKEN, fields.token);
    return fields !== null;
  });
  return asking;
}

/** The response to a request that succeeded. */
export async function request(method, path, { body, type, signal } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (type) headers["Content-Type"] = type;
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ApiError(0, { code: "unreachable", message: "the server does not answer" });
  }
  if (response.ok) return response;
  const error = new ApiError(response.status, await response.json().catch(() => ({})));
  if (response.status === 401) {
    // Another request may have received a new token since this one was sent.
    const isOld = token !== sessionStorage.getItem(TOKEN);
    const why = token ? "The server does not know this token. Enter another one." : "Enter a token of the admin API.";
    if (isOld || (await askForToken(why))) return request(method, path, { body, type, signal });
  }
  throw error;
}

const json = (response) => response.json();
export const get = (path, options) => request("GET", path, options).then(json);
export const post = (path, value = {}) =>
  request("POST", path, { body: JSON.stringify(value), type: "application/json" }).then(json);
export const remove = (path) => request("DELETE", path).then(json);

/** Uploads a component, with settings if there are any. */
export async function offer(path, file, config) {
  if (!config) return request("POST", path, { body: file, type: "application/wasm" }).then(json);
  return post(path, { wasm: await base64(file), config });
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new ApiError(0, { message: `${file.name} cannot be read` }));
    reader.readAsDataURL(file);
  });
}

/** The message of any error. */
export const words = (error) => error.words ?? error.message ?? String(error);
