"""What several tests share: reference figures, and the array libraries to be held to."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import cores

cores.take_a_share()  # before NumPy is loaded, which counts the cores

import array_api_strict
import numpy as np
import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from medals_rt.bundle.bundle import Bundle
from hypothesis import settings

from tests.browser import open_browser
from tests.fakes import Fakes, in_place
from tests.paths import GOLDEN

# The machine may be busy and a failure must come back: no deadlines, the same examples every time.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# Tests make and drop many objects; by default, looking for circles among them takes a tenth of the
# time.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what all imports together have made, which stays anyway."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled graphs and measured times of tests out of the user's home, which need not be.

    CuPy can't be imported where it finds no place for its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MEDALS_RT_CACHE", "CUPY_CACHE_DIR"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def all_cores() -> Iterator[None]:
    """All cores of the machine, for what is only tested where several threads work."""
    with cores.all_cores():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a folder under a name once a session, also where processes share it (pytest-xdist)."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    shared.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, unfinished = shared / name, shared / f"{name}.unfinished"
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return make_once


@pytest.fixture(scope="session")
def tiny_bundle(made_once: MadeOnce) -> Bundle:
    """A bundle of a minuscule network with made-up weights, exported once; read only.

    Tests in a child process take the one of their parent, named by `MEDALS_RT_TESTS_TINY_BUNDLE`.
    """
    from medals_rt.bundle.bundle import Bundle

    if made := os.environ.get("MEDALS_RT_TESTS_TINY_BUNDLE"):
        return Bundle.open(made)
    pytest.importorskip("torch", reason="makes a bundle, which needs the extra 'export'")
    from tests.bundles import export_tiny_bundle

    return Bundle.open(made_once("tiny", export_tiny_bundle))


@pytest.fixture(scope="session")
def tiny_half_bundle(made_once: MadeOnce) -> Bundle:
    """A minuscule network in fp16, as GPUs run it; read only."""
    from medals_rt.bundle.bundle import Bundle

    pytest.importorskip("torch", reason="makes a bundle, which needs the extra 'export'")
    from tests.bundles import export_tiny_half_bundle

    return Bundle.open(made_once("tiny_half", export_tiny_half_bundle))


@pytest.fixture(scope="session")
def text_sources(made_once: MadeOnce) -> tuple[Path, Path]:
    """A minuscule text encoder: its checkpoint, and the BioLORD folder beside it."""
    pytest.importorskip("transformers", reason="makes a text encoder: the extra 'export'")
    from tests.texts import write_biolord, write_text_encoder

    def make(folder: Path) -> None:
        folder.mkdir()
        write_text_encoder(folder / "text_encoder.pth", write_biolord(folder / "biolord"))

    folder = made_once("text_sources", make)
    return folder / "text_encoder.pth", folder / "biolord"


@pytest.fixture(scope="session")
def text_bundle(
    tiny_bundle: Bundle, text_sources: tuple[Path, Path], made_once: MadeOnce
) -> Bundle:
    """The minuscule bundle with a text encoder in it; read only."""
    from medals_rt.bundle.bundle import Bundle
    from tests.texts import add_text_encoder

    def make(folder: Path) -> None:
        add_text_encoder(tiny_bundle, folder, text_sources)

    return Bundle.open(made_once("text", make))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    """Fakes of CuPy, TensorRT and a GPU."""
    with in_place(monkeypatch) as found:
        yield found


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference figures computed with the authors' released code."""
    return GOLDEN


@pytest.fixture(params=["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    """Each array library in turn; CuPy where there is a GPU."""
    if request.param == "numpy":
        return np
    if request.param == "array_api_strict":
        return array_api_strict
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    import cupy

    if not cupy.is_available():
        pytest.skip("CuPy finds no CUDA GPU")
    import array_api_compat.cupy

    return array_api_compat.cupy
