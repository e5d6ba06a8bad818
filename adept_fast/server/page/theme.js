// The light or the dark theme: the system's, unless the button has chosen the other one. This script runs before
// the page is drawn, so that no page flashes in the wrong theme.
"use strict";

{
  const NAME = "adept-fast.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");

  const chosen = () => {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // a browser may forbid storage
    }
  };

  const choose = (theme) => {
    try {
      if (theme === null) localStorage.removeItem(NAME);
      else localStorage.setItem(NAME, theme);
    } catch {
      // The choice holds until the page is left.
    }
  };

  const systemTheme = () => (system.matches ? "dark" : "light");
  const other = (theme) => (theme === "dark" ? "light" : "dark");

  let override = ["light", "dark"].includes(chosen()) ? chosen() : null;

  const show = () => {
    const theme = override ?? systemTheme();
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = theme === "dark" ? "Light" : "Dark";
      button.setAttribute("aria-label", `${button.textContent} theme`);
    }
  };

  show();
  system.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      const theme = other(override ?? systemTheme());
      override = theme === systemTheme() ? null : theme;
      choose(override);
      show();
    });
  });
}
