"""Are cases lost, done twice or changed when processes of a batch are killed?

Small cases are segmented by one process, for reference. Then, some times over, by a command of two
workers and a second command beside it in the same folder, while one of these processes after the
other is killed (SIGKILL) at a random moment. Each time all results must be there, none may have
been finished twice, and labels and tables must be the same bytes. After that, without kills: the
time of one process, of one worker and of two, in turn.
"""

import argparse
import hashlib
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from reporting import today, write_report

from medals_rt.common.environment import machine_facts
from medals_rt.pipeline.batch.claims import Claims, LocalCells
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.batch.shared_cells import SharedCells

PROMPTS = {"1": "Liver in CT", "2": "Right kidney in CT", "instance_label": 0}
ENDED = re.compile(r"^\[\d+/\d+\] (\S+): \d+ of \d+ classes found", re.MULTILINE)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="report, without ending")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--edge", type=int, default=32, help="voxels along an edge of a case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases-between-kills", type=int, default=20, help="on average")
    given = parser.parse_args()
    dice = random.Random(given.seed)  # noqa: S311 - moments of kills
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        scans = write_cases(folder / "scans", given.cases, given.edge)
        seconds: dict[str, list[float]] = {"one process": [], "1 worker": [], "2 workers": []}
        reference = folder / "reference"
        timed(given.bundle, scans, reference)
        expected = content_of(reference)
        rounds = []
        for number in range(given.rounds):
            found = one_round(
                given.bundle, scans, folder / f"round{number}", dice, given.cases_between_kills
            )
            found["same"] = content_of(folder / f"round{number}") == expected
            print(found, flush=True)
            rounds.append(found)
        for number in range(3):
            for name, words in (
                ("one process", ()),
                ("1 worker", ("--processes", "1")),
                ("2 workers", ("--processes", "2")),
            ):
                out = folder / f"timed-{name}-{number}".replace(" ", "-")
                seconds[name].append(timed(given.bundle, scans, out, *words))
                print(name, seconds[name][-1], flush=True)
    report = {
        "date": today(),
        "processor": machine_facts()["processor"],
        "cores": os.cpu_count(),
        "cases": given.cases,
        "rounds": rounds,
        "seconds": {name: [round(each, 1) for each in times] for name, times in seconds.items()},
        "claim_microseconds": claim_cost_us(),
    }
    write_report(given.output, report, as_markdown(report))
    failures = [each for each in rounds if each["lost"] or each["twice"] or not each["same"]]
    sys.exit(bool(failures))


