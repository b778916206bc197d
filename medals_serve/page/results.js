/* The result: its classes with volumes, what is shown of them, notes, and files to keep. */

import * as api from "./api.js";
import { announce, byId, el, formatVolume, plural, show } from "./dom.js";
import { showProblem } from "./messages.js";
import { classKey } from "./scan.js";
import { PATTERN_COUNT } from "./viewer.js";

const OPACITY = 0.5;

/* How the classes of a run are drawn, by label; `kept` keeps it from run to run of a scan. */
export function stylesOf({ classes }, kept) {
  return new Map(classes.map((found) => {
    const key = classKey(found);
    const pattern = kept.size % PATTERN_COUNT;
    if (!kept.has(key)) kept.set(key, { visible: true, opacity: OPACITY, pattern });
    return [found.label, Object.assign(kept.get(key), { color: found.color })];
  }));
}

export class Results {
  /* `onStyle` is called after a change of what is shown, `onGo(label)` to go to a class, `onGone`
  where the service has the run no more. */
  constructor({ onStyle, onGo, onGone }) {
    this.onGone = onGone;
    this.onStyle = onStyle;
    this.onGo = onGo;
    this.run = null;
    this.styles = new Map();
    this.formats = [];
    byId("show-all").addEventListener("click", () => this.showAll(true));
    byId("hide-all").addEventListener("click", () => this.showAll(false));
    const keep = {
      download: () => this.keepLabels(),
      "download-csv": () => this.keep("statistics", { format: "csv" }),
      "download-report": () => this.keep("report"),
      "download-lesions": () => this.keep("instances"),
      "download-probabilities": () => this.keep("probabilities"),
    };
    for (const [id, download] of Object.entries(keep)) {
      byId(id).addEventListener("click", download);
    }
  }

  setModel({ formats }) {
    this.formats = formats;
  }

  /* Shows a run, or that there is none. `formats` are those that its scan can have. */
  show(run, styles, formats) {
    this.run = run;
    this.styles = styles;
    show(byId("result"), run !== null);
    show(byId("result-problem"), false);
    const notes = run === null ? [] : notesOf(run);
    byId("result-warnings").replaceChildren(...noteItems(notes.filter(isWarning)));
    byId("result-notes").replaceChildren(...noteItems(notes.filter((note) => !isWarning(note))));
    const classes = run === null ? [] : run.classes;
    byId("class-rows").replaceChildren(...classes.map((found) => this.row(found)));
    show(byId("download-lesions"), classes.some(({ lesions }) => lesions !== null));
    show(byId("download-probabilities"), run !== null && run.probabilities);
    const format = byId("format").value;
    const possible = this.formats.filter((each) =>
      formats.includes(each.name) && (!each.one_class || classes.length === 1));
    byId("format").replaceChildren(...possible.map(({ name, title }) =>
      el("option", { value: name }, title)));
    const names = possible.map(({ name }) => name);
    byId("format").value = [format, "nii.gz"].find((name) => names.includes(name)) ?? names[0];
  }

  row({ label, name, voxels, volume_ml: volumeMl, lesions }) {
    const style = this.styles.get(label);
    const restyle = (change) => {
      Object.assign(style, change);
      this.onStyle();
    };
    return el("tr", { "data-label": label },
      el("td", {}, el("input", {
        type: "checkbox",
        checked: style.visible,
        "aria-label": `Show ${name}`,
        on: { change: (event) => restyle({ visible: event.target.checked }) },
      })),
      el("td", {}, el("button", {
        type: "button",
        class: "go",
        title: "Go to it",
        disabled: voxels === 0,
        on: { click: () => this.onGo(label) },
      }, el("span", {
        class: "swatch",
        "data-pattern": style.pattern,
        style: { "--color": style.color },
      }), el("span", {}, name, lesions === null ? "" : ` (${plural(lesions, "lesion")})`))),
      el("td", { class: "number" }, voxels === 0 ? "not found" : formatVolume(volumeMl)),
      el("td", {}, el("input", {
        type: "range",
        min: 0.1,
        max: 1,
        step: 0.05,
        value: style.opacity,
        "aria-label": `Opacity of ${name}`,
        on: { input: (event) => restyle({ opacity: Number(event.target.value) }) },
      })));
  }

  /* Shows a class that is hidden: painting it would look like erasing. */
  reveal(label) {
    const style = this.styles.get(label);
    if (!style || style.visible) return;
    style.visible = true;
    byId("class-rows").querySelector(`[data-label="${label}"] input[type=checkbox]`).checked = true;
    this.onStyle();
  }

  showAll(visible) {
    for (const style of this.styles.values()) style.visible = visible;
    for (const box of byId("class-rows").querySelectorAll("input[type=checkbox]")) {
      box.checked = visible;
    }
    this.onStyle();
  }

  keepLabels() {
    show(byId("result-problem"), false);
    const lengths = ["crop", "spacing"].map(byId);
    if (!lengths.every((field) => field.reportValidity())) return;
    const [crop, spacing] = lengths.map((field) => field.value);
    const format = byId("format").value;
    const marks = [crop && `_crop${crop}`, spacing && `_${spacing}mm`].join("");
    this.keep("result", { format, crop, spacing }, (name) =>
      `${name.slice(0, -format.length - 1)}${marks}.${format}`);
  }

  /* Fetches a file of the run and hands it to the browser to be saved, under the name that `naming`
  makes of the service's. */
  async keep(what, query, naming = (name) => name) {
    show(byId("result-problem"), false);
    announce("Preparing the file");
    try {
      const response = await api.readResult(this.run.job, what, query);
      save(await response.blob(), naming(filenameOf(response)));
      announce("The file is ready");
      const lost = response.headers.get("Medals-Warning");
      if (lost !== null) showProblem("result-problem", { detail: decodeURIComponent(lost) });
    } catch (error) {
      if (error.code === "job-unknown") this.onGone();
      else showProblem("result-problem", error);
    }
  }
}

function notesOf({ notes, incomplete }) {
  return incomplete === null ? notes : [{ severity: "warning", text: incomplete }, ...notes];
}

const isWarning = ({ severity }) => severity === "warning";

export function noteItems(notes) {
  return notes.map((note) => (isWarning(note)
    ? el("li", { class: "warning" }, el("b", {}, "Warning: "), note.text)
    : el("li", {}, note.text)));
}

function filenameOf(response) {
  const header = response.headers.get("Content-Disposition") ?? "";
  return decodeURIComponent(/filename\*=UTF-8''([^;]+)/.exec(header)?.[1] ?? "result");
}

function save(blob, filename) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: filename }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
