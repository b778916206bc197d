/* Runs of a scan: starts them, follows their jobs, and shows what they find. */

import * as api from "./api.js";
import { announce, byId, formatSeconds, plural, show } from "./dom.js";
import { ask, showProblem } from "./messages.js";
import { stylesOf } from "./results.js";
import { classKey, mergedChips, promptsOf } from "./scan.js";

export class Runs {
  /* `current()` is the scan that is open, or one without an image; `onChange` follows what a run
  changes of its scan; `mayDrop()` asks whether a drawing may go. */
  constructor(viewer, pen, results, { current, onChange, mayDrop }) {
    this.viewer = viewer;
    this.pen = pen;
    this.results = results;
    this.current = current;
    this.onChange = onChange;
    this.isCoarse = false; // what the viewer shows is a coarse answer, not a result
    this.displayed = undefined; // the run whose labels the viewer shows; null: that there is none
    this.stage = ""; // that was announced last
    byId("run").addEventListener("click", () => this.start());
    byId("cancel").addEventListener("click", () => this.cancel());
    const step = async (count) => {
      if (await mayDrop()) await this.show(current(), current().shown + count);
    };
    byId("undo-run").addEventListener("click", () => step(-1));
    byId("redo-run").addEventListener("click", () => step(1));
  }

  async start() {
    const scan = this.current();
    if (scan.isStarting) return; // not by disabling the button, which would lose the focus
    scan.isStarting = true;
    scan.problem = null;
    this.refreshProblem();
    byId("run-hint").textContent = "";
    try {
      if (await this.mayLoseCorrections(scan)) await this.send(scan, this.corrects(scan));
    } catch (error) {
      await this.failToStart(scan, error);
    }
    scan.isStarting = false;
    this.refresh();
  }

  async send(scan, corrects) {
    const classes = [...scan.chips];
    const request = {
      image: scan.image,
      modality: scan.modality,
      prompts: promptsOf(classes),
      options: {
        preset: byId("preset").value,
        probabilities: byId("probabilities").checked,
      },
      ...await this.drawingOf(scan, corrects),
    };
    const started = await api.startJob(request);
    scan.asked = { job: started.job, classes };
    scan.remember();
    this.follow(scan, started);
    // The service compared it with the result; for a session holds so many masks only.
    if (request.corrects && request.spatial_prompts) {
      await api.deleteMask(request.spatial_prompts);
    }
  }

  /* The chosen labels that the drawing has changed. */
  changed(scan) {
    const touched = this.viewer.isDrawing ? this.viewer.changedLabels() : new Set();
    return scan.chips.map(({ label }) => label).filter((label) => touched.has(label));
  }

  /* Whether the next run corrects the result that is shown: only around what was drawn over it
  something is found again, and what was corrected before is kept. */
  corrects(scan) {
    const { viewer } = this;
    const labels = scan.chips.map(({ label }) => label);
    return keepsLabels(scan)
      && (this.changed(scan).length === 0 || viewer.drawable(labels).length === labels.length);
  }

  /* Asks before a run that finds anew what was corrected by hand. */
  async mayLoseCorrections(scan) {
    if (scan.run === null || this.corrects(scan)) return true;
    if (!isCorrected(scan.run) && this.changed(scan).length === 0) return true;
    return await ask({
      heading: "Segment without the corrections?",
      text: "They can't be kept with these classes: all of it would be found again. "
        + "The result so far stays behind “Undo run”.",
      choices: [{ value: "yes", text: "Segment anew" }],
    }) !== null;
  }

  /* Sends what was drawn, and returns what a job is asked for because of it. */
  async drawingOf(scan, corrects) {
    const { viewer } = this;
    const changed = this.changed(scan);
    const sent = async (bytes) =>
      ({ spatial_prompts: (await api.sendMask(scan.image, bytes)).mask });
    if (corrects) {
      const asked = { corrects: scan.run.job };
      if (changed.length === 0) return asked;
      const labels = scan.chips.map(({ label }) => label);
      return { ...asked, ...await sent((await viewer.drawingFile(labels)).bytes) };
    }
    if (changed.length === 0) return {};
    const { bytes, drawn } = await viewer.drawingFile(changed);
    const erased = scan.chips.filter(({ label }) => changed.includes(label) && !drawn.has(label));
    if (erased.length > 0) {
      const names = erased.map(({ name }) => name).join(", ");
      byId("run-hint").textContent = `Erased altogether, so found again from its name: ${names}.`;
    }
    return drawn.size === 0 ? {} : sent(bytes);
  }

  async failToStart(scan, error) {
    if (error.code !== "job-unknown") return this.fail(scan, error);
    const isDrawn = this.changed(scan).length > 0;
    if (!isDrawn) return this.takeReplaced(scan);
    const answer = await ask({
      heading: "This result was replaced in another tab",
      text: "The drawing can't correct it any more, but it can guide a new run.",
      choices: [{ value: "yes", text: "Segment with the drawing" }],
    });
    if (answer === null) return showProblem("run-problem", { detail: REPLACED });
    try {
      await this.reload(scan);
      await this.send(scan, false);
    } catch (problem) {
      this.fail(scan, problem);
    }
  }

