from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.arrays import (
    RowSums,
    as_namespace,
    bounding_box,
    contiguous,
    label_counts,
    look_up,
    memory_order,
    namespace,
    on_all_cores,
    present_values,
    to_device,
    to_host,
)
from medals_rt.common.errors import MissingDependencyError
from tests.errors import raises
from tests.fakes import environment as fakes_environment


def test_namespace_is_found_from_an_array(xp: Any) -> None:
    array = as_namespace(np.arange(3), xp)
    assert namespace(array).__name__ == xp.__name__
    assert isinstance(to_host(array), np.ndarray)
    np.testing.assert_array_equal(to_host(array), [0, 1, 2])


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match="found list"):
        namespace([1, 2])


def test_a_device_is_named_or_refused() -> None:
    array = np.arange(3)
    assert to_device(array, "cpu") is array
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        to_device(array, "gpu")


def test_a_missing_cupy_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr("medals_rt.common.optional_deps.gpu_extra", lambda: "gpu")
    with raises(MissingDependencyError, "dependency-missing", "medals-rt[gpu]"):
        to_device(np.arange(3), "cuda")


def test_cupy_opens_in_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy, and the fake of it, make their folder as they are imported."""
    (tmp_path / "home").write_bytes(b"")  # a file: no folder can be made below it, not even by root
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE", "MEDALS_RT_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    environment = fakes_environment()
    del environment["CUPY_CACHE_DIR"]
    code = "from medals_rt.common.arrays import open_cupy as o; c = o('this'); print(c.__version__)"
    for start, said in ((code, "fake"), ("import cupy", "NotADirectoryError")):
        done = subprocess.run(
            [sys.executable, "-c", start],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert said in done.stdout + done.stderr


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_values_that_are_present(xp: Any, dtype: type) -> None:
    labels = np.random.default_rng(3).choice(np.array([0, 3, 7, 255]), (6, 5, 4)).astype(dtype)
    assert present_values(xp.asarray(labels)) == {3, 7, 255}
    assert present_values(xp.asarray(labels[:0])) == set()


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3))
def test_looking_up_is_indexing(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random(12) < 0.5
    indices = rng.integers(0, 12, shape).astype(np.uint8).transpose(2, 0, 1)
    np.testing.assert_array_equal(look_up(table, indices), table[indices])


def test_rows_are_summed(xp: Any) -> None:
    rows = np.random.default_rng(4).random((5, 7), dtype=np.float32)
    indices = np.array([[0, 1], [3, 4], [4, 4]], np.int32)
    weights = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], np.float32)
    found = to_host(RowSums(indices, weights, 5)(xp.asarray(rows)))
    expected = rows[indices[:, 0]] * weights[:, :1] + rows[indices[:, 1]] * weights[:, 1:]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    copied = to_host(RowSums(indices[:, 1:], np.ones((3, 1), np.float32), 5)(xp.asarray(rows)))
    np.testing.assert_array_equal(copied, rows[indices[:, 1]])


def test_half_precision_arrays_are_arrays(xp: Any) -> None:
    """`features` and `refined` are float16 in fp16 bundles; array_api_strict has no such type."""
    if not hasattr(xp, "float16"):
        pytest.skip("this library has no float16")
    host = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
    array = as_namespace(host, xp)
    assert namespace(array).__name__ == xp.__name__
    assert array.dtype == xp.float16
    assert to_host(array).dtype == np.float16
    assert (
        to_host(contiguous(array.transpose(2, 0, 1))).tolist() == host.transpose(2, 0, 1).tolist()
    )


@pytest.mark.usefixtures("all_cores")
def test_threads_do_every_block_and_report_errors() -> None:
    done = np.zeros(1000, np.int64)

    def work(start: int, stop: int) -> None:
        if start == 990:
            raise ValueError("block 990")
        done[start:stop] += 1

    with pytest.raises(ValueError, match="block 990"):
        on_all_cores(work, [(at, at + 10) for at in range(0, 1000, 10)], done)
    assert (done[:990] == 1).all()
    assert (done[990:] == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_labels_are_counted(dtype: type[np.integer[Any]]) -> None:
    labels = np.zeros((3, 4, 5), dtype)
    labels[0, 0, :2], labels[2] = 7, 2
    counts = label_counts(labels)
    assert counts.tolist() == [38, 0, 20, 0, 0, 0, 0, 2]
    assert label_counts(labels.transpose(2, 0, 1), 10).tolist() == [*counts.tolist(), 0, 0]
    assert label_counts(labels[:0]).tolist() == [0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_memory_order(order: tuple[int, int, int]) -> None:
    array = np.zeros((2, 3, 4)).transpose(order)
    found = memory_order(array)
    assert array.transpose(found).flags.c_contiguous


def test_bounding_box(xp: Any) -> None:
    mask = np.zeros((5, 6, 7), np.bool_)
    assert bounding_box(xp.asarray(mask)) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    for array in (mask, mask * np.uint16(300)):
        assert bounding_box(xp.asarray(array)) == ((1, 2, 3), (4, 3, 7))
