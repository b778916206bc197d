"""The embedding bank: one vector a class, and one a sentence where sentences are known."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from medals_rt.errors import ExportError, MissingFileError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextBank:
    """Text embeddings with their index, whoever made them.

    Attributes
    ----------
    class_embeddings
        `(K, dim)` float32.
    class_rows
        `bank_key` ("CT/anatomy/1": modality, kind, id) to row.
    source
        In words, where the vectors come from; stands in the manifest.
    sentence_embeddings
        `(S, dim)` float32, or none.
    sentence_rows
        Modality to sentence to row. The modality belongs to the key because the text encoder adds
        a modality vector.
    """

    class_embeddings: Floats
    class_rows: Mapping[str, int]
    source: str
    sentence_embeddings: Floats | None = None
    sentence_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = sorted(self.class_rows.values())
        if self.class_embeddings.ndim != 2 or rows != list(range(len(self.class_embeddings))):
            raise ExportError(
                f"a bank of shape {self.class_embeddings.shape} needs each row named once, "
                f"its index names {len(rows)}"
            )
        tensors = [self.class_embeddings]
        sentence_count = sum(len(rows) for rows in self.sentence_rows.values())
        if self.sentence_embeddings is not None:
            tensors.append(self.sentence_embeddings)
        if sentence_count != (len(tensors[1]) if len(tensors) > 1 else 0):
            raise ExportError(f"the bank's index names {sentence_count} sentences, not its tensor")
        for tensor in tensors:
            if tensor.dtype != np.float32 or tensor.shape[1:] != (self.dim,):
                raise ExportError(f"a bank of width {self.dim} holds {tensor.dtype} {tensor.shape}")
            if not np.isfinite(tensor).all():
                raise ExportError("the bank holds values that are not finite")

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.class_embeddings.shape[1])

    @property
    def bank_keys(self) -> tuple[str, ...]:
        """The classes in the order of their rows."""
        return tuple(sorted(self.class_rows, key=self.class_rows.__getitem__))


class _Index(msgspec.Struct, frozen=True):
    classes: dict[str, int]
    sentences: dict[str, dict[str, int]] = {}
    source: str = "learned with the network"


def load_bank(path: str | os.PathLike[str]) -> TextBank:
    """Read a bank that training left, or that was computed elsewhere.

    Parameters
    ----------
    path
        A safetensors file with `class_embeddings` and perhaps `sentence_embeddings`; its index lies
        beside it under the same name with `.json`: `{"classes": {"CT/anatomy/1": 0, ...},
        "sentences": {"CT": {"Liver in abdominal CT": 0}}, "source": "..."}`, the last two optional.

    Raises
    ------
    MissingFileError
        If one of the two files is not there.
    ExportError
        If they are damaged or do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    tensors_file = Path(path)
    index_file = tensors_file.with_suffix(".json")
    for file in (tensors_file, index_file):
        if not file.is_file():
            raise MissingFileError(f"a bank needs {tensors_file} and {index_file}; no {file}")
    try:
        tensors = load_file(tensors_file)
        index = msgspec.json.decode(index_file.read_bytes(), type=_Index)
    except (SafetensorError, msgspec.DecodeError) as error:
        raise ExportError(f"the bank {tensors_file} is damaged: {error}") from error
    if "class_embeddings" not in tensors:
        raise ExportError(f"{tensors_file} has no class_embeddings, only {', '.join(tensors)}")
    return TextBank(
        class_embeddings=tensors["class_embeddings"],
        class_rows=index.classes,
        source=index.source,
        sentence_embeddings=tensors.get("sentence_embeddings"),
        sentence_rows=index.sentences,
    )


def save_bank(path: str | os.PathLike[str], bank: TextBank) -> None:
    """Write what `load_bank` reads: the safetensors file and its index beside it."""
    tensors_file = Path(path)
    save_tensors(tensors_file, bank)
    index = _Index(
        dict(bank.class_rows),
        {modality: dict(rows) for modality, rows in bank.sentence_rows.items()},
        bank.source,
    )
    tensors_file.with_suffix(".json").write_bytes(
        msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"
    )


def save_tensors(path: Path, bank: TextBank) -> None:
    """Write the tensors alone, rows as they are."""
    from safetensors.numpy import save

    tensors = {"class_embeddings": np.ascontiguousarray(bank.class_embeddings)}
    if bank.sentence_embeddings is not None:
        tensors["sentence_embeddings"] = np.ascontiguousarray(bank.sentence_embeddings)
    path.write_bytes(save(tensors))  # not save_file, which makes files that only the owner reads
