"""Two checkpoints to a bundle: whole or not there, checked, the same every time."""

import errno
import json
import os
import shutil

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medals_export import bundle_writer, export, verify
from medals_export.bundle_writer import write_bundle
from medals_export.checkpoint import save_checkpoint
from medals_export.text_bank import save_bank
from medals_export.verify import relative_error
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GRAPH_NAMES
from medals_rt.common.errors import BundleError, ExportError, InputError, OutputError
from medals_rt.runners.selection import open_runner
from tests.bundles import TINY_CLASS_KEYS, export_tiny_bundle, tiny_bank, tiny_checkpoint
from tests.errors import raises

# a folded refiner is tried full and padded; three graphs know no prompts
PROMPT_COUNTS = {
    "image_encoder": (1,),
    "fusion": (1,),
    "fusion_text_only": (1,),
    "refiner_1": (1,),
    "refiner_2": (2, 1),
    "refiner_4": (4, 3),
    "refiner_8": (8, 3),
    "refiner_16": (16, 3),
}


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle.folder, tmp_path / "copy")
    return Bundle.open(folder)


def test_bundle_is_what_was_exported(tiny_bundle):
    bundle = Bundle.open(tiny_bundle.folder)
    assert bundle.name == "tiny"
    assert (bundle.precision, bundle.manifest.weights) == ("fp32", "fp32")
    assert bundle.stage_spec(1).window_hwd == (16, 16, 8)
    assert bundle.stage_spec(2).window_hwd == (16, 16, 16)
    assert tuple(record.bank_key for record in bundle.classes) == TINY_CLASS_KEYS
    assert all(record.name for record in bundle.classes)
    assert bundle.manifest.versions.keys() == {"medals-rt", "python", "torch", "onnx"}
    assert not list(bundle.folder.parent.glob(".*"))


def test_every_graph_was_verified_in_every_library(tiny_bundle):
    records = tiny_bundle.manifest.verified
    assert {(r.stage, r.graph, r.runner) for r in records} == {
        (stage, graph, runner)
        for stage in (1, 2)
        for graph in GRAPH_NAMES
        for runner in ("openvino", "onnxruntime")
    }
    for record in records:
        assert 0 < record.relative_error <= record.tolerance == 1e-4
        assert record.rounding_error == 0
        assert record.precision == "fp32"
        assert record.prompt_counts == PROMPT_COUNTS.get(record.graph, (1, 3))


@pytest.mark.slow  # traces every graph again; storing in fp16 alone is tested in test_onnx_graphs
def test_the_same_from_files_in_fp16(tiny_bundle, tmp_path):
    for stage in (1, 2):
        loaded = tiny_checkpoint(stage)
        save_checkpoint(tmp_path / f"{stage}.pth", loaded.model, loaded.spacing_hwd_mm)
    save_bank(tmp_path / "bank.safetensors", tiny_bank())
    steps = []
    bundle = export.export_bundle(
        tmp_path / "1.pth",
        tmp_path / "2.pth",
        tmp_path / "bank.safetensors",
        tmp_path / "out",
        name="halved",
        weights="fp16",
        verify_with=("onnxruntime",),
        progress=lambda step, done, total: steps.append((step, done, total)),
    )
    assert steps == [(label, done, 13) for label in ("coarse", "fine") for done in range(14)]
    assert bundle.manifest.weights == "fp16"
    for record in bundle.manifest.verified:
        assert record.relative_error <= 1e-4
        # the classifier has no weights
        assert (1e-6 if record.graph != "classifier" else -1) < record.rounding_error < 1e-2
    for graph in ("image_encoder", "query_decoder"):
        assert bundle.graph(2, graph).bytes < 0.75 * tiny_bundle.graph(2, graph).bytes
    feeds = {
        "image": np.random.default_rng(0).random((1, 1, 16, 16, 16), np.float32) * 255,
        "foreground": np.zeros((1, 1, 16, 16, 16), np.float32),
    }
    found = [
        open_runner("onnxruntime", one.graph_path(2, "image_encoder")).run(feeds)["features"]
        for one in (bundle, tiny_bundle)
    ]
    assert 0 < relative_error(found[:1], found[1:]) < 1e-2


