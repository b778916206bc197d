/* The pen: a drawing over the scan that corrects a result, or shows the run where to look. */

import { byId, el, show } from "./dom.js";

export class Pen {
  /* `chips()` are the classes that can be drawn, `styles()` how; `onClass(label)` is called when one
  is to be painted, `onChange` follows each stroke; `mayDrop()` asks whether a drawing may go. */
  constructor(viewer, { chips, styles, onClass, onChange, mayDrop }) {
    this.onClass = onClass;
    this.viewer = viewer;
    this.chips = chips;
    this.styles = styles;
    this.onChange = onChange;
    byId("draw").addEventListener("click", async () => {
      if (!viewer.isDrawing) this.start();
      else if (await mayDrop()) this.stop();
    });
    byId("undo-stroke").addEventListener("click", () => this.undo());
    byId("pen-class").addEventListener("change", () => this.apply());
    byId("pen-size").addEventListener("input", () => this.apply());
    for (const tool of document.getElementsByName("tool")) {
      tool.addEventListener("change", () => this.apply());
    }
    viewer.canvas.addEventListener("mousemove", (event) => this.showBrush(event));
    viewer.canvas.addEventListener("mouseleave", () => show(byId("brush"), false));
  }

  /* What a stroke would paint where the mouse is. */
  showBrush({ offsetX, offsetY }) {
    const place = this.viewer.brushAt(offsetX, offsetY);
    const brush = byId("brush");
    show(brush, place !== null);
    if (place === null) return;
    for (const [side, pixels] of Object.entries(place)) brush.style[side] = `${pixels}px`;
  }

  start() {
    this.viewer.startDrawing(this.styles());
    this.refresh();
    show(byId("pen"), true);
    byId("draw").setAttribute("aria-pressed", "true");
    this.onChange();
  }

  stop() {
    if (!this.viewer.isDrawing) return;
    this.viewer.stopDrawing();
    this.hide();
  }

  /* The viewer has stopped by itself: another scan or result is shown. */
  hide() {
    show(byId("pen"), false);
    show(byId("brush"), false);
    byId("draw").setAttribute("aria-pressed", "false");
    this.onChange();
  }

  /* The classes have changed. */
  refresh() {
    if (!this.viewer.isDrawing) return;
    const select = byId("pen-class");
    const chosen = select.value;
    this.viewer.extendStyles(this.styles());
    const drawable = new Set(this.viewer.drawable(this.chips().map(({ label }) => label)));
    select.replaceChildren(...this.chips()
      .filter(({ label }) => drawable.has(label))
      .map(({ label, name }) => el("option", { value: label }, name)));
    if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
    this.apply();
  }

  /* Makes a class the one to draw, as when it was gone to. */
  choose(label) {
    if (!this.viewer.isDrawing) return;
    byId("pen-class").value = String(label);
    this.apply();
  }

  apply() {
    const erase = document.querySelector("input[name=tool]:checked").value === "erase";
    const size = Number(byId("pen-size").value);
    byId("pen-size-text").textContent = size;
    byId("pen-class").disabled = erase;
    const label = erase ? 0 : Number(byId("pen-class").value);
    if (label > 0) this.onClass(label);
    this.viewer.setPen(label, size);
  }

  undo() {
    this.viewer.undoStroke();
    this.onChange();
  }

  /* Rests the pen while a run uses the drawing. */
  hold(held) {
    byId("pen").inert = held;
    this.viewer.holdPen(held);
  }

  strokes(count) {
    byId("undo-stroke").disabled = count === 0;
    this.onChange();
  }
}
