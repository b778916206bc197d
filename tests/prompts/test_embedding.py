"""Embeddings of prompts: how many a bundle takes, and whether both mean the same classes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import ClassRecord, dump_manifest, parse_manifest
from medals_rt.common.errors import BundleError, PromptError
from medals_rt.common.limits import MAX_PROMPTS
from medals_rt.prompts.classes import by_bank_key
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.prompt_set import Prompt
from tests.errors import raises


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


def exchanged(names: list[str], keys: list[str]) -> tuple[list[str], list[str]]:
    return [names[1], names[0], *names[2:]], keys


def renamed(names: list[str], keys: list[str]) -> tuple[list[str], list[str]]:
    return [names[0].upper(), *names[1:]], keys


def unknown(names: list[str], keys: list[str]) -> tuple[list[str], list[str]]:
    return names, ["CT/anatomy/999", *keys[1:]]


def twice(names: list[str], keys: list[str]) -> tuple[list[str], list[str]]:
    return [names[1], *names[1:]], [keys[1], *keys[1:]]


@pytest.mark.parametrize("change", [exchanged, renamed, unknown, twice])
def test_other_classes_than_the_packages_are_refused(tiny_bundle: Bundle, change: Any) -> None:
    """The liver's row under the spleen's key would be the spleen's label in the liver's place."""
    changed = change(
        [record.name for record in tiny_bundle.classes],
        [record.bank_key for record in tiny_bundle.classes],
    )
    classes = tuple(ClassRecord(key, name) for name, key in zip(*changed, strict=True))
    manifest = msgspec.structs.replace(tiny_bundle.manifest, classes=classes)
    with raises(BundleError, "classes-differ", tiny_bundle.name, changed[1][0]):
        PromptEmbedder(Bundle(tiny_bundle.folder, manifest))


def test_the_export_writes_the_limit_and_older_bundles_have_it(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.max_prompts == MAX_PROMPTS
    older = with_limit(tiny_bundle, None).manifest
    assert b"max_prompts" not in dump_manifest(older)
    assert parse_manifest(dump_manifest(older), "older").prompt_limit == MAX_PROMPTS
