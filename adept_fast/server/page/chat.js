// A conversation with the server's model.

import { answer, firstModel, ServerError } from "./server.js";
import { apiKey, onSettingsClosed, openSettings, sampling, systemMessage } from "./settings.js";
import { Turn } from "./turn.js";

const find = (id) => document.getElementById(id);
const [message, send, stop, conversation] = ["message", "send", "stop", "conversation"].map(find);

const DEFAULT_ROOM = 128; // tokens that are left for an answer whose length is not set

let turns = [];
let forgotten = 0; // turns at the beginning that do not fit into the model's context
let model = null; // {name, context}: the context in tokens, if the server tells it
let controller = null; // of the answer that is being generated: it stops it

// Show the name of the model. Throws ServerError.
async function learnModel(signal) {
  if (model !== null) return;
  model = await firstModel(apiKey(), signal);
  find("model").textContent = model.name;
  document.title = `${model.name} – adept-fast`;
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

// Receive the answer to the turn's question. The oldest turns are left out as far as they do not fit.
async function receive(turn, signal) {
  await learnModel(signal);
  const before = turns.slice(0, turns.indexOf(turn)).filter((earlier) => earlier.answer !== "");
  const last = { role: "user", content: turn.question };
  const system = systemMessage() ? [{ role: "system", content: systemMessage() }] : [];
  for (let left = countUnfit(before, turn); ; left += 1) {
    const kept = before.slice(left);
    const messages = [...system, ...kept.flatMap((earlier) => earlier.messages), last];
    try {
      const body = { model: model.name, messages, ...sampling() };
      for await (const part of answer(body, apiKey(), signal)) turn.add(part);
      turn.count(tokensOf(kept));
      if (left > forgotten) turn.sayForgotten(left);
      forgotten = left;
      return;
    } catch (error) {
      if (!error.isTooLong || left === before.length) throw error;
    }
  }
}

// How many turns at the beginning should be left out, so that the model has room to answer.
function countUnfit(before, turn) {
  let left = Math.min(forgotten, before.length);
  if (model.context === null) return left;
  const room = Math.min(sampling().max_tokens ?? DEFAULT_ROOM, model.context / 2);
  while (left < before.length && tokensOf(before.slice(left)) + turn.tokens > model.context - room) left += 1;
  return left;
}

function tokensOf(some) {
  return some.reduce((sum, turn) => sum + turn.tokens, 0);
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
  generate(turn);
  moveFocus();
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
  if (hadFocus) moveFocus();
  for (const turn of turns) turn.allowAgain(!isOpen && turn === turns.at(-1));
}

// The element with the focus has gone. On a phone the message field would bring up its keyboard.
function moveFocus() {
  const isTouched = matchMedia("(pointer: coarse)").matches;
  (isTouched ? (stop.hidden ? send : stop) : message).focus();
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
  scrolled = scrollY;
}).observe(conversation);

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("keydown", (event) => {
  // Enter may end the input of a character; some browsers give it the code 229 then.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
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
