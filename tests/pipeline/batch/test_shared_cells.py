"""Several batches into one folder: the same share it, others are kept out."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.pipeline.batch.claims import LocalCells
from medals_rt.pipeline.batch.inputs import inputs_sha256
from medals_rt.pipeline.batch.records import earlier_entry, request_sha256
from medals_rt.pipeline.batch.shared_cells import SharedCells, identity_of, remove_leftovers
from medals_rt.pipeline.batch.summary import all_entries
from medals_rt.pipeline.options import PromptSource
from tests.pipeline.batch.helpers import (
    KIDNEY,
    LIVER,
    Result,
    batch,
    files_below,
    plan,
    statuses,
    write_case,
    write_json,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shared locks are POSIX's")

# A batch that never ends: it says when its first case runs, and it has taken the second.
ENDLESS = """
import threading, time
from medals_rt.pipeline.batch import run
from medals_rt.cli import main

taken, read_job = threading.Semaphore(0), run.read_job

def read(job):
    taken.release()
    return read_job(job)

def segment(*_):
    taken.acquire(), taken.acquire()
    print("running", flush=True)
    time.sleep(3600)

run.read_job, run.segment_job = read, segment
main()
"""


def words(bundle: Bundle, *given: object) -> list[str]:
    fixed = ["--bundle", bundle.folder, "--runner", "onnxruntime", "--precision", "fp32"]
    return ["batch", *map(str, [*given, "--no-preview", *fixed])]


@contextmanager
def running(arguments: list[str]) -> Iterator[None]:
    """Have a batch at work in a process of its own; it is killed at the end."""
    command = [sys.executable, "-c", ENDLESS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield
        finally:
            process.kill()


def test_a_second_shares_the_work_and_takes_up_that_of_a_killed_first(
    tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    write_case(scans / "case3.npz", 3)
    command = [sys.executable, "-m", "medals_rt", *words(tiny_bundle, scans, out)]
    pipe = subprocess.PIPE
    with ExitStack() as first:
        first.enter_context(running(words(tiny_bundle, scans, out)))
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as beside:
            until = time.monotonic() + 300
            while len(list((out / ".medals-rt").glob("case*.json"))) < 2 and beside.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.02)
            time.sleep(0.2)
            assert beside.poll() is None  # it waits for the two that are in hand
            assert len(list(out.glob("case*.npz"))) == 2
            assert not (out / "summary.csv").exists()
            first.close()
            stdout, errors = beside.communicate(timeout=300)
    assert beside.returncode == 0, errors
    assert statuses(out) == dict.fromkeys((f"case{number}" for number in range(4)), "done")
    assert "4 done" in stdout


def test_the_last_of_several_writes_the_tables_of_all(
    tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    for number in range(3, 12):
        write_case(scans / f"case{number:02}.npz", number)
    command = [sys.executable, "-m", "medals_rt", *words(tiny_bundle, scans, out)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        batches = [
            stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
            for _ in range(2)
        ]
        said = [each.communicate(timeout=600) for each in batches]
    assert [each.returncode for each in batches] == [0, 0], said
    ended = [line for _, errors in said for line in errors.splitlines() if "classes found" in line]
    assert len(ended) == 12  # each case is run once
    assert len(statuses(out)) == 12
    tables = [stdout.count("wrote") for stdout, _ in said]
    # one that comes when the other has ended finds all as it should be
    assert sorted(tables) in ([0, 1], [1, 1])


def test_another_batch_is_kept_out(tiny_bundle: Bundle, scans: Path, out: Path) -> None:
    reports = out.with_name("reports")
    new = out.with_name("new")
    kidney = write_json(out.with_name("kidney.json"), KIDNEY)
    berta = out.with_name("berta")
    shutil.copytree(scans, berta)
    write_case(berta / "case2.npz", 2, {**LIVER, "2": "Spleen in abdominal CT"})
    with running(words(tiny_bundle, scans, out, "--reports", reports)):
        for given, folder in (
            ([out, "--reports", reports, "--seed", "1"], reports),
            ([out, "--reports", reports, "--prompts", kidney], reports),
            ([out], out),
            ([out, "--reports", new], out),
            ([new, "--reports", reports, "--seed", "1"], reports),
            ([reports], reports),
        ):
            stopped = batch(tiny_bundle.folder, scans, *given, "--no-preview")
            assert (stopped.exit_code, stopped.stdout) == (2, "")
            assert stopped.stderr == (
                f"error: another batch is writing to {folder}, of other cases or options, or of "
                "scans that have changed since; wait until it has ended, or name another folder of "
                "outputs\n"
            )
        other = batch(tiny_bundle.folder, berta, out, "--reports", reports, "--no-preview")
        assert other.stderr.startswith("error: another batch is writing to")
    assert files_below(out) == []
    after = batch(tiny_bundle.folder, scans, out, "--no-preview")
    assert after.exit_code == 0, after.stderr


def test_parts_make_the_whole(run: Callable[..., Result], out: Path) -> None:
    first = run("--part", "1/2")
    assert first.exit_code == 0, first.output
    finished = len(list(out.glob("case*.npz")))
    assert f"{3 - finished} of 3 cases are left to other parts" in first.stdout
    assert not (out / "summary.csv").exists()
    second_part = run("--part", "2/2")
    assert second_part.exit_code == 0, second_part.output
    assert sorted(statuses(out).values()) == ["done"] * (3 - finished) + ["kept"] * finished
    assert "wrote" in second_part.stdout


def test_a_part_writes_no_tables_of_what_was_asked_before(
    run: Callable[..., Result], out: Path
) -> None:
    liver, kidney = ("--prompt", "Liver in CT"), ("--prompt", "Right kidney in CT")
    assert run(*liver).exit_code == 0
    before = (out / "summary.csv").read_bytes()
    first = run(*kidney, "--part", "1/2")
    assert first.exit_code == 0, first.output
    assert "wrote" not in first.stdout
    assert (out / "summary.csv").read_bytes() == before
    second = run(*kidney, "--part", "2/2")
    assert "wrote" in second.stdout
    assert "Right" in (out / "reports" / "case2.json").read_text(encoding="utf-8")
    assert set(statuses(out).values()) == {"done", "kept"}
    again = run(*kidney, "--part", "1/2")  # all is there
    assert "wrote" in again.stdout


def test_a_scan_of_another_place_is_named_as_it_was_read(
    tiny_bundle: Bundle, tmp_path: Path, out: Path
) -> None:
    """Where another process has settled a case: here it may be another patient's."""
    for number, site in enumerate(("a", "b")):
        write_case(tmp_path / site / "ct.npz", number)
    assert batch(tiny_bundle.folder, tmp_path / "a", out, "--no-preview").exit_code == 0
    request = request_sha256(plan(tmp_path / "a", out=out, preview=False).cases[0].job, "x")
    (here,) = all_entries(plan(tmp_path / "a", out=out, preview=False), {}, b"d", "x") or ()
    assert (here.input, here.notes) == (str(tmp_path / "a" / "ct.npz"), ANY)
    assert "input-elsewhere" not in {note.code for note in here.notes}
    for cell in (b"d", b"k"):
        (there,) = all_entries(plan(tmp_path / "b", out=out, preview=False), {}, cell, "x") or ()
        assert there.input == str(tmp_path / "a" / "ct.npz")
        assert "input-elsewhere" in {note.code for note in there.notes}
    assert earlier_entry(plan(tmp_path / "a", out=out, preview=False).cases[0], request) is None


