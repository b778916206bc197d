"""What the tests of runners share, on fakes and on a GPU."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common import gpu
from tests.fakes import Fakes, in_place
from tests.runners.engine_bundles import build_fake_engines


@pytest.fixture(scope="module")
def cupy() -> ModuleType:
    """CuPy, where it finds a GPU."""
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    if gpu.find_gpu() is None or not module.is_available():
        pytest.skip("there is no CUDA GPU")
    return module


@pytest.fixture(scope="session")
def built_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The minuscule bundle with fake engines of all its graphs; read only."""
    with pytest.MonkeyPatch.context() as patch, in_place(patch) as fakes:
        folder = tmp_path_factory.mktemp("built") / "bundle"
        return build_fake_engines(folder, tiny_bundle, fakes)


@pytest.fixture
def bundle(fakes: Fakes, built_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, while the fakes are in place."""
    assert fakes.library.version == fakes.tensorrt.__version__
    shutil.copytree(built_bundle.folder, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle", verify=False)
