"""Servers that tests share."""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_serve.client import ServiceClient
from tests.serve.serving import Running, SharedReaders, running


@pytest.fixture(scope="session", autouse=True)
def _readers_end() -> Iterator[None]:
    yield
    SharedReaders.end()


@pytest.fixture(scope="module")
def served(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the minuscule bundle, one a file of tests."""
    with running(tiny_bundle, tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.fixture
def client(served: Running) -> Iterator[ServiceClient]:
    """A session of its own."""
    with served.client() as found:
        yield found


@pytest.fixture(scope="module")
def careless_client() -> Iterator[None]:
    """Collect what clients of others left open before another file's tests can be blamed."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small NIfTI file."""
    from tests.serve.serving import write_nifti

    return write_nifti(tmp_path / "scan of someone.nii.gz")
