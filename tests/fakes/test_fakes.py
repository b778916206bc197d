"""What is written for a GPU, on the fakes: all tests marked gpu, and whole cases.

This shows that the code keeps the rules of CuPy's arrays and of the libraries' interfaces, as far
as the fakes know them. It is no run on a GPU: that is `benchmarks/gpu.sh`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.runners.tensorrt_library import MODULES
from tests.fakes import ALLOWED, FOLDER, Fakes, environment, in_place
from tests.paths import ROOT

RTX_LACKS_THE_GPU = re.compile("TensorRT-RTX does not build for SM90|tensorrt-rtx is not installed")
ONLY_FOR_ENGINES = "for TensorRT and TensorRT-RTX"


def run_python(*arguments: str, **variables: str) -> str:
    """Run this Python where the fakes are found; gives what it wrote."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_all_tests_for_a_gpu_pass(tiny_bundle: Bundle, tmp_path: Path) -> None:
    marked = re.compile(r"mark\.gpu|\bxp\b")
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if marked.search(path.read_text(encoding="utf-8"))
    ]
    run_python(
        *("-m", "pytest", "-m", "gpu", "-p", "tests.fakes.gpu", "-p", "no:cacheprovider"),
        *(f"--junitxml={tmp_path / 'results.xml'}", *files),
        MEDALS_RT_TESTS_TINY_BUNDLE=str(tiny_bundle.folder),
    )
    passed: Counter[str] = Counter()
    skipped = set()
    for case in ET.parse(tmp_path / "results.xml").iter("testcase"):  # noqa: S314 - ours
        skip = case.find("skipped")
        if skip is not None:
            skipped.add(skip.get("message", ""))
        elif "test_on_gpu" in case.get("classname", ""):
            passed[re.findall("onnxruntime-cuda|tensorrt", case.get("name", ""))[0]] += 1
        else:
            passed["arrays"] += 1
    unexpected = [
        why for why in skipped if why != ONLY_FOR_ENGINES and not RTX_LACKS_THE_GPU.match(why)
    ]
    assert unexpected == []
    assert passed["arrays"] >= 75
    assert passed["onnxruntime-cuda"] >= 16
    assert passed["tensorrt"] >= 20


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "engines" / "demo").is_dir(), reason="needs the demo's bundle")
def test_labels_of_whole_cases_are_those_of_the_processor() -> None:
    told = run_python("-m", "tests.fakes.whole_cases", str(ROOT / "engines" / "demo"))
    cases = [json.loads(line) for line in told.splitlines()]
    assert [case["case"] for case in cases] == [
        "ct_anatomy, text",
        "ct_anatomy, text and mask",
        "ct_liver_tumors, text",
    ]
    for case in cases:
        assert (case["device"], case["differing_voxels"]) == ("cuda", 0)
        assert case["labels"]


@pytest.mark.parametrize(
    "mix",
    [
        lambda a: a.ours + a.host,
        lambda a: a.host + a.ours,
        lambda a: a.ours.__iadd__(a.host),
        lambda a: a.ours == a.host,
        lambda a: a.ours[a.host > 0],
        lambda a: a.ours.__setitem__(slice(None), a.host),
        lambda a: a.host.__setitem__(slice(None), a.ours),
        lambda a: a.cupy.where(a.ours > 0, a.host, 0.0),
        lambda a: a.cupy.concatenate([a.ours, a.host]),
        lambda a: a.cupy.take(a.ours, a.host.astype(int)),
        lambda a: a.cupy.ascontiguousarray(a.host),
        lambda a: a.ours.set(a.host.astype("float64")),
        lambda a: np.asarray(a.ours),
        lambda a: np.concatenate([a.ours, a.ours]),
        lambda a: np.add(a.ours, a.ours),
    ],
)
def test_arrays_of_gpu_and_host_do_not_mix(
    fakes: Fakes, mix: Callable[[SimpleNamespace], Any]
) -> None:
    host = np.ones(3, np.float32)
    with pytest.raises(TypeError):
        mix(SimpleNamespace(cupy=fakes.cupy, ours=fakes.cupy.asarray(host), host=host))


def test_what_the_fake_has_cupy_has() -> None:
    """Else a test would pass on it that fails on a GPU."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    told = run_python(
        "-c",
        "import cupy, json; print(json.dumps([[n for n in dir(each) if n[0] != '_']"
        " for each in (cupy, cupy.ndarray, cupy.cuda)]))",
    )
    names, of_arrays, of_cuda = json.loads(told)
    own = {"SimpleNamespace", "np", "os"}
    assert [name for name in names if name not in own and not hasattr(cupy, name)] == []
    assert [name for name in of_arrays if not hasattr(cupy.ndarray, name)] == []
    own = {"SimpleNamespace", "current", "log", "np", "streams"}
    assert [name for name in of_cuda if name not in own and not hasattr(cupy.cuda, name)] == []
    assert len(names) > 80


def test_what_the_fake_has_tensorrt_has(fakes: Fakes) -> None:
    """By TensorRT-RTX, whose interface is the same, and which is imported without a GPU."""
    real: Any = pytest.importorskip(MODULES["tensorrt-rtx"][-1], reason="needs TensorRT-RTX")
    named_otherwise = {
        "Config": "IBuilderConfig",
        "Context": "IExecutionContext",
        "Engine": "ICudaEngine",
        "Network": "INetworkDefinition",
        "Profile": "IOptimizationProfile",
        "TimingCache": "ITimingCache",
    }
    own = {"complain", "parse"}
    compared = 0
    for name, kind in vars(fakes.tensorrt).items():
        if name[0] == "_" or getattr(kind, "__module__", "") != "tensorrt" or not callable(kind):
            continue
        theirs = getattr(real, named_otherwise.get(name, name))
        names = {each for each in vars(kind) if each[0] != "_"} - own
        assert [each for each in sorted(names) if not hasattr(theirs, each)] == [], name
        compared += len(names)
    assert compared > 40


def test_the_fakes_are_not_found_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupyx", "tensorrt"):
        spec = find_spec(name)
        assert spec is None or not str(spec.origin).startswith(str(FOLDER))
        variables = {**environment(), ALLOWED: ""}
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "fake of CuPy, for tests only" in done.stderr
    earlier = {name: module for name, module in sys.modules.items() if "cupy" in name}
    with monkeypatch.context() as patch, in_place(patch) as fakes:
        import array_api_compat.cupy as xp

        assert sys.modules["cupy"] is fakes.cupy
        assert isinstance(xp.asarray([1]), fakes.cupy.ndarray)
    assert {name: module for name, module in sys.modules.items() if "cupy" in name} == earlier
