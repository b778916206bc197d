"""One text embedding a prompt: from the bundle's bank, or from its text encoder."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from rapidfuzz import process

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import BundleError, PromptError
from medals_rt.prompts.classes import all_classes
from medals_rt.prompts.prompt_set import Prompt, PromptSet
from medals_rt.prompts.text_encoder import TextEncoder

EmbeddingSource = Literal["sentence", "encoder", "class"]


class PromptEmbedder:
    """Embeds prompts for a bundle's networks; sentences that were encoded once are kept.

    Parameters
    ----------
    bundle
        Its bank, and the text encoder that it may carry.

    Raises
    ------
    BundleError
        If its classes are others than this package's (``classes-differ``).
    """

    def __init__(self, bundle: Bundle) -> None:
        _check_classes(bundle)
        self._bundle = bundle
        self._encoded: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def embed(
        self, prompts: PromptSet | Sequence[Prompt]
    ) -> tuple[npt.NDArray[np.float32], tuple[EmbeddingSource, ...]]:
        """Return one text embedding a prompt.

        A sentence that was known at export gets its own embedding. Any other gets its own from the
        bundle's text encoder, or its class's where the bundle has none.

        Returns
        -------
        embeddings
            `(N, dim)` float32, in the order of the prompts.
        sources
            For each prompt "sentence" (from the bank), "encoder" or "class".

        Raises
        ------
        PromptError
            If there are more than the bundle's graphs take.
        BundleError
            If there is no text encoder and the bank does not cover a prompt's class (code
            `class-not-covered`; the message names the nearest), or the prompt is free text
            (`no-text-encoder`).
        MissingDependencyError
            If the text encoder is needed and a library that it needs is not installed.
        """
        asked = prompts if isinstance(prompts, Sequence) else prompts.prompts
        bundle, sources = self._bundle, self.sources(asked)
        encoded = self._encode(
            (prompt.class_key.modality, prompt.text.strip())
            for prompt, source in zip(asked, sources, strict=True)
            if source == "encoder"
        )
        embeddings = np.empty((len(asked), bundle.class_embeddings.shape[1]), np.float32)
        for row, (prompt, source) in enumerate(zip(asked, sources, strict=True)):
            modality, text = prompt.class_key.modality, prompt.text.strip()
            if source == "sentence":
                embeddings[row] = bundle.sentence_embeddings[bundle.sentence_rows[modality][text]]
            elif source == "encoder":
                embeddings[row] = encoded[modality, text]
            else:
                key = prompt.class_key.bank_key
                embeddings[row] = bundle.class_embeddings[bundle.class_rows[key]]
        return embeddings, sources

    def sources(self, asked: Sequence[Prompt]) -> tuple[EmbeddingSource, ...]:
        """Return where the embedding of each prompt comes from; nothing is computed.

        Raises
        ------
        PromptError, BundleError
            As `embed`.
        """
        bundle = self._bundle
        limit = bundle.manifest.prompt_limit
        if len(asked) > limit:
            raise PromptError(
                f"{len(asked)} prompts are more than the {limit} that bundle {bundle.name!r} takes "
                "at once; split the case",
                code="too-many-prompts",
            )
        sources = tuple(self._source(prompt) for prompt in asked)
        missing = [
            str(prompt.class_key)
            for prompt, source in zip(asked, sources, strict=True)
            if source == "class" and prompt.class_key.bank_key not in bundle.class_rows
        ]
        if missing:
            raise BundleError(self._not_covered(missing), code="class-not-covered")
        return sources

    def _source(self, prompt: Prompt) -> EmbeddingSource:
        """Return where a prompt's embedding comes from."""
        key = prompt.class_key
        if prompt.text.strip() in self._bundle.sentence_rows.get(key.modality, {}):
            return "sentence"
        if self._bundle.manifest.text_encoder is not None or key.is_free_text:
            return "encoder"
        return "class"

    def _encode(
        self, wanted: Iterable[tuple[str, str]]
    ) -> Mapping[tuple[str, str], npt.NDArray[np.float32]]:
        """Embed sentences (modality, text), each alone, so that none depends on its case's others.

        The encoder is not kept open, since it takes as much memory as a stage's network.
        """
        new = [each for each in wanted if each not in self._encoded]
        if new:
            encoder = TextEncoder.open(self._bundle)
            for modality, text in new:
                (self._encoded[modality, text],) = encoder.embed([text], modality)
        return self._encoded

    def _not_covered(self, missing: list[str]) -> str:
        bundle = self._bundle
        covered = [f"{record.bank_key.split('/')[0]} {record.name}" for record in bundle.classes]
        near = dict.fromkeys(
            name for wanted in missing for name, _, _ in process.extract(wanted, covered, limit=3)
        )
        return (
            f"bundle {bundle.name!r} knows {len(covered)} classes and not {', '.join(missing)}; "
            f"nearest that it knows: {', '.join(near)}"
        )


def _check_classes(bundle: Bundle) -> None:
    """Refuse a bundle that means other classes by its keys.

    Keys are what prompts and rows of the bank meet by: where they differ, one organ would be found
    and called by the name of another.
    """
    names = {key.bank_key: key.name for key in all_classes()}
    times = Counter(record.bank_key for record in bundle.classes)
    amiss = [
        f"{record.bank_key} is {record.name!r} there and {names.get(record.bank_key)!r} here"
        if times[record.bank_key] == 1
        else f"{record.bank_key} is there {times[record.bank_key]} times"
        for record in bundle.classes
        if times[record.bank_key] > 1 or record.name != names.get(record.bank_key)
    ]
    if amiss:
        more = f", and {len(amiss) - 1} more" if len(amiss) > 1 else ""
        raise BundleError(
            f"bundle {bundle.name!r} has other classes than this medals-rt: {amiss[0]}{more}; "
            "export it again, by this version",
            code="classes-differ",
        )
