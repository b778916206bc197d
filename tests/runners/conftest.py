"""What the tests of runners on stand-ins share."""

import shutil
from pathlib import Path

import pytest

from medals_rt.bundle import Bundle
from tests.runners.engine_bundles import build_standin_engines
from tests.standins import StandIns, in_place


@pytest.fixture(scope="session")
def built_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The minuscule bundle with stand-in engines of all its graphs; read only."""
    with pytest.MonkeyPatch.context() as patch, in_place(patch) as standins:
        folder = tmp_path_factory.mktemp("built") / "bundle"
        return build_standin_engines(folder, tiny_bundle, standins)


@pytest.fixture
def bundle(standins: StandIns, built_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, while the stand-ins are in place."""
    assert standins.library.version == standins.tensorrt.__version__
    shutil.copytree(built_bundle.folder, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle", verify=False)