def test_a_graph_that_differs_from_pytorch_leaves_nothing(tmp_path, monkeypatch):
    def trace_something_else(plans):
        with torch.no_grad():
            for parameter in plans[0].module.parameters():
                parameter.mul_(1.01)
        return traced(plans)

    traced = export.trace
    monkeypatch.setattr(export, "trace", trace_something_else)
    with raises(ExportError, "graph-differs", "image_encoder"):
        export_tiny_bundle(tmp_path / "out", verify_with=("onnxruntime",))
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "trace", None)
    bank = tiny_bank()
    narrow = type(bank)(bank.class_embeddings[:, :8].copy(), bank.class_rows, "made up")
    with raises(ExportError, "bank-width"):
        export.export_bundle(
            tiny_checkpoint(1), tiny_checkpoint(2), narrow, tmp_path / "out", name="x"
        )
    unknown = type(bank)(bank.class_embeddings[:1], {"CT/anatomy/9999": 0}, "made up")
    with raises(InputError, "bank-key-unknown", "CT/anatomy/9999"):
        export.export_bundle(
            tiny_checkpoint(1), tiny_checkpoint(2), unknown, tmp_path / "out", name="x"
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with raises(ExportError, "not-a-bundle"):
        export_tiny_bundle(tmp_path / "other", overwrite=True)


def rewrite(bundle, name):
    """A `fill` for `write_bundle`: the same files under another bundle's name."""

    def fill(folder):
        shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
        return msgspec.structs.replace(bundle.manifest, name=name)

    return fill


def test_a_bundle_is_replaced_only_when_asked(tiny_bundle, copy):
    with raises(ExportError, "bundle-exists"):
        write_bundle(copy.folder, rewrite(tiny_bundle, "new"))
    assert Bundle.open(copy.folder).name == "tiny"
    write_bundle(copy.folder, rewrite(tiny_bundle, "new"), overwrite=True)
    assert Bundle.open(copy.folder).name == "new"
    assert [path.name for path in copy.folder.parent.iterdir()] == ["copy"]


def test_what_lies_beside_a_replaced_bundle_stays(tiny_bundle, copy):
    (copy.folder / "cases").mkdir()
    (copy.folder / "cases" / "mine.npz").write_bytes(b"precious")
    write_bundle(copy.folder, rewrite(tiny_bundle, "new"), overwrite=True)
    assert Bundle.open(copy.folder).name == "new"
    assert (copy.folder / "cases" / "mine.npz").read_bytes() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_and_empty_folders_in_a_replaced_bundle_stay(tiny_bundle, copy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "case.npz").write_bytes(b"precious")
    links = {"cases": "../elsewhere", "case.npz": "../elsewhere/case.npz", "gone": "nowhere"}
    for name, leads_to in links.items():
        (copy.folder / name).symlink_to(leads_to)
    (copy.folder / "empty" / "one").mkdir(parents=True)
    write_bundle(copy.folder, rewrite(tiny_bundle, "new"), overwrite=True)
    assert {name: str((copy.folder / name).readlink()) for name in links} == links
    assert (copy.folder / "cases" / "case.npz").read_bytes() == b"precious"
    assert (copy.folder / "empty" / "one").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "elsewhere"}


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_is_written_where_it_leads_to(tiny_bundle, copy, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(copy.folder)
    written = write_bundle(link, rewrite(tiny_bundle, "new"), overwrite=True)
    assert written.folder == link
    assert link.is_symlink()
    assert Bundle.open(copy.folder).name == "new"
    assert [path.name for path in link.parent.iterdir()] == ["current"]


def test_targets_that_cannot_be_written_are_refused_before_the_work(copy, tmp_path, monkeypatch):
    def check(out):
        bundle_writer.check_target(out, overwrite=True)

    check(copy.folder)
    check(tmp_path / "new" / "deep")
    (tmp_path / "file").touch()
    with raises(InputError, "output-not-writable"):
        check(tmp_path / "file" / "x")
    (copy.folder / "bundle.json").write_bytes(b"{")
    with raises(ExportError, "manifest-damaged", copy.folder):
        check(copy.folder)
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "mount")
    with raises(ExportError, "target-is-mount", "mount"):
        check(tmp_path / "mount")


