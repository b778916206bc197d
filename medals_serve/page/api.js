/* The service's API. The session is a cookie, so that a reload finds it again. */

const ROOT = new URL("v1/", document.baseURI);

/* What the service answers when it can't do something (RFC 9457): its own sentence, and a code. */
export class Problem extends Error {
  constructor(status, problem, retryAfterS = null) {
    super(problem.detail || problem.title || `The service answered with status ${status}.`);
    this.status = status;
    this.code = problem.code ?? "";
    this.choices = problem.choices ?? []; // the series of an upload that holds several,
    this.upload = problem.upload ?? null; // and its name, to choose one without sending it again
    this.retryAfterS = retryAfterS;
  }
}

const NO_ANSWER = "The service doesn't answer. Is it still running, and is this computer connected?";
const NOT_THE_SERVICE = "Something else answered in the service's place, such as the sign-in page "
  + "of a network.";

export function address(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function call(method, path, { query, json, body, signal } = {}) {
  const headers = {};
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      headers,
      body: json === undefined ? body : JSON.stringify(json),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: NO_ANSWER, code: "no-answer" });
  }
  if (!response.ok) {
    throw problemOf(response.status, await response.text(), response.headers.get("Retry-After"));
  }
  return response;
}

function problemOf(status, text, retryAfter) {
  let problem = {};
  try {
    problem = JSON.parse(text);
  } catch {
    problem = {}; // a proxy's page: its status says what there is to say
  }
  return new Problem(status, problem, retryAfter === null ? null : Number(retryAfter));
}

const json = async (...args) => (await call(...args)).json();

/* Whether a session was opened in this browser; its secret is a cookie that scripts can't read. */
const OPENED = "medals-session-opened";

export const hasSession = () => localStorage.getItem(OPENED) !== null;

/* What the session holds: {images, jobs}, and how long it lasts without use. */
export const readSession = () => json("GET", "sessions/current");

/* As `readSession`; without a session, opens one, which holds nothing. */
export async function findSession() {
  if (hasSession()) {
    try {
      return await readSession();
    } catch (problem) {
      if (problem.code !== "session-unknown") throw problem;
      localStorage.removeItem(OPENED);
    }
  }
  const opened = await json("POST", "sessions");
  localStorage.setItem(OPENED, "yes");
  return { images: [], jobs: [], expires_in_s: opened.expires_in_s };
}

export async function endSession() {
  await call("DELETE", "sessions/current");
  localStorage.removeItem(OPENED);
  sessionStorage.clear();
}

export const readModel = () => json("GET", "model");
export const readPrompts = (text, modality, kind, signal) =>
  json("GET", "prompts", { query: { q: text, modality, kind }, signal });
export const readVolume = async (image) =>
  (await call("GET", `images/${encodeURIComponent(image)}/volume.nii.gz`)).arrayBuffer();
export const deleteImage = (image) => call("DELETE", `images/${encodeURIComponent(image)}`);
export const sendMask = (image, bytes) =>
  json("POST", "masks", { query: { image, filename: "correction.nii" }, body: bytes });
export const deleteMask = (mask) => call("DELETE", `masks/${encodeURIComponent(mask)}`);
export const startJob = (request) => json("POST", "jobs", { json: request });
const readJob = (job) => json("GET", `jobs/${encodeURIComponent(job)}`);
export const cancelJob = (job) => call("POST", `jobs/${encodeURIComponent(job)}/cancel`);
export const deleteJob = (job) => call("DELETE", `jobs/${encodeURIComponent(job)}`);
/* `what` is a path below the job, `query` what it takes there, such as a format. */
export const readResult = (job, what, query = {}) =>
  call("GET", `jobs/${encodeURIComponent(job)}/${what}`, { query });
export const readLabels = async (job, what, query) =>
  (await readResult(job, what, query)).arrayBuffer();

/* Sends a scan; `onProgress` gets the share that has gone out. Fetch can't tell that. */
export function sendImage(blob, query, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const fail = () => reject(new Problem(0, { detail: NO_ANSWER, code: "no-answer" }));
    request.open("POST", address("images", query));
    signal.addEventListener("abort", () => request.abort());
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    });
    request.addEventListener("load", () => {
      if (request.status >= 300) {
        const retryAfter = request.getResponseHeader("Retry-After");
        reject(problemOf(request.status, request.responseText, retryAfter));
        return;
      }
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        reject(new Problem(request.status, { detail: NOT_THE_SERVICE, code: "not-the-service" }));
      }
    });
    request.addEventListener("abort", () => reject(new DOMException("canceled", "AbortError")));
    request.addEventListener("error", fail);
    request.addEventListener("timeout", fail);
    request.send(blob);
  });
}

/* Between two looks at a job: a tenth of the time that it has been watched, within these. */
const LOOK_MS = { least: 400, most: 3000 };

/* That a later try may be answered: the service restarts, is busy, or a proxy doesn't reach it. */
const isPassing = ({ status }) => [0, 429, 502, 503, 504].includes(status);

/* Calls `onState` with each state of a job until it is done, failed or canceled; `onLost` while the
service doesn't answer, which is tried again; `onProblem` where it answers that there is no job. It
asks now and then: a browser holds six connections to a service, and streams of several jobs in
several tabs would take them all. */
export async function followJob(job, { onState, onLost, onProblem }) {
  const began = performance.now();
  for (let said = ""; ;) {
    try {
      const state = await readJob(job);
      const { seconds_run: _, ...rest } = state;
      const now = JSON.stringify(rest);
      if (now !== said) onState(state);
      if (isOver(state)) return;
      said = now;
    } catch (problem) {
      if (!isPassing(problem)) return onProblem(problem);
      said = "";
      onLost();
    }
    const pause = Math.max(LOOK_MS.least, (performance.now() - began) / 10);
    await new Promise((resolve) => setTimeout(resolve, Math.min(pause, LOOK_MS.most)));
  }
}

export const isOver = (state) => ["done", "failed", "canceled"].includes(state.status);
