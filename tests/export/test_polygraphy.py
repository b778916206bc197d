"""Polygraphy builds what we build: an independent check of how the library is called.

In a process of its own, since Polygraphy reads when it is imported which library it means.
"""

import json
import subprocess
import sys

import pytest

from medals_rt.bundle.bundle import resolve_bundle
from medals_rt.runners.tensorrt_library import MODULES

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path

os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
from medals_export.engine_builder import EngineOrder, TimingCache, build_engine
from medals_rt.bundle.recipes import recipe_for
from medals_rt.runners.tensorrt_library import open_library

library = open_library("tensorrt-rtx")
trt = sys.modules["tensorrt_rtx"] = library.module  # the name by which Polygraphy asks for it

from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path

path, (_, recipe) = Path(sys.argv[1]), recipe_for("tensorrt-rtx", "fp32")
settings = recipe.build
counts = settings.query_counts
order = EngineOrder("query_decoder", path, counts, ("SM89",), settings)
ours = bytes(build_engine(library, order, TimingCache(), lambda *_: None))

def configure(builder, network):
    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        sizes = (counts.least, counts.best, counts.most)
        profile.add(tensor.name, *(tuple(n if s == -1 else s for s in shape) for n in sizes))
    make = CreateConfigRTX(
        compute_capabilities=[(8, 9)],
        builder_optimization_level=settings.optimization_level,
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: settings.workspace_mib << 20},
        profiles=[profile],
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
    )
    config = make(builder, network)
    config.clear_flag(trt.BuilderFlag.TF32)  # which Polygraphy leaves on here
    return config

network = network_from_onnx_path(str(path), strongly_typed=True)
theirs = bytes(engine_bytes_from_network(network, configure))
said = [[len(each), hashlib.sha256(each).hexdigest()] for each in (ours, theirs)]
print(json.dumps(said), file=sys.stderr)
"""


def test_the_same_engine_to_the_last_byte() -> None:
    pytest.importorskip("polygraphy")
    pytest.importorskip(MODULES["tensorrt-rtx"][-1], reason="needs TensorRT-RTX")
    graph = resolve_bundle() / "fine" / "query_decoder.onnx"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(graph)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = json.loads(done.stderr.splitlines()[-1])
    assert ours[0] > 1_000_000
    assert ours == theirs
