"""Embeddings of prompts: how many a bundle takes."""

from __future__ import annotations

import msgspec
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import dump_manifest, parse_manifest
from medals_rt.common.errors import PromptError
from medals_rt.common.limits import MAX_PROMPTS
from medals_rt.prompts.classes import by_bank_key
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.prompt_set import Prompt


def with_limit(bundle: Bundle, limit: int | None) -> Bundle:
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, max_prompts=limit))


def prompts(bundle: Bundle, count: int) -> list[Prompt]:
    key = by_bank_key(bundle.classes[0].bank_key)
    return [Prompt(1, key.name, key, key.name)] * count


def test_more_prompts_than_the_graphs_take_are_refused(tiny_bundle: Bundle) -> None:
    bundle = with_limit(tiny_bundle, 2)
    embedder = PromptEmbedder(bundle)
    embeddings, _ = embedder.embed(prompts(bundle, 2))
    assert len(embeddings) == 2
    with pytest.raises(PromptError) as refused:
        embedder.embed(prompts(bundle, 3))
    assert refused.value.code == "too-many-prompts"


def test_the_export_writes_the_limit_and_older_bundles_have_it(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.max_prompts == MAX_PROMPTS
    older = with_limit(tiny_bundle, None).manifest
    assert b"max_prompts" not in dump_manifest(older)
    assert parse_manifest(dump_manifest(older), "older").prompt_limit == MAX_PROMPTS
