"""Several processes on one batch: shared out, replaced when they end, ended with their parent."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.common.errors import InputError, MedalsError
from medals_rt.pipeline.batch import BatchPlan, Listener, Silent, workers
from medals_rt.pipeline.batch.claims import LocalCells, standing
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.batch.shared_cells import claims_file, remove_leftovers, share_folders
from medals_rt.pipeline.batch.workers import (
    Place,
    places_on_cores,
    places_on_gpu,
    places_on_gpus,
    run_workers,
)
from medals_rt.pipeline.options import RunOptions
from tests.errors import raises
from tests.paths import ROOT
from tests.pipeline.batch import fake_work
from tests.pipeline.batch.helpers import plan, statuses, write_case

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shared locks are POSIX's")


@dataclass
class Setting:
    """A batch of small cases for quick workers, and what they did."""

    plan: BatchPlan
    options: RunOptions
    log: Path
    listener: Listener = field(default_factory=Silent)

    def run(self, processes: int = 2) -> dict[int, Entry]:
        with share_folders(self.plan, 64 * "0", ()) as cells:
            try:
                return run_workers(
                    self.plan.cases,
                    self.options,
                    self.listener,
                    places=(Place(),) * processes,
                    cells=cells,
                    cells_file=claims_file(self.plan),
                    own=range(len(self.plan.cases)),
                )
            finally:
                self.cells = cells.read(0, len(self.plan.cases))

    def made(self) -> Counter[str]:
        return Counter(
            self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        )


@pytest.fixture
def setting(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Setting]:
    """Make a batch of cases of these names."""

    def make(*names: str) -> Setting:
        for name in names:
            write_case(tmp_path / "scans" / f"{name}.npz")
        options = RunOptions(bundle=tiny_bundle.folder)
        found = plan(tmp_path / "scans", out=tmp_path / "out", options=options, preview=False)
        log = tmp_path / "log"
        monkeypatch.setenv("MEDALS_RT_TESTS_LOG", str(log))
        monkeypatch.setattr(workers, "_work", fake_work.work)
        return Setting(found, options, log)

    return make


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Kill children of this process at random moments, each time after some cases were done."""
    stop, dice, threads = threading.Event(), random.Random(1), []  # noqa: S311 - a test's dice

    def kill(times: int) -> None:
        left, size, log = times, 0, tmp_path / "log"
        while left and not stop.wait(dice.uniform(0, 0.1)):
            if not log.exists() or log.stat().st_size < size + 50:
                continue
            size = log.stat().st_size
            running = [
                each
                for each in psutil.Process().children()
                if "spawn_main" in " ".join(_command(each))
            ]
            if running:
                dice.choice(running).kill()
                left -= 1

    def start(times: int) -> None:
        threads.append(threading.Thread(target=kill, args=(times,)))
        threads[0].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_none_is_lost_and_none_done_twice_when_workers_are_killed(
    setting: Callable[..., Setting],
    killer: Callable[[int], None],
) -> None:
    names = [f"case{number:03}" for number in range(150)]
    batch = setting(*names)
    killer(4)
    entries = batch.run(2)
    assert standing(batch.cells).by_status.total() == len(names)
    assert standing(batch.cells).by_status["failed"] == 0
    made = batch.made()  # noted after the record: a worker may be killed between the two
    assert max(made.values()) == 1
    assert len(made) >= len(names) - 4
    remove_leftovers(batch.plan, LocalCells(len(names)))
    assert len(list((batch.plan.reports / ".medals-rt").glob("*.json"))) == len(names)
    assert all(entry.status in {"done", "kept"} for entry in entries.values())
    assert not list(batch.plan.results.rglob(".partial*"))


def test_a_case_that_ends_its_processes_is_given_up_with_the_reason(
    setting: Callable[..., Setting],
) -> None:
    batch = setting("a", "b", "poison", "z")
    entries = {batch.plan.cases[index].name: entry for index, entry in batch.run(1).items()}
    assert {name: entry.status for name, entry in entries.items() if name == "poison"} == {
        "poison": "failed"
    }
    assert entries["poison"].error == (
        "given up: 3 processes that had no other case in hand ended in it; the last: the process "
        "was ended by SIGKILL, perhaps for lack of memory"
    )
    assert batch.cells.decode().count("f") == 1
    assert batch.made() == {"a": 1, "b": 1, "z": 1}
    assert not list(batch.plan.reports.rglob("*.end"))


