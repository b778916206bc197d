"""The text encoder as an ONNX graph for bundles, beside its tokenizer and settings."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch

from medals_export.bundle_writer import file_record
from medals_export.graph_checks import check_operators, infer_shapes, tensor_records
from medals_export.onnx_graphs import trace_module
from medals_export.text_encoder import TextCheckpoint, load_text_encoder
from medals_rt.bundle.manifest import GraphRecord, TextEncoderRecord
from medals_rt.common.errors import ExportError
from medals_rt.prompts.text_encoder import TEXT_ENCODER_FOLDER, batch_tokens, open_graph
from medals_rt.runners.registry import REGISTRY
from medals_rt.runners.selection import installed

_NAME = "the text encoder"
_OPSET = 20
TOLERANCE = 1e-4
SENTENCE_AXIS, TOKEN_AXIS = "N", "L"
ALLOWED_OPERATORS = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "Concat",
        "CumSum",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "GatherND",
        "Gelu",
        "Gemm",
        "GreaterOrEqual",
        "LayerNormalization",
        "Less",
        "Log",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Range",
        "ReduceSum",
        "Reshape",
        "Shape",
        "Softmax",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
# one token, one of many, and one that has to be cut: lengths that a batch fills up
_TRIALS = ("", "Spleen in abdominal CT", "x " * 400)


def export_text_encoder(text_encoder: Path, biolord: Path, folder: Path) -> TextEncoderRecord:
    """Write `text_encoder/` into a bundle's folder: graph, `tokenizer.json`, `settings.json`.

    The graph takes `token_ids (N, L)` and `modality (N,)`, both int64, and gives `embeddings
    (N, dim)` float32; N and L are free. It is compared with PyTorch in every inference library
    that is installed, on sentences of one to 256 tokens, filled up to one another's length.

    Parameters
    ----------
    text_encoder
        The knowledge encoder's checkpoint, `text_encoder.pth`.
    biolord
        Local BioLORD folder: configuration and tokenizer.
    folder
        The bundle that is being written.

    Raises
    ------
    MissingFileError, MissingDependencyError
        As `load_text_encoder`.
    ExportError
        As `load_text_encoder`; and if the graph can't be traced, breaks what is said above, or
        differs from PyTorch by more than 1e-4 of the largest value.
    """
    encoder = load_text_encoder(text_encoder, biolord)
    (folder / TEXT_ENCODER_FOLDER).mkdir()
    names = [
        f"{TEXT_ENCODER_FOLDER}/{name}"
        for name in ("encoder.onnx", "tokenizer.json", "settings.json")
    ]
    model = _trace_text_encoder(encoder)
    (folder / names[0]).write_bytes(model.SerializeToString(deterministic=True))
    (folder / names[1]).write_text(encoder.tokenizer.to_str(pretty=True), encoding="utf-8")
    (folder / names[2]).write_bytes(
        msgspec.json.format(msgspec.json.encode(encoder.settings), indent=2) + b"\n"
    )
    graph, tokenizer, settings = (file_record(folder, name) for name in names)
    return TextEncoderRecord(
        graph=GraphRecord(
            file=graph.file,
            sha256=graph.sha256,
            bytes=graph.bytes,
            inputs=tensor_records(model.graph.input),
            outputs=tensor_records(model.graph.output),
        ),
        tokenizer=tokenizer,
        settings=settings,
        relative_errors=compare_with_pytorch(encoder, folder / names[0]),
    )


def _trace_text_encoder(encoder: TextCheckpoint) -> onnx.ModelProto:
    """Turn the encoder into ONNX, opset 20, and check it.

    Raises
    ------
    ExportError
        If the tracer fails, or the graph is another than `export_text_encoder` says.
    """
    tokens = torch.from_numpy(batch_tokens(encoder.tokenizer, _TRIALS, encoder.settings))
    sentences = torch.export.Dim(SENTENCE_AXIS, min=1, max=4096)
    length = torch.export.Dim(TOKEN_AXIS, min=2, max=encoder.settings.max_tokens)
    model = trace_module(
        encoder.model,
        (tokens[:, :7], torch.arange(len(tokens))),
        _NAME,
        inputs=["token_ids", "modality"],
        outputs=["embeddings"],
        dynamic_shapes=({0: sentences, 1: length}, {0: sentences}),
        opset=_OPSET,
    )
    check_text_graph(model, encoder.settings.dim)
    return model


def check_text_graph(model: onnx.ModelProto, dim: int) -> None:
    """Hold the graph to what `export_text_encoder` says of it.

    Raises
    ------
    ExportError
        If the opset is not 20, an operator is not among the allowed ones, an input or output has
        another name, type or shape, or ONNX's checker or strict shape inference object.
    """
    check_operators(model, _NAME, _OPSET, ALLOWED_OPERATORS)
    found = [
        (record.name, record.dtype, record.shape)
        for record in tensor_records([*model.graph.input, *model.graph.output])
    ]
    expected = [
        ("token_ids", "int64", (SENTENCE_AXIS, TOKEN_AXIS)),
        ("modality", "int64", (SENTENCE_AXIS,)),
        ("embeddings", "float32", (SENTENCE_AXIS, dim)),
    ]
    if found != expected:
        raise ExportError(
            f"the text encoder's graph has {found}, it should have {expected}",
            code="graph-signature",
        )
    infer_shapes(model, _NAME)


def compare_with_pytorch(encoder: TextCheckpoint, graph: Path) -> dict[str, float]:
    """Return the largest difference over the largest value, by inference library installed.

    Raises
    ------
    ExportError
        If one is above 1e-4, or not a number.
    """
    tokens = batch_tokens(encoder.tokenizer, _TRIALS, encoder.settings)
    modality = np.arange(len(tokens)) % len(encoder.settings.modalities)
    with torch.inference_mode():
        expected = encoder.model(torch.from_numpy(tokens), torch.from_numpy(modality)).numpy()
    errors: dict[str, float] = {}
    able = [spec.kind for spec in REGISTRY if spec.open_text_graph is not None]
    for library in filter(installed, able):
        _, run = open_graph(graph, library)
        error = float(np.abs(run(tokens, modality) - expected).max() / np.abs(expected).max())
        if not error <= TOLERANCE:
            raise ExportError(
                f"the text encoder in {library} differs from PyTorch by {error:.1e} of the "
                f"largest value, more than {TOLERANCE:.0e}",
                code="text-encoder-differs",
            )
        errors[library] = float(f"{error:.2g}")
    return errors
