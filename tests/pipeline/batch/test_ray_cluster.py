"""A batch on a Ray cluster of this machine: actors that are lost, and a case that ends them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

if find_spec("ray") is None:  # not imported: a batch first says that it listens here alone
    pytest.skip("batches on a cluster: the extra 'ray'", allow_module_level=True)

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import RunnerError
from medals_rt.pipeline.batch import Silent, ray_cluster
from medals_rt.pipeline.batch.claims import LocalCells, standing
from medals_rt.pipeline.options import RunOptions
from tests.errors import raises
from tests.paths import ROOT
from tests.pipeline.batch import fake_work
from tests.pipeline.batch.helpers import plan, statuses, write_case

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals"),
    pytest.mark.slow,
]


def actors() -> list[psutil.Process]:
    """Return the processes of workers."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if "ray::" in (title := " ".join(each.cmdline())) and "work" in title:
                found.append(each)
        except psutil.Error:
            continue
    return found


def listening_elsewhere() -> set[str]:
    """Return addresses beside the loopback on which processes of the cluster listen."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return found - {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_lost_actors_and_a_poisoned_case(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*(f"case{number:02}" for number in range(39)), "fault", "poison"]
    for name in names:
        write_case(tmp_path / "scans" / f"{name}.npz")
    log = tmp_path / "log"
    monkeypatch.setenv("MEDALS_RT_TESTS_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(ray_cluster, "_Actor", fake_work.Actor)
    options = RunOptions(bundle=tiny_bundle.folder)
    cases = plan(tmp_path / "scans", out=tmp_path / "out", options=options, preview=False).cases
    cells = LocalCells(len(names))
    killed, addresses, stop = [], set(), threading.Event()

    def kill_once() -> None:
        while not stop.wait(0.02):
            if (
                log.exists()
                and log.read_text(encoding="utf-8").count("\n") > 5
                and (running := actors())
            ):
                addresses.update(listening_elsewhere())
                running[0].kill()
                killed.append(running[0])
                return

    killer = threading.Thread(target=kill_once)
    killer.start()
    try:
        entries = ray_cluster.run_on_ray(
            cases,
            options,
            Silent(),
            address=ray_cluster.LOCAL,
            workers=2,
            cells=cells,
            own=range(len(names)),
        )
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 1
    now = standing(cells.read(0, len(names)))
    assert now.by_status["failed"] == 1
    assert now.finished == 40
    made = Counter(log.read_text(encoding="utf-8").splitlines())
    assert max(made.values()) == 1
    assert len(made) >= 39
    poisoned = entries[len(names) - 1]
    assert poisoned.error is not None
    assert poisoned.error.startswith(
        "given up: 3 processes that had no other case in hand ended in it; the last: the actor was "
        "lost: "
    )
    assert addresses == set()


def test_a_driver_that_is_killed_goes_on(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for number in range(12):
        write_case(tmp_path / "scans" / f"case{number}.npz", number)
    out = tmp_path / "out"
    words = ["batch", tmp_path / "scans", out, "--bundle", tiny_bundle.folder, "--no-preview"]
    words += ["--runner", "onnxruntime", "--precision", "fp32", "--ray", "local", "--quiet"]
    command = [sys.executable, "-m", "medals_rt", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 200
        while not list((out / ".medals-rt").glob("case*.json")) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    counts = Counter(statuses(out).values())
    assert counts["kept"] >= 1
    assert counts.total() == 12
    assert set(counts) <= {"kept", "done"}


def test_a_cluster_that_is_not_there() -> None:
    with raises(RunnerError, "ray-unreachable"):
        ray_cluster.run_on_ray(
            [],
            RunOptions(),
            Silent(),
            address="127.0.0.1:1",
            workers=1,
            cells=LocalCells(0),
            own=[],
        )
