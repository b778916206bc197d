"""The knowledge encoder whose sentence embeddings the networks were trained on.

SAT's encoder, frozen: BioLORD, an MPNet, gives one vector a token; their mean
goes through Linear, exact GELU, Linear; last, the image's modality adds a learned vector. Details
that decide the result, all from the released code:

- a sentence is marked with BERT's `[CLS]` and `[SEP]`, which MPNet's vocabulary still holds, and
  not with MPNet's own `<s>` and `</s>`;
- shorter sentences of a batch are filled with token 0, and every token 0 is left out of attention
  and of the mean;
- 256 tokens at most, the last one `[SEP]`; letters are lowered by the tokenizer's own normalizer.

The checkpoint holds the weights of the MPNet too, so that of BioLORD's folder only the
configuration and the tokenizer are read: no weights file in it is opened, pickled or not.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from medals_export.checkpoint import STATE_ENTRY, check_keys, plain_weights, read_checkpoint
from medals_rt.bundle.manifest import SourceRecord, file_sha256
from medals_rt.common.choices import Modality
from medals_rt.common.errors import ExportError, MissingFileError
from medals_rt.common.optional_deps import import_optional
from medals_rt.prompts.text_encoder import Floats, TextEncoderSettings, batch_tokens

_MAX_TOKENS = 256
_PAD_ID = 0
START, END = "[CLS]", "[SEP]"
_SENTENCES_PER_PASS = 128
RELEASED_MODALITIES: Final[tuple[Modality, ...]] = ("CT", "MRI", "US", "PET", "Microscopy")
"""The rows of the checkpoint's `modality_embed`: its training decides their number and order."""
# Not the encoder's: a buffer that older transformers stored, and what SAT's pre-training leaves in
# its checkpoints (the released training code drops the same two).
_LEFT_OVERS = re.compile(r"position_ids$|atlas_tower|temperature")


class KnowledgeEncoder(nn.Module):
    """Token ids and modality to sentence embeddings; keys as in `text_encoder.pth`."""

    def __init__(self, biolord: nn.Module, dim: int) -> None:
        super().__init__()
        self.text_tower = nn.ModuleDict({"biolord": biolord})
        self.projection_layer = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.modality_embed = nn.Embedding(len(RELEASED_MODALITIES), dim)

    def forward(self, token_ids: Tensor, modality: Tensor) -> Tensor:
        """`(B, L)` and `(B,)`, both int64, to `(B, dim)` float32; `L` tokens, filled with 0."""
        mask = token_ids != _PAD_ID
        biolord = self.text_tower["biolord"]
        tokens = biolord(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1)
        embeddings: Tensor = self.projection_layer(mean) + self.modality_embed(modality)
        return embeddings


@dataclass(frozen=True)
class TextCheckpoint:
    """A text encoder with its weights, ready to embed.

    Attributes
    ----------
    model
        In evaluation mode, float32, on the CPU.
    tokenizer
        A `tokenizers.Tokenizer`, without padding and cutting of its own.
    settings
        Marks, limits and modalities.
    source
        File name and SHA-256 of the checkpoint.
    """

    model: KnowledgeEncoder
    tokenizer: Any
    settings: TextEncoderSettings
    source: SourceRecord

    def embed(
        self,
        sentences: Sequence[str],
        modality: str,
        advance: Callable[[int], None] | None = None,
    ) -> Floats:
        """Embed sentences about images of one modality.

        Parameters
        ----------
        sentences
            N sentences; ones of like length are run together, since filling costs time.
        modality
            One of the settings' modalities.
        advance
            Called after each pass with how many sentences it held.

        Returns
        -------
        `(N, dim)` float32, in the order of the sentences.
        """
        index = self.settings.modality_index(modality)
        embeddings = np.empty((len(sentences), self.settings.dim), np.float32)
        order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
        for start in range(0, len(order), _SENTENCES_PER_PASS):
            places = order[start : start + _SENTENCES_PER_PASS]
            tokens = batch_tokens(self.tokenizer, [sentences[i] for i in places], self.settings)
            with torch.inference_mode():
                found = self.model(torch.from_numpy(tokens), torch.full((len(places),), index))
            embeddings[places] = found.numpy()
            if advance is not None:
                advance(len(places))
        return embeddings


