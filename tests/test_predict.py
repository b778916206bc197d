"""The challenge's container: its entry in a clean folder, and what its recipes copy."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medals_rt.io.registry import read_case, read_labels
from medals_rt.tools.evaluate.metrics import dice_by_label
from tests.paths import ROOT

CASES = ROOT / "engines" / "demo" / "cases"
RECIPES = ("Dockerfile", "Dockerfile.cuda")

# Imported by Python at its start: whoever opens a connection ends.
NO_NETWORK = """
import socket
class Closed(socket.socket):
    def connect(self, address):
        if self.family != getattr(socket, "AF_UNIX", None):
            raise AssertionError(f"connects to {address}")
    connect_ex = connect
def refuse(*_, **__):
    raise AssertionError("looks up a host")
socket.socket = Closed
socket.getaddrinfo = refuse
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "work space"
    (folder / "inputs").mkdir(parents=True)
    (folder / "outputs").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    shutil.copy(ROOT / "predict.sh", folder)
    return folder


def predict(workspace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the entry as the container does: no network, no home, nothing else in the environment."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": "/proc/no/home",  # which not even root can make
        "PYTHONPATH": str(workspace.parent / "site"),
        "LC_ALL": "C",
        "MEDALS_RT_BUNDLE": str(ROOT / "engines" / "demo"),
    }
    command = ["sh", "predict.sh", *words]
    return subprocess.run(
        command, cwd=workspace, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def give_case(workspace: Path, name: str) -> Path:
    """Put a demo case where the challenge puts it: prompts inside, no ground truth."""
    prompts = json.loads((CASES / f"{name}.prompts.json").read_text(encoding="utf-8"))
    with np.load(CASES / f"{name}.npz") as stored:
        image, spacing = stored["imgs"], stored["spacing"]
    path = workspace / "inputs" / f"{name}.npz"
    np.savez(path, imgs=image, spacing=spacing, text_prompts=np.array(prompts, dtype=object))
    return path


@pytest.mark.usefixtures("all_cores")
@pytest.mark.skipif(os.name != "posix", reason="a shell is needed")
def test_the_entry_in_a_clean_folder(workspace: Path) -> None:
    given = give_case(workspace, "ct_liver_tumors")
    (workspace / "inputs" / "broken.npz").write_bytes(b"PK\3\4")
    (workspace / "inputs" / "notes.txt").write_text("no case", encoding="utf-8")
    before = given.read_bytes()
    done = predict(workspace)
    assert done.returncode == 1, done.stderr
    assert "broken: failed: " in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 1 of 2 cases failed"
    assert "Traceback" not in done.stderr
    assert {path.name for path in workspace.iterdir()} == {"inputs", "outputs", "predict.sh"}
    results = [path.name for path in (workspace / "outputs").glob("*") if path.name[0] != "."]
    assert results == ["ct_liver_tumors.npz"]
    assert given.read_bytes() == before
    found = read_labels(workspace / "outputs" / "ct_liver_tumors.npz").labels_dhw
    truth = read_case(CASES / "ct_liver_tumors.npz").ground_truth_dhw
    assert dice_by_label(found, (truth > 0).astype(np.uint8), [1])[1] > 0.5
    (workspace / "inputs" / "broken.npz").unlink()
    again = predict(workspace, "inputs", "outputs", "--quiet")
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "warning: trained on synthetic phantoms only; not for diagnosis\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell is needed")
def test_the_entry_without_cases(workspace: Path) -> None:
    done = predict(workspace)
    assert done.returncode == 2
    assert "nothing matches inputs/*.npz" in done.stderr
    done = predict(workspace, "none")
    assert done.returncode == 2
    assert "there is no folder none" in done.stderr


def instructions(recipe: str) -> list[tuple[str, list[str]]]:
    """Read a Dockerfile: instruction and words, lines joined, comments left out."""
    text = (ROOT / recipe).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0], shlex.split(line.split(maxsplit=1)[1]))
        for line in joined.splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_an_image_copies_is_there_and_is_sent(recipe: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    arguments = {
        words[0].partition("=")[0]: words[0].partition("=")[2]
        for name, words in instructions(recipe)
        if name == "ARG"
    }
    copied = [words[:-1] for name, words in instructions(recipe) if name == "COPY"]
    assert copied
    for source in (each for words in copied for each in words):
        path = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], source)
        assert (ROOT / path).exists(), path
        assert path.split("/")[0] in sent, path


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_runs_the_entry_and_not_as_root(recipe: str) -> None:
    told = instructions(recipe)
    names = [name for name, _ in told]
    assert names[-2:] == ["USER", "CMD"]
    assert dict(told)["USER"] == ["1000:1000"]
    assert json.loads(
        (ROOT / recipe).read_text(encoding="utf-8").splitlines()[-1].removeprefix("CMD ")
    ) == [
        "sh",
        "predict.sh",
    ]
    known = {"FROM", "ARG", "COPY", "RUN", "ENV", "WORKDIR", "USER", "EXPOSE", "CMD"}
    assert set(names) <= known
    assert names[0] == "FROM"


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_installs_extras_that_there_are(recipe: str) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    arguments = [words[0] for name, words in instructions(recipe) if name == "ARG"]
    (extras,) = (each.partition("=")[2] for each in arguments if each.startswith("EXTRAS="))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
