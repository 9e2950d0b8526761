// What HTML alone cannot: "/" leads to the search, and the foot of the page says whether it is kept up to date.
"use strict";

const live = document.getElementById("live");

function say(text, isBad) {
  live.textContent = text;
  live.className = isBad ? "bad" : "";
  live.hidden = false;
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, select, textarea, [contenteditable]");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const search = document.getElementById("q");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  }
});

document.addEventListener("htmx:sse:after:connection", () => say("live", false));
document.addEventListener("htmx:sse:error", () => say("connection lost: what is shown may be old", true));
document.addEventListener("htmx:sse:close", (event) => {
  if (event.detail.reason === "message") {
    live.hidden = true; // it is at its end, and nothing more will come
  }
});
document.addEventListener("htmx:sse:after:message", (event) => {
  // A plan that has ended offers nothing to stop, start or confirm any more.
  if (event.detail.message.event === "end" && document.getElementById("plan")) {
    document.querySelectorAll("form.ask").forEach((form) => form.remove());
  }
});
