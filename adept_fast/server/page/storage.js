// Text that the browser keeps for this page. A browser may forbid that: then it holds until the page is left.

// The text of that name in localStorage or sessionStorage, or null.
export function kept(kind, name) {
  try {
    return window[kind].getItem(name);
  } catch {
    return null;
  }
}

export function keep(kind, name, text) {
  try {
    window[kind].setItem(name, text);
  } catch {
    // Nothing is lost but the next visit's convenience.
  }
}
