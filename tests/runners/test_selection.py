"""Which inference library is chosen, and what is said where one is missing."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from medals_rt.common.choices import RUNNER_KINDS
from medals_rt.common.errors import InputError, MissingDependencyError
from medals_rt.common.optional_deps import OPTIONAL_LIBRARIES
from medals_rt.runners import base, selection
from medals_rt.runners.base import thread_limit
from medals_rt.runners.registry import CPU_RUNNERS, REGISTRY
from medals_rt.runners.selection import check_arithmetic, choose, why_not
from tests.errors import raises


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """What is chosen where there is a GPU: test_tensorrt."""
    monkeypatch.setattr("medals_rt.common.gpu.find_gpu", lambda: None)


def with_installed(monkeypatch, *kinds):
    monkeypatch.setattr(selection, "installed", lambda kind: kind in kinds)


@pytest.mark.parametrize(
    ("there", "kind", "why"),
    [
        (("openvino", "onnxruntime"), "openvino", "OpenVINO is installed"),
        (("onnxruntime",), "onnxruntime", "OpenVINO is not installed"),
    ],
)
def test_auto_says_why(monkeypatch, there, kind, why):
    with_installed(monkeypatch, *there)
    choice = choose("auto")
    assert choice.kind == kind
    assert why in choice.why


def test_nothing_installed_names_both_extras(monkeypatch):
    with_installed(monkeypatch)
    with raises(MissingDependencyError, "dependency-missing", "medals-rt[cpu]", "medals-rt[onnx]"):
        choose("auto")


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("openvino", "cpu"),
        ("onnxruntime", "onnx"),
        ("onnxruntime-cuda", "gpu"),
        ("tensorrt", "tensorrt,gpu"),
        ("tensorrt-rtx", "rtx,gpu"),
    ],
)
def test_what_is_asked_for_is_never_replaced(monkeypatch, kind, extra):
    with_installed(monkeypatch, *({*RUNNER_KINDS} - {kind}))
    with raises(
        MissingDependencyError, "dependency-missing", f"runner {kind}", f"medals-rt[{extra}]"
    ):
        choose(kind)


def test_usable_is_installed_and_a_card_where_one_is_needed(monkeypatch):
    with_installed(monkeypatch, *RUNNER_KINDS)
    assert [kind for kind in RUNNER_KINDS if selection.usable(kind)] == [
        "openvino",
        "onnxruntime",
    ]
    monkeypatch.setattr("medals_rt.common.gpu.find_gpu", object)
    assert all(selection.usable(kind) for kind in RUNNER_KINDS)
    with_installed(monkeypatch)
    assert not any(selection.usable(kind) for kind in RUNNER_KINDS)


def test_why_a_runner_cannot_run_a_bundle(monkeypatch, tiny_bundle):
    with_installed(monkeypatch, "openvino", "onnxruntime", "tensorrt")
    assert why_not("openvino", tiny_bundle) == why_not("onnxruntime", tiny_bundle) == ""
    assert why_not("onnxruntime-cuda", tiny_bundle) == "onnxruntime-cuda is not installed"
    assert "tensorrt needs an NVIDIA GPU" in why_not("tensorrt", tiny_bundle)
    half = SimpleNamespace(precision="bf16")
    assert "can't compute a bundle in bf16" in why_not("onnxruntime", half)
    assert why_not("openvino", half) == ""


def test_the_registry_is_the_closed_list() -> None:
    """A runner of one and not of the other would be offered and not opened, or never offered."""
    assert {spec.kind for spec in REGISTRY} == set(RUNNER_KINDS)
    assert len(REGISTRY) == len(RUNNER_KINDS)
    assert CPU_RUNNERS == ("openvino", "onnxruntime")
    known = {library.name for library in OPTIONAL_LIBRARIES}
    assert all(known.issuperset(spec.libraries) for spec in REGISTRY)
    assert all((spec.device == "cuda") == ("CuPy" in spec.libraries) for spec in REGISTRY)


def test_a_bundle_that_nothing_here_can_run_is_refused_with_the_reason(monkeypatch):
    with_installed(monkeypatch, "onnxruntime")
    with raises(MissingDependencyError, "dependency-missing", "onnxruntime", "bf16"):
        choose("auto", SimpleNamespace(precision="bf16"))


def test_unknown_runner_lists_the_known():
    with raises(InputError, "runner-unknown", "torch", ", ".join(RUNNER_KINDS)):
        choose("torch")


def test_choosing_imports_no_library():
    code = (
        "import sys, medals_rt.inference.network; import medals_rt.runners.selection as r;"
        "r.choose('auto');"
        "heavy = ('openvino', 'onnxruntime', 'torch', 'onnx', 'cupy', 'tensorrt');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("usable", "in_machine", "limit"), [(2, 8, 2), (8, 8, 0), (1, None, 0)])
def test_libraries_hear_of_cores_that_must_not_be_used(monkeypatch, usable, in_machine, limit):
    monkeypatch.setattr(base, "usable_cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: in_machine)
    assert thread_limit(None) == limit
    assert thread_limit(3) == 3


def test_threads_must_be_positive():
    assert thread_limit(3) == 3
    with raises(InputError, "threads-not-positive"):
        thread_limit(0)


@pytest.mark.parametrize(
    ("kind", "graphs"), [("cudnn", "fp32"), ("cudnn", "bf16"), ("onnxruntime", "bf16")]
)
def test_bundles_that_a_library_cannot_compute_are_refused_before_anything_is_opened(kind, graphs):
    with raises(InputError, "bundle-precision-unsupported", kind, graphs):
        check_arithmetic(kind, graphs, None)
