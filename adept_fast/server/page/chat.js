// A conversation with the server's model.

import { answer, modelName, ServerError } from "./server.js";
import { apiKey, onSettingsClosed, openSettings, sampling, systemMessage } from "./settings.js";
import { Turn } from "./turn.js";

const find = (id) => document.getElementById(id);
const [message, send, stop, conversation] = ["message", "send", "stop", "conversation"].map(find);

let turns = [];
let forgotten = 0; // turns at the beginning that do not fit into the model's context
let model = null;
let controller = null; // of the answer that is being generated: it stops it

// Show the name of the model. Throws ServerError.
async function learnModel(signal) {
  if (model !== null) return;
  model = await modelName(apiKey(), signal);
  find("model").textContent = model;
  document.title = `${model} – adept-fast`;
  find("problem").hidden = true;
}

async function greet() {
  try {
    await learnModel();
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    find("problem").textContent = error.message;
    find("problem").hidden = false;
  }
}

async function generate(turn) {
  const own = (controller = new AbortController());
  turn.begin();
  showButtons();
  announce("The model is answering.");
  try {
    await receive(turn, own.signal);
    turn.complete();
    announce(`The answer: ${turn.answer}`);
  } catch (error) {
    if (own.signal.aborted) {
      turn.stop();
      announce("The answer was stopped.");
    } else {
      turn.fail(error instanceof ServerError ? error : new ServerError(`This page has a fault: ${error}`));
      announce("");
    }
  }
  if (controller === own) controller = null; // else a new conversation has begun
  showButtons();
}

// Receive the answer to the turn's question. The oldest turns are left out while the server says that the
// conversation is longer than the model's context.
async function receive(turn, signal) {
  await learnModel(signal);
  const before = turns.slice(0, turns.indexOf(turn)).filter((earlier) => earlier.answer !== "");
  const last = { role: "user", content: turn.question };
  const system = systemMessage() ? [{ role: "system", content: systemMessage() }] : [];
  for (let left = Math.min(forgotten, before.length); ; left += 1) {
    const messages = [...system, ...before.slice(left).flatMap((earlier) => earlier.messages), last];
    try {
      for await (const part of answer({ model, messages, ...sampling() }, apiKey(), signal)) turn.add(part);
      if (left > forgotten) turn.sayForgotten(left);
      forgotten = left;
      return;
    } catch (error) {
      if (!error.isTooLong || left === before.length) throw error;
    }
  }
}

function submit() {
  const question = message.value.trim();
  if (question === "") return;
  if (controller !== null) {
    announce("Wait for the end of the answer, or stop it with Escape.");
    return;
  }
  const turn = new Turn(question, { copy, regenerate, openSettings: () => openSettings({ forKey: true }) });
  turns.push(turn);
  conversation.append(turn.element);
  find("welcome").hidden = true;
  message.value = "";
  fit();
  isFollowing = true;
  generate(turn);
}

function regenerate(turn) {
  message.focus(); // the button goes away
  generate(turn);
}

function beginAnew() {
  controller?.abort();
  controller = null;
  turns = [];
  forgotten = 0;
  conversation.replaceChildren();
  find("welcome").hidden = false;
  showButtons();
  message.focus();
  announce("A new conversation has begun.");
}

function showButtons() {
  const isOpen = controller !== null;
  const hadFocus = [send, stop].includes(document.activeElement);
  send.hidden = isOpen;
  stop.hidden = !isOpen;
  if (hadFocus) (isOpen ? stop : send).focus();
  for (const turn of turns) turn.allowAgain(!isOpen && turn === turns.at(-1));
}

async function copy(turn) {
  try {
    await navigator.clipboard.writeText(turn.answer);
  } catch {
    copyBySelection(turn.answer); // browsers have a clipboard for https and localhost only
  }
  turn.sayCopied();
  announce("Copied.");
}

function copyBySelection(text) {
  const holder = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
  const focused = document.activeElement;
  document.body.append(holder);
  holder.select();
  document.execCommand("copy");
  holder.remove();
  focused.focus();
}

// Tell a screen reader. The conversation itself is not announced, as it would be with each token.
function announce(text) {
  find("status").textContent = text;
}

// Make the message field as high as its text, in browsers that cannot do it alone.
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

// Keep the end of the conversation in view, unless the user has scrolled away from it.
let isFollowing = true;
let scrolled = 0;
addEventListener("scroll", () => {
  if (scrollY < scrolled) isFollowing = false;
  scrolled = scrollY;
  if (innerHeight + scrollY >= document.documentElement.scrollHeight - 48) isFollowing = true;
});
new ResizeObserver(() => {
  if (isFollowing) scrollTo(0, document.documentElement.scrollHeight);
}).observe(conversation);

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
message.addEventListener("input", fit);
stop.addEventListener("click", (event) => {
  if (event.detail < 2) controller?.abort(); // the second click of a double click was meant for Send
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !find("settings").open) controller?.abort();
});
find("new").addEventListener("click", beginAnew);
onSettingsClosed(greet);

greet();
message.focus();
