// Server-sent events, from the body of a response.

const MAX_EVENT_CHARACTERS = 2 ** 22;

// The data of each event, as text. Throws what reading the body throws, and RangeError for an event without an end.
export async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without the empty line at its end does not count
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        }
      }
      if (rest.length + data.reduce((sum, line) => sum + line.length, 0) > MAX_EVENT_CHARACTERS) {
        throw new RangeError("an event is too long");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may have ended already
  }
}
