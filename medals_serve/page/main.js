/* The page: which scan is open, and what is chosen for it. */

import * as api from "./api.js";
import { announce, byId, el, plural, show } from "./dom.js";
import { ask, showProblem } from "./messages.js";
import { Pen } from "./pen.js";
import { noteItems, Results, stylesOf } from "./results.js";
import { Runs } from "./runs.js";
import { chipsIn, chipsOf, classKey, Scan, seriesName } from "./scan.js";
import { isOfTheFile, listenForFiles, nameOf, scansIn, sendScan, showScans } from "./scans.js";
import { Search, showChips, showGroups } from "./search.js";
import { Viewer } from "./viewer.js";

// Width and level in Hounsfield units.
const CT_WINDOWS = {
  "Soft tissue": [400, 40],
  Lung: [1500, -600],
  Bone: [1800, 400],
  Brain: [80, 40],
  Liver: [150, 60],
};

const PRESETS = {
  paper: "the published method",
  release: "as its authors' program for the challenge",
  native: "as its authors' program for raw scans",
};

const state = {
  model: null,
  scans: [],
  scan: null,
  lost: null, // the scan that is open, where it can't be shown
  draft: new Scan({ filename: "" }),
};
const current = () => state.scan ?? state.draft;
const inHounsfield = () => state.model.modalities.some(
  ({ name, in_hounsfield: isSo }) => isSo && name === current().modality);

const viewer = new Viewer(byId("viewer"), {
  onPoint: showPoint,
  onStroke: (count) => pen.strokes(count),
  onKey: onViewerKey,
  onDoubleClick: applyWindow,
});
const pen = new Pen(viewer, {
  onClass: (label) => results.reveal(label),
  chips: () => current().chips,
  styles: penStyles,
  onChange: () => runs.refresh(),
  mayDrop: mayDropDrawing,
});
const search = new Search(choose);
const results = new Results({
  onStyle: () => viewer.restyle(),
  onGo: (label) => {
    viewer.centerOn(label);
    pen.choose(label);
  },
  onGone: () => runs.takeReplaced(current()),
});
const runs = new Runs(viewer, pen, results, {
  current,
  onChange: refresh,
  mayDrop: mayDropDrawing,
});

// Scans -------------------------------------------------------------------------------------------

const hasDrawing = () => viewer.isDrawing && viewer.changedLabels().size > 0;

/* Asks before strokes that no run has used are lost. */
async function mayDropDrawing() {
  if (!hasDrawing()) return true;
  return await ask({
    heading: "Discard the drawing?",
    text: "No run has used it yet.",
    choices: [{ value: "yes", text: "Discard" }],
  }) !== null;
}

/* Sends scans one after the other and opens the first; those that can't be used are named then. */
async function addScans(files) {
  show(byId("scan-problem"), false);
  if (!await mayDropDrawing()) return;
  try {
    const scans = await scansIn(files, state.model.input_endings);
    const before = state.scans.length;
    const useless = [];
    for (const scan of scans) {
      try {
        if (!await addScan(scan, state.scans.length === before)) break;
      } catch (error) {
        if (scans.length === 1 || !isOfTheFile(error)) throw error;
        useless.push(`${nameOf(scan)}: ${error.message}`);
      }
    }
    if (useless.length > 0) {
      const count = `${useless.length} of ${plural(scans.length, "scan")} can't be used.`;
      showProblem("scan-problem", new Error([count, ...useless].join("\n")));
    }
  } catch (error) {
    showProblem("scan-problem", error);
  }
}

/* Sends a scan; false where that was left. */
async function addScan(files, toOpen) {
  const info = await sendScan(files, state.model.max_upload_bytes, (problem) => ask({
    heading: "Which series?",
    text: problem.message,
    choices: problem.choices.map(choiceOf),
  }));
  if (info === null) return false;
  // What was chosen is chosen for the next scan too, but not the modality of another one.
  const { modality, chips } = current();
  const scan = new Scan(info, { modality: state.scan === null ? modality : "" });
  scan.chips = chipsIn(scan.modality, chips.map((chip) => ({ ...chip })), state.model.classes);
  state.scans.push(scan);
  if (!toOpen || hasDrawing()) { // one that was begun while the file went out
    refresh();
    announce(`${scan.name} is in the list of scans`);
  } else {
    await openScan(scan);
    announce(`${scan.name} is open`);
  }
  return true;
}

/* A series of several, as an answer to a question. */
function choiceOf({ series, number, description, modality, images }) {
  const name = seriesName({ series_number: number, series_description: description });
  const parts = [name, modality, plural(images, "image")];
  return { value: series, text: parts.filter(Boolean).join(" · ") };
}

async function chooseScan(scan) {
  const isOpen = scan === state.scan && scan !== state.lost;
  if (!isOpen && await mayDropDrawing()) await openScan(scan);
}

