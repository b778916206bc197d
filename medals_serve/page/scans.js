/* Choosing scans: files, a DICOM folder, or what is dropped on the page. */

import * as api from "./api.js";
import { byId, el, formatBytes, rebuild, show } from "./dom.js";
import { pairsJoined } from "./pairs.js";
import { zipped } from "./zip.js";

/* `onFiles` gets a list of {path, file}. */
export function listenForFiles(onFiles) {
  const ofInput = (event) => {
    const files = [...event.target.files].map((file) => ({
      path: file.webkitRelativePath || file.name,
      file,
    }));
    event.target.value = "";
    if (files.length > 0) onFiles(files);
  };
  const inputs = { "choose-file": "file-input", "choose-folder": "folder-input" };
  for (const [button, input] of Object.entries(inputs)) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ofInput);
  }
  let depth = 0; // dragenter and dragleave come for each element under the mouse
  const over = (change) => {
    depth = Math.max(0, depth + change);
    byId("drop").classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    over(-depth);
    if (byId("drop").inert) return; // one upload at a time
    const entries = [...event.dataTransfer.items]
      .map((item) => item.webkitGetAsEntry?.())
      .filter(Boolean);
    const files = (await Promise.all(entries.map(filesIn))).flat();
    if (files.length > 0) onFiles(files);
  });
}

async function filesIn(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path: entry.fullPath.slice(1), file }];
  }
  const reader = entry.createReader();
  const children = [];
  for (;;) { // a reader gives some entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) break;
    children.push(...some);
  }
  return (await Promise.all(children.map(filesIn))).flat();
}

const OF_SERIES = ".dcm"; // the only ending of files that may be parts of a scan

/* Files as lists, one a scan: those of a DICOM series, or of a folder, belong together, a header
and its voxels are one. `endings` are those that the service takes. */
export async function scansIn(files, endings) {
  const named = files.filter(({ path }) => !/(^|\/)(\.|__MACOSX\/)/.test(path));
  if (named.length === 0) throw new Error("There is no file in this folder.");
  const seen = await pairsJoined(named);
  const whole = endings.filter((ending) => ending !== OF_SERIES);
  const isWhole = ({ path }) => whole.some((ending) => path.toLowerCase().endsWith(ending));
  return seen.every(isWhole) ? seen.map((file) => [file]) : [seen];
}

export function nameOf(files) {
  const [{ path, file }] = files;
  if (files.length === 1) return file.name;
  return `${path.includes("/") ? path.split("/")[0]
    : `${path} and ${files.length - 1} more`}.zip`;
}

/* Sends files as one scan: several (a DICOM folder) as a ZIP file of at most `maxBytes`.
`chooseSeries` is asked where there are several; null means to leave it. Returns null where it was
left, or canceled. */
export async function sendScan(files, maxBytes, chooseSeries) {
  const filename = nameOf(files);
  const one = files.length === 1;
  const stopped = new AbortController();
  const stop = () => stopped.abort();
  byId("cancel-upload").addEventListener("click", stop);
  report(one ? "Reading the file" : `Packing ${files.length} files`, null);
  try {
    const body = one ? files[0].file : await zipped(files);
    if (body.size > maxBytes) {
      throw new RangeError(`${filename} (${formatBytes(body.size)}) is too large: this service `
        + `takes up to ${formatBytes(maxBytes)}.`);
    }
    stopped.signal.throwIfAborted();
    const progress = (share) => report(
      share < 1 ? `Sending ${filename} (${formatBytes(body.size)})` : `Reading ${filename}`,
      share < 1 ? share : null);
    try {
      return await api.sendImage(body, { filename }, progress, stopped.signal);
    } catch (problem) {
      if (!problem.upload) throw problem;
      const series = await chooseSeries(problem);
      if (series === null) return null;
      const asked = { filename, upload: problem.upload, series };
      return await api.sendImage(null, asked, progress, stopped.signal);
    }
  } catch (problem) {
    if (problem.name === "AbortError") return null;
    throw problem;
  } finally {
    byId("cancel-upload").removeEventListener("click", stop);
    byId("drop").inert = false;
    show(byId("upload"), false);
  }
}

/* Whether a scan wasn't taken for what it is: another one may be. */
export const isOfTheFile = (problem) =>
  problem instanceof RangeError || [413, 422].includes(problem.status);

function report(text, share) {
  show(byId("upload"), true);
  byId("drop").inert = true;
  byId("upload-text").textContent = text;
  const bar = byId("upload-progress");
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
}

/* The scans of the session, the open one marked. */
export function showScans(scans, current, { onOpen, onDelete }) {
  rebuild(byId("scans"), scans.map((scan) => el("li", {},
    el("button", {
      type: "button",
      class: "choose",
      title: scan.name === scan.filename ? scan.name : `${scan.name} · ${scan.filename}`,
      "aria-current": scan === current ? "true" : null,
      on: { click: () => onOpen(scan) },
    }, el("span", { class: "name" }, scan.name),
    el("span", { class: "quiet small" }, describe(scan))),
    el("button", {
      type: "button",
      class: "plain",
      "aria-label": `Remove ${scan.name}`,
      on: { click: () => onDelete(scan) },
    }, "×"))));
}

function describe({ info, name, filename, modality, active, problem, runs }) {
  const [depth, height, width] = info.shape_dhw;
  const spacing = info.spacing_dhw_mm.map((mm) => Number(mm.toPrecision(3)));
  const sizes = spacing.every((mm) => mm === spacing[0]) ? spacing[0]
    : `${spacing[2]} × ${spacing[1]} × ${spacing[0]}`;
  const state = active !== null ? "running" : problem !== null ? "failed"
    : runs.length > 0 ? "segmented" : null;
  const file = name === filename ? null : filename;
  return [file, modality, `${width} × ${height} × ${depth}`, `${sizes} mm`, state]
    .filter(Boolean).join(" · ");
}
