"""Free text: sentences that no bank knows, embedded at run time without torch and transformers."""

import hashlib
import json
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

from medals_export.text_encoder import load_text_encoder
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.common.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    PromptError,
    RunnerError,
)
from medals_rt.prompts import text_encoder
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.prompt_set import PromptReading, numbered, parse_prompts
from medals_rt.prompts.text_encoder import TextEncoder
from tests.bundles import TINY_SENTENCE
from tests.errors import raises
from tests.texts import SENTENCES, TINY_DIM, close_to

FREE = PromptReading(free_text=True)


@pytest.fixture(scope="module")
def reference(text_sources):
    return load_text_encoder(*text_sources)


@pytest.fixture
def copy(text_bundle, tmp_path):
    return shutil.copytree(text_bundle.folder, tmp_path / "copy")


def recorded(folder, bundle, member, data):
    """The bundle's copy with other content in a file of its text encoder, and the record of it."""
    records = bundle.manifest.text_encoder
    record = getattr(records, member)
    (folder / record.file).write_bytes(data)
    changed = msgspec.structs.replace(record, sha256=hashlib.sha256(data).hexdigest())
    records = msgspec.structs.replace(records, **{member: changed})
    return Bundle(folder, msgspec.structs.replace(bundle.manifest, text_encoder=records))


@pytest.mark.parametrize("modality", ["CT", "Microscopy"])
def test_embeds_like_pytorch_whatever_the_batch(text_bundle, reference, modality):
    encoder = TextEncoder.open(text_bundle)
    together = encoder.embed(SENTENCES, modality)
    assert together.dtype == np.float32
    close_to(together, reference.embed(SENTENCES, modality))
    close_to(together, np.concatenate([encoder.embed([text], modality) for text in SENTENCES]))
    assert encoder.embed([], modality).shape == (0, TINY_DIM)
    with raises(InputError, "modality-unknown"):
        encoder.embed(["x"], "X-ray")


def test_more_sentences_than_one_pass_takes(text_bundle, reference, monkeypatch):
    monkeypatch.setattr(text_encoder, "SENTENCES_PER_RUN", 2)
    close_to(TextEncoder.open(text_bundle).embed(SENTENCES, "US"), reference.embed(SENTENCES, "US"))


