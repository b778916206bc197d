"""The text encoder as a graph: written beside its tokenizer, and held to what PyTorch computes."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import onnx

from medals_export.text_encoder import load_text_encoder
from medals_export.text_graph import check_text_graph, compare_with_pytorch
from medals_rt.common.errors import ExportError
from medals_rt.prompts.text_encoder import batch_tokens, open_graph
from medals_rt.runners.registry import CPU_RUNNERS
from tests.errors import raises
from tests.texts import SENTENCES, TINY_DIM, close_to


@pytest.fixture(scope="module")
def reference(text_sources):
    return load_text_encoder(*text_sources)


def test_the_record_tells_what_was_written(text_bundle):
    record = text_bundle.manifest.text_encoder
    assert [each.file for each in record.files()] == [
        "text_encoder/encoder.onnx",
        "text_encoder/tokenizer.json",
        "text_encoder/settings.json",
    ]
    inputs = {each.name: (each.dtype, each.shape) for each in record.graph.inputs}
    assert inputs == {"token_ids": ("int64", ("N", "L")), "modality": ("int64", ("N",))}
    assert record.relative_errors.keys() == set(CPU_RUNNERS)
    assert all(error <= 1e-4 for error in record.relative_errors.values())
    settings = json.loads((text_bundle.folder / record.settings.file).read_text(encoding="utf-8"))
    assert settings == {
        "max_tokens": 256,
        "start_id": 6,
        "end_id": 7,
        "pad_id": 0,
        "dim": TINY_DIM,
        "modalities": ["CT", "MRI", "US", "PET", "Microscopy"],
    }


@pytest.mark.parametrize("library", CPU_RUNNERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_graph_agrees_with_pytorch_at_every_size(text_bundle, reference, library, count):
    _, run = open_graph(text_bundle.folder / "text_encoder/encoder.onnx", library)
    tokens = batch_tokens(reference.tokenizer, SENTENCES[-count:], reference.settings)
    modality = np.arange(count) % 5
    with torch.inference_mode():
        expected = reference.model(torch.from_numpy(tokens), torch.from_numpy(modality)).numpy()
    close_to(run(tokens, modality), expected)


def test_a_graph_that_is_not_as_promised(text_bundle):
    model = onnx.load(text_bundle.folder / "text_encoder/encoder.onnx")
    check_text_graph(model, TINY_DIM)
    with raises(ExportError, "graph-signature"):
        check_text_graph(model, TINY_DIM + 1)
    model.graph.node[0].op_type = "NonZero"
    with raises(ExportError, "graph-operator", "NonZero"):
        check_text_graph(model, TINY_DIM)


def test_a_graph_that_computes_something_else_is_refused(text_bundle, reference, monkeypatch):
    monkeypatch.setattr(
        "medals_export.text_graph.open_graph",
        lambda *_: ("onnxruntime", lambda tokens, _: np.zeros((len(tokens), TINY_DIM))),
    )
    with raises(ExportError, "text-encoder-differs"):
        compare_with_pytorch(reference, text_bundle.folder / "text_encoder/encoder.onnx")
