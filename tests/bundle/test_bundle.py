"""Opening, checking and reading a bundle, on one written by hand (no torch)."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.bundle.manifest import GRAPH_NAMES, path_inside
from medals_rt.common.choices import PRECISIONS
from medals_rt.common.errors import BundleError, MissingFileError
from medals_rt.prompts.embedding import PromptEmbedder
from tests.errors import raises

NO_HASH = "0" * 64
CLASS_ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
SENTENCE_ROWS = np.full((1, 3), 9, np.float32)
KNOWN_SENTENCE = "Liver in abdominal CT"


@dataclass(frozen=True)
class Key:
    modality: str
    name: str
    bank_key: str
    is_free_text = False

    def __str__(self):
        return f"{self.modality} {self.name}"


@dataclass(frozen=True)
class Asked:
    text: str
    class_key: Key


LIVER = Key("CT", "Liver", "CT/anatomy/1")
SPLEEN = Key("CT", "Spleen", "CT/anatomy/3")


def file_entry(folder: Path, file: str) -> dict:
    data = (folder / file).read_bytes()
    return {"file": file, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def read(folder: Path) -> dict:
    return json.loads((folder / "bundle.json").read_text(encoding="utf-8"))


def write(folder: Path, manifest: dict) -> None:
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "pristine"
    stages = {}
    for stage, depth in (("coarse", 8), ("fine", 16)):
        (folder / stage).mkdir(parents=True)
        graphs = {}
        for graph in GRAPH_NAMES:
            (folder / stage / f"{graph}.onnx").write_bytes(f"{stage} {graph}".encode())
            tensor = {"name": "x", "dtype": "float32", "shape": ["N", 3]}
            graphs[graph] = {
                **file_entry(folder, f"{stage}/{graph}.onnx"),
                "inputs": [tensor],
                "outputs": [tensor],
            }
        stages[stage] = {
            "window_hwd": [16, 16, depth],
            "spacing_hwd_mm": [1.5, 1.5, 3],
            "graphs": graphs,
        }
    tensors = {"class_embeddings": CLASS_ROWS, "sentence_embeddings": SENTENCE_ROWS}
    save_file(tensors, folder / "embeddings.safetensors")
    (folder / "sentences.json").write_text(
        json.dumps({"CT": {KNOWN_SENTENCE: 0}}), encoding="utf-8"
    )
    manifest = {
        "format_version": 2,
        "name": "by hand",
        "created": "2026-11-24T00:00:00+00:00",
        "precision": "fp32",
        "weights": "fp32",
        "stages": stages,
        "embeddings": {
            **file_entry(folder, "embeddings.safetensors"),
            "dim": 3,
            "source": "made up",
        },
        "classes": [
            {"bank_key": LIVER.bank_key, "name": "Liver"},
            {"bank_key": "CT/anatomy/2", "name": "Right kidney"},
        ],
        "sentences": file_entry(folder, "sentences.json"),
        "sources": {stage: {"file": "a.pth", "sha256": NO_HASH} for stage in ("coarse", "fine")},
        "versions": {"medals-rt": "0"},
    }
    write(folder, manifest)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def test_open_reads_stages_and_paths(folder):
    bundle = Bundle.open(folder)
    assert bundle.name == "by hand"
    assert bundle.stage_spec(1).window_hwd == (16, 16, 8)
    assert bundle.stage_spec(2).window_hwd == (16, 16, 16)
    assert bundle.stage_spec(2).spacing_hwd_mm == (1.5, 1.5, 3.0)
    assert bundle.graph_path(2, "refiner").read_bytes() == b"fine refiner"
    with raises(BundleError, "stage-unknown"):
        bundle.stage_spec(3)


def test_missing_folder_and_manifest(tmp_path):
    with raises(MissingFileError, "bundle-missing"):
        Bundle.open(tmp_path / "nothing")
    with raises(MissingFileError, "bundle-missing"):
        Bundle.open(tmp_path)
    (tmp_path / "file").touch()
    with raises(MissingFileError, "bundle-missing"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "manifest-damaged"),
        (b"[]", "manifest-damaged"),
        (b'{"name": "x"}', "manifest-damaged"),
        (b'{"format_version": 2}', "manifest-damaged"),
        (b'{"format_version": 99}', "format-version-unknown"),
    ],
)
def test_broken_manifest(folder, content, code):
    (folder / "bundle.json").write_bytes(content)
    with raises(BundleError, code):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("stages", "coarse", "window_hwd"), [16, 16]),
        (("stages", "coarse", "window_hwd"), [16, 16, 0]),
        (("stages", "fine", "spacing_hwd_mm"), [1, 1, 0]),
        (("embeddings", "sha256"), "abc"),
        (("precision",), "int4"),
    ],
)
def test_wrong_member_is_named(folder, where, value):
    manifest = read(folder)
    target = manifest
    for name in where[:-1]:
        target = target[name]
    target[where[-1]] = value
    write(folder, manifest)
    with raises(BundleError, "manifest-damaged", where[-1]):
        Bundle.open(folder)


def test_missing_graph_is_named(folder):
    manifest = read(folder)
    del manifest["stages"]["fine"]["graphs"]["refiner"]
    write(folder, manifest)
    with raises(BundleError, "graph-missing", "fine", "refiner"):
        Bundle.open(folder)


def test_later_members_are_passed_over(folder):
    before = Bundle.open(folder).hash
    write(folder, {**read(folder), "engines": [1, 2], "created": "later"})
    assert Bundle.open(folder).hash == before


def test_wrong_hash_names_file_expected_and_found(folder):
    path = folder / "fine/refiner.onnx"
    expected = read(folder)["stages"]["fine"]["graphs"]["refiner"]["sha256"]
    path.write_bytes(b"fine refinex")
    found = hashlib.sha256(b"fine refinex").hexdigest()
    with raises(BundleError, "file-damaged", "refiner.onnx", found, expected):
        Bundle.open(folder)
    assert Bundle.open(folder, verify=False).name == "by hand"


def test_wrong_size_and_missing_file_need_no_hash(folder):
    (folder / "fine/refiner.onnx").write_bytes(b"short")
    with raises(BundleError, "file-damaged", "refiner.onnx"):
        Bundle.open(folder, verify=False)
    (folder / "fine/refiner.onnx").unlink()
    with raises(BundleError, "file-missing", "fine/refiner.onnx"):
        Bundle.open(folder, verify=False)


def test_files_that_changed_since_it_was_opened_are_refused(folder):
    bundle, untouched = Bundle.open(folder), Bundle.open(folder, verify=False)
    (folder / "fine/refiner.onnx").write_bytes(b"fine REFINER")
    for opened in (bundle, untouched):
        with raises(
            BundleError, "bundle-changed", "refiner.onnx", opened.graph(2, "refiner").sha256
        ):
            opened.graph_path(2, "refiner")
    assert bundle.graph_path(1, "refiner").read_bytes() == b"coarse refiner"
    (folder / "fine/refiner.onnx").unlink()
    with raises(BundleError, "bundle-changed", "is gone"):
        bundle.graph_path(2, "refiner")
    for file, member in (
        ("sentences.json", "sentence_rows"),
        ("embeddings.safetensors", "class_embeddings"),
    ):
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[:-1] + b" ")
        with raises(BundleError, "bundle-changed", file):
            getattr(bundle, member)
        (folder / file).write_bytes(data)


@pytest.mark.parametrize(
    "file", ["../out", "a/../../out", "/etc/hostname", "C:/x", "a\\b", "", "a\0b"]
)
def test_path_may_not_leave_the_folder(folder, file):
    with raises(BundleError, "path-leaves-bundle"):
        path_inside(folder, file)
    manifest = read(folder)
    manifest["embeddings"]["file"] = file
    write(folder, manifest)
    with raises(BundleError, "path-leaves-bundle"):
        Bundle.open(folder)


def test_link_may_not_leave_the_folder(folder, tmp_path):
    outside = tmp_path / "outside"
    (folder / "embeddings.safetensors").rename(outside)
    (folder / "embeddings.safetensors").symlink_to(outside)
    with raises(BundleError, "path-leaves-bundle"):
        Bundle.open(folder)


def test_embeddings_by_sentence_and_by_class(folder):
    bundle = Bundle.open(folder)
    asked = [Asked(f" {KNOWN_SENTENCE} ", LIVER), Asked("the liver in this CT", LIVER)]
    embeddings, which = PromptEmbedder(bundle).embed(asked)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, np.stack([SENTENCE_ROWS[0], CLASS_ROWS[0]]))
    assert which == ("sentence", "class")


def test_sentence_of_another_modality_is_not_taken(folder):
    key = Key("MRI", "Liver", "CT/anatomy/2")
    assert PromptEmbedder(Bundle.open(folder)).embed([Asked(KNOWN_SENTENCE, key)])[1] == ("class",)


def test_class_not_covered_names_the_nearest(folder):
    key = Key("CT", "Left kidney", "CT/anatomy/4")
    with raises(BundleError, "class-not-covered", "CT Left kidney, CT Spleen", "Right kidney"):
        PromptEmbedder(Bundle.open(folder)).embed([Asked("x", key), Asked("y", SPLEEN)])


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": CLASS_ROWS},
        {"class_embeddings": CLASS_ROWS[:1], "sentence_embeddings": SENTENCE_ROWS},
        {"class_embeddings": CLASS_ROWS.astype(np.float64), "sentence_embeddings": SENTENCE_ROWS},
        {"class_embeddings": CLASS_ROWS},
    ],
)
def test_bank_that_does_not_fit_its_index(folder, tensors):
    save_file(tensors, folder / "embeddings.safetensors")
    manifest = read(folder)
    manifest["embeddings"].update(file_entry(folder, "embeddings.safetensors"))
    write(folder, manifest)
    with raises(BundleError, "file-damaged", "embeddings.safetensors"):
        PromptEmbedder(Bundle.open(folder)).embed([Asked("x", LIVER)])


def test_hash_is_that_of_the_described_members(folder):
    manifest = read(folder)
    members = ("format_version", "stages", "embeddings", "classes", "sentences")
    chosen = {name: manifest[name] for name in members} | {"text_encoder": None}
    for stage in chosen["stages"].values():
        stage["spacing_hwd_mm"] = [float(value) for value in stage["spacing_hwd_mm"]]
    compact = json.dumps(chosen, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert Bundle.open(folder).hash == hashlib.sha256(compact.encode()).hexdigest()
    manifest["classes"].reverse()
    write(folder, manifest)
    assert Bundle.open(folder).hash != hashlib.sha256(compact.encode()).hexdigest()


@pytest.mark.parametrize(
    ("precision", "dtype", "fits"),
    [
        ("fp32", "float32", True),
        ("bf16", "float32", True),
        ("fp16", "float32", False),
        ("int8", "float32", False),
        ("fp16", "float16", True),
        ("fp8", "float16", True),
        ("fp32", "float16", False),
    ],
)
def test_a_precision_that_is_not_the_graphs_is_refused(folder, precision, dtype, fits):
    """A runner would compute in it, and `verify` allow what it allows."""
    manifest = read(folder)
    manifest["precision"] = precision
    features = {"name": "features", "dtype": dtype, "shape": [1, 3]}
    manifest["stages"]["fine"]["graphs"]["fusion"]["inputs"] = [features]
    write(folder, manifest)
    if fits:
        assert Bundle.open(folder).precision == precision
        return
    with raises(BundleError, "precision-differs", precision, "fine fusion", "features", dtype):
        Bundle.open(folder)


def test_the_precision_is_part_of_the_hash(folder):
    manifest = read(folder)
    found = set()
    for precision in PRECISIONS:
        write(folder, {**manifest, "precision": precision})
        found.add(Bundle.open(folder).hash)
    assert len(found) == len(PRECISIONS)


def test_resolution_order(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALS_RT_BUNDLE", str(tmp_path / "from-environment"))
    assert resolve_bundle(tmp_path / "explicit") == tmp_path / "explicit"
    assert resolve_bundle() == tmp_path / "from-environment"
    monkeypatch.delenv("MEDALS_RT_BUNDLE")
    package = tmp_path / "checkout" / "medals_rt" / "bundle" / "bundle.py"
    monkeypatch.setattr("medals_rt.bundle.bundle.__file__", str(package))
    with raises(MissingFileError, "bundle-missing"):
        resolve_bundle()
    demo = tmp_path / "checkout" / "engines" / "demo"
    demo.mkdir(parents=True)
    (demo / "bundle.json").touch()
    assert resolve_bundle() == demo.resolve()
    installed = package.parent / "demo"
    installed.mkdir(parents=True)
    (installed / "bundle.json").touch()
    assert resolve_bundle() == installed