def test_only_what_nobody_writes_is_cleared_away(scans: Path, out: Path) -> None:
    out.mkdir()
    held, free = (out / f".partial-1-0123abcd-case{number}.npz" for number in (0, 1))
    of_another_part, table = (out / f".partial-1-0123abcd-{name}" for name in ("case2.npz", "t"))
    for path in (held, free, of_another_part, table):
        path.touch()
    cells = LocalCells(4)
    cells.hold(0)
    found = plan(scans, out=out, preview=False)
    remove_leftovers(found, cells, (0, 1), (out / "t",))
    assert [path.exists() for path in (held, free, of_another_part, table)] == [1, 0, 1, 1]
    remove_leftovers(found, cells, range(3), (out / "t",))
    assert [path.exists() for path in (held, free, of_another_part, table)] == [1, 0, 0, 0]


def test_a_new_batch_begins_with_new_cells(tmp_path: Path) -> None:
    cells = SharedCells(tmp_path / "cells")
    assert cells.enter(64 * "a", 3)
    assert cells.hold(1)
    cells.write(1, ord("d"))
    cells.close()
    cells = SharedCells(tmp_path / "cells")
    assert cells.enter(64 * "b", 2)
    assert cells.read(0, 9) == b".."
    cells.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: can't lock {out} against other batches: {os.strerror(number)}; name a folder on "
        "another disk\n"
    )
    assert files_below(out) == []


