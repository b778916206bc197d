/* Choosing scans: files, a DICOM folder, or what is dropped on the page. */

import * as api from "./api.js";
import { byId, el, formatBytes, rebuild, show } from "./dom.js";
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

/* Sends files as one scan: several (a DICOM folder, a detached header and its data) as a ZIP file.
`chooseSeries` is asked where there are several; null means to leave it. */
export async function sendScan(files, chooseSeries) {
  const seen = files.filter(({ path }) => !/(^|\/)(\.|__MACOSX\/)/.test(path));
  if (seen.length === 0) throw new Error("There is no file in this folder.");
  const one = seen.length === 1;
  report(one ? "Reading the file" : `Packing ${seen.length} files`, null);
  try {
    const body = one ? seen[0].file : await zipped(seen);
    const folder = seen[0].path.includes("/") ? seen[0].path.split("/")[0] : "scan";
    const filename = one ? seen[0].file.name : `${folder}.zip`;
    const progress = (share) => report(
      share < 1 ? `Sending ${filename} (${formatBytes(body.size)})` : `Reading ${filename}`,
      share < 1 ? share : null);
    try {
      return await api.sendImage(body, { filename }, progress);
    } catch (problem) {
      if (problem.upload === null) throw problem;
      const series = await chooseSeries(problem);
      if (series === null) return null;
      return await api.sendImage(null, { filename, upload: problem.upload, series }, progress);
    }
  } finally {
    byId("drop").inert = false;
    show(byId("upload"), false);
  }
}

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
      title: scan.filename,
      "aria-current": scan === current ? "true" : null,
      on: { click: () => onOpen(scan) },
    }, el("span", { class: "name" }, scan.filename),
    el("span", { class: "quiet small" }, describe(scan))),
    el("button", {
      type: "button",
      class: "plain",
      "aria-label": `Remove ${scan.filename}`,
      on: { click: () => onDelete(scan) },
    }, "×"))));
}

function describe({ info, modality, active, problem, runs }) {
  const [depth, height, width] = info.shape_dhw;
  const spacing = info.spacing_dhw_mm.map((mm) => Number(mm.toPrecision(3)));
  const sizes = spacing.every((mm) => mm === spacing[0]) ? spacing[0]
    : `${spacing[2]} × ${spacing[1]} × ${spacing[0]}`;
  const state = active !== null ? "running" : problem !== null ? "failed"
    : runs.length > 0 ? "segmented" : null;
  return [modality, `${width} × ${height} × ${depth}`, `${sizes} mm`, state]
    .filter(Boolean).join(" · ");
}
