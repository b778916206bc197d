"""The embedding bank: one vector a class, and one a sentence where sentences are known.

A sentence that was known at export gets its own vector. A class's vector serves all other sentences
that name it. It is the *mean over the class's known sentences*: training drew one of them at random
each time and asked for the same mask, so their center is where the network was taught the class,
and no point is nearer to all of them in the sense of squares. Measured by `benchmarks/text_bank.py`
on the 2,964 public challenge sentences (6 to 37 a class), with the MPNet that BioLORD was made from
(all-mpnet-base-v2, no projection, no modality vector): a sentence left out lies at 0.21 of its
squared length from the mean of the others, at 0.29 from the most central of them, at 0.41 from
"NAME in MODALITY", at 0.81 from the shortest, which is the bare name. Of all sentences 97% are
nearest to their own class among the classes of their modality and kind where means stand for the
classes (each being part of its mean), 90% and 91% with the next two, 69% with bare names.

Two doubts remain. The mean is shorter than the sentences (0.91 of their length), and no sentence
that the network saw lies exactly there; what that does to a mask can't be known without the
released weights, which were not at hand. And SAT's training pulls a concept's sentences closer
together than BioLORD's ancestor has them, which would make the choice matter less.

Without known sentences, or for a class that has none, the stated sentence "NAME in MODALITY" is
embedded, as in "Spleen in CT".
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import SourceRecord, file_sha256
from medals_rt.common.errors import ExportError, MissingFileError
from medals_rt.common.progress import Progress
from medals_rt.prompts.classes import ClassKey, all_classes, canonical_sentence

if TYPE_CHECKING:
    from medals_export.text_encoder import TextCheckpoint

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
        In words, where the vectors come from; kept in the manifest.
    sentence_embeddings
        `(S, dim)` float32, or none.
    sentence_rows
        Modality to sentence to row. The modality belongs to the key because the text encoder adds
        a modality vector.
    remarks
        For whoever made the bank: sentences that name no class, classes without sentences.
    """

    class_embeddings: Floats
    class_rows: Mapping[str, int]
    source: str
    sentence_embeddings: Floats | None = None
    sentence_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = sorted(self.class_rows.values())
        if self.class_embeddings.ndim != 2 or rows != list(range(len(self.class_embeddings))):
            raise ExportError(
                f"a bank of shape {self.class_embeddings.shape} needs each row named once, "
                f"its index names {len(rows)}",
                code="bank-index",
            )
        tensors = [self.class_embeddings]
        sentence_count = sum(len(rows) for rows in self.sentence_rows.values())
        if self.sentence_embeddings is not None:
            tensors.append(self.sentence_embeddings)
        if sentence_count != (len(tensors[1]) if len(tensors) > 1 else 0):
            raise ExportError(
                f"the bank's index names {sentence_count} sentences, not its tensor",
                code="bank-index",
            )
        for tensor in tensors:
            if tensor.dtype != np.float32 or tensor.shape[1:] != (self.dim,):
                raise ExportError(
                    f"a bank of width {self.dim} holds {tensor.dtype} {tensor.shape}",
                    code="bank-shape",
                )
            if not np.isfinite(tensor).all():
                raise ExportError(
                    "the bank holds values that are not finite", code="bank-not-finite"
                )

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.class_embeddings.shape[1])

    @property
    def bank_keys(self) -> tuple[str, ...]:
        """The classes in the order of their rows."""
        return tuple(sorted(self.class_rows, key=self.class_rows.__getitem__))


