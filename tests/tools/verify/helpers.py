"""What is compared, and bundles that were spoilt."""

import msgspec
import numpy as np
import onnx

from medals_export.bundle_writer import file_record
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GraphName, Manifest, Stages, dump_manifest
from medals_rt.tools.verify.references import Candidate

BOTH = (Candidate("openvino", "fp32"), Candidate("onnxruntime", "fp32"))


WINDOWS = ("window, text only", "window, prompted", "window, many classes")


def damage(bundle: Bundle, graph: GraphName) -> Bundle:
    """Change one weight of a graph of the fine stage, and give the manifest the new hash."""
    record = bundle.graph(2, graph)
    path = bundle.folder / record.file
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda each: np.prod(each.dims))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += np.abs(values).max()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    new = file_record(bundle.folder, record.file)
    stages = msgspec.to_builtins(bundle.manifest.stages)
    stages["fine"]["graphs"][graph] |= {"sha256": new.sha256, "bytes": new.bytes}
    manifest = msgspec.structs.replace(bundle.manifest, stages=msgspec.convert(stages, Stages))
    (bundle.folder / "bundle.json").write_bytes(dump_manifest(manifest))
    return Bundle.open(bundle.folder)


def manifest_of(bundle: Bundle) -> Manifest:
    return Bundle.open(bundle.folder).manifest
