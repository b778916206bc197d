r"""Does the service stay right, whole and small under load and faults?

    python benchmarks/serve_load.py --output benchmarks/results/serve_load \
      [--clients 50] [--minutes 5] [--malformed 10000] [--bundle engines/demo]

A server runs in a process of its own, on the loopback. Clients upload small scans and ask for
classes; each result is compared with what `medals_rt.pipeline.job` makes of the same file, byte by
byte. Some send slowly, some go in the middle of an upload or of a job, some cancel, some send
broken files of the fuzz corpus (`tests/fuzz`). Then so many broken bodies are sent one after the
other. Memory, file descriptors, threads and files of the server are taken before and after. Last
come a full disk (a file system of 24 MB where one can be mounted, else a limit of the server), and
SIGTERM and SIGKILL in the middle of jobs.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
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
from medals_rt.pipeline.job import Job, run_job
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.prompts.classes import by_bank_key
from medals_serve.client import ServedProblemError, ServiceClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests are in no wheel

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import inputs_of

SHAPE = (24, 40, 36)
SPACING_MM = (3.0, 3.0, 4.0)
SCANS = 4
TRANSIENT = {"queue-full", "too-many-sessions", "too-many-jobs", "no-room", "server-stopping"}
KINDS = (
    "job",
    "job",
    "job",
    "job",
    "slow",
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
    """A server in a process of its own."""

    process: psutil.Popen
    address: str
    data: Path

    def figures(self) -> dict[str, int]:
        """Return what it holds."""
        with self.process.oneshot():
            return {
                "memory_mib": self.process.memory_info().rss >> 20,
                "file_descriptors": self.process.num_fds(),
                "threads": self.process.num_threads(),
                "children": len(self.process.children(recursive=True)),
                "files": sum(path.is_file() for path in self.data.rglob("*")),
            }

    def client(self) -> ServiceClient:
        """Open a session."""
        return ServiceClient(self.address, timeout_s=300)


@contextlib.contextmanager
def serving(bundle: Path, data: Path, *words: str) -> Iterator[Server]:
    """Run `medals-rt serve`."""
    command = [sys.executable, "-m", "medals_rt", "serve", "--bundle", str(bundle), "--port", "0"]
    process = psutil.Popen(
        [*command, "--data-dir", str(data), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        found = re.search(r"(http://[^/]+)/", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        yield Server(process, found[1], data)
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


def load(server: Server, tasks: list[Task], clients: int, seconds: float, scratch: Path) -> Tally:
    """Let clients come and go for a while."""
    tally = Tally()
    until = time.monotonic() + seconds

    def live(number: int) -> None:
        rng = np.random.default_rng(number)
        broken = corpus(1000 + number, 100_000, scratch)
        while time.monotonic() < until:
            kind = KINDS[int(rng.integers(len(KINDS)))]
            task = tasks[int(rng.integers(len(tasks)))]
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
    return tally


def malformed(server: Server, count: int, scratch: Path) -> dict[str, Any]:
    """Send broken bodies one after the other."""
    codes: Counter[str] = Counter()
    findings, slowest = [], 0.0
    with server.client() as client:
        for ending, data in corpus(7, count, scratch):
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
        "answers": dict(codes.most_common()),
        "slowest_s": round(slowest, 2),
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


def full_disk(bundle: Path, tasks: list[Task], folder: Path) -> dict[str, Any]:
    """Fill the disk with uploads, and use the server again when there is room."""
    codes: Counter[str] = Counter()
    with small_disk(folder) as (data, words, what), serving(bundle, data, *words) as server:
        with server.client() as client:
            for _ in range(4):
                try:
                    client.upload(os.urandom(8 << 20), filename="scan.nii")
                except ServedProblemError as error:
                    codes[f"{error.status} {error.code}"] += 1
            image = client.upload(tasks[0].scan, filename="scan.nii.gz")
            held: list[dict[str, Any]] = []
            while len(held) < 20:
                try:
                    held += [client.upload(_large_scan(), filename="scan.nii")]
                except ServedProblemError as error:
                    codes[f"{error.status} {error.code}"] += 1
                    break
            for each in held:
                client.delete_image(each)
            content = client.fetch(client.segment(image, [tasks[0].sentence]))
        return {
            "disk": what,
            "answers": dict(codes),
            "right_afterwards": content == tasks[0].expected,
            "files_left": server.figures()["files"] - 1,  # its lock
        }


def _large_scan() -> bytes:
    import nibabel

    image = np.random.default_rng(0).integers(0, 255, (100, 200, 200)).astype(np.uint8)
    content: bytes = nibabel.Nifti1Image(image, np.eye(4)).to_bytes()
    return content


def signals(bundle: Path, tasks: list[Task], folder: Path) -> dict[str, Any]:
    """End servers in the middle of jobs."""
    found: dict[str, Any] = {}
    folder.mkdir()
    for name, number in (("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
        with serving(bundle, folder, "--grace", "5") as server:
            clients = [server.client() for _ in range(4)]
            for client, task in zip(clients, tasks, strict=False):
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
        found[name] = {
            "exit_code": code,
            "seconds": round(seconds, 2),
            "children_gone": gone,
            "files_left": sum(path.is_file() for path in folder.rglob("*")),
        }
    with serving(bundle, folder) as server:
        found["files_left_after_restart"] = server.figures()["files"] - 1  # its lock
    return found


def main() -> None:
    """Run all of it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--bundle", type=Path, default=Path("engines/demo"))
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--malformed", type=int, default=1000)
    asked = parser.parse_args()
    report: dict[str, Any] = {
        "date": today(), "clients": asked.clients, "minutes": asked.minutes,
        "load_average_before": os.getloadavg()[0],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tasks = make_tasks(asked.bundle, scratch)
        data = scratch / "data"
        with serving(asked.bundle, data, "--idle", "20", "--max-queue", "64") as server:
            tally = load(server, tasks, 4, 20, scratch / "warm")  # what the first use keeps
            time.sleep(30)
            report["before"] = server.figures()
            tally = load(server, tasks, asked.clients, 60 * asked.minutes, scratch / "load")
            time.sleep(40)  # sessions of clients that went end
            report["after_load"] = server.figures()
            report["load"] = {
                "done": dict(tally.counts.most_common()),
                "job_s_median": round(float(np.median(tally.seconds or [0])), 2),
                "job_s_95": round(float(np.percentile(tally.seconds or [0], 95)), 2),
                "findings": tally.findings,
            }
            report["malformed"] = malformed(server, asked.malformed, scratch / "malformed")
            time.sleep(30)
            report["after_malformed"] = server.figures()
        report["full_disk"] = full_disk(asked.bundle, tasks, scratch / "disk")
        report["signals"] = signals(asked.bundle, tasks, scratch / "signals")
    report |= {"machine": machine_facts(), "versions": library_versions()}
    write_report(asked.output, report, text_of(report))


def text_of(report: dict[str, Any]) -> str:
    """Write the figures for people."""
    names = ("memory_mib", "file_descriptors", "threads", "children", "files")
    moments = ("before", "after_load", "after_malformed")
    rows = "\n".join(
        f"| {name} | " + " | ".join(str(report[moment][name]) for moment in moments) + " |"
        for name in names
    )
    done, sent = report["load"], report["malformed"]
    findings = [*done["findings"], *sent["findings"]]
    clients = ", ".join(f"{what} {count}" for what, count in done["done"].items())
    answers = ", ".join(f"{what} {count}" for what, count in sent["answers"].items())
    machine, disk, ended = report["machine"], report["full_disk"], report["signals"]
    return f"""# The service under load and faults

{report["date"]}, {machine["processor"]}, {machine["cores"]} cores; with other work on them
(load average before: {report["load_average_before"]:.1f}): times say little, the rest does.
{report["clients"]} clients for {report["minutes"]:g} minutes, then {sent["sent"]} broken bodies.
Repeat it: `python benchmarks/serve_load.py`.

| the server's | before | after the load | after broken bodies |
|---|---:|---:|---:|
{rows}

One of the files is the server's lock.

- Clients: {clients}. Every result was compared with that of the command line, byte by byte.
- From upload to result, behind all others in the queue: median {done["job_s_median"]} s,
  95 % within {done["job_s_95"]} s.
- Broken bodies: {answers}; the slowest answer took {sent["slowest_s"]} s.
- A full disk ({disk["disk"]}): {disk["answers"]}; right afterwards: {disk["right_afterwards"]};
  files left: {disk["files_left"]}.
- SIGTERM in the middle of a job, with 5 seconds of grace and 7 jobs waiting:
  {_ending(ended["SIGTERM"])}.
- SIGKILL: {_ending(ended["SIGKILL"])}; after the next start: {ended["files_left_after_restart"]}.
- Findings: {"; ".join(findings) or "none"}.
"""


def _ending(found: dict[str, Any]) -> str:
    gone = "gone" if found["children_gone"] else "still there"
    return (
        f"exit code {found['exit_code']} after {found['seconds']} s, its readers {gone}, "
        f"files left: {found['files_left']}"
    )


if __name__ == "__main__":
    main()
