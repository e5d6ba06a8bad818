// The server's API: which model it has, and the pieces of an answer.

import { eventData } from "./event_stream.js";

const MAX_MESSAGE = 600; // characters of an error

// What went wrong, in words for the user.
//   wantsKey: whether an API key would help
//   isTooLong: whether the conversation is longer than the model's context
export class ServerError extends Error {
  constructor(message, { wantsKey = false, isTooLong = false } = {}) {
    super(message);
    this.wantsKey = wantsKey;
    this.isTooLong = isTooLong;
  }
}

// The server's first model: its {name} and its {context} in tokens, or null. Throws ServerError.
export async function firstModel(apiKey, signal) {
  const response = await request("v1/models", { headers: headers(apiKey), signal }, apiKey);
  const model = (await json(response))?.data?.[0];
  if (typeof model?.id !== "string") throw new ServerError("The server names no model.");
  return { name: model.id, context: model.max_model_len > 0 ? model.max_model_len : null };
}

// Generates {text} for each piece, {finishReason} and {usage} when they are known. Throws ServerError, and
// AbortError when the signal aborts, which closes the connection.
export async function* answer(body, apiKey, signal) {
  const options = {
    method: "POST",
    headers: { ...headers(apiKey), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  };
  const response = await request("v1/chat/completions", options, apiKey);
  if (!/^text\/event-stream\b/.test(response.headers.get("Content-Type") ?? "")) {
    throw new ServerError("The server sent something else than a stream of events.");
  }
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      yield* contents(parsed(data));
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
  }
  throw new ServerError("The connection broke before the answer was complete.");
}

function* contents(chunk) {
  if (chunk?.error) throw failure(500, chunk);
  const choice = chunk?.choices?.[0];
  if (typeof choice?.delta?.content === "string" && choice.delta.content) yield { text: choice.delta.content };
  if (choice?.finish_reason) yield { finishReason: choice.finish_reason };
  if (chunk?.usage) yield { usage: chunk.usage };
}

async function request(path, options, apiKey) {
  let response;
  try {
    response = await fetch(path, { ...options, redirect: "error", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server does not answer. It may have been stopped, or the network is down.");
  }
  if (response.ok) return response;
  const content = await json(response).catch(() => null);
  throw failure(response.status, content, apiKey, response.headers.get("Retry-After"));
}

function failure(status, content, apiKey, retryAfter) {
  const said = typeof content?.error?.message === "string" ? content.error.message.slice(0, MAX_MESSAGE) : "";
  if (status === 401) {
    const message = apiKey
      ? "The server refuses this API key."
      : "The server asks for an API key. Enter it in the settings.";
    return new ServerError(message, { wantsKey: true });
  }
  if (status === 429) {
    const seconds = Math.ceil(Number(retryAfter));
    const wait = seconds > 0 ? `Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.` : "Try again later.";
    return new ServerError(`The server has too much to do. ${wait}`);
  }
  const isTooLong = content?.error?.code === "context_length_exceeded";
  return new ServerError(said ? `The server says: ${said}` : `The server failed with status ${status}.`, { isTooLong });
}

function headers(apiKey) {
  if (!/^[\x21-\x7e]*$/.test(apiKey)) {
    throw new ServerError("The API key has a character that keys do not have. Correct it in the settings.", { wantsKey: true });
  }
  return apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
}

async function json(response) {
  return parsed(await response.text());
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServerError("The server sent something else than JSON.");
  }
}