async function openScan(scan) {
  state.scan = scan;
  state.lost = null;
  clearViewer();
  refresh();
  byId("scans").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
  const empty = byId("viewer-empty");
  empty.textContent = "Loading the scan …";
  show(empty, true);
  show(byId("scan-problem"), false);
  byId("run-hint").textContent = "";
  runs.refreshProblem();
  refreshModality();
  try {
    const volume = await api.readVolume(scan.image);
    if (state.scan !== scan) return;
    await viewer.showScan(volume);
    show(empty, false);
    applyWindow();
    byId("viewer").setAttribute("aria-label", `Scan ${scan.name}`);
    await runs.show(scan, scan.runs.length - 1);
    await runs.showCoarse(scan);
  } catch (error) {
    if (state.scan !== scan) return;
    empty.textContent = "The scan can't be shown";
    state.lost = scan;
    showProblem("scan-problem", error, () => openScan(scan));
  }
}

function clearViewer() {
  viewer.clear();
  runs.markCoarse(false);
  pen.hide();
}

async function removeScan(scan) {
  const sure = await ask({
    heading: "Remove this scan?",
    text: `${scan.name} and its results are deleted on the service.`,
    choices: [{ value: "yes", text: "Remove" }],
  });
  if (sure === null) return;
  try {
    await api.deleteImage(scan.image);
    runs.unfollow(scan);
    state.scans = state.scans.filter((other) => other !== scan);
    if (state.scan === scan) await closeScan();
    else refresh();
  } catch (error) {
    showProblem("scan-problem", error);
  }
}

async function closeScan() {
  const next = state.scans.at(-1) ?? null;
  if (next !== null) return openScan(next);
  state.scan = null;
  clearViewer();
  byId("viewer-empty").textContent = "No scan yet";
  show(byId("viewer-empty"), true);
  results.show(null, new Map(), []);
  byId("viewer").setAttribute("aria-label", "Scan");
  runs.refreshProblem();
  refreshModality();
  return refresh();
}

function applyWindow() {
  const [width, level] = CT_WINDOWS[byId("window").value] ?? [];
  if (width === undefined) viewer.setWindow();
  else viewer.setWindow(level - width / 2, level + width / 2);
}

function showPoint(point) {
  const readout = byId("readout");
  if (point === null) {
    readout.textContent = "";
    return;
  }
  const { run, chips, asked } = current();
  const hasLabels = run !== null || runs.isCoarse;
  const shown = runs.isCoarse ? asked.classes : [...(run?.classes ?? []), ...chips];
  const named = shown.find(({ label }) => label === point.label);
  const [x, y, z] = point.mm.map((mm) => Math.round(mm));
  const side = `${Math.abs(x)} ${x < 0 ? "L" : "R"}`;
  const depth = `${Math.abs(y)} ${y < 0 ? "P" : "A"}`;
  const height = `${Math.abs(z)} ${z < 0 ? "I" : "S"}`;
  const value = Math.abs(point.value) < 10 ? Number(point.value.toPrecision(3))
    : Math.round(point.value);
  const unit = inHounsfield() ? " HU" : "";
  const parts = [`${value}${unit}`, `${side} ${depth} ${height} mm`,
    `slice ${point.slice} of ${point.slices}`,
    point.tilt < 1 ? "" : `tilted by ${Math.round(point.tilt)}°`].filter(Boolean);
  readout.replaceChildren(
    el("b", {}, named?.name ?? (hasLabels ? "No class" : "")),
    `${named || hasLabels ? " · " : ""}${parts.join(" · ")}`);
}

// What to segment ---------------------------------------------------------------------------------

function choose(prompts) {
  const scan = current();
  const chosen = new Set(scan.chips.map(classKey));
  const fresh = prompts.filter((prompt) => !chosen.has(classKey(prompt)));
  for (const prompt of fresh) scan.chips.push({ ...prompt, label: scan.labelFor(prompt) });
  if (scan.modality === "" && prompts.length > 0) setModality(prompts[0].modality);
  announce(fresh.length === 1 ? `${fresh[0].name} chosen`
    : `${plural(fresh.length, "class", "classes")} chosen`);
  refreshChips();
}

function refreshChips() {
  const scan = current();
  scan.remember();
  showChips(scan.chips, (chip) => {
    scan.chips = scan.chips.filter((other) => other !== chip);
    refreshChips();
  });
  pen.refresh();
  runs.refresh();
}

function setModality(modality) {
  const scan = current();
  scan.modality = modality;
  scan.chips = chipsIn(modality, scan.chips, state.model.classes);
  refreshModality();
  refreshChips();
}

/* Shows the modality, and what depends on it. */
function refreshModality() {
  const { modality } = current();
  byId("modality").value = modality;
  showGroups(state.model, modality, choose);
  const names = ["Automatic", ...(inHounsfield() ? Object.keys(CT_WINDOWS) : [])];
  byId("window").replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (inHounsfield()) byId("window").value = "Soft tissue";
  applyWindow();
  viewer.reportPoint(); // whose unit depends on it
}

