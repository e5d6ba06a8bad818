// A question and its answer: the state, and how it is shown.

import { showText } from "./text_view.js";

const CHARACTERS_A_TOKEN = 3;
const MIN_MILLISECONDS = 50; // in less than this, what is counted is how the network packs pieces

const NOTHING = { text: "", first: null, last: null, usage: null, finishReason: null };

export class Turn {
  #parts;
  #isOpen = true; // the answer is being generated
  #sent = 0; // when the question was sent, in milliseconds
  #now = NOTHING; // what has been received; first and last: when the first and the last piece came
  #previous = NOTHING; // the answer that a new one shall replace
  #counted = null; // the turn's tokens, if the server has told them
  #drawing = 0;

  // actions: {copy, regenerate, openSettings}, called with the turn
  constructor(question, actions) {
    this.question = question;
    this.#parts = createParts(question);
    this.#parts.copy.addEventListener("click", () => actions.copy(this));
    this.#parts.again.addEventListener("click", () => actions.regenerate(this));
    this.#parts.settings.addEventListener("click", () => actions.openSettings(this));
  }

  get element() {
    return this.#parts.turn;
  }

  // The text so far; a turn with none is no part of the conversation.
  get answer() {
    return this.#now.text;
  }

  get messages() {
    return [
      { role: "user", content: this.question },
      { role: "assistant", content: this.answer },
    ];
  }

  // About how many tokens the turn has in a prompt.
  get tokens() {
    return this.#counted ?? Math.ceil((this.question.length + this.answer.length) / CHARACTERS_A_TOKEN);
  }

  // Take the turn's tokens from the answer's usage; ``before`` are those of the turns before it in the prompt.
  count(before) {
    const { prompt_tokens: prompt, completion_tokens: completion } = this.#now.usage ?? {};
    this.#counted = prompt > 0 ? Math.max(prompt + completion - before, 0) : null;
  }

  // Wait for an answer, in place of the one that there may be.
  begin() {
    this.#isOpen = true;
    this.#sent = performance.now();
    this.#previous = this.#now;
    this.#counted = null;
    this.#now = NOTHING;
    this.#parts.problem.hidden = true;
    this.#parts.note.textContent = "";
    this.#draw();
  }

  // Take a part of the answer.
  add({ text, usage, finishReason }) {
    const { text: before, first, last, ...known } = this.#now;
    const now = text ? performance.now() : last;
    this.#now = {
      text: before + (text ?? ""),
      first: first ?? now,
      last: now,
      usage: usage ?? known.usage,
      finishReason: finishReason ?? known.finishReason,
    };
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  complete() {
    const isCut = this.#now.finishReason === "length";
    this.#end(!this.answer ? "The answer is empty." : isCut ? "Cut off at the limit of tokens." : "");
  }

  stop() {
    this.#end(this.answer ? "Stopped." : "Stopped before the answer began.");
  }

  // error: a ServerError
  fail(error) {
    this.#end("");
    this.#parts.message.textContent = error.message;
    this.#parts.settings.hidden = !error.wantsKey;
    this.#parts.problem.hidden = false;
    this.#parts.again.textContent = "Try again";
    this.#parts.problem.append(this.#parts.again);
  }

  // Say that as many turns at the beginning were left out.
  sayForgotten(count) {
    const left = count === 1 ? "question and its answer are" : `${count} questions and their answers are`;
    this.#parts.forgotten.textContent = `The context is full: the first ${left} forgotten.`;
  }

  // Say for two seconds that the answer was copied.
  sayCopied() {
    this.#parts.copy.textContent = "Copied";
    setTimeout(() => (this.#parts.copy.textContent = "Copy"), 2000);
  }

  // Whether there is a button that generates the answer again.
  allowAgain(isAllowed) {
    this.#parts.again.hidden = !isAllowed;
  }

  #end(note) {
    this.#isOpen = false;
    if (!this.answer) this.#now = this.#previous;
    this.#parts.note.textContent = note;
    this.#parts.again.textContent = "Regenerate";
    this.#parts.copy.after(this.#parts.again);
    this.#draw();
  }

  #draw() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    showText(this.#parts.answer, this.answer);
    this.#parts.answer.setAttribute("aria-busy", String(this.#isOpen));
    this.#parts.waiting.hidden = !this.#isOpen || this.answer !== "";
    this.#parts.copy.hidden = this.#isOpen || this.answer === "";
    this.#parts.figures.replaceChildren(
      ...(this.#isOpen ? [] : this.#figures()).map((text) => create("span", "figure", text)),
    );
  }

  #figures() {
    const { first, last, usage } = this.#now;
    if (first === null) return [];
    const figures = [`first token after ${((first - this.#sent) / 1000).toFixed(2)} s`];
    const tokens = usage?.completion_tokens;
    if (tokens > 1 && last - first >= MIN_MILLISECONDS) {
      const rate = ((tokens - 1) * 1000) / (last - first);
      figures.unshift(`${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
    }
    if (tokens > 0) figures.unshift(tokens === 1 ? "1 token" : `${tokens} tokens`);
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    if (cached > 0) figures.push(`${cached} of ${usage.prompt_tokens} prompt tokens cached`);
    return figures;
  }
}

function create(tag, className, text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function createParts(question) {
  const button = (text) => Object.assign(create("button", "quiet small", text), { type: "button", hidden: true });
  const parts = {
    turn: create("article", "turn"),
    forgotten: create("p", "note muted"),
    question: Object.assign(create("div", "question", question), { dir: "auto" }),
    waiting: create("p", "waiting muted", "Waiting for the first token"),
    answer: Object.assign(create("div", "answer"), { dir: "auto" }),
    note: create("p", "note muted"),
    problem: Object.assign(create("div", "problem"), { role: "alert", hidden: true }),
    message: create("p", ""),
    settings: button("Open settings"),
    below: create("div", "below"),
    copy: button("Copy"),
    again: button("Regenerate"),
    figures: create("p", "figures muted"),
  };
  parts.problem.append(parts.message, parts.settings);
  parts.below.append(parts.copy, parts.again, parts.figures);
  parts.turn.append(
    ...[parts.forgotten, create("h2", "unseen", "Question"), parts.question, create("h3", "unseen", "Answer")],
    ...[parts.waiting, parts.answer, parts.note, parts.problem, parts.below],
  );
  return parts;
}
