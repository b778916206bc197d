/* Elements. Texts are always set as text: names of files and classes may hold anything. */

export const byId = (id) => document.getElementById(id);

/* An element with properties (`class`, `on` for listeners, `style` for CSS variables; others are
attributes, left out where they are null or false) and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [property, text] of Object.entries(value)) made.style.setProperty(property, text);
    } else if (name === "checked" || name === "disabled" || name === "value") {
      made[name] = value;
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function show(element, visible) {
  element.hidden = !visible;
}

/* Makes the buttons of a list again; the focus stays on the one at its place. */
export function rebuild(list, children) {
  const before = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...children);
  const buttons = list.querySelectorAll("button");
  if (before >= 0) buttons[Math.min(before, buttons.length - 1)]?.focus();
}

/* Says something to screen readers without moving the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

export function formatBytes(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

export function formatSeconds(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 3600
    ? `${Math.round(seconds / 60)} min`
    : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

export function formatVolume(milliliters) {
  if (milliliters === 0) return "0 mL";
  const digits = milliliters < 10 ? 2 : milliliters < 100 ? 1 : 0;
  return `${milliliters.toLocaleString("en", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  })} mL`;
}
