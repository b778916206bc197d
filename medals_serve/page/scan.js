/* What belongs to one scan: chosen classes, runs, and how classes are drawn. */

/* What tells classes of a modality apart: anatomy and lesions may have the same name. */
export const classKey = ({ kind, name }) => `${kind}/${name}`;

/* A DICOM series, as it is told apart from others of the same file. */
export const seriesName = ({ series_number: number, series_description: description }) =>
  [typeof number === "number" ? `Series ${number}` : "", description].filter(Boolean).join(" · ");

/* One scan of the session.

info      what the service says of it
modality  as the file says it, or the user
chips     the chosen classes, each {label, sentence, name, kind, modality, color}; a label stays
          with its class from run to run, so that a drawing fits the next one
runs      the finished runs; `shown` is the number of the one on display, -1 for none
active    the state of the run that is waiting or running, or null; `isStarting` until it has one
asked     {job, classes} of the run that was started last: its classes with the labels of its result
coarse    the parts of the active run's coarse answer that were fetched so far, as promises
problem   why the run that was started last gave no result, or null
styles    by `classKey`: how a class is drawn */
export class Scan {
  constructor(info, { modality = "", chips = [], asked = null } = {}) {
    this.info = info;
    this.image = info.image;
    this.filename = info.filename;
    this.name = seriesName(info) || info.filename; // for people
    this.modality = info.modality ?? modality;
    this.chips = chips;
    this.runs = [];
    this.shown = -1;
    this.active = null; // the job that is followed
    this.waiting = []; // jobs behind it, which another tab has started
    this.isStarting = false;
    this.asked = asked;
    this.coarse = [];
    this.problem = null;
    this.styles = new Map();
  }

  get run() {
    return this.runs[this.shown] ?? null;
  }

  /* Where neither the file nor the user said the modality, a run that another tab started did. */
  learnModality(run) {
    if (this.modality === "") this.modality = run.classes[0].modality;
  }

  /* A label for a class: the one that it had in a run, or else a free one. */
  labelFor(prompt) {
    const classes = this.runs.flatMap((run) => run.classes);
    const had = classes.findLast((found) => classKey(found) === classKey(prompt))?.label;
    const taken = new Set(this.chips.map(({ label }) => label));
    if (had !== undefined && !taken.has(had)) return had;
    return 1 + Math.max(0, ...taken, ...classes.map(({ label }) => label));
  }

  /* Keeps what the service doesn't know for a reload of this tab. */
  remember() {
    if (!this.image) return;
    sessionStorage.setItem(this.image, JSON.stringify({
      modality: this.modality,
      chips: this.chips,
      asked: this.asked,
    }));
  }

  static recalled(info) {
    return new Scan(info, JSON.parse(sessionStorage.getItem(info.image) ?? "{}"));
  }
}

/* Chosen classes in another modality: those of the same names there; others go. */
export function chipsIn(modality, chips, classes) {
  const known = new Map(classes.filter((entry) => entry.modality === modality)
    .map((entry) => [classKey(entry), entry]));
  return chips.flatMap((chip) => {
    if (chip.modality === modality || modality === "") return [chip];
    const same = known.get(classKey(chip));
    return same ? [{ ...chip, sentence: same.sentence, modality }] : [];
  });
}

/* The prompts of a job, each class with the label of its chip; null for those in the scan's file. */
export function promptsOf(chips) {
  if (chips.length === 0) return null;
  const labeled = (wanted) => Object.fromEntries(chips.filter(({ kind }) => kind === wanted)
    .map(({ label, sentence }) => [String(label), sentence]));
  const anatomy = labeled("anatomy");
  const lesions = labeled("lesion");
  if (Object.keys(anatomy).length === 0) return { ...lesions, instance_label: "1" };
  return Object.keys(lesions).length === 0 ? anatomy : { ...anatomy, lesions };
}

export const chipsOf = (run) =>
  run.classes.map(({ label, sentence, name, kind, modality, color }) =>
    ({ label, sentence, name, kind, modality, color }));

/* The chips after a run: with the labels of the result; those chosen while it ran stay, with theirs
where the result leaves them free. */
export function mergedChips(scan, run) {
  const found = chipsOf(run);
  if (scan.chips.length === 0) return found;
  const ofClass = new Map(found.map((chip) => [classKey(chip), chip]));
  const taken = new Set(found.map(({ label }) => label));
  let free = 1 + Math.max(...[...found, ...scan.chips].map(({ label }) => label));
  return scan.chips.map((chip) => ofClass.get(classKey(chip))
    ?? (taken.has(chip.label) ? { ...chip, label: free++ } : chip));
}
