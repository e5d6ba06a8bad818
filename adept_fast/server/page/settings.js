// The settings: a dialog, and the values in it. Sampling settings stay in the browser; the API key is forgotten when
// the tab is closed.

import { keep, kept } from "./storage.js";

const NAME = "adept-fast.settings";
const KEY_NAME = "adept-fast.api-key";

const dialog = document.getElementById("settings");
const numbers = [...dialog.querySelectorAll("input[type=number]")];
const system = document.getElementById("system");
const apiKeyField = document.getElementById("api-key");

restore();
for (const input of numbers) input.addEventListener("change", () => check(input));
dialog.addEventListener("change", save);
document.getElementById("open-settings").addEventListener("click", () => openSettings());
document.getElementById("reset").addEventListener("click", () => {
  for (const input of numbers) {
    input.value = "";
    check(input);
  }
  save();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});

// Show the dialog, with the focus on the API key if that is what is missing.
export function openSettings({ forKey = false } = {}) {
  dialog.showModal();
  if (forKey) apiKeyField.focus();
}

// Call back each time the dialog has been closed.
export function onSettingsClosed(callback) {
  dialog.addEventListener("close", callback);
}

// The numbers that are set, by the names of the API's parameters. A value out of its range is left out.
export function sampling() {
  const given = numbers.filter((input) => input.value !== "" && input.validity.valid);
  return Object.fromEntries(given.map((input) => [input.name, input.valueAsNumber]));
}

export function systemMessage() {
  return system.value.trim();
}

export function apiKey() {
  return apiKeyField.value.trim();
}

function check(input) {
  const isFaulty = !input.validity.valid;
  input.setAttribute("aria-invalid", String(isFaulty));
  const kind = input.step === "1" ? "a whole number" : "a number";
  document.getElementById(`${input.id}-fault`).textContent = isFaulty
    ? `Expected ${kind} from ${input.min} to ${input.max}. This value is not used.`
    : "";
}

function save() {
  keep("localStorage", NAME, JSON.stringify({ ...sampling(), system: system.value }));
  keep("sessionStorage", KEY_NAME, apiKey());
}

function restore() {
  let values = {};
  try {
    values = Object(JSON.parse(kept("localStorage", NAME)));
  } catch {
    // Not written by this page.
  }
  for (const input of numbers) {
    if (Number.isFinite(values[input.name])) input.value = values[input.name];
  }
  if (typeof values.system === "string") system.value = values.system;
  apiKeyField.value = kept("sessionStorage", KEY_NAME) ?? "";
}
