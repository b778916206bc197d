"""What is in an engine: its layers, what they compute in, and which kernels were chosen.

The libraries' own inspector tells, as JSON, of an engine that was loaded, and loading wants a GPU
and driver (TensorRT-RTX 1.7: cudaError 35 without). Without one there is the network as the parser
made it of the graph: its layers before any are fused, and no kernels.

`polygraphy inspect model` prints the same JSON as text for people; here it becomes rows.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medals_rt.bundle.engines import Engine, EngineInspection, EngineLayer
from medals_rt.common import gpu
from medals_rt.common.errors import BuildError
from medals_rt.runners.tensorrt_library import TensorRTLibrary

_DTYPES: Final[Mapping[str, str]] = {
    "FP32": "fp32",
    "FLOAT": "fp32",
    "FP16": "fp16",
    "HALF": "fp16",
    "BF16": "bf16",
    "BFLOAT16": "bf16",
    "FP8": "fp8",
    "INT8": "int8",
    "INT4": "int4",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}
"""Words for types in formats ("Row major linear FP32") and enumerations ("HALF")."""
_WORDS: Final = re.compile(rf"\b({'|'.join(_DTYPES)})\b", re.IGNORECASE)


def inspect_engine(library: TensorRTLibrary, engine: Engine, graph_path: Path) -> EngineInspection:
    """Say what is in an engine, or without a GPU in the network that it was built from.

    Parameters
    ----------
    library
        The one that built it.
    engine
        The engine.
    graph_path
        The ONNX file that it was built from.

    Raises
    ------
    BundleError
        If the engine's file is damaged.
    BuildError
        If the library can't load the engine, or parse the graph.
    """
    if gpu.find_gpu() is None:
        return EngineInspection(
            engine.record, "network", None, _network_layers(library, graph_path)
        )
    trt = library.module
    runtime = trt.Runtime(library.log)
    loaded = runtime.deserialize_cuda_engine(engine.read())
    if loaded is None:
        raise BuildError(
            f"{library.label} refused {engine.path}: {library.take_errors()}", code="engine-refused"
        )
    said = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = tuple(_layer(each) for each in json.loads(said)["Layers"])
    return EngineInspection(engine.record, "engine", int(loaded.device_memory_size_v2), layers)


def _layer(said: str | Mapping[str, Any]) -> EngineLayer:
    """Read what the inspector says of a layer; of engines built without details it is the name."""
    if isinstance(said, str):
        return EngineLayer(said, "", "", "", "")
    outputs = said.get("Outputs") or [{}]
    shape = "x".join(str(size) for size in outputs[0].get("Dimensions", ()))
    kinds = dict.fromkeys(_dtype(str(each.get("Format/Datatype", ""))) for each in outputs)
    tactic = said.get("TacticName") or said.get("TacticValue") or ""
    return EngineLayer(
        str(said.get("Name", "")),
        str(said.get("LayerType", "")),
        ", ".join(each for each in kinds if each),
        shape,
        str(tactic),
    )


def _dtype(said: str) -> str:
    """Return a type's short name, of a description of a tensor's format."""
    found = _WORDS.findall(said)
    return _DTYPES[found[-1].upper()] if found else said


def _network_layers(library: TensorRTLibrary, graph_path: Path) -> tuple[EngineLayer, ...]:
    trt = library.module
    builder = trt.Builder(library.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.log)
    if not parser.parse_from_file(str(graph_path)):
        raise BuildError(
            f"{library.label} can't parse {graph_path}: {library.take_errors()}",
            code="graph-refused",
        )
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(place) for place in range(layer.num_outputs)]
        kinds = dict.fromkeys(_dtype(each.dtype.name) for each in outputs)
        shape = "x".join("N" if size < 0 else str(size) for size in tuple(outputs[0].shape))
        layers.append(EngineLayer(layer.name, layer.type.name, ", ".join(kinds), shape, ""))
    return tuple(layers)
