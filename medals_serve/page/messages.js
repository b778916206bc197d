/* What the page says of problems, and asks. */

import { byId, el, show } from "./dom.js";

/* `retry` is what a button does that tries it again. */
export function showProblem(id, problem, retry = null) {
  const place = byId(id);
  if (problem.code === "session-unknown") {
    byId("page-problem").replaceChildren("This session has ended, and its data are deleted. ",
      el("button", { type: "button", on: { click: () => location.reload() } }, "Start again"));
    show(byId("page-problem"), true);
    show(place, id === "page-problem");
    return;
  }
  place.replaceChildren(problem.detail ?? problem.message ?? String(problem));
  if (retry !== null) {
    place.append(" ", el("button", { type: "button", on: { click: retry } }, "Try again"));
  }
  show(place, true);
}

/* A question with some answers; null where it is closed without one. */
export function ask({ heading, text, choices }) {
  const dialog = byId("ask");
  byId("ask-heading").textContent = heading;
  byId("ask-text").textContent = text;
  byId("ask-choices").replaceChildren(...choices.map(({ value, text: label }) =>
    el("button", { value, class: choices.length === 1 ? "strong" : null }, label)));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
  });
}
