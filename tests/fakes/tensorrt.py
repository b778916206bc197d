"""A fake of TensorRT, as far as its documented interface is used here.

An "engine" is a line of JSON and an ONNX file, which ONNX Runtime computes on the addresses that it
is given. The line says how it behaves: see `Context`. How building fails is set in `builds`.
"""

import ctypes
import json
import os
import time
from enum import Enum, IntEnum
from pathlib import Path

import cupy
import numpy as np
import onnxruntime

__version__ = "11.4.0"
# how many graphs were parsed, and at which what fails: "parse", "profile" or "build"
builds = {"parsed": 0, "fail_at": None, "failure": "", "step_s": 0.0}
timing_caches = []


def _fails(what):
    return builds["parsed"] == builds["fail_at"] and builds["failure"] == what


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0


class MemoryPoolType(Enum):
    WORKSPACE = 0


class BuilderFlag(Enum):
    TF32 = 0


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY, NONE, DETAILED = 0, 1, 2


class LayerInformationFormat(Enum):
    ONELINE, JSON = 0, 1


class ExecutionContextAllocationStrategy(Enum):
    USER_MANAGED = 2


class TensorLocation(Enum):
    DEVICE = 0


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def complain(self, text):
        self.log(self.Severity.WARNING, "never mind this")
        self.log(self.Severity.ERROR, text)


class IProgressMonitor:
    pass


def _types(session_value):
    return {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF}[session_value.type]


def _sizes(value):
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


class _Tensor:
    def __init__(self, value):
        self.name, self.shape = value.name, _sizes(value)


class _ParserError:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text

    def node_name(self):
        return "node_7"

    def node_operator(self):
        return "NoSuchOp"


class Builder:
    def __init__(self, log):
        self.log = log

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        assert config.cleared == {BuilderFlag.TF32}
        free = {tensor.name for tensor in network.inputs if -1 in tensor.shape}
        if free != (config.profile.shapes.keys() if config.profile else set()):
            self.log.complain("no optimization profile has been defined")
            return None
        monitor, steps = config.progress_monitor, 3
        monitor.phase_start("Building engine", None, steps)
        for step in range(steps):
            if not monitor.step_complete("Building engine", step):
                self.log.complain("Build canceled by user")
                return None
            time.sleep(builds["step_s"])
        monitor.phase_finish("Building engine")
        if _fails("build"):
            self.log.complain("no implementation for node_7")
            return None
        if config.timing_cache is not None:
            config.timing_cache.data += b"measured "
        header = {
            "behaviour": "good",
            "profile": config.profile and config.profile.shapes,
            "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
        }
        return json.dumps(header).encode() + b"\n" + network.onnx


class Network:
    def parse(self, onnx):
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.onnx, self.inputs = onnx, [_Tensor(value) for value in session.get_inputs()]

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]


class OnnxParser:
    def __init__(self, network, log):
        self._network, self._log, self._errors = network, log, []

    def parse_from_file(self, path):
        builds["parsed"] += 1
        if _fails("parse"):
            self._log.complain("While parsing node number 7")
            self._errors = [_ParserError("Plugin not found")]
            return False
        self._network.parse(Path(path).read_bytes())
        return True

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        self.shapes[name] = [least, best, most]


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data


class Config:
    def __init__(self):
        self.cleared, self.profile, self.timing_cache = set(), None, None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_memory_pool_limit(self, pool, size):
        self.limits = {pool: size}

    def clear_flag(self, flag):
        self.cleared.add(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile
        return -1 if _fails("profile") else 0

    def create_timing_cache(self, data):
        timing_caches.append(data)
        return None if data == b"of another version" else TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.timing_cache = cache
        return True


class Runtime:
    def __init__(self, log):
        self.log = log

    def deserialize_cuda_engine(self, data):
        header, _, onnx = bytes(data).partition(b"\n")
        try:
            return Engine(json.loads(header), onnx, self.log)
        except ValueError:
            self.log.complain("the engine plan file is not compatible")
            return None


class Engine:
    def __init__(self, header, onnx, log):
        self.behaviour = header["behaviour"]
        self.profile = header.get("profile") or {}
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.log = log
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.modes = {value.name: TensorIOMode.INPUT for value in inputs}
        self.modes |= {value.name: TensorIOMode.OUTPUT for value in outputs}
        self.values = {value.name: value for value in (*inputs, *outputs)}
        self.num_io_tensors = len(self.values)
        self.device_memory_size_v2 = 4096
        self.detailed, self.onnx = header.get("detailed", False), onnx

    def create_engine_inspector(self):
        return EngineInspector(self)

    def get_tensor_name(self, index):
        return list(self.values)[index]

    def get_tensor_mode(self, name):
        return self.modes[name]

    def get_tensor_dtype(self, name):
        return _types(self.values[name])

    def get_tensor_location(self, name):
        assert name in self.values
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name):
        return _sizes(self.values[name])

    def create_execution_context(self, strategy):
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return None if self.behaviour == "no context" else Context(self)


