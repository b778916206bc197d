/* What to segment: one field for names of classes and free sentences, with suggestions. */

import * as api from "./api.js";
import { announce, byId, el, plural, rebuild, show } from "./dom.js";

const PAUSE_MS = 150;

export class Search {
  /* `onChoose(prompts)` gets prompts, each {sentence, name, kind, modality, color}. */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.input = byId("search");
    this.list = byId("suggestions");
    this.reading = byId("reading");
    this.modality = byId("modality");
    this.classes = [];
    this.options = [];
    this.active = -1;
    this.asked = null;
    this.timer = 0;
    this.input.addEventListener("input", () => this.typed());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("click", () => this.suggest());
    this.input.addEventListener("blur", () => this.close());
    this.modality.addEventListener("change", () => this.say(""));
    byId("prompt-form").addEventListener("submit", (event) => event.preventDefault());
    // The focus stays in the field while the mouse is in the list.
    this.list.addEventListener("mousedown", (event) => event.preventDefault());
  }

  setModel(model) {
    this.classes = model.classes;
    const modalities = [...new Set(model.classes.map((known) => known.modality))];
    this.modality.replaceChildren(
      el("option", { value: "" }, "Choose …"),
      ...modalities.map((name) => el("option", { value: name }, name)));
  }

  classesOfModality() {
    const modality = this.modality.value;
    return this.classes.filter((known) => modality === "" || known.modality === modality);
  }

  typed() {
    clearTimeout(this.timer);
    this.asked?.abort();
    this.say("");
    this.suggest();
    if (this.input.value.trim() !== "") this.timer = setTimeout(() => this.ask(), PAUSE_MS);
  }

  /* Lists the classes whose names hold the text, at once; `ask` brings what the service knows. */
  suggest(more = []) {
    const words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const starts = (known) => known.name.toLowerCase().startsWith(words.join(" "));
    const named = this.classesOfModality()
      .filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)))
      .sort((a, b) => a.kind.localeCompare(b.kind) || starts(b) - starts(a)
        || a.name.localeCompare(b.name));
    const first = new Set(more.map(({ id }) => id));
    this.fill([...more, ...named.filter(({ id }) => !first.has(id))]);
  }

  fill(classes) {
    this.options = classes;
    this.active = -1;
    this.input.removeAttribute("aria-activedescendant");
    this.list.replaceChildren(...classes.map((known, position) =>
      el("li", {
        id: `suggestion-${position}`,
        role: "option",
        "aria-selected": "false",
        on: { click: () => this.take([promptOf(known)]) },
      }, el("span", {}, known.name), el("span", { class: "kind" }, this.describe(known)))));
    this.expand(classes.length > 0 && document.activeElement === this.input);
  }

  describe({ kind, modality, groups }) {
    if (this.modality.value === "") return modality;
    return kind === "lesion" ? "lesion" : groups[0] ?? "";
  }

  expand(open) {
    show(this.list, open);
    this.input.setAttribute("aria-expanded", String(open));
  }

  close() {
    this.expand(false);
    this.mark(-1);
  }

  mark(position) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = position;
    const marked = this.list.children[position];
    if (!marked) return this.input.removeAttribute("aria-activedescendant");
    marked.setAttribute("aria-selected", "true");
    marked.scrollIntoView({ block: "nearest" });
    return this.input.setAttribute("aria-activedescendant", marked.id);
  }

  async key(event) {
    const open = !this.list.hidden;
    const last = this.options.length - 1;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) this.suggest();
      const step = event.key === "ArrowDown" ? 1 : -1;
      const next = this.active + step;
      this.mark(next > last ? 0 : next < 0 ? last : next);
    } else if (event.key === "Escape" && open) {
      event.preventDefault();
      this.close();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (open && this.active >= 0) this.take([promptOf(this.options[this.active])]);
      else if (this.input.value.trim() !== "") await this.takeSentence();
    }
  }

  /* Asks the service how it reads the text, as anatomy or else as lesions. Null where a later text
  has taken over. What is wrong with it is said once it is `entered`: it may not be whole before. */
  async ask(entered = false) {
    this.asked?.abort();
    const asked = new AbortController();
    this.asked = asked;
    const text = this.input.value.trim();
    let answer;
    try {
      answer = await this.read(text, asked.signal);
      if (answer.problem && text.includes(",")) { // a list, or else a sentence with a comma
        const listed = await this.read(text.replaceAll(",", ";"), asked.signal);
        if (!listed.problem) answer = listed;
      }
    } catch (error) {
      if (error.name === "AbortError") return null;
      this.say(error.message, true);
      return null;
    }
    if (asked.signal.aborted) return null;
    const known = new Map(this.classes.map((entry) => [entry.id, entry]));
    this.suggest(answer.suggestions.map(({ class_id: id }) => known.get(id)).filter(Boolean));
    if (answer.problem) this.say(entered ? this.explain(answer.problem) : "", true);
    else this.say(`Enter adds: ${answer.reading.map((found) => found.name).join(", ")}`);
    return answer;
  }

  async read(text, signal) {
    const [anatomy, lesions] = await Promise.all(["anatomy", "lesion"].map((kind) =>
      api.readPrompts(text, this.modality.value, kind, signal)));
    const isLesion = anatomy.problem && (!lesions.problem || anatomy.problem.code === "wrong-kind");
    return isLesion ? lesions : anatomy;
  }

  explain({ code, detail }) {
    if (code !== "class-not-covered") return detail;
    const count = plural(this.classes.length, "class", "classes");
    return `This model doesn't know it; it knows ${count}, which are listed as you type.`;
  }

  async takeSentence() {
    clearTimeout(this.timer);
    const answer = await this.ask(true);
    if (answer === null || answer.problem || answer.reading.length === 0) return;
    this.take(answer.reading.map(promptOf));
  }

  take(prompts) {
    clearTimeout(this.timer);
    this.asked?.abort();
    this.input.value = "";
    this.close();
    this.say("");
    this.onChoose(prompts);
  }

  say(text, refused = false) {
    this.reading.textContent = text;
    this.reading.classList.toggle("refused", refused);
  }
}

/* The groups of the model, as buttons that choose all their classes. */
export function showGroups(model, modality, onChoose) {
  const known = new Map(model.classes.map((entry) => [entry.id, entry]));
  const buttons = model.groups.flatMap(({ name, class_ids: ids }) => {
    const members = ids.map((id) => known.get(id)).filter((entry) => entry?.modality === modality);
    if (members.length === 0) return [];
    return [el("button", {
      type: "button",
      title: members.map((entry) => entry.name).join(", "),
      on: { click: () => onChoose(members.map(promptOf)) },
    }, `${name} (${members.length})`)];
  });
  byId("groups").replaceChildren(...buttons);
  show(byId("groups-part"), buttons.length > 0);
}

/* The chosen classes, as chips that can be removed. */
export function showChips(chips, onRemove) {
  const remove = (chip) => {
    onRemove(chip);
    announce(`${chip.name} removed, ${plural(chips.length - 1, "class", "classes")} left`);
    if (chips.length === 1) byId("search").focus();
  };
  rebuild(byId("chips"), chips.map((chip) =>
    el("li", {}, el("span", {}, chip.name, chip.kind === "lesion" ? " (lesion)" : ""),
      el("button", {
        type: "button",
        "aria-label": `Remove ${chip.name}`,
        on: { click: () => remove(chip) },
      }, "×"))));
  show(byId("chips-empty"), chips.length === 0);
  show(byId("clear-chips"), chips.length > 1);
}

const promptOf = ({ sentence, name, kind, modality, color }) =>
  ({ sentence, name, kind, modality, color });
