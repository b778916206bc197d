r"""Does the service stay right, whole and small under load and faults?

    python benchmarks/serve_load.py --output benchmarks/results/serve_load \
      [--only load,malformed,cases,disk,signals] [--clients 50] [--minutes 5] \
      [--malformed 10000] [--cases 200] [--bundle engines/demo]

Servers run in processes of their own, on the loopback. Results are compared with what
`medals_rt.pipeline.job` makes of the same files, byte by byte.

load
    Clients upload small scans and ask for classes. Some send slowly, some go in the middle of a
    head, of an upload or of a job, some cancel, some send broken files. In three rounds, with a
    rest after each: memory at rest must not grow from round to round.
malformed
    So many broken bodies of the fuzz corpus (`tests/fuzz`), one after the other.
cases
    So many whole cases, one after the other, each in a session of its own, with every kind of
    result; a line is fitted to the server's memory.
disk
    A full disk: a file system of 24 MB where one can be mounted, else a limit of the server.
signals
    SIGTERM and SIGKILL in the middle of jobs.

Memory, file descriptors, threads, child processes and files of the server are taken before and
after. Each part takes its place in the report, so that they may be run one by one.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from reporting import today, write_report

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.io.registry import DICOM_ENDINGS, ENDINGS
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.prompts.classes import by_bank_key
from medals_serve.client import ServedProblemError, ServiceClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests are in no wheel

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import inputs_of

SHAPE = (24, 40, 36)
SPACING_MM = (3.0, 3.0, 4.0)
SCANS = 4
ROUNDS = 3
SAMPLE_S = 5.0
MOST_AT_REST = 1.25
"""What the server may hold after the last round, in parts of what it held after the first."""
TRANSIENT = {"queue-full", "too-many-sessions", "too-many-jobs", "no-room", "server-stopping"}
KINDS = (
    "job",
    "job",
    "job",
    "job",
    "slow",
    "vanish in head",
    "vanish in upload",
    "vanish in job",
    "cancel",
    "broken",
)


@dataclass(frozen=True)
class Task:
    """A file, a prompt, and the bytes that the command line makes of both."""

    scan: bytes
    sentence: str
    expected: bytes


@dataclass
class Tally:
    """What clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, seconds: float | None = None) -> None:
        """Count one."""
        with self.lock:
            self.counts[what] += 1
            if seconds is not None:
                self.seconds.append(seconds)

    def find(self, what: str) -> None:
        """Note what should not be."""
        with self.lock:
            self.findings.append(what)


@dataclass(frozen=True)
class Server:
    """A server in a process of its own, and what it wrote to standard error."""

    process: psutil.Popen
    address: str
    data: Path
    log: Path

    def failures(self) -> list[str]:
        """Return the lines of its log that name a failure of its own."""
        return [
            line for line in self.log.read_text(encoding="utf-8").splitlines() if " ERROR " in line
        ]

    def memory_mib(self) -> int:
        """Return its resident memory."""
        return int(self.process.memory_info().rss) >> 20

    def figures(self) -> dict[str, int]:
        """Return what it holds."""
        with self.process.oneshot():
            return {
                "memory_mib": self.memory_mib(),
                "file_descriptors": self.process.num_fds(),
                "threads": self.process.num_threads(),
                "children": len(self.process.children(recursive=True)),
                "files": sum(path.is_file() for path in self.data.rglob("*")),
            }

    def metric(self, name: str) -> float:
        """Return a figure of `/metrics`, summed over its labels."""
        text = httpx.get(f"{self.address}/metrics", timeout=60).text
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def client(self) -> ServiceClient:
        """Open a session."""
        return ServiceClient(self.address, timeout_s=300)


