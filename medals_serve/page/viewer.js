/* The picture: a scan in three planes, labels over it, the pen. Nothing else knows NiiVue. */

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
// Of the picture of such a plane, axial, coronal, sagittal: the axes that run across and down.
const IN_PLANE = [[0, 1], [0, 2], [1, 2]];
const UNDO_STEPS = 32;
const ZOOM_STEP = 1.25;
const MOST_ZOOM = 12;
const CROSSHAIR_PIXELS = 1.6; // thinner lines vanish between pixels
const LARGEST_LABEL = 255; // of a drawing's file

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
const RIM = 0.9;

/* Labels as NiiVue's drawing holds them, which also shows results, for it knows an opacity for each
class. It has 255 values: two a class, the second where its pattern is lighter, as long as they
suffice. */
class Palette {
  constructor(styles = new Map()) {
    this.styles = styles;
    this.labels = [...styles.keys()];
    this.step = this.labels.length > 127 ? 1 : 2;
    this.values = new Map(this.labels.map((label, number) => [label, 1 + this.step * number]));
  }

  /* Adds labels where there is room; those that it has keep their values. */
  extend(styles) {
    for (const [label, style] of styles) {
      const value = 1 + this.step * this.labels.length;
      if (this.values.has(label) || value + this.step > 256) continue;
      this.labels.push(label);
      this.styles.set(label, style);
      this.values.set(label, value);
    }
  }

  value(label) {
    return this.values.get(label) ?? 0;
  }

  label(value) {
    return value === 0 ? 0 : this.labels[Math.floor((value - 1) / this.step)] ?? 0;
  }

  table() {
    const rgba = new Uint8ClampedArray(4 * 256);
    for (const [label, { color, visible, opacity }] of this.styles) {
      const alpha = visible ? 255 * opacity : 0;
      rgba.set([...channels(color), alpha], 4 * this.value(label));
      if (this.step === 2) rgba.set([...channels(color), alpha * HALF], 4 * this.value(label) + 4);
    }
    return { lut: rgba, labels: Array.from({ length: 256 }, String) };
  }
}

