"use strict";
// Shows the cases of the page, 50 at a time. Texts come from files: they are put in as text only.
const PER_PAGE = 50;
const content = JSON.parse(document.getElementById("content").textContent);
const { texts } = content;
const WORDS = { done: "done now", kept: "finished before", failed: "failed", skipped: "without an image" };

const cases = content.cases.map((row, place) => {
  const [name, status, error, input, what, shape, spacing, seconds, perClass, late, warnings, remarks, classes, links] = row;
  return {
    place, name, status, error, input, what: texts[what], shape, spacing, seconds, perClass,
    late: late === 1, warnings: warnings.map((n) => texts[n]), remarks: remarks.map((n) => texts[n]),
    classes: classes.map(([label, n, volume, mean, sd, parts, outlier, color]) =>
      ({ label, name: texts[n], volume, mean, sd, parts, outlier, color: texts[color] })),
    result: links[0] ?? "", report: links[1] ?? "", picture: links[2] ?? "",
  };
});
for (const each of cases) {
  each.found = each.classes.filter((one) => one.volume !== null).length;
  each.outliers = each.classes.filter((one) => one.outlier !== 0).length;
  each.worst = Math.max(0, ...each.classes.map((one) => Math.abs(one.outlier)));
  each.notes = each.warnings.length;
}

const FILTERS = {
  all: ["all", () => true],
  ...Object.fromEntries(Object.entries(WORDS).map(([key, words]) => [key, [words, (c) => c.status === key]])),
  noted: ["with warnings", (c) => c.notes > 0],
  late: ["over the time limit", (c) => c.late],
  outliers: ["unusual volume", (c) => c.outliers > 0],
};
const state = { filter: "all", words: "", key: "place", down: false, page: 0, chosen: "", open: new Set() };

const byId = (id) => document.getElementById(id);
function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "className") node.className = value;
    else if (key === "onclick") node.addEventListener("click", value);
    else if (key === "style") for (const [name, one] of Object.entries(value)) node.style.setProperty(name, one);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const number = (value, digits = 4) =>
  value === null || value === undefined ? "" : value.toLocaleString("en-US", { maximumSignificantDigits: digits });
