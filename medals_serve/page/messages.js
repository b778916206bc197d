/* What the page says of problems, and asks. */

import { hasSession } from "./api.js";
import { byId, el, show } from "./dom.js";

/* `retry` is what a button does that tries it again. */
export function showProblem(id, problem, retry = null) {
  const place = byId(id);
  if (problem.code === "session-unknown") {
    byId("page-problem").replaceChildren(
      hasSession() ? "This session has ended, and its data are deleted. "
        : "The service had no room for a session. ",
      el("button", { type: "button", on: { click: () => location.reload() } }, "Start again"));
    show(byId("page-problem"), true);
    show(place, id === "page-problem");
    return;
  }
  place.dataset.code = problem.code ?? "";
  place.replaceChildren(problem.detail ?? problem.message ?? String(problem));
  if (retry !== null) {
    place.append(" ", el("button", { type: "button", on: { click: retry } }, "Try again"));
  }
  show(place, true);
}

/* What a lost connection prevented is no news once it is back. */
window.addEventListener("online", () => {
  for (const place of document.querySelectorAll(".problem[data-code=no-answer]")) show(place, false);
});

/* A question with some answers; null where it is closed without one. */
export function ask({ heading, text, choices }) {
  const dialog = byId("ask");
  byId("ask-heading").textContent = heading;
  byId("ask-text").textContent = text;
  byId("ask-choices").replaceChildren(...choices.map(({ value, text: label }) =>
    el("button", { value, class: choices.length === 1 ? "strong" : null }, label)));
  dialog.returnValue = "";
  dialog.showModal(); // the focus is on Cancel: a single answer may be to delete something
  if (choices.length > 1) byId("ask-choices").querySelector("button").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
  });
}
