"""The sentences that are known at export, each with the class that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from medals_rt.common.choices import KINDS
from medals_rt.common.errors import InputError, PromptError
from medals_rt.common.text_files import read_text
from medals_rt.prompts.classes import ClassKey
from medals_rt.prompts.matching import find_class
from medals_rt.prompts.prompt_set import INSTANCE_LABEL

_MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class KnownSentences:
    """Sentences by class.

    Attributes
    ----------
    by_class
        A class's sentences, each once, in the order of the file.
    unread
        One line for each sentence that names no class: where it stands, what it says, and why.
    """

    by_class: Mapping[ClassKey, tuple[str, ...]]
    unread: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are, over all classes."""
        return sum(map(len, self.by_class.values()))


def read_sentences(path: Path) -> KnownSentences:
    """Read the challenge's file of sentences.

    `{"CT_...": {"1": ["Liver", "Liver in abdominal CT", ...], ..., "instance_label": 0}, ...}`: by
    data set and label, with the kind of the data set. A sentence without a modality ("Liver") takes
    that of the others of its label, since all of them are about the same images.

    Raises
    ------
    MissingFileError
        If there is no such file.
    InputError
        If it is of another form, or no sentence in it names a class.
    """
    text = read_text(path, "sentences file", most_bytes=_MAX_FILE_BYTES, form="sentences-form")
    try:
        content = msgspec.json.decode(text, type=dict[str, dict[str, int | tuple[str, ...]]])
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path} is no file of sentences ({error}); write "
            '{"DATA SET": {"1": ["Spleen in abdominal CT"], "instance_label": 0}}',
            code="sentences-form",
        ) from error
    found: dict[ClassKey, dict[str, None]] = {}
    unread: list[str] = []
    for data_set, labels in content.items():
        kind = _kind(labels.get(INSTANCE_LABEL), f"{path}, {data_set}")
        for label, sentences in labels.items():
            if isinstance(sentences, int):
                continue
            for sentence, key in _resolve(sentences, kind).items():
                if isinstance(key, ClassKey):
                    found.setdefault(key, {})[sentence] = None
                else:
                    unread.append(f"{data_set} {label}: {key}")
    if not found:
        raise InputError(
            f"no sentence of {path} names a class; the first: {unread[:1]}", code="no-class"
        )
    return KnownSentences({key: tuple(texts) for key, texts in found.items()}, tuple(unread))


def _kind(value: object, where: str) -> str:
    if value not in (0, 1):
        raise InputError(
            f"{where}: instance_label is {value!r}; use 0 (anatomy) or 1 (lesions)",
            code="instance-label-invalid",
        )
    return KINDS[value]


def _resolve(sentences: Sequence[str], kind: str) -> dict[str, ClassKey | PromptError]:
    """Find the class of each sentence of a label, or why there is none."""
    found: dict[str, ClassKey | PromptError] = {}
    for text in (sentence.strip() for sentence in sentences):
        found[text] = _class_or_reason(text, kind, None)
    modalities = {key.modality for key in found.values() if isinstance(key, ClassKey)}
    if len(modalities) == 1:
        (modality,) = modalities
        for text, key in found.items():
            if isinstance(key, PromptError):
                found[text] = _class_or_reason(text, kind, modality)
    return found


def _class_or_reason(text: str, kind: str, modality: str | None) -> ClassKey | PromptError:
    try:
        return find_class(text, kind, modality).class_key
    except PromptError as error:
        return error
