/* The picture: a scan in three planes, the label map over it, the pen. Nothing else knows NiiVue. */

import "./vendor/niivue/niivue.umd.js";

const { DRAG_MODE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } = globalThis.niivue;

const PLANES = {
  all: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
};
// The axis (x, y, z of the patient) that a plane cuts across, and the two that lie in it.
const AXES = { all: [2, 0, 1], axial: [2, 0, 1], coronal: [1, 0, 2], sagittal: [0, 1, 2] };
const UNDO_STEPS = 32;
export const LARGEST_DRAWN_LABEL = 255;

/* Patterns, by the number of the class: which voxels of it are drawn at half strength. They are cut
out of space, so that they look the same in every plane. */
const PATTERNS = [
  () => false,
  (i, j, k) => (i + j + k) % 6 < 3,
  (i, j, k) => (i % 6 < 3) !== (j % 6 < 3) !== (k % 6 < 3),
  (i, j, k) => (i - j + k + 3000000) % 12 < 3,
];
export const PATTERN_COUNT = PATTERNS.length;
const HALF = 0.35;

export class Viewer {
  /* `onPoint({label, value, mm})` is called when the crosshair moves, `onStroke(count)` when
  something was drawn or undone: how many strokes can be undone. */
  constructor(canvas, { onPoint, onStroke }) {
    this.canvas = canvas;
    this.onPoint = onPoint;
    this.onStroke = onStroke;
    this.plane = "all";
    this.styles = new Map();
    this.patterns = false;
    this.labels = null; // in the order of a drawing: left to right, back to front, up
    this.drawing = null; // as it was when it started
    this.strokes = 0;
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 1, 1, 0.55],
      crosshairGap: 6,
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.contrast,
      fontColor: [0.85, 0.85, 0.85, 1],
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
      maxDrawUndoBitmaps: UNDO_STEPS + 2,
      multiplanarPadPixels: 4,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      sagittalNoseLeft: true,
      showLegend: false,
    });
    this.niivue.onLocationChange = () => this.reportPoint();
    this.niivue.onDrawingChanged = (action) => {
      if (action === "draw") this.countStrokes(this.strokes + 1);
    };
    // The page has keys of its own; NiiVue's depend on where the mouse is.
    for (const kind of ["keydown", "keyup"]) {
      canvas.addEventListener(kind, (event) => event.stopImmediatePropagation());
    }
  }

  async open() {
    await this.niivue.attachToCanvas(this.canvas);
    this.niivue.setSliceType(PLANES[this.plane]);
  }

  get hasScan() {
    return this.niivue.volumes.length > 0;
  }

  get isDrawing() {
    return this.drawing !== null;
  }

  /* Shows a scan: the bytes of a NIfTI file. */
  async showScan(buffer) {
    this.clear();
    this.niivue.addVolume(await readNifti(buffer));
    this.niivue.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.niivue.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.niivue.updateGLVolume();
    this.reportPoint();
  }

  clear() {
    this.stopDrawing();
    this.labels = null;
    const { niivue } = this;
    for (const volume of [...niivue.volumes].reverse()) niivue.removeVolume(volume);
    niivue.drawScene();
  }

  /* Lays a label map (the bytes of a NIfTI file) over the scan; null takes it away. `styles` maps a
  label to {color: "#rrggbb", visible, opacity: 0 to 1, pattern: number}. */
  async showLabels(buffer, styles) {
    this.stopDrawing();
    const { niivue } = this;
    if (niivue.volumes.length > 1) niivue.removeVolume(niivue.volumes[1]);
    this.labels = null;
    this.styles = styles;
    if (buffer !== null) {
      const overlay = await readNifti(buffer);
      this.labels = Uint16Array.from(overlay.img2RAS());
      // A class has two values, 2n and 2n + 1: the second where its pattern is lighter.
      withPatterns(overlay, styles);
      overlay.setColormapLabel(this.colors());
      niivue.addVolume(overlay);
    }
    niivue.updateGLVolume();
    this.reportPoint();
  }

  /* Applies changes in the styles. */
  restyle({ patterns = this.patterns } = {}) {
    this.patterns = patterns;
    const overlay = this.niivue.volumes[1];
    if (overlay) overlay.setColormapLabel(this.colors());
    if (this.isDrawing) this.niivue.drawLut = this.penColors();
    if (this.hasScan) this.niivue.updateGLVolume();
  }

  colors() {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0] };
    for (const [label, style] of this.styles) {
      const alpha = style.visible ? 255 * style.opacity : 0;
      addColor(table, 2 * label, style.color, alpha);
      addColor(table, 2 * label + 1, style.color, this.patterns ? alpha * HALF : alpha);
    }
    return table;
  }

  penColors() {
    const rgba = new Uint8ClampedArray(4 * (LARGEST_DRAWN_LABEL + 1));
    for (const [label, style] of this.styles) {
      const alpha = style.visible ? 255 * style.opacity : 0;
      rgba.set([...channels(style.color), alpha], 4 * label);
    }
    return { lut: rgba, labels: Array.from({ length: LARGEST_DRAWN_LABEL + 1 }, String) };
  }

  setPlane(plane) {
    this.plane = plane;
    this.niivue.setSliceType(PLANES[plane]);
  }

  /* Gray levels from `low` to `high`; without them, those that the scan suggests. */
  setWindow(low, high) {
    const scan = this.niivue.volumes[0];
    if (!scan) return;
    scan.cal_min = low ?? scan.robust_min;
    scan.cal_max = high ?? scan.robust_max;
    this.niivue.updateGLVolume();
  }

  moveSlice(steps) {
    this.moveCrosshair(0, steps);
  }

  moveInPlane(right, up) {
    // The patient's right is on the left of the picture, but for the sagittal plane.
    this.moveCrosshair(1, this.plane === "sagittal" ? -right : -right);
    this.moveCrosshair(2, up);
  }

  moveCrosshair(axis, steps) {
    if (!this.hasScan || steps === 0) return;
    const moved = [0, 0, 0];
    moved[AXES[this.plane][axis]] = steps;
    this.niivue.moveCrosshairInVox(...moved);
  }

  /* Puts the crosshair into a class: the voxel of it that is nearest to its center. */
  centerOn(label) {
    if (this.labels === null) return false;
    const [, width, height] = this.niivue.volumes[0].dimsRAS;
    const at = (index) => [
      index % width,
      Math.floor(index / width) % height,
      Math.floor(index / (width * height)),
    ];
    const found = [];
    const sum = [0, 0, 0];
    this.labels.forEach((value, index) => {
      if (value !== label) return;
      found.push(index);
      at(index).forEach((position, axis) => (sum[axis] += position));
    });
    if (found.length === 0) return false;
    const center = sum.map((total) => total / found.length);
    let nearest = null;
    let least = Infinity;
    for (const index of found) {
      const voxel = at(index);
      const distance = voxel.reduce((total, v, axis) => total + (v - center[axis]) ** 2, 0);
      if (distance < least) [least, nearest] = [distance, voxel];
    }
    this.niivue.scene.crosshairPos = this.niivue.vox2frac(nearest);
    this.niivue.drawScene();
    this.reportPoint();
    return true;
  }

  reportPoint() {
    const [scan] = this.niivue.volumes;
    if (!scan) return this.onPoint(null);
    const mm = Array.from(this.niivue.frac2mm(this.niivue.scene.crosshairPos)).slice(0, 3);
    const labels = this.isDrawing ? this.niivue.drawBitmap : this.labels;
    return this.onPoint({
      label: labels === null ? 0 : labels[this.indexAtCrosshair()],
      mm,
      value: scan.getValue(...this.voxelAtCrosshair()),
    });
  }

  // Drawing ---------------------------------------------------------------------------------------

  /* Starts a drawing from the label map that is shown, or from nothing. */
  startDrawing(styles) {
    const { niivue } = this;
    this.styles = styles;
    niivue.createEmptyDrawing();
    if (this.labels !== null) {
      niivue.drawBitmap.set(this.labels);
      niivue.drawClearAllUndoBitmaps();
      niivue.drawAddUndoBitmap();
      niivue.volumes[1].opacity = 0;
    }
    this.drawing = niivue.drawBitmap.slice();
    niivue.drawLut = this.penColors();
    niivue.setDrawOpacity(1);
    niivue.updateGLVolume();
    niivue.refreshDrawing(true);
    niivue.setDrawingEnabled(true);
    this.countStrokes(0);
  }

  stopDrawing() {
    if (!this.isDrawing) return;
    const { niivue } = this;
    this.drawing = null;
    niivue.setDrawingEnabled(false);
    niivue.closeDrawing();
    if (niivue.volumes[1]) niivue.volumes[1].opacity = 1;
    niivue.updateGLVolume();
    this.countStrokes(0);
  }

  /* Chooses what the pen leaves: a label, or 0 to erase; `size` in voxels. */
  setPen(label, size) {
    this.niivue.setPenValue(label, false);
    this.niivue.opts.penSize = size;
  }

  undoStroke() {
    if (this.strokes === 0) return;
    this.niivue.drawUndo();
    this.countStrokes(this.strokes - 1);
  }

  /* Draws where the crosshair is: the pen for those who use the keyboard. */
  drawAtCrosshair() {
    const { niivue } = this;
    niivue.drawPenAxCorSag = { all: 0, axial: 0, coronal: 1, sagittal: 2 }[this.plane];
    niivue.drawPt(...this.voxelAtCrosshair(), niivue.opts.penValue);
    niivue.drawPenAxCorSag = -1;
    niivue.drawAddUndoBitmap();
    niivue.refreshDrawing(true);
    this.countStrokes(this.strokes + 1);
    this.reportPoint();
  }

  countStrokes(count) {
    this.strokes = Math.min(count, UNDO_STEPS);
    this.onStroke(this.strokes);
  }

  /* Labels that the drawing has changed, those that it has taken away everywhere among them. */
  changedLabels() {
    const changed = new Set();
    const drawn = this.niivue.drawBitmap;
    this.drawing.forEach((before, index) => {
      if (before !== drawn[index]) changed.add(before).add(drawn[index]);
    });
    changed.delete(0);
    return changed;
  }

  /* The drawing of some labels as a NIfTI file on the scan's grid, and the labels that are in it. */
  async drawingFile(labels) {
    const kept = this.niivue.drawBitmap.map((label) => (labels.has(label) ? label : 0));
    const bytes = await this.niivue.volumes[0].saveToDisk("", kept);
    return { bytes, labels: new Set(kept.filter((label) => label > 0)) };
  }

  voxelAtCrosshair() {
    return this.niivue.frac2vox(this.niivue.scene.crosshairPos);
  }

  indexAtCrosshair() {
    const [x, y, z] = this.voxelAtCrosshair();
    const [, width, height] = this.niivue.volumes[0].dimsRAS;
    return x + width * (y + height * z);
  }
}