def test_a_full_disk_is_told_in_one_line(tmp_path):
    def fill(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with raises(OutputError, "disk-full", tmp_path / "out"):
        write_bundle(tmp_path / "out", fill)
    assert not list(tmp_path.iterdir())


def test_a_bundle_of_an_older_format_is_replaced_whole(tiny_bundle, copy):
    path = copy.folder / "bundle.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["format_version"] = 1
    (copy.folder / "coarse" / "old.onnx").write_bytes(b"old")
    (copy.folder / "coarse" / "mine.txt").write_bytes(b"mine")
    manifest["stages"]["coarse"]["graphs"]["old"] = {
        "file": "coarse/old.onnx",
        "sha256": "0" * 64,
        "bytes": 3,
        "inputs": [],
        "outputs": [],
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with raises(BundleError, "format-version-unknown"):
        Bundle.open(copy.folder)
    write_bundle(copy.folder, rewrite(tiny_bundle, "new"), overwrite=True)
    assert Bundle.open(copy.folder).name == "new"
    assert not (copy.folder / "coarse" / "old.onnx").exists()
    assert (copy.folder / "coarse" / "mine.txt").read_bytes() == b"mine"


def test_an_interrupted_write_keeps_the_old_bundle(tiny_bundle, copy):
    def fill(folder):
        rewrite(tiny_bundle, "new")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(copy.folder, fill, overwrite=True)
    assert Bundle.open(copy.folder).name == "tiny"
    assert [path.name for path in copy.folder.parent.iterdir()] == ["copy"]


def test_a_manifest_that_does_not_fit_its_files_is_not_written(tiny_bundle, tmp_path):
    def fill(folder):
        manifest = rewrite(tiny_bundle, "new")(folder)
        (folder / "fine" / "refiner.onnx").unlink()
        return manifest

    with raises(InputError, "file-missing", "fine/refiner.onnx"):
        write_bundle(tmp_path / "out", fill)
    assert not list(tmp_path.iterdir())


def test_hash_tells_bundles_apart_but_not_their_dates(tiny_bundle, copy):
    path = copy.folder / "bundle.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["created"], manifest["verified"] = "another day", []
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert Bundle.open(copy.folder).hash == tiny_bundle.hash
    manifest["stages"]["fine"]["spacing_hwd_mm"] = [1, 1, 1]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert Bundle.open(copy.folder).hash != tiny_bundle.hash


def test_relative_error():
    a = np.array([1.0, 2.0], np.float32)
    assert relative_error([a], [a]) == 0
    assert relative_error([a + 1, a], [a, a]) == pytest.approx(0.5)
    assert relative_error([a * np.float32(np.nan)], [a]) == float("inf")
    assert relative_error([np.zeros(2, np.float32)], [np.zeros(2, np.float32)]) == 0
    with raises(ExportError, "shapes-differ"):
        relative_error([a], [a[:1]])


def test_references_differ_where_weights_do():
    network, other = tiny_checkpoint(1).model, tiny_checkpoint(1).model
    with torch.no_grad():
        other.mask_embed_proj[2].bias += 0.5
    found = verify.reference_passes(network, other, tiny_bank().class_embeddings)
    assert found["image_encoder"].rounding_error == 0
    assert found["query_decoder"].rounding_error > 1e-2
    same = verify.reference_passes(network, network, tiny_bank().class_embeddings)
    assert {reference.rounding_error for reference in same.values()} == {0.0}
