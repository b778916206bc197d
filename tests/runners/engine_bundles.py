"""A bundle with fake engines, for tests of what runs them."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from medals_export.engines import build_engines
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.engines import ENGINE_FOLDER, Engine, list_engines, write_record
from medals_rt.bundle.manifest import file_sha256
from medals_rt.bundle.recipes import recipe_for
from tests.fakes import Fakes


def build_fake_engines(folder: Path, like: Bundle, fakes: Fakes) -> Bundle:
    """Copy a bundle and build engines of all its graphs by the fake."""
    shutil.copytree(like.folder, folder)
    bundle = Bundle.open(folder, verify=False)
    build_engines(bundle, fakes.library, *recipe_for("tensorrt", "fp32"))
    return bundle


def engine_of(bundle: Bundle, graph: str, stage: int = 1) -> Engine:
    """Return the engine of a graph."""
    (found,) = (
        each
        for each in list_engines(bundle.folder / ENGINE_FOLDER)
        if (each.record.stage, each.record.graph) == (stage, graph)
    )
    return found


def behaving(engine: Engine, behaviour: str) -> Engine:
    """Replace an engine by one that behaves otherwise; see the fake's `Context`."""
    header, _, onnx = engine.path.read_bytes().partition(b"\n")
    data = json.dumps({**json.loads(header), "behaviour": behaviour}).encode() + b"\n" + onnx
    engine.path.write_bytes(data)
    record = msgspec.structs.replace(
        engine.record, sha256=file_sha256(engine.path), bytes=len(data)
    )
    write_record(engine.folder, record)
    return Engine(engine.folder, record)


def random_feeds(cupy: ModuleType, bundle: Bundle, graph: str, count: int, seed: int = 0) -> dict:
    """Inputs of a coarse graph, as CuPy's arrays; `count` prompts where N is free."""
    rng = np.random.default_rng(seed)
    return {
        tensor.name: cupy.asarray(
            rng.standard_normal(
                [size if isinstance(size, int) else count for size in tensor.shape], np.float32
            ).astype(tensor.dtype)
        )
        for tensor in bundle.graph(1, graph).inputs
    }