export class Viewer {
  /* `onPoint({label, value, mm, tilt, slice, slices})` is called when the crosshair moves,
  `onStroke(count)` when something was drawn or undone: how many strokes can be undone; `onKey` for
  keys of the canvas, `onDoubleClick` for double clicks while not drawing. */
  constructor(canvas, { onPoint, onStroke, onKey, onDoubleClick }) {
    this.canvas = canvas;
    this.onPoint = onPoint;
    this.onStroke = onStroke;
    this.plane = "all";
    this.patterns = false;
    this.palette = new Palette();
    this.labels = null; // of the result, in the order of a drawing: to the right, front and head
    this.drawing = null; // as it was when it started
    this.strokes = 0;
    this.undoable = 0;
    this.held = false;
    this.asked = 0; // what was to be shown so far: what comes late isn't
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 1, 1, 0.9],
      crosshairGap: 4,
      crosshairWidthUnit: "mm",
      doubleTouchTimeout: 0, // two quick dabs of the pen are no double tap
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.contrast,
      fontColor: [0.9, 0.9, 0.9, 1],
      fontMinPx: 15,
      isRadiologicalConvention: true,
      loadingText: "",
      longTouchTimeout: 2 ** 31 - 1, // nor is a slow stroke a long press
      logLevel: "error",
      mouseEventConfig: {
        centerButton: DRAG_MODE.pan,
        rightButton: DRAG_MODE.contrast,
      },
      maxDrawUndoBitmaps: UNDO_STEPS + 2,
      multiplanarPadPixels: 4,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      sagittalNoseLeft: true,
      showLegend: false,
    });
    this.niivue.drawRimOpacity = RIM;
    this.niivue.onLocationChange = () => this.reportPoint();
    this.niivue.onDrawingChanged = (action) => {
      if (action === "draw") this.countStrokes(this.strokes + 1);
    };
    // The page has keys of its own; NiiVue's depend on where the mouse is.
    canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation());
    canvas.addEventListener("keydown", (event) => {
      event.stopImmediatePropagation();
      onKey(event);
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // NiiVue changes the slice
      event.preventDefault();
      event.stopImmediatePropagation();
      this.zoom(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP);
    }, { capture: true, passive: false });
    new ResizeObserver(() => this.fitCrosshair()).observe(canvas);
    canvas.addEventListener("dblclick", (event) => {
      event.stopImmediatePropagation();
      if (!this.isDrawing) onDoubleClick();
    });
  }

  async open() {
    if (document.createElement("canvas").getContext("webgl2") === null) {
      throw new Error("This browser has no WebGL 2, which scans are shown with: turn on its " +
        "hardware acceleration, or use another browser.");
    }
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
    const asked = this.asked;
    const scan = await readNifti(buffer);
    if (asked !== this.asked) return;
    this.niivue.addVolume(scan);
    this.niivue.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.niivue.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.niivue.updateGLVolume();
    this.fitCrosshair();
    this.reportPoint();
  }

  clear() {
    this.asked += 1;
    this.stopDrawing();
    this.labels = null;
    const { niivue } = this;
    niivue.closeDrawing();
    for (const volume of [...niivue.volumes].reverse()) niivue.removeVolume(volume);
    niivue.drawScene();
    this.reportPoint();
  }

  /* Lays label maps (each the bytes of a NIfTI file) over the scan, later ones over earlier ones;
  without any, takes them away. `styles` maps a label to {color: "#rrggbb", visible, opacity: 0 to 1,
  pattern: number}; change them and call `restyle`. Returns whether nothing else was to be shown
  meanwhile. */
  async showLabels(buffers, styles) {
    this.asked += 1;
    const asked = this.asked;
    const maps = await Promise.all(buffers.map(readNifti));
    if (asked !== this.asked) return false;
    const [first, ...more] = maps.map((map) => labelsOnGrid(map, this.niivue.volumes[0]));
    for (const labels of more) {
      labels.forEach((label, index) => {
        if (label > 0) first[index] = label;
      });
    }
    this.stopDrawing();
    this.labels = first ?? null;
    this.showStyled(styles);
    this.reportPoint();
    return true;
  }

  /* Shows the labels of the result; while drawing, the drawing takes their place. */
  showStyled(styles) {
    const { niivue } = this;
    if (!this.hasScan) return;
    this.palette = new Palette(styles);
    niivue.createEmptyDrawing();
    if (this.labels !== null) this.fill(niivue.drawBitmap, this.patterns && !this.isDrawing);
    niivue.drawClearAllUndoBitmaps();
    niivue.drawAddUndoBitmap();
    niivue.refreshDrawing(false);
    this.restyle();
  }

  fill(bitmap, patterned) {
    const { palette } = this;
    const values = new Uint8Array(1 + Math.max(0, ...palette.labels));
    for (const label of palette.labels) values[label] = palette.value(label);
    const [, width, height, depth] = this.niivue.volumes[0].dimsRAS;
    if (!patterned || palette.step === 1) {
      this.labels.forEach((label, index) => (bitmap[index] = values[label] ?? 0));
      return;
    }
    const patterns = values.map(() => 0);
    for (const [label, style] of palette.styles) patterns[label] = style.pattern;
    let index = 0;
    for (let k = 0; k < depth; k++) {
      for (let j = 0; j < height; j++) {
        for (let i = 0; i < width; i++, index++) {
          const label = this.labels[index];
          if (label > 0 && label < values.length) {
            bitmap[index] = values[label] + (PATTERNS[patterns[label]](i, j, k) ? 1 : 0);
          }
        }
      }
    }
  }

  setPatterns(patterns) {
    this.patterns = patterns;
    if (!this.isDrawing) this.showStyled(this.palette.styles);
  }

  /* Applies changes in the styles. */
  restyle() {
    if (!this.hasScan) return;
    this.niivue.drawRimOpacity = this.patterns ? -1 : RIM;
    this.niivue.drawLut = this.palette.table();
    this.niivue.refreshColormaps();
    this.niivue.drawScene();
  }

  setPlane(plane) {
    this.plane = plane;
    this.niivue.setSliceType(PLANES[plane]);
    this.fitCrosshair();
  }

  /* Magnifies the picture about the crosshair. */
  zoom(factor) {
    if (!this.hasScan) return;
    const { scene } = this.niivue;
    const [x, y, z, before] = scene.pan2Dxyzmm;
    const after = Math.min(Math.max(before * factor, 1), MOST_ZOOM);
    const at = this.niivue.frac2mm(scene.crosshairPos);
    const pan = [x, y, z].map((mm, axis) => mm + (before - after) * at[axis]);
    this.niivue.setPan2Dxyzmm(after === 1 ? [0, 0, 0, 1] : [...pan, after]);
    this.fitCrosshair();
  }

  /* NiiVue's crosshair is so many millimeters wide: makes these the same pixels at any scale. */
  fitCrosshair() {
    requestAnimationFrame(() => {
      const { niivue } = this;
      const sizes = niivue.screenSlices.map(({ fovMM, leftTopWidthHeight: [, , width] }) =>
        Math.abs(fovMM[0]) / width).filter((mm) => mm > 0 && mm < Infinity);
      if (!this.hasScan || sizes.length === 0) return;
      niivue.opts.crosshairWidth = CROSSHAIR_PIXELS * niivue.uiData.dpr * Math.max(...sizes);
      if (niivue.crosshairs3D) niivue.crosshairs3D.mm = [NaN, NaN, NaN]; // made again when drawn
      niivue.drawScene();
    });
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
    // On the left of the picture is the patient's right, or front: both axes run to the left.
    this.moveCrosshair(1, -right);
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
    // NiiVue's other matrix takes each axis for parallel to one of the patient's.
    const position = this.niivue.frac2mm(this.niivue.scene.crosshairPos, 0, true);
    const mm = Array.from(position).slice(0, 3);
    const drawn = this.niivue.drawBitmap?.[this.indexAtCrosshair()] ?? 0;
    const across = AXES[this.plane][0];
    return this.onPoint({
      tilt: tiltOf(scan),
      slice: this.voxelAtCrosshair()[across] + 1,
      slices: scan.dimsRAS[1 + across],
      label: this.palette.label(drawn),
      mm,
      value: scan.getValue(...this.voxelAtCrosshair()),
    });
  }

  // Drawing ---------------------------------------------------------------------------------------

  /* Starts a drawing from the result that is shown, or from nothing. */
  startDrawing(styles) {
    this.drawing = new Uint8Array(); // so that the labels are shown without patterns
    this.showStyled(styles);
    this.drawing = this.niivue.drawBitmap.slice();
    this.niivue.setDrawingEnabled(true);
    this.countStrokes(0, 0);
  }

  /* Shows the result again, as it was. */
  stopDrawing() {
    if (!this.isDrawing) return;
    this.drawing = null;
    this.niivue.setDrawingEnabled(false);
    this.countStrokes(0, 0);
    this.showStyled(this.palette.styles);
  }

  /* Where the pen would paint at a place of the canvas, in its CSS pixels; null: nowhere. */
  brushAt(x, y) {
    const { niivue } = this;
    const ratio = niivue.uiData.dpr;
    const tile = niivue.tileIndex(x * ratio, y * ratio);
    const { axCorSag, leftTopWidthHeight } = niivue.screenSlices[tile] ?? {};
    const axes = IN_PLANE[axCorSag];
    if (!this.isDrawing || this.held || !axes) return null;
    const at = niivue.screenXY2TextureFrac(x * ratio, y * ratio, tile);
    if (at[0] < 0) return null;
    // Two places of the tile give the scale: from voxels to pixels is linear in a plane.
    const [left, top, width, height] = leftTopWidthHeight;
    const places = [0.25, 0.75].map((part) => [left + part * width, top + part * height]);
    const fractions = places.map((place) => niivue.screenXY2TextureFrac(...place, tile, false));
    const voxel = niivue.frac2vox(at);
    const around = Math.floor(niivue.opts.penSize / 2);
    const [across, down] = axes.map((axis, side) => {
      const count = niivue.volumes[0].dimsRAS[axis + 1];
      const [[first, second], [from, to]] = [fractions, places]
        .map((pair, of) => pair.map((each) => each[of === 0 ? axis : side]));
      return [Math.max(voxel[axis] - around, 0), Math.min(voxel[axis] + around + 1, count)]
        .map((edge) => from + (to - from) * (edge / count - first) / (second - first))
        .map((pixels) => pixels / ratio)
        .sort((a, b) => a - b);
    });
    return { left: across[0], top: down[0], width: across[1] - across[0], height: down[1] - down[0] };
  }

  /* Chooses what the pen leaves: a label, or 0 to erase; `size` in voxels, which is odd. */
  setPen(label, size) {
    this.niivue.setPenValue(this.palette.value(label), false);
    this.niivue.opts.penSize = size;
  }

  /* Labels that can be drawn: room for them is limited, and that of a mask's file. */
  drawable(labels) {
    return labels.filter((label) => label <= LARGEST_LABEL && this.palette.value(label) > 0);
  }

  /* Takes classes that were chosen while drawing. */
  extendStyles(styles) {
    this.palette.extend(styles);
    this.restyle();
  }

  /* Keeps the drawing as it is, until the pen is let go. */
  holdPen(held) {
    this.held = held;
    if (this.isDrawing) this.niivue.setDrawingEnabled(!held);
  }

  undoStroke() {
    if (this.undoable === 0 || this.held) return;
    this.niivue.drawUndo();
    this.countStrokes(this.strokes - 1, this.undoable - 1);
  }

  /* Draws where the crosshair is: the pen for those who use the keyboard. */
  drawAtCrosshair() {
    if (this.held) return;
    const { niivue } = this;
    niivue.drawPenAxCorSag = { all: 0, axial: 0, coronal: 1, sagittal: 2 }[this.plane];
    niivue.drawPt(...this.voxelAtCrosshair(), niivue.opts.penValue);
    niivue.drawPenAxCorSag = -1;
    niivue.drawAddUndoBitmap();
    niivue.refreshDrawing(true);
    this.countStrokes(this.strokes + 1);
    this.reportPoint();
  }

  /* `undoable` of them can be undone. */
  countStrokes(count, undoable = Math.min(this.undoable + 1, UNDO_STEPS)) {
    this.strokes = count;
    this.undoable = undoable;
    this.onStroke(undoable);
  }

  /* Labels that the drawing has changed, those that it has taken away everywhere among them. */
  changedLabels() {
    const changed = new Set();
    const drawn = this.niivue.drawBitmap;
    this.drawing.forEach((before, index) => {
      if (before !== drawn[index]) changed.add(before).add(drawn[index]);
    });
    changed.delete(0);
    return new Set([...changed].map((value) => this.palette.label(value)));
  }

  /* The drawing of these labels as a NIfTI file on the scan's grid. Also returns which of them were
  drawn. */
  async drawingFile(labels) {
    const values = new Uint8Array(256);
    for (const label of labels) values[this.palette.value(label)] = label;
    const drawn = new Set();
    const kept = this.niivue.drawBitmap.map((value) => {
      if (values[value] > 0) drawn.add(this.palette.label(value));
      return values[value];
    });
    return { bytes: await this.niivue.volumes[0].saveToDisk("", kept), drawn };
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

/* Labels in the order of a drawing on the scan: where their grid is a coarser one along the same
axes, which covers the scan, each voxel has the label of the nearest. */
function labelsOnGrid(map, scan) {
  const labels = new Uint16Array(map.img2RAS());
  const shape = scan.dimsRAS.slice(1, 4);
  const own = map.dimsRAS.slice(1, 4);
  if (shape.every((count, axis) => count === own[axis])) return labels;
  const position = (voxel) => map.mm2vox(scan.vox2mm(voxel, scan.matRAS), true);
  const origin = position([0, 0, 0]);
  const strides = [1, own[0], own[0] * own[1]];
  const offsets = shape.map((count, axis) => {
    const far = [0, 0, 0];
    far[axis] = count;
    const span = Array.from(position(far), (end, along) => end - origin[along]);
    const along = span.map(Math.abs).indexOf(Math.max(...span.map(Math.abs)));
    const aside = span.some((length, other) => other !== along && Math.abs(length) > 0.5);
    return Array.from({ length: count }, (_, voxel) => {
      const index = Math.round(origin[along] + (span[along] * voxel) / count);
      if (aside || index < -1 || index > own[along]) {
        throw new RangeError("The labels don't lie on the scan.");
      }
      return strides[along] * Math.min(Math.max(index, 0), own[along] - 1);
    });
  });
  const placed = new Uint16Array(shape[0] * shape[1] * shape[2]);
  let index = 0;
  for (const k of offsets[2]) {
    for (const j of offsets[1]) {
      for (const i of offsets[0]) placed[index++] = labels[i + j + k];
    }
  }
  return placed;
}

/* Degrees between the scan's axes and those of the patient next to them, the most of all. */
function tiltOf(scan) {
  const cosines = [0, 1, 2].map((axis) => {
    const along = [0, 1, 2].map((row) => scan.matRAS[4 * row + axis]);
    return Math.abs(along[axis]) / Math.hypot(...along);
  });
  return (Math.acos(Math.min(1, ...cosines)) * 180) / Math.PI;
}

async function readNifti(buffer) {
  // The name is ours: that of the file could choose another reader.
  return NVImage.loadFromUrl({ url: buffer, name: "volume.nii.gz", colormap: "gray" });
}

function channels(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}