def write_cases(folder: Path, count: int, edge: int) -> Path:
    """Write cases of smooth noise."""
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 4))
        image = np.kron(coarse, np.ones((edge // 4,) * 3)).astype(np.uint8)
        np.savez_compressed(
            folder / f"case{number:03}.npz",
            imgs=image,
            spacing=np.array([4.0, 4.0, 4.0]),
            text_prompts=np.array(PROMPTS, dtype=object),
        )
    return folder


def command(bundle: Path, scans: Path, out: Path, *words: str) -> list[str]:
    """Return the words of a batch."""
    fixed = ("--bundle", str(bundle), "--no-preview", "--statistics", "--runner", "openvino")
    fixed += ("--precision", "fp32", "--threads", "1")  # other numbers of threads round otherwise
    return [sys.executable, "-m", "medals_rt", "batch", str(scans), str(out), *fixed, *words]


def timed(bundle: Path, scans: Path, out: Path, *words: str) -> float:
    """Run a batch to its end and return its seconds."""
    start = time.perf_counter()
    subprocess.run(command(bundle, scans, out, *words), check=True, capture_output=True)
    return time.perf_counter() - start


def one_round(
    bundle: Path, scans: Path, out: Path, dice: random.Random, mean_cases: int
) -> dict[str, Any]:
    """Run two commands on one folder and kill their processes until all cases are done."""
    logs = [out.with_suffix(f".log{number}") for number in range(2)]
    words = [("--processes", "2"), ()]
    kills, kill_at = Counter[str](), 1.0

    def start(number: int) -> subprocess.Popen[bytes]:
        with logs[number].open("ab") as log:
            return subprocess.Popen(
                command(bundle, scans, out, *words[number]), stdout=subprocess.DEVNULL, stderr=log
            )

    begun = time.perf_counter()
    commands = [start(0), start(1)]
    while True:
        time.sleep(0.02)
        for number, each in enumerate(commands):
            if each.poll() is not None and each.returncode == -9:
                commands[number] = start(number)
        if all(each.poll() is not None for each in commands):
            break
        if sum(1 for _ in out.glob("case*.npz")) < kill_at:
            continue
        kill_at += dice.expovariate(1 / mean_cases)
        time.sleep(dice.uniform(0, 0.5))
        victim, kind = pick(commands, dice)
        if victim is not None:
            kills[kind] += 1
            victim.kill()
    said = [log.read_text(encoding="utf-8") for log in logs]
    bad = [each.returncode for each in commands if each.returncode]
    if bad:
        raise SystemExit(f"a command ended with {bad}: {said[0][-600:]} {said[1][-600:]}")
    ended = Counter(name for text in said for name in ENDED.findall(text))
    names = {path.stem for path in scans.glob("*.npz")}
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "kills": dict(kills),
        "lost": len(names - {path.stem for path in out.glob("case*.npz")}),
        "twice": sum(count > 1 for count in ended.values()),
        "half_written": len(list(out.rglob(".partial*"))),
    }


def pick(
    commands: list[subprocess.Popen[bytes]], dice: random.Random
) -> tuple[psutil.Process | None, str]:
    """Choose what is killed: mostly a worker, sometimes a whole command."""
    alive = [psutil.Process(each.pid) for each in commands if each.poll() is None]
    workers = []
    for each in alive:
        try:
            workers += [one for one in each.children() if "spawn_main" in " ".join(one.cmdline())]
        except psutil.Error:
            continue
    chosen, kind = (workers, "worker") if workers and dice.random() < 0.7 else (alive, "command")
    return (dice.choice(chosen), kind) if chosen else (None, kind)


def content_of(out: Path) -> dict[str, str]:
    """SHA-256 of every label map and of the table of statistics, by name."""
    files = (*sorted(out.glob("case*.npz")), out / "statistics.csv")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def claim_cost_us(count: int = 20_000) -> dict[str, float]:
    """Microseconds that claiming and settling a case takes, in memory and in a shared file."""
    entry = Entry("a", "", "", "done")
    costs = {}
    with tempfile.TemporaryDirectory() as made:
        shared = SharedCells(Path(made) / "cells")
        shared.enter(64 * "0", count)
        for name, cells in (("memory", LocalCells(count)), ("file", shared)):
            times = []
            claims = Claims(cells, range(count))
            for _ in range(count):
                start = time.perf_counter()
                claim = claims.take()
                if claim is None:
                    raise AssertionError(name)
                claims.settle(claim, entry)
                times.append(time.perf_counter() - start)
            costs[name] = round(1e6 * statistics.median(times), 1)
        shared.close()
    return costs


def as_markdown(report: dict[str, Any]) -> str:
    """Write the report for people."""
    lines = [
        f"# Batches whose processes are killed ({report['date']})",
        "",
        f"{report['processor']}, {report['cores']} cores, used by others at the same time.",
        f"{report['cases']} cases; a command of two workers and a second command of one process",
        "share a folder, and processes are killed at random.",
        "",
        "| round | killed workers | killed commands | lost | twice | half written | same | s |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for number, each in enumerate(report["rounds"], start=1):
        kills = each["kills"]
        lines.append(
            f"| {number} | {kills.get('worker', 0)} | {kills.get('command', 0)} | {each['lost']} "
            f"| {each['twice']} | {each['half_written']} | {'yes' if each['same'] else 'NO'} "
            f"| {each['seconds']} |"
        )
    lines += ["", "| without kills | s, three times | cases per s, best |", "|---|---|---:|"]
    for name, times in report["seconds"].items():
        shown = ", ".join(map(str, times))
        lines.append(f"| {name} | {shown} | {report['cases'] / min(times):.2f} |")
    cost = report["claim_microseconds"]
    per_case = min(report["seconds"]["one process"]) / report["cases"]
    lines += [
        "",
        f"Claiming and settling a case takes {cost['memory']} µs in memory, {cost['file']} µs in a",
        f"shared file on a local disk: {100e-6 * cost['file'] / per_case:.3f} % of a case here.",
        "On a busy machine Linux gives each worker, a session of its own, a share of its own: the",
        "one process, beside everything else of its session, got less. Compare 1 worker and 2.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