@contextlib.contextmanager
def serving(bundle: Path, data: Path, *words: str) -> Iterator[Server]:
    """Run `medals-rt serve`."""
    command = [sys.executable, "-m", "medals_rt", "serve", "--bundle", str(bundle), "--port", "0"]
    log = data.with_name(data.name + ".log")
    with log.open("w", encoding="utf-8") as errors:
        process = psutil.Popen(
            [*command, "--data-dir", str(data), *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        found = re.search(r"(http://[^/]+)/", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        yield Server(process, found[1], data, log)
    finally:
        if process.is_running():
            process.kill()
        process.wait()
        process.stdout.close()


def make_tasks(bundle: Path, folder: Path) -> list[Task]:
    """Segment every scan for every sentence, as the command line does."""
    import nibabel

    keys = [by_bank_key(record.bank_key) for record in Bundle.open(bundle).classes]
    chosen = [key for key in keys if (key.modality, key.kind) == ("CT", "anatomy")][:2]
    tasks = []
    for seed in range(SCANS):
        image = np.random.default_rng(seed).normal(40, 120, SHAPE).astype(np.int16)
        path = folder / f"scan{seed}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.transpose(), np.diag([*SPACING_MM, 1.0])), path)
        for key in chosen:
            output, sentence = folder / "labels.nii.gz", f"{key.name} in CT"
            source = PromptSource(sentences=(sentence,))
            run_job(Job(path, output, source, options=RunOptions(bundle=bundle)))
            tasks.append(Task(path.read_bytes(), sentence, output.read_bytes()))
    return tasks


def corpus(seed: int, count: int, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield so many broken files with their endings."""
    endings = {*ENDINGS, *DICOM_ENDINGS}
    targets = [each for each in TARGETS if each.ending in endings]
    for number, target in enumerate(targets):
        own = folder / f"seeds{seed}-{number}"
        own.mkdir(parents=True)
        share = count // len(targets) + (number < count % len(targets))
        for data in inputs_of(target, target.seeds(own), seed, share):
            yield target.ending, data


def slowly(data: bytes, seconds: float, stop: int | None = None) -> Iterator[bytes]:
    """Send in ten parts; with `stop` only so many of them, then fail as a client that goes."""
    part = max(1, len(data) // 10)
    for number, start in enumerate(range(0, len(data), part)):
        if number == stop:
            raise httpx.TransportError("gone")
        time.sleep(seconds / 10)
        yield data[start : start + part]


def send_half_a_head(server: Server, session: str) -> None:
    """Open a connection, send a request's head slowly, and go before it ends."""
    host, _, port = server.address.rpartition("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for part in ("GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n", f"Medals-Session: {session}"):
            connection.sendall(part.encode())
            time.sleep(0.25)


def upload_broken(client: ServiceClient, data: bytes, ending: str) -> None:
    """Upload what may be refused, but must not fail."""
    try:
        client.upload(data, filename=f"scan{ending}")
    except ServedProblemError as error:
        if error.status >= 500 and error.code not in TRANSIENT:
            raise


def act(
    server: Server, kind: str, task: Task, broken: Iterator[tuple[str, bytes]], tally: Tally
) -> None:
    """Be one client once."""
    began = time.monotonic()
    client = server.client()
    try:
        where = {"filename": "scan.nii.gz"}
        if kind == "vanish in head":
            send_half_a_head(server, client.http.headers["Medals-Session"])
            return
        if kind == "broken":
            ending, data = next(broken)
            upload_broken(client, data, ending)
        elif kind == "vanish in upload":
            with contextlib.suppress(httpx.TransportError):
                client.http.post("/v1/images", params=where, content=slowly(task.scan, 0.5, 5))
            return  # without ending the session
        else:
            pause = 3.0 if kind == "slow" else 0.0
            answer = client.http.post("/v1/images", params=where, content=slowly(task.scan, pause))
            if answer.is_error:
                raise ServedProblemError(answer.json())
            job = client.submit(answer.json(), [task.sentence])
            if kind == "vanish in job":
                next(client.watch(job))
                return
            if kind == "cancel":
                client.cancel(job)
                with contextlib.suppress(ServedProblemError):
                    client.wait(job)
            else:
                content = client.fetch(client.wait(job))
                if content != task.expected:
                    tally.find(f"a wrong result for {task.sentence!r}")
        tally.add(kind, time.monotonic() - began if kind == "job" else None)
    finally:
        if kind.startswith("vanish"):
            client.http.close()
            tally.add(kind)
        else:
            client.close()


@dataclass(frozen=True)
class Asked:
    """What a part needs to know."""

    bundle: Path
    scratch: Path
    tasks: list[Task]
    clients: int
    minutes: float
    malformed: int
    cases: int


@contextlib.contextmanager
def watched(server: Server) -> Iterator[list[dict[str, int]]]:
    """Write down now and then what a server holds in the block."""
    rows: list[dict[str, int]] = []
    over, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            rows.append(
                {
                    "second": round(time.monotonic() - began),
                    "memory_mib": server.memory_mib(),
                    "kept_mib": int(server.metric("medals_kept_bytes")) >> 20,
                    "sessions": int(server.metric("medals_sessions")),
                    "jobs": int(server.metric("medals_jobs_total")),
                }
            )

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield rows
    finally:
        over.set()
        thread.join()


def by_minute(rows: list[dict[str, int]]) -> list[dict[str, int]]:
    """Choose the row of each minute in which the server held most."""
    minutes: dict[int, dict[str, int]] = {}
    for row in rows:
        known = minutes.setdefault(row["second"] // 60, row)
        if row["memory_mib"] > known["memory_mib"]:
            minutes[row["second"] // 60] = row
    return [minutes[minute] for minute in sorted(minutes)]


def load(asked: Asked) -> dict[str, Any]:
    """Let clients come and go for a while, rest, and do so again."""
    words = ("--idle", "20", "--max-queue", "64")
    with serving(asked.bundle, asked.scratch / "load", *words) as server:
        live_together(server, asked, 4, 20)  # what the first use keeps
        rest(server)
        before = server.figures()
        tally, at_rest = Tally(), []
        with watched(server) as rows:
            for _ in range(ROUNDS):
                live_together(server, asked, asked.clients, 60 * asked.minutes / ROUNDS, tally)
                rest(server)
                at_rest.append(server.memory_mib())
        if at_rest[-1] > MOST_AT_REST * at_rest[0]:
            tally.find(f"memory at rest grows from round to round: {at_rest} MiB")
        return {
            "clients": asked.clients,
            "minutes": asked.minutes,
            "before": before,
            "after": server.figures(),
            "at_rest_mib": at_rest,
            "over_time": by_minute(rows),
            "done": dict(tally.counts.most_common()),
            "job_s_median": round(float(np.median(tally.seconds or [0])), 2),
            "job_s_95": round(float(np.percentile(tally.seconds or [0], 95)), 2),
            "findings": tally.findings + server.failures(),
        }


def rest(server: Server) -> None:
    """Wait until the sessions of clients that went have ended, and a little longer."""
    until = time.monotonic() + 300
    while server.metric("medals_sessions"):
        if time.monotonic() > until:
            raise SystemExit("sessions of clients that went don't end")
        time.sleep(1)
    time.sleep(20)  # connections of clients that went are closed


def live_together(
    server: Server, asked: Asked, clients: int, seconds: float, tally: Tally | None = None
) -> None:
    """Let so many clients come and go for so long, and tally what they saw."""
    tally = tally or Tally()
    until = time.monotonic() + seconds
    seeds = Path(tempfile.mkdtemp(dir=asked.scratch))

    def live(number: int) -> None:
        rng = np.random.default_rng(number)
        broken = corpus(1000 + number, 100_000, seeds)
        while time.monotonic() < until:
            kind = KINDS[int(rng.integers(len(KINDS)))]
            task = asked.tasks[int(rng.integers(len(asked.tasks)))]
            try:
                act(server, kind, task, broken, tally)
            except ServedProblemError as error:
                tally.add(f"refused: {error.code}")
                if error.code not in TRANSIENT:
                    tally.find(f"{kind}: {error.status} {error.code}: {error}")
                time.sleep(float(rng.uniform(0.2, 1.0)))
            except Exception as error:  # noqa: BLE001 - what is looked for
                tally.find(f"{kind}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=live, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 600)
        if thread.is_alive():
            tally.find("a client hangs")


def malformed(asked: Asked) -> dict[str, Any]:
    """Send broken bodies one after the other."""
    codes: Counter[str] = Counter()
    findings, slowest = [], 0.0
    with serving(asked.bundle, asked.scratch / "malformed") as server:
        before = {}
        with server.client() as client:
            for number, (ending, data) in enumerate(
                corpus(7, asked.malformed, asked.scratch / "corpus")
            ):
                if number == min(200, asked.malformed // 2):  # what the first use keeps
                    before = server.figures()
                began = time.monotonic()
                given = {"filename": f"scan{ending}"}
                answer = client.http.post("/v1/images", params=given, content=data)
                slowest = max(slowest, time.monotonic() - began)
                codes[f"{answer.status_code} {answer.json().get('code', 'read')}"] += 1
                if answer.status_code >= 500:
                    findings.append(f"{answer.status_code} for {ending}: {answer.text[:200]}")
                if answer.status_code == 201:
                    client.delete_image(answer.json())
        return {
            "sent": sum(codes.values()),
            "before": before,
            "after": server.figures(),
            "answers": dict(codes.most_common()),
            "slowest_s": round(slowest, 2),
            "findings": findings + server.failures(),
        }


def cases(asked: Asked) -> dict[str, Any]:
    """Do whole cases, and fit a line to the memory that the server holds after each."""
    figures, findings = [], []
    with serving(asked.bundle, asked.scratch / "cases") as server:
        for number in range(asked.cases):
            task = asked.tasks[number % len(asked.tasks)]
            with server.client() as client:
                job = client.segment(
                    client.upload(task.scan, filename="scan.nii.gz"), [task.sentence]
                )
                if client.fetch(job) != task.expected:
                    findings.append(f"case {number}: a wrong result for {task.sentence!r}")
                client.fetch(job, format="seg.nrrd")
                client.fetch(job, "preview.png")
                client.statistics(job)
                client.report(job)
            figures.append(server.figures())
        time.sleep(20)  # connections of clients that went are closed
        after = server.figures()
        findings += server.failures()
    settled = figures[len(figures) // 2 :]  # the heap finds its size first
    memory = np.array([each["memory_mib"] for each in settled], float)
    (slope, _), covariance = np.polyfit(np.arange(len(memory)), memory, 1, cov=True)
    return {
        "cases": asked.cases,
        "before": settled[0],
        "after": after,
        "fitted_from_case": len(figures) - len(settled),
        "mib_per_case": round(float(slope), 4),
        "mib_per_case_error": round(float(np.sqrt(covariance[0, 0])), 4),
        "memory_mib": [each["memory_mib"] for each in figures],
        "findings": findings,
    }


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, list[str], str]]:
    """Mount a file system of 24 MB where that can be done, else take a limit."""
    folder.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield folder, ["--max-disk", "24MB"], "a limit of the server"
        return
    try:
        yield folder, ["--min-free", "1"], "a file system of 24 MB"
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=False)


def full_disk(asked: Asked) -> dict[str, Any]:
    """Fill the disk with uploads, and use the server again when there is room."""
    codes: Counter[str] = Counter()
    task = asked.tasks[0]
    with (
        small_disk(asked.scratch / "disk") as (data, words, what),
        serving(asked.bundle, data, *words) as server,
    ):
        with server.client() as client:
            for _ in range(4):
                try:
                    client.upload(os.urandom(8 << 20), filename="scan.nii")
                except ServedProblemError as error:
                    codes[f"{error.status} {error.code}"] += 1
            image = client.upload(task.scan, filename="scan.nii.gz")
            held: list[dict[str, Any]] = []
            while len(held) < 20:
                try:
                    held += [client.upload(_large_scan(), filename="scan.nii")]
                except ServedProblemError as error:
                    codes[f"{error.status} {error.code}"] += 1
                    break
            for each in held:
                client.delete_image(each)
            content = client.fetch(client.segment(image, [task.sentence]))
        left = server.figures()["files"] - 1  # its lock
        findings = server.failures()
        if content != task.expected:
            findings.append("a wrong result after the disk was full")
        return {"disk": what, "answers": dict(codes), "files_left": left, "findings": findings}


def _large_scan() -> bytes:
    import nibabel

    image = np.random.default_rng(0).integers(0, 255, (100, 200, 200)).astype(np.uint8)
    content: bytes = nibabel.Nifti1Image(image, np.eye(4)).to_bytes()
    return content


def signals(asked: Asked) -> dict[str, Any]:
    """End servers in the middle of jobs."""
    found: dict[str, Any] = {"findings": []}
    bundle, folder = asked.bundle, asked.scratch / "signals"
    folder.mkdir()
    for name, number in (("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
        with serving(bundle, folder, "--grace", "5") as server:
            clients = [server.client() for _ in range(4)]
            for client, task in zip(clients, asked.tasks, strict=False):
                for _ in range(2):
                    client.submit(client.upload(task.scan, filename="scan.nii.gz"), [task.sentence])
            children = server.process.children(recursive=True)
            began = time.monotonic()
            server.process.send_signal(number)
            code = int(server.process.wait(120))
            seconds = time.monotonic() - began
            for client in clients:
                client.close()
            gone = psutil.wait_procs(children, timeout=20)[1] == []
            if not gone:
                found["findings"].append(f"{name}: readers outlive the server")
        found[name] = {
            "exit_code": code,
            "seconds": round(seconds, 2),
            "children_gone": gone,
            "files_left": sum(path.is_file() for path in folder.rglob("*")),
        }
    with serving(bundle, folder) as server:
        found["files_left_after_restart"] = server.figures()["files"] - 1  # its lock
    if found["files_left_after_restart"]:
        found["findings"].append("files are left after a restart")
    return found


PARTS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "load": load,
    "malformed": malformed,
    "cases": cases,
    "disk": full_disk,
    "signals": signals,
}


def main() -> None:
    """Run the parts and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--bundle", type=Path, default=Path("engines/demo"))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, between commas")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=200)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        asked = Asked(
            words.bundle, scratch, make_tasks(words.bundle, scratch),
            words.clients, words.minutes, words.malformed, words.cases,
        )  # fmt: skip
        for part in words.only.split(","):
            began, others = time.monotonic(), os.getloadavg()[0]
            found = PARTS[part](asked)
            found |= {
                "date": today(),
                "seconds": round(time.monotonic() - began),
                "load_average_before": round(others, 1),
            }
            report: dict[str, Any] = {"parts": {}}
            if (known := words.output.with_suffix(".json")).exists():
                report = json.loads(known.read_text(encoding="utf-8"))
            report["parts"][part] = found
            report |= {"machine": machine_facts(), "versions": library_versions()}
            write_report(words.output, report, text_of(report))


def text_of(report: dict[str, Any]) -> str:
    """Write the figures for people."""
    parts, machine = report["parts"], report["machine"]
    lines = [_WRITERS[name](parts[name]) + _when(parts[name]) for name in PARTS if name in parts]
    findings = [f"{name}: {each}" for name in parts for each in parts[name]["findings"]]
    held = [name for name in PARTS if "before" in parts.get(name, {})]
    rows = [
        f"| {what} | "
        + " | ".join(
            f"{parts[name]['before'][what]}, {parts[name]['after'][what]}" for name in held
        )
        + " |"
        for what in ("memory_mib", "file_descriptors", "threads", "children", "files")
    ]
    body = "\n".join(lines)
    table = "\n".join(
        [f"| before, after | {' | '.join(held)} |", f"|---|{'---:|' * len(held)}", *rows]
    )
    return f"""# The service under load and faults

{machine["processor"]}, {machine["cores"]} cores. Repeat it: `python benchmarks/serve_load.py`.
Every result is compared with that of the command line, byte by byte. Where other work ran at the
same time (load average before), times say little, the rest does.

**Findings: {"; ".join(findings) or "none"}.**

{body}

What the server holds, once warm and at the end; one of the files is its lock:

{table}
{_over_time(parts["load"]["over_time"]) if "load" in parts else ""}"""


def _over_time(rows: list[dict[str, int]]) -> str:
    lines = [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    table = "\n".join(lines)
    return f"""
Under load, when it held most in each minute; what is kept (`medals_kept_bytes`) goes with the
sessions:

| second | memory, MiB | kept, MiB | sessions | jobs so far |
|---:|---:|---:|---:|---:|
{table}
"""


def _when(part: dict[str, Any]) -> str:
    lasted = f"{part['seconds']} s, " if "seconds" in part else ""
    return f"\n  ({part['date']}, {lasted}load average {part['load_average_before']})"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items())


def _load_text(part: dict[str, Any]) -> str:
    most = max(part["over_time"], key=lambda row: row["memory_mib"])
    return (
        f"- {part['clients']} clients for {part['minutes']:g} minutes: {_listed(part['done'])}.\n"
        "  From upload to result, behind all others in the queue: "
        f"median {part['job_s_median']} s, 95 % within {part['job_s_95']} s.\n"
        f"  In {len(part['at_rest_mib'])} rounds; memory at rest, no session open: "
        f"{part['before']['memory_mib']} MiB before, "
        f"{', '.join(map(str, part['at_rest_mib']))} after each.\n"
        f"  At most {most['memory_mib']} MiB, {most['kept_mib']} of them kept for later jobs of "
        f"{most['sessions']} sessions."
    )


def _malformed_text(part: dict[str, Any]) -> str:
    return (
        f"- {part['sent']:,} broken bodies: {_listed(part['answers'])};\n"
        f"  the slowest answer took {part['slowest_s']} s."
    )


def _cases_text(part: dict[str, Any]) -> str:
    highest = [int(max(quarter)) for quarter in np.array_split(part["memory_mib"], 4)]
    return (
        f"- {part['cases']} cases, one after the other: the server's memory is at most "
        f"{', '.join(map(str, highest))} MiB in each quarter of them.\n"
        "  It falls and rises by what pictures leave for Python's collector of cycles; "
        f"a line from case {part['fitted_from_case']} on\n"
        f"  rises by {part['mib_per_case']} +- {part['mib_per_case_error']} MiB a case."
    )


def _disk_text(part: dict[str, Any]) -> str:
    return (
        f"- A full disk ({part['disk']}): {_listed(part['answers'])}; the next result is right; "
        f"files left: {part['files_left']}."
    )


def _signals_text(part: dict[str, Any]) -> str:
    return (
        "- SIGTERM in the middle of a job, with 5 seconds of grace and 7 jobs waiting: "
        f"{_ending(part['SIGTERM'])}.\n  SIGKILL: {_ending(part['SIGKILL'])}; "
        f"after the next start: {part['files_left_after_restart']}."
    )


_WRITERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "load": _load_text,
    "malformed": _malformed_text,
    "cases": _cases_text,
    "disk": _disk_text,
    "signals": _signals_text,
}


def _ending(found: dict[str, Any]) -> str:
    gone = "gone" if found["children_gone"] else "still there"
    return (
        f"exit code {found['exit_code']} after {found['seconds']} s, its readers {gone}, "
        f"files left: {found['files_left']}"
    )


if __name__ == "__main__":
    main()