class EngineInspector:
    """Says of every other layer in which format it is, as the library's own words for it go."""

    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, format):  # noqa: A002 - TensorRT's name
        assert format is LayerInformationFormat.JSON
        import onnx

        nodes = onnx.load_from_string(self._engine.onnx).graph.node
        layers = [
            {
                "Name": node.name,
                "LayerType": node.op_type,
                "Inputs": [],
                "Outputs": [
                    {
                        "Name": node.output[0],
                        "Dimensions": [1, 32, 8],
                        "Format/Datatype": "Row major linear FP32" if index % 2 else "Half",
                    }
                ],
                "TacticName": f"sm90_{node.op_type.lower()}" if index % 2 else "",
                "TacticValue": "0x0000000000000001",
            }
            for index, node in enumerate(nodes)
        ]
        if not self._engine.detailed:
            layers = [each["Name"] for each in layers]
        return json.dumps({"Layers": layers, "Bindings": []})


class Context:
    """Behaviours: good, no context, false (a launch is refused), abort (the process
    ends), hang, nan, out of memory, unspecified (of shapes), bad shape, bad address."""

    def __init__(self, engine):
        self._engine, self._addresses, self._shapes = engine, {}, {}
        self._memory = None
        self.count = None

    def set_input_shape(self, name, shape):
        allowed = self._engine.profile.get(name)
        self._shapes[name] = shape
        self.count = shape[0] if allowed else self.count
        in_range = not allowed or allowed[0][0] <= shape[0] <= allowed[2][0]
        if not in_range or self._engine.behaviour == "bad shape":
            self._engine.log.complain("shape out of the profile's range")
            return False
        return True

    def infer_shapes(self):
        return ["prompts"] if self._engine.behaviour == "unspecified" else []

    def get_tensor_shape(self, name):
        return tuple(
            self.count if size == -1 else size for size in self._engine.get_tensor_shape(name)
        )

    def update_device_memory_size_for_shapes(self):
        return 256 * (self.count or 1)

    def set_device_memory(self, address, size):
        self._memory = (address, size)

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return self._engine.behaviour != "bad address"

    def execute_async_v3(self, stream):
        assert stream != 1, "the default stream makes TensorRT wait for the whole device"
        behaviour, (scratch, size) = self._engine.behaviour, self._memory
        if behaviour == "abort":
            os.abort()
        if behaviour == "hang":
            time.sleep(60)
        if behaviour == "out of memory":
            raise MemoryError("the GPU is full")
        if behaviour == "false":
            self._engine.log.complain("an illegal memory access was encountered")
            return False
        ctypes.memset(scratch, 1, size)
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        shapes |= {name: self.get_tensor_shape(name) for name in addresses if name not in shapes}
        cupy.cuda.streams[stream].queue(lambda: self._compute(addresses, shapes))
        return True

    def _compute(self, addresses, shapes):
        engine = self._engine
        arrays = {
            name: _at(address, shapes[name], engine.get_tensor_dtype(name))
            for name, address in addresses.items()
        }
        feeds = {name: a for name, a in arrays.items() if engine.modes[name] is TensorIOMode.INPUT}
        outputs = [name for name in arrays if name not in feeds]
        for name, found in zip(outputs, engine.session.run(outputs, feeds), strict=True):
            arrays[name][...] = np.nan if engine.behaviour == "nan" else found


def _at(address, shape, dtype):
    kind = np.dtype({DataType.FLOAT: np.float32, DataType.HALF: np.float16}[dtype])
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)
