"""TensorRT-RTX compiles kernels on first use: how they are kept, on a fake engine."""

import os
import weakref
from enum import Enum
from types import SimpleNamespace

from medals_rt.runners.tensorrt import KernelCache
from medals_rt.runners.tensorrt_library import TensorRTLibrary
from tests.runners.engine_bundles import engine_of

GRAPH = "refiner"


class RTXCache:
    """TensorRT-RTX's cache of compiled kernels, as far as it is documented."""

    def __init__(self):
        self.data = b""

    def deserialize(self, data):
        if data.startswith(b"other GPU"):
            return False
        self.data = data
        return True

    def serialize(self):
        return self.data


class RTXEngine:
    """Its engine and runtime configuration in one."""

    def __init__(self):
        self.cache = self.strategy = None

    def create_runtime_config(self):
        return self

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RTXCache()

    def set_runtime_cache(self, cache):
        self.cache = cache

    def create_execution_context(self, config):
        assert config is self
        self.cache.data += b"kernels"
        return "context"


def test_kernels_compiled_on_first_use_are_kept(fakes, bundle, tmp_path, monkeypatch):
    """The part that TensorRT-RTX has and TensorRT has not."""
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    trt = SimpleNamespace(
        ExecutionContextAllocationStrategy=fakes.tensorrt.ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy=Enum("Strategy", ["EAGER", "LAZY"]),
    )
    library = TensorRTLibrary("tensorrt-rtx", trt, "1.7.1", fakes.library.log)
    engine = engine_of(bundle, GRAPH)
    path = tmp_path / "cache" / "tensorrt-rtx" / f"kernels-{engine.record.sha256}.cache"

    def opened_and_kept():
        compiled, cache = RTXEngine(), KernelCache(engine, library)
        assert cache.open_context(compiled) == "context"
        assert compiled.strategy.name == "USER_MANAGED"
        assert compiled.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        notes, made = cache.keep(), weakref.ref(compiled.cache)
        compiled.cache = None
        cache.forget()
        assert made() is None
        return notes

    assert opened_and_kept() == ()
    assert path.read_bytes() == b"kernels"
    assert opened_and_kept() == ()
    assert path.read_bytes() == b"kernels" * 2
    path.write_bytes(b"other GPU's")
    assert opened_and_kept() == ()
    assert path.read_bytes() == b"kernels"
    older = path.with_name("kernels-older.cache")
    older.write_bytes(b"kernels")
    os.utime(older, (0, 0))
    monkeypatch.setattr("medals_rt.common.cache_dir.KEPT_BYTES", 1)
    assert opened_and_kept() == ()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "file"))
    (note,) = opened_and_kept()
    assert note.startswith("compiled kernels are not kept: ")