function duration(seconds) {
  if (seconds === null) return "";
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
const volumeOf = (each) => each.classes.find((one) => one.name === state.chosen)?.volume ?? null;

const COLUMNS = [
  { key: "name", title: "case", cell: (c) => c.name },
  { key: "status", title: "status", cell: (c) => make("span", { className: `badge ${c.status}` }, WORDS[c.status]) },
  { key: "what", title: "image", cell: (c) => c.what },
  { key: "found", title: "classes", right: true, cell: (c) => (c.classes.length ? `${c.found} of ${c.classes.length}` : "") },
  { key: "volume", title: "volume", right: true, value: volumeOf, cell: volumeCell, hidden: () => !state.chosen },
  { key: "worst", title: "unusual", right: true, cell: (c) => (c.outliers ? make("span", { className: "warn" }, String(c.outliers)) : "") },
  { key: "notes", title: "warnings", right: true, cell: (c) => (c.notes ? make("span", { className: "warn" }, String(c.notes)) : "") },
  { key: "seconds", title: "time", right: true, cell: (c) => make("span", { className: c.late ? "warn" : "" }, duration(c.seconds)) },
];
function volumeCell(each) {
  const one = each.classes.find((found) => found.name === state.chosen);
  if (!one) return "";
  if (one.volume === null) return make("span", { className: "soft" }, "not found");
  return make("span", one.outlier ? { className: "warn", title: outlierWords(one) } : {}, `${number(one.volume)} mL`);
}
const outlierWords = (one) =>
  `unusually ${one.outlier < 0 ? "small" : "large"} among these cases: ${Math.abs(one.outlier)} robust standard deviations from the median`;

function chosenCases() {
  const [, keep] = FILTERS[state.filter];
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = cases.filter((c) => {
    if (!keep(c)) return false;
    if (!words.length) return true;
    c.text ??= [c.name, c.input, c.error, c.what, ...c.warnings, ...c.remarks].join("\n").toLowerCase();
    return words.every((word) => c.text.includes(word));
  });
  const column = COLUMNS.find((each) => each.key === state.key);
  const value = column?.value ?? ((c) => c[state.key]);
  const turn = state.down ? -1 : 1;
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  return kept
    .map((c) => [value(c), c])
    .sort(([a, x], [b, y]) => {
      if (a === null || b === null) return (a === null) - (b === null) || x.place - y.place; // none last
      const order = typeof a === "string" ? compare(a, b) : a - b;
      return turn * order || x.place - y.place;
    })
    .map(([, c]) => c);
}

function draw() {
  const shown = chosenCases();
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  state.page = Math.min(Math.max(0, state.page), pages - 1);
  const columns = COLUMNS.filter((each) => !each.hidden?.());
  byId("head").replaceChildren(make("tr", {}, ...columns.map(heading)));
  const first = state.page * PER_PAGE;
  byId("rows").replaceChildren(...shown.slice(first, first + PER_PAGE).flatMap((c) => rowsOf(c, columns)));
  byId("standing").textContent = shown.length
    ? `${number(first + 1, 12)} to ${number(Math.min(first + PER_PAGE, shown.length), 12)} of ${number(shown.length, 12)}`
    : "no case";
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page === pages - 1;
}
function heading(column) {
  const active = state.key === column.key;
  const button = make("button", { type: "button", onclick: () => {
    state.down = active ? !state.down : Boolean(column.right);
    state.key = column.key;
    state.page = 0;
    draw();
  } }, column.title + (active ? (state.down ? " ▼" : " ▲") : ""));
  const options = { className: column.right ? "number" : "", "data-key": column.key };
  if (active) options["aria-sort"] = state.down ? "descending" : "ascending";
  return make("th", options, button);
}
function rowsOf(each, columns) {
  const open = state.open.has(each.place);
  const cells = columns.map((column) => make("td", { className: column.right ? "number" : "" }, column.cell(each)));
  const toggle = make("button", { type: "button", className: "toggle", "aria-expanded": String(open), onclick: () => {
    if (!state.open.delete(each.place)) state.open.add(each.place);
    draw();
  } }, open ? "▾ " : "▸ ", each.name);
  cells[0].replaceChildren(toggle);
  const row = make("tr", { className: `case ${each.status}` }, ...cells);
  return open ? [row, make("tr", { className: "details" }, make("td", { colspan: String(columns.length) }, details(each)))] : [row];
}
function details(each) {
  const facts = [];
  if (each.shape && each.spacing) {
    const [d, h, w] = each.shape;
    facts.push(`${h} x ${w} x ${d} voxels`, `${each.spacing.map((one) => number(one, 3)).join(" x ")} mm (H x W x D)`);
  }
  if (each.perClass !== null) facts.push(`${number(each.perClass, 3)} s a class`);
  if (each.late) facts.push("over the time limit");
  if (each.input) facts.push(each.input);
  const box = make("div", {}, make("p", { className: "soft" }, facts.join(" · ")));
  if (each.error) box.append(make("p", { className: each.status === "failed" ? "error" : "soft" }, each.error));
  if (each.warnings.length || each.remarks.length)
    box.append(make("ul", { className: "notes" },
      ...each.warnings.map((text) => make("li", { className: "warn" }, text)),
      ...each.remarks.map((text) => make("li", {}, text))));
  if (each.result) {
    const links = make("p", { className: "links" });
    for (const [words, link] of [["labels", each.result], ["report", each.report], ["picture", each.picture]])
      if (link) links.append(make("a", { href: link }, words));
    box.append(links);
  }
  if (each.picture)
    box.append(make("a", { className: "picture", href: each.picture },
      make("img", { src: each.picture, loading: "lazy", alt: `Overlay of ${each.name}` })));
  if (each.classes.length) box.append(classTable(each));
  return box;
}
function classTable(each) {
  const largest = Math.max(...each.classes.map((one) => one.volume ?? 0)) || 1;
  const rows = each.classes.map((one) => {
    const { color } = one;
    const name = make("td", {}, make("span", { className: "swatch", style: { background: color } }), `${one.label}\u2002${one.name}`);
    if (one.volume !== null)
      name.append(make("div", { className: "bar", style: { background: color, width: `${(100 * one.volume) / largest}%` } }));
    const mean = one.mean === null ? "" : `${number(one.mean)} ± ${number(one.sd)}`;
    const volume = one.volume === null ? "not found" : `${number(one.volume)} mL`;
    return make("tr", { className: one.volume === null ? "soft" : "" }, name,
      make("td", { className: "number" }, volume), make("td", { className: "number" }, mean),
      make("td", { className: "number" }, one.parts ? String(one.parts) : ""),
      make("td", { className: "warn" }, one.outlier ? outlierWords(one) : ""));
  });
  const titles = [["class", ""], ["volume", "number"], ["intensity", "number"], ["parts", "number"], ["", ""]];
  return make("table", { className: "classes" },
    make("thead", {}, make("tr", {}, ...titles.map(([title, side]) => make("th", { className: side }, title)))),
    make("tbody", {}, ...rows));
}

function start() {
  const filters = Object.entries(FILTERS)
    .map(([key, [words, keep]]) => [key, words, cases.filter(keep).length])
    .filter(([key, , count]) => key === "all" || count);
  for (const [key, words, count] of filters) {
    const input = make("input", { type: "radio", name: "only", id: `only-${key}` });
    input.checked = key === state.filter;
    input.addEventListener("change", () => { state.filter = key; state.page = 0; draw(); });
    byId("filter").append(input, make("label", { for: `only-${key}` }, words, make("b", {}, number(count, 12))));
  }
  const names = new Set();
  for (const each of cases) for (const one of each.classes) names.add(one.name);
  for (const name of [...names].sort()) byId("chosen").append(make("option", { value: name }, name));
  byId("chosen").addEventListener("change", (event) => {
    state.chosen = event.target.value;
    [state.key, state.down] = state.chosen ? ["volume", true] : ["place", false];
    state.page = 0;
    draw();
  });
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.words = event.target.value; state.page = 0; draw(); }, 120);
  });
  byId("previous").addEventListener("click", () => { state.page -= 1; draw(); });
  byId("next").addEventListener("click", () => { state.page += 1; draw(); });
  if (cases.length <= 3) for (const each of cases) state.open.add(each.place);
  draw();
}
start();