def test_a_case_in_which_the_gpu_fails_is_tried_again_in_another_process(
    setting: Callable[..., Setting],
) -> None:
    """A GPU that fails once costs a process and no case, not even those read ahead."""
    names = [f"case{number}" for number in range(6)]
    batch = setting(*names, "case3 fault")
    entries = batch.run(1)
    assert {entry.status for entry in entries.values()} == {"done"}
    assert batch.made() == dict.fromkeys([*names, "case3 fault"], 1)
    assert not list(batch.plan.reports.rglob("*.end"))


def test_a_case_in_which_the_gpu_always_fails_is_given_up_with_the_reason(
    setting: Callable[..., Setting],
) -> None:
    batch = setting("a", "b", "fault always", "z")
    entries = {batch.plan.cases[index].name: entry for index, entry in batch.run(1).items()}
    assert batch.made() == {"a": 1, "b": 1, "z": 1}
    assert entries["fault always"].status == "failed"
    assert "cudaErrorIllegalAddress" in str(entries["fault always"].error)
    assert "given up" in str(entries["fault always"].error)
    assert batch.cells.decode().count("f") == 1


def test_on_a_gpu_a_batch_works_in_a_process_that_can_be_replaced(
    setting: Callable[..., Setting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, without --gpus."""
    batch = setting("a", "fault", "z")
    assert places_on_gpu(batch.options) == ()
    monkeypatch.setattr(workers, "runs_on_gpu", lambda *_: True)
    assert places_on_gpu(batch.options) == (Place(),)
    assert batch.options.bundle is not None
    folders = (tmp_path / "scans", tmp_path / "out")
    words = ("batch", *folders, "--no-preview", "--bundle", batch.options.bundle)
    done = CliRunner().invoke(app, [str(each) for each in words])
    assert done.exit_code == 0, done.output
    assert batch.made() == {"a": 1, "fault": 1, "z": 1}


def test_workers_that_end_at_once_end_the_batch(
    setting: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = setting("a")
    monkeypatch.setattr(workers, "_work", fake_work.barren_work)
    with pytest.raises(MedalsError) as caught:
        batch.run(1)
    assert caught.value.code == "workers-end"
    assert "exit code 7" in str(caught.value)


def test_what_a_worker_raises_is_raised(setting: Callable[..., Setting], tmp_path: Path) -> None:
    batch = setting("a", "b")
    batch.options = RunOptions(bundle=tmp_path / "nowhere")
    with raises(InputError, "bundle-missing"):
        batch.run(2)


def test_gpus() -> None:
    assert places_on_gpus("all", ("0", "1")) == (Place("0"), Place("1"))
    assert places_on_gpus("1, 0,1", ("GPU-a", "GPU-b")) == (Place("GPU-b"), Place("GPU-a"))
    for words, visible in (("all", ()), ("2", ("0", "1")), ("x", ("0",)), ("", ("0",))):
        with pytest.raises(InputError) as caught:
            places_on_gpus(words, visible)
        assert caught.value.code == "no-gpu"


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7, 9}, raising=False)
    assert [place.cores for place in places_on_cores(2)] == [(4, 5), (6, 7, 9)]
    assert places_on_cores(6) == (Place(),) * 6  # more than cores: the system shares them


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from medals_rt.cli import main
from medals_rt.pipeline.batch import workers
from tests.pipeline.batch import fake_work
if sys.argv.pop(1) == "linger":
    workers._work = fake_work.lingering_work
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(
    tiny_bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    for case in range(8):
        write_case(tmp_path / "scans" / f"case{case}.npz", case)
    out = tmp_path / "out"
    words = ["batch", tmp_path / "scans", out, "--bundle", tiny_bundle.folder, "--no-preview"]
    words += ["--runner", "onnxruntime", "--precision", "fp32", "--processes", "2", "--quiet"]

    def command(end: str) -> list[str]:
        return [sys.executable, "-c", SCRIPT, end, *map(str, words)]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command("linger"), stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        until = time.monotonic() + 300
        while not list(out.glob("case*.npz")) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
    _, alive = psutil.wait_procs(children, timeout=180)
    assert children
    assert not alive
    assert "Traceback" not in errors
    assert process.returncode == {2: 130, 15: 143, 9: -9}[number]
    assert not list(out.rglob(".partial*"))
    records = list((out / ".medals-rt").glob("case*.json"))
    assert len(records) == len(list(out.glob("case*.npz")))
    if number is not signal.SIGINT:
        return
    assert f"{len(records)} of 8 cases are finished" in errors
    again = subprocess.run(
        command("end"), capture_output=True, text=True, check=False, env=environment
    )
    assert again.returncode == 0, again.stderr
    assert Counter(statuses(out).values()) == {"kept": len(records), "done": 8 - len(records)}