def load_text_encoder(text_encoder: Path, biolord: Path) -> TextCheckpoint:
    """Load `text_encoder.pth` beside a local BioLORD folder; no code in either is run.

    Parameters
    ----------
    text_encoder
        Checkpoint with `model_state_dict`, keys optionally prefixed `module.`.
    biolord
        Folder with `config.json` and the tokenizer's files. Nothing is fetched from anywhere.

    Raises
    ------
    MissingFileError
        If the checkpoint, the folder, or its configuration or tokenizer is not there.
    MissingDependencyError
        If transformers is not installed.
    ExportError
        If the folder is no MPNet's, the tokenizer lacks `[CLS]` or `[SEP]`, or keys are missing,
        unexpected or of a wrong shape: all of them are listed.
    """
    if not text_encoder.is_file():
        raise MissingFileError(
            f"there is no text encoder checkpoint {text_encoder}", code="text-encoder-file-missing"
        )
    architecture = _build_architecture(biolord)
    dim = int(architecture.config.hidden_size)
    tokenizer = _read_tokenizer(biolord)
    stored = read_checkpoint(text_encoder)[STATE_ENTRY]
    state = plain_weights(stored, text_encoder.name, left_out=_LEFT_OVERS)
    with torch.device("meta"):
        model = KnowledgeEncoder(architecture, dim)
    check_keys(model.state_dict(), state, text_encoder.name)
    model.load_state_dict(state, assign=True)
    positions = torch.arange(architecture.config.max_position_embeddings).expand(1, -1)
    architecture.embeddings.position_ids = positions  # no weight, so `assign` leaves it empty
    settings = TextEncoderSettings(
        max_tokens=_MAX_TOKENS,
        start_id=_mark_id(tokenizer, START, biolord),
        end_id=_mark_id(tokenizer, END, biolord),
        pad_id=_PAD_ID,
        dim=dim,
        modalities=RELEASED_MODALITIES,
    )
    _check_vocabulary(tokenizer, model, biolord)
    return TextCheckpoint(
        model=model.eval().requires_grad_(requires_grad=False),
        tokenizer=tokenizer,
        settings=settings,
        source=SourceRecord(file=text_encoder.name, sha256=file_sha256(text_encoder)),
    )


def _build_architecture(biolord: Path) -> Any:
    """Make the MPNet that a BioLORD folder configures, without weights (meta device)."""
    if not (biolord / "config.json").is_file():
        found = "has no config.json" if biolord.is_dir() else "is no folder"
        raise MissingFileError(
            f"{biolord} {found}; give BioLORD's folder with config.json and tokenizer files "
            "(its weights are not needed, the text encoder's checkpoint holds them)",
            code="biolord-missing",
        )
    transformers = import_optional("transformers", "the text encoder")
    try:
        config = transformers.AutoConfig.from_pretrained(
            biolord, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"{biolord} holds no usable config.json: {_first_line(error)}",
            code="biolord-config-damaged",
        ) from error
    if config.model_type != "mpnet":
        raise ExportError(
            f"{biolord} configures a model of type {config.model_type!r}; BioLORD is an mpnet",
            code="biolord-type",
        )
    if config.max_position_embeddings < _MAX_TOKENS + 2:  # positions count from 2 on
        raise ExportError(
            f"{biolord} configures {config.max_position_embeddings} positions, too few for the "
            f"{_MAX_TOKENS} tokens that a sentence may have",
            code="biolord-positions",
        )
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config, attn_implementation="eager")


def _read_tokenizer(biolord: Path) -> Any:
    """Read a folder's tokenizer as a `tokenizers.Tokenizer` that neither fills nor cuts."""
    from tokenizers import Tokenizer

    transformers = import_optional("transformers", "the text encoder")
    if not any((biolord / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise MissingFileError(
            f"{biolord} has neither tokenizer.json nor vocab.txt", code="biolord-missing"
        )
    try:
        found = transformers.AutoTokenizer.from_pretrained(
            biolord, local_files_only=True, trust_remote_code=False
        )
        tokenizer = Tokenizer.from_str(found.backend_tokenizer.to_str())
    except Exception as error:  # the library `tokenizers` raises bare Exceptions
        raise ExportError(
            f"{biolord} holds no usable tokenizer: {_first_line(error)}", code="tokenizer-damaged"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _mark_id(tokenizer: Any, mark: str, biolord: Path) -> int:
    number = tokenizer.token_to_id(mark)
    if number is None or number == _PAD_ID:
        raise ExportError(
            f"the tokenizer of {biolord} has no usable {mark} (id {number}), with which the text "
            "encoder was trained; is it BioLORD's?",
            code="tokenizer-tokens",
        )
    return int(number)


def _check_vocabulary(tokenizer: Any, model: KnowledgeEncoder, biolord: Path) -> None:
    rows = model.state_dict()["text_tower.biolord.embeddings.word_embeddings.weight"].shape[0]
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= rows:
        raise ExportError(
            f"the tokenizer of {biolord} has tokens up to {largest}, the text encoder {rows} "
            "vectors for them; they don't belong together",
            code="tokenizer-mismatch",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