def test_a_folder_that_cannot_be_written(run: Callable[..., Result], out: Path) -> None:
    out.write_text("a file in the way", encoding="utf-8")
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: can't write {out}")
    assert result.stderr.count("\n") == 1


ROW: dict[str, Any] = {"input": "case0.npz", "output": "x", "sentences": ["Liver in abdominal CT"]}
OTHER_ROWS: tuple[dict[str, object], ...] = (
    {"input": "case1.npz"},
    {"sentences": ["Spleen in abdominal CT"]},
    {"kind": "lesion", "sentences": ["adrenocortical carcinoma on CT"]},
    {"sentences": None, "prompts": "kidney.json"},
    {"lesions": ["adrenocortical carcinoma on CT"]},
    {"groups": ["kidneys"]},
    {"preset": "native"},
    {"seed": 7},
    {"window": "lung"},
    {"spatial_prompts": "a.nrrd"},
    {"spatial_prompts": "b.nrrd"},
    {"spatial_prompts": "b.nrrd", "resample": True},
    {"series": "2"},
    {"select": ["ECHO=2"]},
    {"crop": 10.0},
    {"format": "nii.gz"},
    {"format": "nii.gz", "split": True},
    {"format": "nii.gz", "probabilities": True},
    {"format": "glb"},
    {"format": "glb", "mesh_reduction": 0.5},
    {"instances": True},
)


def test_batches_that_ask_for_something_else_are_told_apart(tmp_path: Path) -> None:
    """Whatever a row can say; but not by where inputs and prompts lie."""
    scans, copy = tmp_path / "scans", tmp_path / "copy"
    for number in (0, 1):
        write_case(scans / f"case{number}.npz", number)
    write_json(scans / "kidney.json", KIDNEY)
    write_json(scans / "liver.json", {"1": ROW["sentences"][0], "instance_label": 0})
    shutil.copytree(scans, copy)

    def identity(folder: Path, row: dict[str, object]) -> str:
        stated = {name: value for name, value in {**ROW, **row}.items() if value is not None}
        jobs = write_json(tmp_path / "jobs.json", [stated])
        return identity_of(plan(folder, out=tmp_path / "out", jobs=jobs), {}, "bundle")

    made = {identity(scans, row): row for row in ({}, *OTHER_ROWS)}
    assert len(made) == len(OTHER_ROWS) + 1, [row for row in OTHER_ROWS if row not in made.values()]
    assert [made[identity(copy, row)] for row in OTHER_ROWS] == list(OTHER_ROWS)
    assert made[identity(copy, {"sentences": None, "prompts": "liver.json"})] == {}


def test_batches_of_other_prompts_or_scans_of_the_same_names_are_told_apart(
    tmp_path: Path,
) -> None:
    write_case(tmp_path / "anna" / "ct.npz")
    (tmp_path / "berta").mkdir()
    (tmp_path / "berta" / "ct.npz").write_bytes(b"longer or shorter")
    liver, spleen = (
        write_json(tmp_path / f"{name}.json", {"1": f"{name} in CT", "instance_label": 0})
        for name in ("liver", "spleen")
    )
    plans = [
        plan(tmp_path / name, out=tmp_path / "out", source=source)
        for name in ("anna", "berta")
        for source in (
            PromptSource(file=liver),
            PromptSource(file=spleen),
            PromptSource(everything=True),
            PromptSource(everything=True, kind="lesion"),
        )
    ]
    assert len({identity_of(each, {}, "bundle") for each in plans}) == len(plans)
    made_from = {
        (request_sha256(each.cases[0].job, "bundle"), inputs_sha256(each.cases[0]))
        for each in plans
    }
    assert len(made_from) == len(plans)