def test_neither_torch_nor_transformers_are_imported(text_bundle):
    script = (
        "import sys\n"
        "from medals_rt.bundle.bundle import Bundle\n"
        "from medals_rt.prompts.text_encoder import TextEncoder\n"
        f"encoder = TextEncoder.open(Bundle.open({str(text_bundle.folder)!r}))\n"
        "print(encoder.embed(['x'], 'CT').shape)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.splitlines() == [f"(1, {TINY_DIM})", "[]"]


def test_prompts_take_bank_or_encoder(text_bundle, tiny_bundle, reference):
    sentences = ["the liver in abdominal CT", TINY_SENTENCE]
    prompts = numbered(sentences, "anatomy", FREE)
    embeddings, which = PromptEmbedder(text_bundle).embed(prompts)
    assert which == ("encoder", "sentence")
    close_to(embeddings[0], reference.embed(sentences[:1], "CT")[0])
    liver = numbered(sentences[:1], "anatomy")
    assert PromptEmbedder(text_bundle).embed(liver)[1] == ("encoder",)
    assert PromptEmbedder(tiny_bundle).embed(liver)[1] == ("class",)
    with raises(PromptError, "no-class"):
        numbered(sentences, "anatomy")


def test_an_embedding_does_not_depend_on_the_other_prompts(text_bundle):
    alone, _ = PromptEmbedder(text_bundle).embed(numbered(["odd spots in CT"], "lesion", FREE))
    another = Bundle.open(text_bundle.folder)
    sentences = ["a much longer sentence about the left lung of a CT scan", "odd spots in CT"]
    together, which = PromptEmbedder(another).embed(numbered(sentences, "lesion", FREE))
    assert which == ("encoder", "encoder")
    np.testing.assert_array_equal(together[1], alone[0])


def test_the_encoder_is_opened_once_a_sentence(text_bundle, monkeypatch):
    bundle = Bundle.open(text_bundle.folder)
    opened = []
    original = TextEncoder.open
    monkeypatch.setattr(TextEncoder, "open", lambda found: opened.append(found) or original(found))
    prompts = numbered(["odd spots in CT", "strange dots in CT"], "lesion", FREE)
    embedder = PromptEmbedder(bundle)
    first, _ = embedder.embed(prompts)
    second, _ = embedder.embed(prompts)
    assert len(opened) == 1
    np.testing.assert_array_equal(first, second)


def test_free_text_needs_an_encoder(tiny_bundle):
    prompts = numbered(["odd spots in CT"], "lesion", FREE)
    with raises(BundleError, "no-text-encoder", "--with-text-encoder"):
        PromptEmbedder(tiny_bundle).embed(prompts)


def test_what_free_text_is():
    mapping = {"1": "Liver in abdominal CT", "4": "  odd   spots ", "instance_label": 0}
    prompts = parse_prompts(mapping, FREE)
    liver, spots = prompts.class_keys
    assert not liver.is_free_text
    assert (spots.modality, spots.kind, spots.name, spots.id) == ("CT", "anatomy", "odd spots", 0)
    assert spots.is_free_text
    assert prompts.prompts[1].matched == "free text"
    assert prompts.as_mapping() == mapping


@pytest.mark.parametrize(
    ("sentences", "reading", "code"),
    [
        (["odd spots"], FREE, "no-modality"),
        (["  "], FREE, "prompt-empty"),
        (["x in CT " * 200], FREE, "prompt-too-long"),
        (
            ["odd spots in CT"],
            PromptReading("MRI", free_text=True),
            "modality-contradiction",
        ),
        (["odd spots in CT", "odd spots in CT"], FREE, "class-repeated"),
        (["odd spots in CT", "odd spots in MRI"], FREE, "several-modalities"),
    ],
)
def test_free_text_that_is_refused(sentences, reading, code):
    with raises(PromptError, code):
        numbered(sentences, "lesion", reading)


def test_the_stated_modality_is_for_sentences_without_one():
    reading = PromptReading("MRI")
    (liver,) = numbered(["Liver"], "anatomy", reading).class_keys
    assert (liver.modality, liver.name) == ("MRI", "Liver")
    with raises(PromptError, "modality-contradiction"):
        numbered(["Liver in abdominal CT"], "anatomy", reading)


def test_the_encoder_belongs_to_the_bundle(text_bundle, tiny_bundle, copy):
    assert text_bundle.hash != tiny_bundle.hash
    (copy / "text_encoder/settings.json").write_text("{}", encoding="utf-8")
    with raises(BundleError, "file-damaged", "settings.json"):
        Bundle.open(copy, verify=False)


def test_libraries_that_are_missing(text_bundle, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(text_encoder, "installed", lambda _: False)
        with raises(MissingDependencyError, "dependency-missing", "medals-rt[cpu]"):
            TextEncoder.open(text_bundle)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with raises(MissingDependencyError, "dependency-missing", "medals-rt[text]"):
        TextEncoder.open(text_bundle)


@pytest.mark.parametrize(
    ("member", "data", "error", "code"),
    [
        ("graph", b"no graph", RunnerError, "text-encoder-refused"),
        ("tokenizer", b"{}", BundleError, "tokenizer-damaged"),
        ("settings", b'{"dim": "a"}', BundleError, "text-encoder-damaged"),
    ],
)
def test_damaged_files_are_reported(text_bundle, copy, member, data, error, code):
    file = getattr(text_bundle.manifest.text_encoder, member).file
    with raises(error, code, file):
        TextEncoder.open(recorded(copy, text_bundle, member, data))
    with raises(BundleError, "bundle-changed", file):
        TextEncoder.open(Bundle(copy, text_bundle.manifest))


def test_an_encoder_of_another_width_is_refused(text_bundle, copy):
    file = copy / "text_encoder/settings.json"
    wider = json.dumps({**json.loads(file.read_bytes()), "dim": 99}).encode()
    with raises(BundleError, "text-encoder-width", 99, 24):
        TextEncoder.open(recorded(copy, text_bundle, "settings", wider))


def run(bundle, folder, *words):
    """`medals-rt run` on a small made-up case."""
    case = folder / "case.npz"
    image = np.random.default_rng(0).random((12, 20, 20), np.float32) * 255
    np.savez(case, imgs=image, spacing=np.array([2.0, 2.0, 3.0]))
    options = ["--input", case, "--output", folder / "seg.npz", "--report", folder / "report.json"]
    arguments = ["run", *options, "--bundle", bundle.folder, "--precision", "fp32", *words]
    return CliRunner().invoke(app, [str(word) for word in arguments])


def test_run_with_free_text(text_bundle, tmp_path):
    words = ("--prompt", "odd spots", "--modality", "CT", "--free-text", "--kind", "lesion")
    result = run(text_bundle, tmp_path, *words)
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["classes"]
    assert (found["sentence"], found["name"], found["id"]) == ("odd spots", "odd spots", 0)
    assert (found["modality"], found["kind"]) == ("CT", "lesion")
    assert (found["embedding"], found["matched"]) == ("encoder", "free text")


def test_run_refuses_free_text_unasked_and_without_encoder(text_bundle, tiny_bundle, tmp_path):
    result = run(text_bundle, tmp_path, "--prompt", "odd spots in CT")
    assert result.exit_code == 2
    assert "names no class" in result.stderr
    result = run(tiny_bundle, tmp_path, "--prompt", "odd spots in CT", "--free-text")
    assert result.exit_code == 2
    assert "has no text encoder" in result.stderr
    assert not (tmp_path / "seg.npz").exists()