async function readNifti(buffer) {
  // The name is ours: that of the file could choose another reader.
  return NVImage.loadFromUrl({ url: buffer, name: "volume.nii.gz", colormap: "gray" });
}

function withPatterns(overlay, styles) {
  const labels = overlay.img;
  const largest = Math.max(0, ...styles.keys());
  const wide = largest > 126;
  const values = new (wide ? Uint16Array : Uint8Array)(labels.length);
  const patterns = new Map([...styles].map(([label, style]) => [label, PATTERNS[style.pattern]]));
  const [, width, height] = overlay.hdr.dims;
  let index = 0;
  for (let k = 0; index < labels.length; k++) {
    for (let j = 0; j < height; j++) {
      for (let i = 0; i < width; i++, index++) {
        const label = labels[index];
        if (label > 0) values[index] = 2 * label + (patterns.get(label)?.(i, j, k) ? 1 : 0);
      }
    }
  }
  overlay.img = values;
  overlay.hdr.datatypeCode = wide ? 512 : 2;
  overlay.hdr.numBitsPerVoxel = wide ? 16 : 8;
  overlay.hdr.scl_slope = 1;
  overlay.hdr.scl_inter = 0;
}

function addColor(table, label, color, alpha) {
  const [red, green, blue] = channels(color);
  table.I.push(label);
  table.R.push(red);
  table.G.push(green);
  table.B.push(blue);
  table.A.push(alpha);
}

function channels(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}
