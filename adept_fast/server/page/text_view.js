// The text of an answer as elements: paragraphs with their whitespace, and code between lines of ```. The text comes
// from a model, so it is only ever set as text.

// Show the text in the element. Called again with a longer text, it changes only what has changed.
export function showText(element, text) {
  const parts = split(text);
  parts.forEach(({ isCode, text: content }, at) => {
    let node = element.children[at];
    if (!node || (node.tagName === "PRE") !== isCode) {
      const created = isCode ? codeBlock() : document.createElement("p");
      if (node) node.replaceWith(created);
      else element.append(created);
      node = created;
    }
    const holder = isCode ? node.firstChild : node;
    if (holder.textContent !== content) holder.textContent = content;
  });
  while (element.children.length > parts.length) element.lastChild.remove();
}

function split(text) {
  const parts = [{ isCode: false, lines: [] }];
  for (const line of text.split("\n")) {
    const { isCode, lines } = parts.at(-1);
    if (isCode ? /^\s*```\s*$/.test(line) : /^\s*```[\w+#.-]*\s*$/.test(line)) {
      parts.push({ isCode: !isCode, lines: [] });
    } else {
      lines.push(line);
    }
  }
  return parts
    .map(({ isCode, lines }) => ({ isCode, text: isCode ? lines.join("\n") : lines.join("\n").replace(/^\n+|\n+$/g, "") }))
    .filter(({ isCode, text: content }) => isCode || content !== "");
}

function codeBlock() {
  const block = document.createElement("pre");
  block.tabIndex = 0; // a long line is scrolled to with the keyboard
  block.setAttribute("role", "region");
  block.setAttribute("aria-label", "Code");
  block.dir = "ltr";
  block.append(document.createElement("code"));
  return block;
}
