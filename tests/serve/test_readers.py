"""Readers that crash, hang or want too much end their own process, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medals_rt.common.errors import CaseError
from medals_serve import readers as readers_module
from medals_serve.images import stored_name
from medals_serve.metrics import Metrics
from medals_serve.problems import SeriesChoiceError
from medals_serve.readers import Readers
from medals_serve.settings import ServeSettings
from tests.errors import raises
from tests.serve.serving import PATIENCE_S, SHAPE, write_nifti

HARMFUL = """
import os, sys, time
from medals_serve import reader_process as process

def harmful(request):
    word = open(request["path"]).read()
    if word == "crash":
        os.kill(os.getpid(), 11)
    if word in ("end", "killed"):
        os.kill(os.getppid(), 15 if word == "end" else 9)
        os._exit(0)
    if word == "hang":
        time.sleep(600)
    if word == "spin":
        while True:
            pass
    if word == "eat":
        bytearray(1 << 40)
    if word == "write":
        with open(request["path"], "w") as file:
            file.write("x")
    if word == "leave":
        os._exit(0)
    if word == "refuse":
        raise process.CaseError("upload " + os.path.basename(request["path"]) + " again")
    if word == "print":
        print("noise", flush=True)
    return {"word": word, "pid": os.getpid()}

process.LIBRARIES = ()
process.READERS = {"image": harmful}
process.main()
"""


@pytest.fixture
def harmful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    """One process whose reader does what the file says."""
    (tmp_path / "harmful_reader.py").write_text(HARMFUL, encoding="utf-8")
    monkeypatch.setattr(readers_module, "_MODULE", "harmful_reader")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = Readers(ServeSettings(readers=1, read_s=1.0), Metrics())
    yield found
    found.close()


def feed(readers: Readers, folder: Path, word: str) -> dict[str, object]:
    path = folder / stored_name("scan")
    path.write_text(word, encoding="utf-8")
    return readers.read("image", path, "scan")


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("crash", "reader-crashed"),
        ("leave", "reader-crashed"),
        ("write", "reader-crashed"),
        ("eat", "reader-memory"),
        ("spin", "reader-limit"),
    ],
)
def test_harm_ends_with_its_process(harmful: Readers, tmp_path: Path, word: str, code: str) -> None:
    with pytest.raises(CaseError) as caught:
        feed(harmful, tmp_path, word)
    assert caught.value.code == code
    assert "scan" in str(caught.value)
    assert feed(harmful, tmp_path, "fine")["word"] == "fine"


def test_messages_name_the_file_as_its_user_does(harmful: Readers, tmp_path: Path) -> None:
    with raises(CaseError, CaseError.code, "upload scan again"):
        feed(harmful, tmp_path, "refuse")


def test_a_hang_ends_in_time(
    harmful: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(harmful, tmp_path, "fine")  # it has started
    with monkeypatch.context() as patch:
        patch.setattr(readers_module, "START_S", 0.0)
        with pytest.raises(CaseError) as caught:
            feed(harmful, tmp_path, "hang")
    assert caught.value.code == "reader-limit"
    assert feed(harmful, tmp_path, "fine")["word"] == "fine"


def test_a_process_that_died_while_it_was_idle_costs_no_file(
    harmful: Readers, tmp_path: Path
) -> None:
    feed(harmful, tmp_path, "fine")
    process = harmful._idle.get()
    assert process is not None
    process._process.kill()
    process._process.wait()
    harmful._idle.put(process)
    assert feed(harmful, tmp_path, "fine")["word"] == "fine"


def test_a_process_that_ends_with_a_file_is_not_said_to_be_slow(
    harmful: Readers, tmp_path: Path
) -> None:
    """Nor are its signals and limits mixed up: memory that the system took is a limit."""
    for word, code in (("end", "reader-crashed"), ("killed", "reader-limit")):
        with pytest.raises(CaseError) as caught:
            feed(harmful, tmp_path, word)
        assert caught.value.code == code
        assert feed(harmful, tmp_path, "fine")["word"] == "fine"


def test_what_a_reader_prints_is_no_answer(harmful: Readers, tmp_path: Path) -> None:
    assert feed(harmful, tmp_path, "print")["word"] == "print"


def test_each_file_has_a_process_of_its_own(harmful: Readers, tmp_path: Path) -> None:
    pids = {feed(harmful, tmp_path, word)["pid"] for word in ("a", "b", "c")}
    assert len(pids) == 3
    assert os.getpid() not in pids


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    found = Readers(ServeSettings(readers=1, max_voxels=100_000), Metrics())
    yield found
    found.close()


def test_what_is_said_of_an_image(readers: Readers, tmp_path: Path) -> None:
    found = readers.read("image", write_nifti(tmp_path / "upload.nii.gz"), "scan.nii.gz")
    assert tuple(found["shape_dhw"]) == SHAPE
    assert found["spacing_dhw_mm"] == pytest.approx([4.0, 2.0, 3.0])
    assert found["geometry_stated"]
    assert {"npz", "nii.gz", "seg.nrrd", "mha"} <= set(found["output_formats"])
    assert not {"dcm", "rtstruct"} & set(found["output_formats"])


def test_limits_of_files_from_strangers_hold(readers: Readers, tmp_path: Path) -> None:
    """Sizes are announced in a few bytes: nothing is taken for them."""
    bomb = tmp_path / "upload.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': "
        header += b"(4096, 4096, 64), }"
        archive.writestr("imgs.npy", header.ljust(127) + b"\n" + bytes(1 << 24))
        archive.writestr("spacing.npy", b"")
    with pytest.raises(CaseError) as caught:
        readers.read("image", bomb, "bomb.npz")
    assert caught.value.code == "too-many-voxels"
    large = tmp_path / "upload.nii"
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((50, 50, 50), np.uint8), np.eye(4)), large)
    with pytest.raises(CaseError) as caught:
        readers.read("image", large, "large.nii")
    assert str(tmp_path) not in str(caught.value)
    assert "large.nii" in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "shown", "said"),
    [
        ("upload.nii.gz", "my upload.nii.gz", "name it my upload.nii, or"),
        ("upload.nrrd", "scan.nrrd", "name it scan.nii"),
        ("upload_", "scan", "name it scan.nii"),
    ],
)
def test_advice_on_names_is_about_the_users(
    readers: Readers, tmp_path: Path, stored: str, shown: str, said: str
) -> None:
    write_nifti(tmp_path / "plain.nii").rename(tmp_path / stored)
    with pytest.raises(CaseError) as caught:
        readers.read("image", tmp_path / stored, shown)
    assert caught.value.code == "wrong-ending"
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{shown} ")


def test_series_to_choose_from(readers: Readers, tmp_path: Path) -> None:
    from tests.dicom import write_series

    for seed in (0, 1):
        cube = np.zeros((3, 4, 5), np.int16)
        write_series(tmp_path / f"s{seed}", cube, np.eye(4), seed=seed)
    archive = tmp_path / "upload.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in tmp_path.glob("s*/*"):
            out.write(path, path.relative_to(tmp_path))
    with pytest.raises(SeriesChoiceError) as caught:
        readers.read("image", archive, "study.zip")
    assert [each["images"] for each in caught.value.choices] == [3, 3]
    uid = caught.value.choices[1]["series"]
    assert readers.read("image", archive, "study.zip", series=uid)["modality"] == "CT"


def test_the_process_ends_with_the_server(tmp_path: Path) -> None:
    """Also where the server was killed: its pipe closes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "medals_serve.reader_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    request = {
        "reader": "image", "path": str(tmp_path / "none.nii"), "max_voxels": 10, "series": None,
        "select": [], "seconds": 5, "bytes": 2**33,
    }  # fmt: skip
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    with process.stdout as answers:
        assert json.loads(answers.readline())["code"] == "file-missing"
        process.send_signal(signal.SIGINT)  # Ctrl-C is for the server
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