  /* Shows the newest result where the one that was shown was undone and replaced in another tab. */
  async takeReplaced(scan) {
    try {
      await this.reload(scan);
      if (scan !== this.current()) return;
      await this.show(scan, scan.shown);
      showProblem("run-problem", { detail: `${REPLACED} The newest is shown.` });
    } catch (error) {
      this.fail(scan, error);
    }
  }

  /* Takes the runs that the service has now. */
  async reload(scan) {
    const { jobs } = await api.readSession();
    scan.runs = jobs.filter(({ image, status }) => image === scan.image && status === "done");
    scan.shown = scan.runs.length - 1;
  }

  async cancel() {
    const scan = this.current();
    const { active } = scan;
    if (active === null) return;
    byId("job-text").textContent = "Canceling …";
    try {
      await api.cancelJob(active.job);
    } catch (error) {
      this.fail(scan, error);
    }
  }

  // Following -------------------------------------------------------------------------------------

  follow(scan, first) {
    scan.active = first;
    scan.coarse = [];
    const isFollowed = () => scan.active?.job === first.job;
    api.followJob(first.job, {
      onState: (job) => {
        if (isFollowed()) this.take(scan, job);
      },
      onLost: () => {
        if (!isFollowed() || scan !== this.current()) return;
        byId("job-text").textContent = "The service doesn't answer; trying again …";
      },
      onProblem: (problem) => {
        if (!isFollowed()) return;
        this.followNext(scan);
        this.fail(scan, problem);
        // Nobody refines a coarse answer now.
        if (scan === this.current() && this.isCoarse) this.show(scan, scan.shown);
        else this.onChange();
      },
    });
  }

  /* Follows the job behind the one that was followed, if any: jobs run one after another. */
  followNext(scan) {
    scan.active = null;
    if (scan.waiting.length > 0) this.follow(scan, scan.waiting.shift());
  }

  /* The scan is removed, and its jobs with it. */
  unfollow(scan) {
    scan.active = null;
    scan.waiting = [];
  }

  /* Takes a new state of the job that is followed. */
  async take(scan, job) {
    if (!api.isOver(job)) {
      scan.active = job;
      if (scan === this.current()) this.refresh();
      if (job.coarse_parts > scan.coarse.length) await this.showCoarse(scan);
      return;
    }
    this.followNext(scan);
    const isOpen = scan === this.current();
    if (job.status === "done") await this.add(scan, job);
    else if (job.status === "failed") this.fail(scan, job.problem);
    else if (isOpen) {
      byId("run-hint").textContent = "Canceled.";
      announce("Canceled");
    }
    const isLeft = job.status !== "done" && scan.coarse.length > 0;
    if (isOpen && isLeft && !this.viewer.isDrawing) await this.show(scan, scan.shown);
    this.onChange();
  }

  /* Tells what went wrong with a scan's runs, until the next one starts; where another scan is open,
  when that scan is opened again. */
  fail(scan, problem) {
    scan.problem = problem;
    this.refreshProblem();
    this.onChange();
  }

  refreshProblem() {
    const { problem } = this.current();
    if (problem === null) show(byId("run-problem"), false);
    else showProblem("run-problem", problem);
  }

  /* Adds a run that is done behind the one that is shown. */
  async add(scan, job) {
    const undone = scan.runs.slice(scan.shown + 1);
    scan.runs = [...scan.runs.slice(0, scan.shown + 1), job];
    // They can't be seen again: a reload would show them, and a session holds so many jobs only.
    for (const run of undone) {
      api.deleteJob(run.job).catch((error) => {
        if (error.code !== "job-unknown") this.fail(scan, error); // else another tab did it
      });
    }
    scan.chips = mergedChips(scan, job);
    scan.learnModality(job);
    if (scan === this.current()) await this.show(scan, scan.runs.length - 1);
    else scan.shown = scan.runs.length - 1;
    const found = job.classes.filter(({ voxels }) => voxels > 0).length;
    const all = plural(job.classes.length, "class", "classes");
    announce(`${scan.name}: done, ${found} of ${all} found`);
  }

  // Showing ---------------------------------------------------------------------------------------

  /* Shows a run of the open scan, or with -1 none. */
  async show(scan, number) {
    scan.shown = number;
    const { run } = scan;
    const styles = run === null ? new Map() : stylesOf(run, scan.styles);
    this.displayed = undefined; // what is drawn now would be drawn on other labels
    this.pen.stop();
    this.results.show(run, styles, scan.info.output_formats);
    this.onChange();
    try {
      const labels = run === null ? []
        : [await api.readLabels(run.job, "result", { format: "nii.gz" })];
      if (this.current() !== scan || scan.run !== run) return;
      if (!await this.viewer.showLabels(labels, styles)) return;
      this.displayed = run;
      this.markCoarse(false);
      this.onChange();
    } catch (error) {
      if (this.current() !== scan || scan.run !== run) return;
      if (error.code === "job-unknown") return this.takeReplaced(scan);
      showProblem("run-problem", error, () => {
        this.refreshProblem();
        return this.show(scan, scan.shown);
      });
      await this.viewer.showLabels([], styles); // neither another run's nor a coarse answer
      this.markCoarse(false);
    }
  }