/* How classes are drawn with the pen: those of the result as there, others in their own color. */
function penStyles() {
  const scan = current();
  const others = { classes: scan.chips.filter(({ label }) =>
    !scan.run?.classes.some((found) => found.label === label)) };
  return new Map([
    ...(scan.run === null ? [] : stylesOf(scan.run, scan.styles)),
    ...stylesOf(others, scan.styles),
  ]);
}

// The rest ----------------------------------------------------------------------------------------

function refresh() {
  const scan = current();
  const heading = byId("viewer-heading");
  heading.textContent = state.scan === null ? "Viewer" : scan.name;
  heading.classList.toggle("hidden-text", state.scan === null);
  showScans(state.scans, state.scan, { onOpen: chooseScan, onDelete: removeScan });
  byId("scan-notes").replaceChildren(...noteItems(scan.info.notes ?? []));
  if (byId("modality").value !== scan.modality) refreshModality();
  refreshChips();
}

async function deleteEverything() {
  const sure = await ask({
    heading: "Delete my data?",
    text: "All scans, drawings and results of this session are deleted on the service.",
    choices: [{ value: "yes", text: "Delete" }],
  });
  if (sure === null) return;
  try {
    await api.endSession();
    location.reload();
  } catch (error) {
    showProblem("page-problem", error);
  }
}

const STEPS = { // by key: slices, to the right, up
  ArrowUp: [1, 0, 1],
  ArrowDown: [-1, 0, -1],
  ArrowRight: [1, 1, 0],
  ArrowLeft: [-1, -1, 0],
  PageUp: [10, 0, 0],
  PageDown: [-10, 0, 0],
};

const ZOOMS = { "+": 1.25, "-": 1 / 1.25, 0: 0 };

function onViewerKey(event) {
  const [slices, right, up] = STEPS[event.key] ?? [];
  if (slices !== undefined && event.shiftKey) viewer.moveInPlane(right, up);
  else if (slices !== undefined) viewer.moveSlice(slices);
  else if (event.key === " " && viewer.isDrawing) viewer.drawAtCrosshair();
  else if (ZOOMS[event.key] !== undefined && !event.ctrlKey) viewer.zoom(ZOOMS[event.key]);
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) pen.undo();
  else return;
  event.preventDefault();
}

function listen() {
  listenForFiles(addScans);
  byId("modality").addEventListener("change", (event) => setModality(event.target.value));
  byId("clear-chips").addEventListener("click", () => {
    current().chips = [];
    refreshChips();
    byId("search").focus();
  });
  byId("planes").addEventListener("change", (event) => viewer.setPlane(event.target.value));
  byId("window").addEventListener("change", applyWindow);
  byId("patterns").addEventListener("change", (event) => {
    byId("classes").classList.toggle("patterned", event.target.checked);
    viewer.setPatterns(event.target.checked);
  });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("end-session").addEventListener("click", deleteEverything);
  window.addEventListener("beforeunload", (event) => {
    if (hasDrawing()) event.preventDefault();
  });
}

function showModel(model) {
  byId("model-name").textContent =
    [model.name, model.arithmetic, `medals-rt ${model.version}`].join(" · ");
  byId("notice").textContent = model.notice ?? "";
  show(byId("notice").parentElement, Boolean(model.notice));
  byId("preset").replaceChildren(
    ...model.presets.map((name) =>
      el("option", { value: name }, name in PRESETS ? `${name}: ${PRESETS[name]}` : name)));
  byId("preset").value = model.default_preset;
  search.setModel(model);
  results.setModel(model);
  refreshModality();
}

/* Finds what the session had before a reload: its scans, finished runs, and the one that runs. */
function restore({ images, jobs }) {
  state.scans = images.map((info) => Scan.recalled(info));
  for (const job of jobs) {
    const scan = state.scans.find(({ image }) => image === job.image);
    if (job.status === "done") {
      scan.runs.push(job);
      scan.shown = scan.runs.length - 1;
      scan.problem = null;
      if (scan.chips.length === 0) scan.chips = chipsOf(job);
      scan.learnModality(job);
    } else if (job.status === "failed") scan.problem = job.problem;
    else if (!api.isOver(job)) scan.waiting.push(job);
  }
  state.scans.forEach((scan) => runs.followNext(scan));
}

/* Keeps the session while somebody looks at the page, or has a drawing that isn't saved. */
async function keepSession(seconds) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(seconds / 3, 300) * 1000));
    if (document.visibilityState !== "visible" && !hasDrawing()) continue;
    try {
      await api.readSession();
    } catch (problem) {
      if (problem.code !== "session-unknown") continue; // it may answer the next time
      showProblem("page-problem", problem);
      return;
    }
  }
}

async function start() {
  listen();
  try {
    state.model = await api.readModel();
    showModel(state.model);
    runs.refresh();
    const session = await api.findSession();
    restore(session);
    keepSession(session.expires_in_s);
    await viewer.open();
    const scan = state.scans.find(({ active }) => active !== null) ?? state.scans.at(-1);
    if (scan) await openScan(scan);
    document.body.dataset.ready = "true";
  } catch (error) {
    showProblem("page-problem", error);
  }
}

start();
