"""A few hundred hostile files in a process of their own, and that the watch sees what it is for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medals_rt.common.errors import MedalsError
from tests.fuzz.mutations import BLIND, inside_gzip, inside_zip, mutate
from tests.fuzz.targets import TARGETS, Target
from tests.paths import ROOT

SEED = 20261124
REFUSED_LATE = {"manifest": "lacks", "dicom file": "slice"}
"""Seeds that are valid but not enough: a manifest without its graphs, one slice of a series."""

HARM = {
    "raise KeyError('loud')": "KeyError",
    "import time; time.sleep(5)": "more than 1 s",
    "open('/dev/null', 'w')": "wrote",
    "import os; os.system('true')": "os.system",
    r"import pickle; pickle.loads(b'cos\nsystem\n.')": "pickle.find_class",
    "(path.parent / 'left.txt').write_text('x')": "left left.txt",
    "bytearray(b'x') * (500 << 20)": "MiB for",
}
"""What a reader may do that it must not, and a word of what the watch says of it."""

WATCHED = """
import json, sys
from tests.fuzz import watch
from tests.fuzz.targets import Target

def target_of(harm):
    def feed(path):
        if path.stem == "input":  # not the valid file that is fed first
            exec(harm)
    return Target("made up", ".bin", lambda folder: [b"seed"], feed)

found = {}
for harm in json.loads(sys.argv[1]):
    watch.TARGETS = (target_of(harm),)
    watch.SECONDS_PER_INPUT = 1 if "sleep" in harm else 60
    found[harm] = [each.what for each in watch.attack((), 1, 1)]
print(json.dumps(found))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("inputs", [150, pytest.param(600, marks=pytest.mark.slow)])
def test_hostile_files_do_no_harm(inputs: int) -> None:
    done = run("-m", "tests.fuzz", "--inputs", str(inputs), "--seed", str(SEED))

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{inputs} inputs" in done.stdout


@pytest.fixture(scope="module")
def watched() -> dict[str, list[str]]:
    """What the watch says of each harm, all done in one process: it takes seconds to start."""
    done = run("-c", WATCHED, json.dumps(list(HARM)))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("harm", HARM)
def test_the_watch_notices(watched: dict[str, list[str]], harm: str) -> None:
    (what,) = watched[harm]
    assert HARM[harm] in what


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_are_files_that_the_reader_knows(target: Target, tmp_path: Path) -> None:
    """Else all that is fed would be refused at the first byte."""
    for seed in target.seeds(tmp_path):
        path = tmp_path / f"seed{target.ending}"
        path.write_bytes(seed)
        message = ""
        try:
            target.feed(path)
        except MedalsError as error:
            message = str(error)
        expected = REFUSED_LATE.get(target.name)
        assert (expected is None) == (not message), message
        assert (expected or "") in message


@pytest.mark.parametrize("mutation", [*BLIND, inside_zip, inside_gzip])
def test_mutations_are_repeatable_and_bear_anything(mutation: object) -> None:
    for data in (b"x", b"some text that is longer", bytes(range(256)) * 9):
        once = mutation(data, np.random.default_rng(3))
        assert once == mutation(data, np.random.default_rng(3))


def test_most_mutants_differ_from_their_seed() -> None:
    data = bytes(range(256))
    mutants = [mutate(data, np.random.default_rng(i)) for i in range(100)]

    assert sum(mutant != data for mutant in mutants) > 90