  /* Shows the coarse answer until the result takes its place; a drawing that guides the run stays.
  What the file asks for has no colors before the result. */
  async showCoarse(scan) {
    const { viewer } = this;
    const { active, asked, coarse } = scan;
    const isOn = () => scan === this.current() && scan.active?.job === active.job
      && viewer.hasScan && !viewer.isDrawing;
    if (!active?.coarse_parts || asked?.job !== active.job || asked.classes.length === 0) return;
    if (!isOn()) return;
    while (coarse.length < active.coarse_parts) {
      coarse.push(api.readLabels(active.job, `coarse/${coarse.length + 1}`));
    }
    try {
      const parts = await Promise.all(coarse);
      if (!isOn() || !await viewer.showLabels(parts, stylesOf(asked, scan.styles))) return;
      this.displayed = undefined;
      if (!this.isCoarse) announce("The first answer is shown and being refined");
      this.markCoarse(true);
    } catch (error) {
      if (isOn()) this.fail(scan, error);
    }
  }

  markCoarse(isCoarse) {
    this.isCoarse = isCoarse;
    show(byId("first-answer"), isCoarse);
  }

  /* Shows what can be run, what runs, and which run is shown. */
  refresh() {
    const scan = this.current();
    this.refreshButtons(scan);
    byId("result-text").textContent = scan.run !== null
      ? `Run ${scan.shown + 1} of ${scan.runs.length}, ${formatSeconds(scan.run.seconds_run)}`
      : scan.runs.length > 0 ? "Undone: no result is shown." : "Volumes appear here after a run.";
    document.title = [scan.active === null ? "" : describe(scan.active), scan.name, "medals-rt"]
      .filter(Boolean).join(" · ");
    if (scan.active === null) this.stage = "";
    else this.refreshJob(scan.active);
  }

  refreshButtons(scan) {
    const { viewer } = this;
    const rests = scan.active === null;
    const fromFile = scan.chips.length === 0 && scan.info.has_prompts;
    const missing = !scan.image ? "Choose a scan first."
      : scan.modality === "" ? "Choose the modality: the file doesn't say it."
        : scan.chips.length === 0 && !fromFile ? "Choose a class first." : "";
    byId("missing").textContent = missing;
    byId("run").disabled = missing !== "";
    byId("run").textContent = viewer.isDrawing && viewer.strokes > 0 ? "Segment with the drawing"
      : fromFile ? "Segment what the file asks for" : scan.run ? "Segment again" : "Segment";
    byId("undo-run").disabled = scan.shown < 0 || !rests;
    byId("redo-run").disabled = scan.shown >= scan.runs.length - 1 || !rests;
    byId("draw").disabled = !viewer.hasScan || scan.chips.length === 0 || !rests
      || this.displayed !== scan.run;
    this.pen.hold(!rests);
    swapFocus(rests ? ["cancel", "run"] : ["run", "cancel"], () => {
      show(byId("run"), rests);
      show(byId("job"), !rests);
    });
  }

  refreshJob(job) {
    byId("job-text").textContent = describe(job);
    const bar = byId("job-progress");
    if (job.windows_total) {
      bar.max = job.windows_total;
      bar.value = job.windows_done;
    } else bar.removeAttribute("value");
    const stage = job.stage ?? job.status;
    if (stage === this.stage) return;
    this.stage = stage;
    announce(describe(job));
  }
}

const REPLACED = "This result was replaced in another tab.";

/* Whether the result that is shown can be corrected by a run of the chosen classes: in it, their
labels are of no other class. */
function keepsLabels(scan) {
  if (scan.run === null) return false;
  const name = (each) => `${each.modality}/${classKey(each)}`;
  const own = new Map(scan.run.classes.map((found) => [found.label, name(found)]));
  return scan.chips.every((chip) => (own.get(chip.label) ?? name(chip)) === name(chip));
}

const isCorrected = ({ notes }) => notes.some(({ code }) => code === "corrected");

const STAGES = { coarse: "First look", fine: "Refining" };

function describe(job) {
  if (job.status === "queued") {
    return job.position > 0 ? `Waiting: ${plural(job.position, "run")} before this one` : "Waiting";
  }
  if (!job.stage) return "Preparing";
  const stage = STAGES[job.stage] ?? job.stage;
  const windows = job.windows_total ? `, part ${job.windows_done} of ${job.windows_total}` : "";
  const left = job.seconds_left === null || job.seconds_left === undefined ? ""
    : `, about ${formatSeconds(job.seconds_left)} left`;
  return `${stage}${windows}${left}`;
}

/* Does what hides one element and shows another, and takes the focus along. */
function swapFocus([hidden, shown], swap) {
  const focused = document.activeElement === byId(hidden);
  swap();
  if (focused) byId(shown).focus();
}
