/* The result: its classes with volumes, what is shown of them, notes, and files to keep. */

import * as api from "./api.js";
import { announce, byId, el, formatVolume, show } from "./dom.js";
import { PATTERN_COUNT } from "./viewer.js";

const FULL_OPACITY = 0.6;

/* How the classes of a run are drawn, kept by name from run to run of a scan. */
export function stylesOf(run, kept) {
  return new Map(run.classes.map(({ label, name, color }, position) => {
    if (!kept.has(name)) kept.set(name, { visible: true, opacity: FULL_OPACITY });
    const style = kept.get(name);
    Object.assign(style, { color, pattern: position % PATTERN_COUNT });
    return [label, style];
  }));
}

export class Results {
  /* `onStyle` is called after a change of what is shown, `onGo(label)` to go to a class. */
  constructor({ onStyle, onGo }) {
    this.onStyle = onStyle;
    this.onGo = onGo;
    this.run = null;
    this.styles = new Map();
    byId("show-all").addEventListener("click", () => this.showAll(true));
    byId("hide-all").addEventListener("click", () => this.showAll(false));
    const keep = {
      download: () => this.keep("result", byId("format").value),
      "download-csv": () => this.keep("statistics", "csv"),
      "download-report": () => this.keep("report"),
    };
    for (const [id, download] of Object.entries(keep)) {
      byId(id).addEventListener("click", download);
    }
  }

  setModel(model) {
    byId("format").replaceChildren(
      ...model.output_formats.map((format) => el("option", { value: format }, format)));
  }

  show(run, styles) {
    this.run = run;
    this.styles = styles;
    show(byId("result"), run !== null);
    show(byId("result-problem"), false);
    byId("result-notes").replaceChildren(...(run === null ? [] : noteItems(run.notes)));
    byId("class-rows").replaceChildren(...(run === null ? [] : run.classes.map((found) =>
      this.row(found))));
  }

  row({ label, name, voxels, volume_ml: volumeMl }) {
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
      }), el("span", {}, name))),
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

  showAll(visible) {
    for (const style of this.styles.values()) style.visible = visible;
    for (const box of byId("class-rows").querySelectorAll("input[type=checkbox]")) {
      box.checked = visible;
    }
    this.onStyle();
  }

  /* Fetches a file of the run and hands it to the browser to be saved. */
  async keep(what, format) {
    const problem = byId("result-problem");
    show(problem, false);
    announce("Preparing the file");
    try {
      const response = await api.readResult(this.run.job, what, format);
      save(await response.blob(), filenameOf(response, what, format));
      announce("The file is ready");
    } catch (error) {
      problem.textContent = error.message;
      show(problem, true);
    }
  }
}

export function noteItems(notes) {
  const warnings = notes.filter((note) => note.severity === "warning");
  const others = notes.filter((note) => note.severity !== "warning");
  return [
    ...warnings.map((note) => el("li", { class: "warning" }, el("b", {}, "Warning: "), note.text)),
    ...others.map((note) => el("li", {}, note.text)),
  ];
}

function filenameOf(response, what, format) {
  const named = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "");
  if (named) return named[1];
  return what === "report" ? "report.json" : `${what}.${format}`;
}

function save(blob, filename) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: filename }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
