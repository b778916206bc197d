/* The page: what is open, what is chosen, what runs. */

import * as api from "./api.js";
import { announce, byId, el, formatSeconds, plural, show } from "./dom.js";
import { Pen } from "./pen.js";
import { noteItems, Results, stylesOf } from "./results.js";
import { chipsIn, chipsOf, classKey, mergedChips, promptsOf, Scan } from "./scan.js";
import { listenForFiles, sendScan, showScans } from "./scans.js";
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

const state = {
  model: null,
  scans: [],
  scan: null,
  draft: new Scan({ filename: "" }),
  isCoarse: false, // what the viewer shows is a coarse answer, not a result
};
const current = () => state.scan ?? state.draft;

const viewer = new Viewer(byId("viewer"), {
  onPoint: showPoint,
  onStroke: (count) => pen.strokes(count),
  onKey: onViewerKey,
  onDoubleClick: applyWindow,
});
const pen = new Pen(viewer, {
  chips: () => current().chips,
  styles: penStyles,
  onChange: refreshRun,
  mayDrop: mayDropDrawing,
});
const search = new Search(choose);
const results = new Results({
  onStyle: () => viewer.restyle(),
  onGo: (label) => {
    viewer.centerOn(label);
    pen.choose(label);
  },
});

// Scans -------------------------------------------------------------------------------------------

/* Asks before strokes that no run has used are lost. */
async function mayDropDrawing() {
  if (!viewer.isDrawing || viewer.strokes === 0) return true;
  return await ask({
    heading: "Discard the drawing?",
    text: "No run has used it yet.",
    choices: [{ value: "yes", text: "Discard" }],
  }) !== null;
}

async function addScan(files) {
  show(byId("scan-problem"), false);
  if (!await mayDropDrawing()) return;
  try {
    const info = await sendScan(files, (problem) => ask({
      heading: "Which series?",
      text: problem.message,
      choices: problem.choices.map(choiceOf),
    }));
    if (info === null) return;
    // What was chosen is chosen for the next scan too, but not the modality of another one.
    const { modality, chips } = current();
    const scan = new Scan(info, { modality: state.scan === null ? modality : "" });
    scan.chips = chipsIn(scan.modality, chips.map((chip) => ({ ...chip })), state.model.classes);
    state.scans.push(scan);
    await openScan(scan);
    announce(`${scan.filename} is open`);
  } catch (error) {
    showProblem("scan-problem", error);
  }
}

/* A series of several, as an answer to a question. */
function choiceOf({ series, number, description, modality, images }) {
  const parts = [number === null ? "" : `Series ${number}`, description, modality,
    plural(images, "image")];
  return { value: series, text: parts.filter(Boolean).join(" · ") };
}

async function chooseScan(scan) {
  if (scan !== state.scan && await mayDropDrawing()) await openScan(scan);
}

async function openScan(scan) {
  state.scan = scan;
  viewer.clear();
  markCoarse(false);
  pen.hide();
  refresh();
  const empty = byId("viewer-empty");
  empty.textContent = "Loading the scan …";
  show(empty, true);
  show(byId("scan-problem"), false);
  refreshModality();
  try {
    const volume = await api.readVolume(scan.image);
    if (state.scan !== scan) return;
    await viewer.showScan(volume);
    show(empty, false);
    applyWindow();
    byId("viewer").setAttribute("aria-label", `Scan ${scan.filename}`);
    await showRun(scan, scan.runs.length - 1);
    await showCoarse(scan);
  } catch (error) {
    if (state.scan !== scan) return;
    empty.textContent = "The scan can't be shown";
    showProblem("scan-problem", error);
  }
}