def build_bank(
    text_encoder: Path, biolord: Path, sentences: Path | None, progress: Progress | None = None
) -> TextBank:
    """Embed the 243 classes, and the sentences that are known.

    Parameters
    ----------
    text_encoder
        The knowledge encoder's checkpoint, `text_encoder.pth`.
    biolord
        Local BioLORD folder: configuration and tokenizer.
    sentences
        Known sentences in the form of the challenge's `challenge_prompts.json`; None for none.
    progress
        Called with what is done, how many sentences are embedded, and how many there are.

    Raises
    ------
    MissingFileError, MissingDependencyError, ExportError
        As `text_encoder.load_text_encoder`.
    InputError
        If the file of sentences is of another form, or no sentence in it names a class.
    """
    from medals_export.known_sentences import KnownSentences, read_sentences
    from medals_export.text_encoder import load_text_encoder

    known = KnownSentences({}, ()) if sentences is None else read_sentences(sentences)
    encoder = load_text_encoder(text_encoder, biolord)
    texts = {key: known.by_class.get(key, (canonical_sentence(key),)) for key in all_classes()}
    vectors = _embed(encoder, texts, progress)
    sentence_rows: dict[str, dict[str, int]] = {}
    kept = dict.fromkeys((key.modality, text) for key in known.by_class for text in texts[key])
    for row, (modality, text) in enumerate(kept):
        sentence_rows.setdefault(modality, {})[text] = row
    without = [key for key in texts if known.by_class and key not in known.by_class]
    return TextBank(
        class_embeddings=np.stack(
            [
                np.mean([vectors[key.modality, text] for text in own], axis=0)
                for key, own in texts.items()
            ]
        ),
        class_rows={key.bank_key: row for row, key in enumerate(texts)},
        source=_source(encoder.source, sentences),
        sentence_embeddings=np.stack([vectors[each] for each in kept]) if kept else None,
        sentence_rows=sentence_rows,
        remarks=(
            *known.unread,
            *(f"no known sentence for {key}; took {canonical_sentence(key)!r}" for key in without),
        ),
    )


def _embed(
    encoder: "TextCheckpoint",
    texts: Mapping[ClassKey, tuple[str, ...]],
    progress: Progress | None,
) -> dict[tuple[str, str], Floats]:
    """Embed each sentence once under its class's modality: (modality, sentence) to `(dim,)`."""
    wanted: dict[str, dict[str, None]] = {}
    for key, own in texts.items():
        wanted.setdefault(key.modality, {}).update(dict.fromkeys(own))
    total = sum(map(len, wanted.values()))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("text embeddings", done, total)

    return {
        (modality, text): vector
        for modality, own in wanted.items()
        for text, vector in zip(own, encoder.embed(list(own), modality, advance), strict=True)
    }


def _source(encoder: SourceRecord, sentences: Path | None) -> str:
    what = "NAME in MODALITY"
    if sentences is not None:
        what = f"the mean over its sentences in {sentences.name} ({file_sha256(sentences)[:12]})"
    return f"{encoder.file} ({encoder.sha256[:12]}); a class is {what}"


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
            raise MissingFileError(
                f"a bank needs {tensors_file} and {index_file}; no {file}", code="bank-missing"
            )
    try:
        tensors = load_file(tensors_file)
        index = msgspec.json.decode(index_file.read_bytes(), type=_Index)
    except (SafetensorError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExportError(
            f"the bank {tensors_file} is damaged: {error}", code="bank-damaged"
        ) from error
    if "class_embeddings" not in tensors:
        raise ExportError(
            f"{tensors_file} has no class_embeddings, only {', '.join(tensors)}",
            code="bank-damaged",
        )
    return TextBank(
        class_embeddings=tensors["class_embeddings"],
        class_rows=index.classes,
        source=index.source,
        sentence_embeddings=tensors.get("sentence_embeddings"),
        sentence_rows=index.sentences,
    )


def bundle_bank(bundle: Bundle) -> TextBank:
    """Return the text embeddings of a bundle, to export its checkpoints with once more."""
    return TextBank(
        class_embeddings=bundle.class_embeddings,
        class_rows=bundle.class_rows,
        source=bundle.manifest.embeddings.source,
        sentence_embeddings=bundle.sentence_embeddings if bundle.sentence_rows else None,
        sentence_rows=bundle.sentence_rows,
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
