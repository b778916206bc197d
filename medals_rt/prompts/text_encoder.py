"""Sentences to embeddings at run time, by the text encoder that a bundle may carry.

The encoder is an ONNX graph beside the tokenizer that it was trained with (`tokenizer.json`, read
by the library `tokenizers`), so that neither torch nor transformers is needed. Tokens
are cut, marked and padded as in the released code, by `batch_tokens`; the export
uses the same function, so that bank and run time can't drift apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import RunnerKind
from medals_rt.common.errors import BundleError, InputError, RunnerError
from medals_rt.common.optional_deps import import_optional, missing_one_of
from medals_rt.common.typing import HostArray
from medals_rt.runners.base import TextGraph
from medals_rt.runners.registry import REGISTRY, libraries_of
from medals_rt.runners.selection import installed

TEXT_ENCODER_FOLDER = "text_encoder"
SENTENCES_PER_RUN = 32

TokenIds: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]


class TextEncoderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `text_encoder/settings.json`.

    Attributes
    ----------
    max_tokens
        Tokens of a sentence at most, its start and end marks among them.
    start_id, end_id
        Marks before and after a sentence's tokens.
    pad_id
        Fills shorter sentences of a batch; the graph leaves it out of attention and mean.
    dim
        Width of the embeddings.
    modalities
        Names in the order of the encoder's modality vectors.
    """

    max_tokens: int
    start_id: int
    end_id: int
    pad_id: int
    dim: int
    modalities: tuple[str, ...]

    def modality_index(self, modality: str) -> int:
        """Row of a modality's vector; `InputError` for one that the encoder lacks."""
        if modality not in self.modalities:
            known = ", ".join(self.modalities)
            raise InputError(
                f"the text encoder has no modality {modality!r}; it knows {known}",
                code="modality-unknown",
            )
        return self.modalities.index(modality)


def batch_tokens(
    tokenizer: Any, sentences: Sequence[str], settings: TextEncoderSettings
) -> TokenIds:
    """Cut sentences into tokens as the released code does.

    Each is start mark, tokens, end mark; longer ones are cut to `max_tokens` and still end in the
    mark. Shorter ones are filled up to the longest of the batch. Whether letters are lowered is
    decided by the tokenizer's own normalizer.

    Parameters
    ----------
    tokenizer
        A `tokenizers.Tokenizer`; its own marks, padding and cutting are not used.
    sentences
        B sentences.
    settings
        Marks and limit.

    Returns
    -------
    `(B, L)` int64, C order.
    """
    encodings = tokenizer.encode_batch(list(sentences), add_special_tokens=False)
    rows = [
        [settings.start_id, *encoding.ids[: settings.max_tokens - 2], settings.end_id]
        for encoding in encodings
    ]
    tokens = np.full((len(rows), max(map(len, rows))), settings.pad_id, np.int64)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    return tokens


def _open_tokenizer(path: Path) -> Any:
    """Read a `tokenizer.json`, with the padding and cutting written in it turned off.

    Raises
    ------
    MissingDependencyError
        If `tokenizers` is not installed.
    BundleError
        If it is not one that this version of `tokenizers` reads.
    """
    tokenizers = import_optional("tokenizers", "free text")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise BundleError(
            f"{path} is no tokenizer that can be read ({error}); export the bundle again",
            code="tokenizer-damaged",
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class TextEncoder:
    """A bundle's text encoder, opened; computes in fp32 on the CPU.

    Attributes
    ----------
    settings
        Marks, limits and modalities.
    tokenizer
        A `tokenizers.Tokenizer`.
    runner
        The library that computes.
    graph
        The opened graph.
    """

    settings: TextEncoderSettings
    tokenizer: Any
    runner: RunnerKind
    graph: TextGraph

    @classmethod
    def open(cls, bundle: Bundle) -> Self:
        """Open the text encoder of a bundle.

        Raises
        ------
        BundleError
            If the bundle has none, or its files are damaged.
        MissingDependencyError
            If `tokenizers` or every inference library is missing.
        RunnerError
            If the library refuses the graph.
        """
        record = bundle.manifest.text_encoder
        if record is None:
            raise BundleError(
                f"bundle {bundle.name!r} has no text encoder and so reads only sentences that name "
                "a class it knows; export it with --with-text-encoder for free text",
                code="no-text-encoder",
            )
        settings = _read_settings(bundle.file_path(record.settings))
        if settings.dim != bundle.manifest.embeddings.dim:
            raise BundleError(
                f"the text encoder of {bundle.name!r} gives embeddings of width {settings.dim}, "
                f"its networks take {bundle.manifest.embeddings.dim}; export again",
                code="text-encoder-width",
            )
        tokenizer = _open_tokenizer(bundle.file_path(record.tokenizer))
        kind, graph = open_graph(bundle.file_path(record.graph))
        return cls(settings, tokenizer, kind, graph)

    def embed(self, sentences: Sequence[str], modality: str) -> Floats:
        """Embed sentences about images of one modality.

        Returns
        -------
        `(N, dim)` float32, in the order of the sentences.

        Raises
        ------
        InputError
            If the encoder has no such modality.
        RunnerError
            If the library fails.
        """
        index = self.settings.modality_index(modality)
        embeddings = np.empty((len(sentences), self.settings.dim), np.float32)
        for start in range(0, len(sentences), SENTENCES_PER_RUN):
            part = slice(start, start + SENTENCES_PER_RUN)
            tokens = batch_tokens(self.tokenizer, sentences[part], self.settings)
            embeddings[part] = self.graph(tokens, np.full(len(tokens), index, np.int64))
        return embeddings


def _read_settings(path: Path) -> TextEncoderSettings:
    """Read `settings.json`; `BundleError` if it is not of the right form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=TextEncoderSettings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is damaged ({error}); export the bundle again", code="text-encoder-damaged"
        ) from error


def open_graph(path: Path, library: RunnerKind | None = None) -> tuple[RunnerKind, TextGraph]:
    """Open the encoder's graph in a library, or in the first that is installed.

    It is no `Runner`: see `RunnerSpec.open_text_graph`.

    Raises
    ------
    MissingDependencyError
        If no library is installed.
    RunnerError
        If the library refuses the graph.
    """
    able = [spec for spec in REGISTRY if spec.open_text_graph is not None]
    wanted = [spec for spec in able if spec.kind == library or library is None]
    spec = next((each for each in wanted if installed(each.kind)), None)
    if spec is None or spec.open_text_graph is None:
        raise missing_one_of("the text encoder", *libraries_of(able))
    chosen = spec.kind
    try:
        run = spec.open_text_graph(path)
    except Exception as error:  # the libraries' errors share no base class
        raise RunnerError(
            f"{chosen} refused the text encoder {path}: {error}", code="text-encoder-refused"
        ) from error

    def embed(token_ids: HostArray, modality: HostArray) -> HostArray:
        try:
            return run(token_ids, modality)
        except Exception as error:  # the libraries' errors share no base class
            raise RunnerError(
                f"{chosen} failed in the text encoder {path}: {error}", code="text-encoder-failed"
            ) from error

    return chosen, embed