async function removeScan(scan) {
  const sure = await ask({
    heading: "Remove this scan?",
    text: `${scan.filename} and its results are deleted on the service.`,
    choices: [{ value: "yes", text: "Remove" }],
  });
  if (sure === null) return;
  try {
    await api.deleteImage(scan.image);
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
  viewer.clear();
  markCoarse(false);
  pen.hide();
  byId("viewer-empty").textContent = "No scan yet";
  show(byId("viewer-empty"), true);
  results.show(null, new Map(), []);
  byId("viewer").setAttribute("aria-label", "Scan");
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
  const hasLabels = run !== null || state.isCoarse;
  const shown = state.isCoarse ? asked.classes : [...(run?.classes ?? []), ...chips];
  const named = shown.find(({ label }) => label === point.label);
  const [x, y, z] = point.mm.map((mm) => Math.round(mm));
  const side = `${Math.abs(x)} ${x < 0 ? "L" : "R"}`;
  const depth = `${Math.abs(y)} ${y < 0 ? "P" : "A"}`;
  const height = `${Math.abs(z)} ${z < 0 ? "I" : "S"}`;
  const value = Math.abs(point.value) < 10 ? Number(point.value.toPrecision(3))
    : Math.round(point.value);
  readout.replaceChildren(
    el("b", {}, named?.name ?? (hasLabels ? "No class" : "")),
    `${named || hasLabels ? " · " : ""}${value} · ${side} ${depth} ${height} mm`);
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
  refreshRun();
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
  const names = ["Automatic", ...(modality === "CT" ? Object.keys(CT_WINDOWS) : [])];
  byId("window").replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (modality === "CT") byId("window").value = "Soft tissue";
  applyWindow();
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

// Runs --------------------------------------------------------------------------------------------

async function startRun() {
  const scan = state.scan;
  if (scan.isStarting) return; // not by disabling the button, which would lose the focus
  scan.isStarting = true;
  show(byId("run-problem"), false);
  byId("run-hint").textContent = "";
  try {
    const { labels, ...asked } = promptsOf(scan.chips);
    const classes = scan.chips.map((chip) => ({ ...chip, label: labels.get(chip.label) }));
    const request = { image: scan.image, modality: scan.modality, ...asked };
    request.options.preset = byId("preset").value;
    request.options.probabilities = byId("probabilities").checked;
    Object.assign(request, await drawingOf(scan, labels));
    const started = await api.startJob(request);
    scan.asked = { job: started.job, classes };
    scan.remember();
    follow(scan, started);
    // The service compared it with the result; for a session holds so many masks only.
    if (request.corrects && request.spatial_prompts) await api.deleteMask(request.spatial_prompts);
  } catch (error) {
    showProblem("run-problem", error);
  }
  scan.isStarting = false;
  refreshRun();
}

/* Sends what was drawn, and returns what a job is asked for because of it. What was drawn over a
result corrects it: only around the changes something is found again. So does a later run of the
same classes, which keeps what was corrected before. */
async function drawingOf(scan, labels) {
  const touched = viewer.isDrawing ? viewer.changedLabels() : new Set();
  const changed = new Map([...labels].filter(([label]) => touched.has(label)));
  const canDraw = viewer.drawable([...labels.keys()]).length === labels.size;
  if (keepsLabels(scan, labels) && (canDraw || changed.size === 0)) {
    const asked = { corrects: scan.run.job };
    if (changed.size > 0) {
      const { bytes } = await viewer.drawingFile(labels);
      asked.spatial_prompts = (await api.sendMask(scan.image, bytes)).mask;
    }
    return asked;
  }
  if (scan.run?.notes.some(({ code }) => code === "corrected")) {
    byId("run-hint").textContent = "The corrections so far can't be kept with these classes.";
  }
  if (changed.size === 0) return {};
  const { bytes, drawn } = await viewer.drawingFile(changed);
  const erased = scan.chips.filter(({ label }) => changed.has(label) && !drawn.has(label));
  if (erased.length > 0) {
    const names = erased.map(({ name }) => name).join(", ");
    byId("run-hint").textContent = `Erased altogether, so found again from its name: ${names}.`;
  }
  return drawn.size === 0 ? {} : { spatial_prompts: (await api.sendMask(scan.image, bytes)).mask };
}

/* Whether the result that is shown can be corrected by a run with these labels: its classes keep
theirs. */
function keepsLabels(scan, labels) {
  if (scan.run === null) return false;
  const name = (each) => `${each.modality}/${classKey(each)}`;
  const own = new Map(scan.run.classes.map((found) => [found.label, name(found)]));
  return scan.chips.every((chip) => labels.get(chip.label) === chip.label
    && (own.get(chip.label) ?? name(chip)) === name(chip));
}

function follow(scan, first) {
  scan.active = first;
  scan.coarse = [];
  api.followJob(first.job, {
    onState: (job) => onJob(scan, job),
    onLost: () => {
      if (scan !== state.scan) return;
      byId("job-text").textContent = "The service doesn't answer; trying again …";
    },
    onProblem: (problem) => {
      if (!state.scans.includes(scan)) return; // its jobs went with it
      followNext(scan);
      showProblem("run-problem", problem);
      if (scan === state.scan && state.isCoarse) showRun(scan, scan.shown); // nobody refines it now
      else refresh();
    },
  });
}

/* Follows the job behind the one that was followed, if there is any: jobs run one after another. */
function followNext(scan) {
  scan.active = null;
  if (scan.waiting.length > 0) follow(scan, scan.waiting.shift());
}

async function onJob(scan, job) {
  if (!api.isOver(job)) {
    scan.active = job;
    if (scan === state.scan) refreshRun();
    if (job.coarse_parts > scan.coarse.length) await showCoarse(scan);
    return;
  }
  followNext(scan);
  if (job.status === "done") {
    const undone = scan.runs.slice(scan.shown + 1);
    scan.runs = [...scan.runs.slice(0, scan.shown + 1), job];
    // They can't be seen again: a reload would show them, and a session holds so many jobs only.
    for (const run of undone) {
      api.deleteJob(run.job).catch((error) => showProblem("run-problem", error));
    }
    scan.chips = mergedChips(scan, job);
    if (scan === state.scan) await showRun(scan, scan.runs.length - 1);
    else scan.shown = scan.runs.length - 1;
    const found = job.classes.filter(({ voxels }) => voxels > 0).length;
    const all = plural(job.classes.length, "class", "classes");
    announce(`${scan.filename}: done, ${found} of ${all} found`);
  } else if (scan === state.scan) {
    if (job.status === "failed") showProblem("run-problem", job.problem);
    else {
      byId("run-hint").textContent = "Canceled.";
      announce("Canceled");
    }
    if (scan.coarse.length > 0 && !viewer.isDrawing) await showRun(scan, scan.shown);
  }
  refresh();
}

/* Shows the coarse answer until the result takes its place; a drawing that guides the run stays. What
the file asks for has no colors before the result. */
async function showCoarse(scan) {
  const { active, asked, coarse } = scan;
  const isOn = () => scan === state.scan && scan.active?.job === active.job && viewer.hasScan
    && !viewer.isDrawing;
  if (!active?.coarse_parts || asked?.job !== active.job || asked.classes.length === 0 || !isOn()) {
    return;
  }
  while (coarse.length < active.coarse_parts) {
    coarse.push(api.readLabels(active.job, `coarse/${coarse.length + 1}`));
  }
  try {
    const parts = await Promise.all(coarse);
    if (!isOn() || !await viewer.showLabels(parts, stylesOf(asked, scan.styles))) return;
    if (!state.isCoarse) announce("The first answer is shown and being refined");
    markCoarse(true);
  } catch (error) {
    if (isOn()) showProblem("run-problem", error);
  }
}

function markCoarse(isCoarse) {
  state.isCoarse = isCoarse;
  show(byId("first-answer"), isCoarse);
}

async function showRun(scan, number) {
  scan.shown = number;
  const { run } = scan;
  const styles = run === null ? new Map() : stylesOf(run, scan.styles);
  results.show(run, styles, scan.info.output_formats);
  refresh();
  try {
    const labels = run === null ? []
      : [await api.readLabels(run.job, "result", { format: "nii.gz" })];
    if (state.scan !== scan || scan.run !== run) return;
    if (!await viewer.showLabels(labels, styles)) return;
    markCoarse(false);
    pen.hide();
  } catch (error) {
    showProblem("run-problem", error);
    if (state.scan !== scan || !state.isCoarse) return;
    await viewer.showLabels([], styles); // a run that has ended has no coarse answer
    markCoarse(false);
  }
}

async function stepRun(step) {
  if (await mayDropDrawing()) await showRun(state.scan, state.scan.shown + step);
}

async function cancelRun() {
  const { active } = state.scan;
  if (active === null) return;
  byId("job-text").textContent = "Canceling …";
  try {
    await api.cancelJob(active.job);
  } catch (error) {
    showProblem("run-problem", error);
  }
}

function describeJob(job) {
  if (job.status === "queued") {
    return job.position > 0 ? `Waiting: ${plural(job.position, "run")} before this one` : "Waiting";
  }
  if (!job.stage) return "Preparing";
  const stage = `${job.stage[0].toUpperCase()}${job.stage.slice(1)} stage`;
  const windows = job.windows_total ? `, window ${job.windows_done} of ${job.windows_total}` : "";
  const left = job.seconds_left === null || job.seconds_left === undefined ? ""
    : `, about ${formatSeconds(job.seconds_left)} left`;
  return `${stage}${windows}${left}`;
}

let announcedStage = "";

function refreshRun() {
  const scan = current();
  const { active } = scan;
  const corrects = viewer.isDrawing && viewer.strokes > 0;
  const missing = state.scan === null ? "Choose a scan first."
    : scan.modality === "" ? "Choose the modality: the file doesn't say it."
      : scan.chips.length === 0 && !scan.info.has_prompts ? "Choose a class first." : "";
  byId("missing").textContent = missing;
  byId("run").disabled = missing !== "";
  byId("run").textContent = corrects ? "Segment with the drawing"
    : scan.chips.length === 0 && scan.info.has_prompts ? "Segment what the file asks for"
      : scan.run ? "Segment again" : "Segment";
  byId("draw").disabled = !viewer.hasScan || scan.chips.length === 0 || active !== null;
  pen.hold(active !== null);
  swapFocus(active === null ? ["cancel", "run"] : ["run", "cancel"], () => {
    show(byId("run"), active === null);
    show(byId("job"), active !== null);
  });
  document.title = active === null ? "medals-rt" : `${describeJob(active)} · medals-rt`;
  if (active === null) {
    announcedStage = "";
    return;
  }
  byId("job-text").textContent = describeJob(active);
  const bar = byId("job-progress");
  if (active.windows_total) {
    bar.max = active.windows_total;
    bar.value = active.windows_done;
  } else bar.removeAttribute("value");
  const stage = active.stage ?? active.status;
  if (stage !== announcedStage) {
    announcedStage = stage;
    announce(describeJob(active));
  }
}

/* Does what hides one element and shows another, and takes the focus along. */
function swapFocus([hidden, shown], swap) {
  const focused = document.activeElement === byId(hidden);
  swap();
  if (focused) byId(shown).focus();
}

// The rest ----------------------------------------------------------------------------------------

function refresh() {
  const scan = current();
  showScans(state.scans, state.scan, { onOpen: chooseScan, onDelete: removeScan });
  byId("scan-notes").replaceChildren(...noteItems(scan.info.notes ?? []));
  refreshChips();
  const { run } = scan;
  byId("undo-run").disabled = scan.shown < 0 || scan.active !== null;
  byId("redo-run").disabled = scan.shown >= scan.runs.length - 1 || scan.active !== null;
  byId("result-text").textContent = run === null
    ? (scan.runs.length > 0 ? "Undone: no result is shown." : "Volumes appear here after a run.")
    : `Run ${scan.shown + 1} of ${scan.runs.length}, ${formatSeconds(run.seconds_run)}`;
}

function showProblem(id, problem) {
  const place = byId(id);
  if (problem.code === "session-unknown") {
    byId("page-problem").replaceChildren("This session has ended, and its data are deleted. ",
      el("button", { type: "button", on: { click: () => location.reload() } }, "Start again"));
    show(byId("page-problem"), true);
    show(place, id === "page-problem");
    return;
  }
  place.textContent = problem.detail ?? problem.message ?? String(problem);
  show(place, true);
}

/* A question with some answers; null where it is closed without one. */
function ask({ heading, text, choices }) {
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

function onViewerKey(event) {
  const [slices, right, up] = STEPS[event.key] ?? [];
  if (slices !== undefined && event.shiftKey) viewer.moveInPlane(right, up);
  else if (slices !== undefined) viewer.moveSlice(slices);
  else if (event.key === " " && viewer.isDrawing) viewer.drawAtCrosshair();
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) pen.undo();
  else return;
  event.preventDefault();
}

function listen() {
  listenForFiles(addScan);
  byId("modality").addEventListener("change", (event) => setModality(event.target.value));
  byId("clear-chips").addEventListener("click", () => {
    current().chips = [];
    refreshChips();
    byId("search").focus();
  });
  byId("run").addEventListener("click", startRun);
  byId("cancel").addEventListener("click", cancelRun);
  byId("undo-run").addEventListener("click", () => stepRun(-1));
  byId("redo-run").addEventListener("click", () => stepRun(1));
  byId("planes").addEventListener("change", (event) => viewer.setPlane(event.target.value));
  byId("window").addEventListener("change", applyWindow);
  byId("patterns").addEventListener("change", (event) => {
    byId("classes").classList.toggle("patterned", event.target.checked);
    viewer.setPatterns(event.target.checked);
  });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("end-session").addEventListener("click", deleteEverything);
  window.addEventListener("beforeunload", (event) => {
    if (viewer.isDrawing && viewer.strokes > 0) event.preventDefault();
  });
}

function showModel(model) {
  byId("model-name").textContent =
    [model.name, model.arithmetic, `medals-rt ${model.version}`].join(" · ");
  byId("notice").textContent = model.notice ?? "";
  show(byId("notice").parentElement, Boolean(model.notice));
  byId("preset").replaceChildren(
    ...model.presets.map((name) => el("option", { value: name }, name)));
  byId("preset").value = model.default_preset;
  search.setModel(model);
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
      if (scan.chips.length === 0) scan.chips = chipsOf(job);
      if (scan.modality === "") scan.modality = job.classes[0].modality;
    } else if (!api.isOver(job)) scan.waiting.push(job);
  }
  state.scans.forEach(followNext);
}

async function start() {
  listen();
  try {
    state.model = await api.readModel();
    showModel(state.model);
    refreshRun();
    restore(await api.findSession());
    await viewer.open();
    const scan = state.scans.find(({ active }) => active !== null) ?? state.scans.at(-1);
    if (scan) await openScan(scan);
    document.body.dataset.ready = "true";
  } catch (error) {
    showProblem("page-problem", error);
  }
}

start();
