"""`medals-rt export`: which options go together, and a half-precision bundle from files alone."""

import contextlib
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="reads a text encoder, which needs the extra 'export'")

from medals_export import export
from medals_export.checkpoint import save_checkpoint
from medals_export.export import TextSource
from medals_export.text_bank import save_bank
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.released import CheckpointFile
from medals_rt.cli import app
from medals_rt.common.errors import BundleError
from tests.bundles import tiny_bank, tiny_checkpoint
from tests.cli.helpers import assert_one_line, error_of
from tests.fakes.hub import FakeHub, serving
from tests.texts import write_biolord, write_text_encoder

COARSE = "nano_crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600.pth"
FINE = "nano_crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300.pth"


def call(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for stage in (1, 2):
        loaded = tiny_checkpoint(stage)
        save_checkpoint(folder / f"{stage}.pth", loaded.model, loaded.spacing_hwd_mm)
    save_bank(folder / "bank.safetensors", tiny_bank())
    write_text_encoder(folder / "text_encoder.pth", write_biolord(folder / "biolord"))
    return folder


@pytest.fixture
def asked(monkeypatch, tiny_bundle):
    """What the command asks for, without the work."""
    calls = []

    def record(*positional, **named):
        calls.append((positional, named))
        return tiny_bundle

    monkeypatch.setattr(export, "export_bundle", record)
    return calls


def words(files, out, *more):
    return ("--stage1", files / "1.pth", "--stage2", files / "2.pth", "--out", out, *more)


@pytest.mark.slow
def test_half_precision_with_text_encoder(files, tmp_path):
    """The whole way: checkpoints, text encoder and known sentences to a bundle that opens."""
    known = tmp_path / "known.json"
    known.write_text(
        '{"CT": {"1": ["Liver in CT", "A zebra in CT"], "instance_label": 0}}', encoding="utf-8"
    )
    result = call(
        *words(files, tmp_path / "half", "--precision", "fp16", "--no-verify"),
        *("--text-encoder", files / "text_encoder.pth", "--biolord", files / "biolord"),
        *("--sentences", known, "--with-text-encoder"),
    )
    assert result.exit_code == 0, result.output
    assert "text bank: CT 1: prompt 'A zebra in CT' names no class" in result.stdout
    assert "more such remarks in bundle.json" in result.stdout
    assert "wrote" in result.stdout
    assert "243 classes" in result.stdout
    assert f"medals-rt verify --bundle {tmp_path / 'half'} --against" in result.stdout
    bundle = Bundle.open(tmp_path / "half")
    assert bundle.name == "half"
    assert (bundle.precision, bundle.manifest.weights) == ("fp16", "fp16")
    assert bundle.manifest.verified == ()
    assert bundle.manifest.text_encoder is not None
    assert len(bundle.manifest.embeddings.remarks) == 1 + 242
    assert result.stdout.count("text bank: ") == 11
    dtypes = {
        tensor.name: tensor.dtype
        for graph in ("image_encoder", "query_decoder", "classifier")
        for tensor in (*bundle.graph(2, graph).inputs, *bundle.graph(2, graph).outputs)
    }
    assert {name for name, dtype in dtypes.items() if dtype == "float16"} == {
        "features",
        "image_embedding",
        "refined",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"precision": "fp32", "weights": None, "verify_with": None}),
        (("--weights", "fp16"), {"precision": "fp32", "weights": "fp16"}),
        (("--precision", "bf16"), {"precision": "bf16", "weights": None, "calibrate": None}),
        (
            ("--precision", "int8", "--calibrate", "cases"),
            {"precision": "int8", "calibrate": Path("cases")},
        ),
        (("--verify",), {"verify_with": ("openvino", "onnxruntime")}),
        (("--no-verify",), {"verify_with": ()}),
        (("--name", "mine", "--overwrite"), {"name": "mine", "overwrite": True, "notice": None}),
        ((), {"notice": None, "terms": ()}),
        (("--notice", "for research only"), {"notice": "for research only"}),
    ],
)
def test_options_reach_the_export(files, tmp_path, asked, options, expected):
    bank = files / "bank.safetensors"
    result = call(*words(files, tmp_path / "out", "--bank", bank, *options))
    assert result.exit_code == 0, result.output
    ((positional, named),) = asked
    coarse, fine = (CheckpointFile(files / name) for name in ("1.pth", "2.pth"))
    assert positional == (coarse, fine, bank, tmp_path / "out")
    assert {key: named[key] for key in expected} == expected
    assert named["with_text_encoder"] is False
    assert "every graph agrees with PyTorch in openvino, onnxruntime" in result.stdout


@pytest.fixture
def handlers():
    """Signals as a terminal's, and afterwards as they were."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    yield {each: signal.getsignal(each) for each in before}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_swallowed_signal_ends_the_export_at_its_next_step(
    files, tmp_path, monkeypatch, handlers, number, code
):
    done = []

    def work(*_, progress, **__):
        progress("coarse", 0, 2)
        with contextlib.suppress(BaseException):  # as Python does in a weak reference's callback
            signal.raise_signal(number)
        done.append("a step")
        progress("coarse", 1, 2)
        done.append("another")

    monkeypatch.setattr(export, "export_bundle", work)
    result = call(*words(files, tmp_path / "out", "--bank", files / "bank.safetensors"))
    assert (result.exit_code, done) == (code, ["a step"])
    assert {each: signal.getsignal(each) for each in handlers} == handlers


def released(folder):
    """Both checkpoints and the text encoder under released names, empty."""
    names = [COARSE, FINE, "text_encoder.pth"]
    (folder / "model").mkdir()
    for name in names:
        (folder / "model" / name).write_bytes(name.encode())
    return [folder / "model" / name for name in names]


def test_released_files_are_found(tmp_path, asked):
    coarse, fine, encoder = released(tmp_path)
    out = tmp_path / "out"
    result = call("--from", tmp_path, "--biolord", "b", "--out", out)
    assert result.exit_code == 0, result.output
    stages = (CheckpointFile(coarse), CheckpointFile(fine))
    assert asked[0][0] == (*stages, TextSource(encoder, Path("b")), out)
    other = ("--text-encoder", "mine.pth", "--biolord", "b")
    assert call("--from", tmp_path, *other, "--out", out).exit_code == 0
    assert asked[1][0][2] == TextSource(Path("mine.pth"), Path("b"))
    assert call("--from", tmp_path, "--bank", "bank.safetensors", "--out", out).exit_code == 0
    assert asked[2][0][2] == Path("bank.safetensors")


def test_released_files_come_from_a_hub(tmp_path, asked, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra 'hub'")
    files = {f"model/{path.name}": path.read_bytes() for path in released(tmp_path)} | {
        "tokenizer/tokenizer.json": b"{}"
    }
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    with serving(FakeHub(files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        model, tokenizer = (
            hub.address.replace("@", f"/{part}@") for part in ("model", "tokenizer")
        )
        result = call("--from", model, "--biolord", tokenizer, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ((coarse, fine, text, _), named) = asked[0]
    found = (coarse.path.read_bytes(), fine.path.read_bytes())
    assert found == (COARSE.encode(), FINE.encode())
    assert coarse.origin == fine.origin == model
    assert [each.source for each in named["terms"]] == [hub.address]
    assert text.text_encoder.read_bytes() == b"text_encoder.pth"
    assert (text.biolord / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--stage1", "1.pth"), "checkpoint-missing"),
        ((), "checkpoint-missing"),
        (("--from", "x", "--stage2", "2.pth"), "checkpoint-missing"),
        (("--stage1-window", "1,2,3"), "checkpoint-missing"),
        (("--stage2-heads", "4"), "checkpoint-missing"),
        (("--stage1", "1.pth", "--stage1-window", "1,2"), "no-three-numbers"),
        (("--stage1", "1.pth", "--stage1-spacing", "1,-2,3"), "no-three-numbers"),
        (("--from", "no-such-folder"), "checkpoints-not-found"),
    ],
)
def test_checkpoints_come_from_one_place(tmp_path, asked, options, code):
    result = call(*options, "--bank", "b.safetensors", "--out", tmp_path / "out")
    assert_one_line(result, 2)
    assert error_of(result).code == code
    assert asked == []


def test_text_options_reach_the_export(files, tmp_path, asked):
    result = call(
        *words(files, tmp_path / "out"),
        *("--text-encoder", "t.pth", "--biolord", "b", "--sentences", "s.json", "--quiet"),
    )
    assert (result.exit_code, result.stdout) == (0, "")
    ((positional, _),) = asked
    assert positional[2] == TextSource(*(type(files)(each) for each in ("t.pth", "b", "s.json")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name it by --text-encoder"),
        (("--text-encoder", "t.pth"), "hf:FremyCompany/BioLORD-2023-C@COMMIT"),
        (("--biolord", "b", "--sentences", "s"), "name it by --text-encoder"),
        (("--bank", "b", "--text-encoder", "t"), "not both: leave out --bank or --text-encoder"),
        (("--bank", "b", "--sentences", "s"), "leave out --bank or --sentences"),
        (("--bank", "b", "--with-text-encoder"), "not --bank"),
    ],
)
def test_embeddings_come_from_one_place(files, tmp_path, asked, options, said):
    result = call(*words(files, tmp_path / "out", *options))
    assert_one_line(result, 2, said)
    assert asked == []


def test_verifying_needs_a_library(files, tmp_path, asked, monkeypatch):
    monkeypatch.setattr("medals_rt.runners.selection.installed", lambda _: False)
    options = words(files, tmp_path / "out", "--bank", files / "bank.safetensors")
    assert_one_line(call(*options, "--verify"), 1, "medals-rt[cpu]")
    assert asked == []
    assert call(*options, "--no-verify").exit_code == 0


def test_precisions_that_do_not_exist_or_do_not_go_together(files, tmp_path):
    options = words(files, tmp_path / "out", "--bank", files / "bank.safetensors")
    assert call(*options, "--precision", "int4").exit_code == 2
    assert error_of(call(*options, "--precision", "int8")).code == "calibration-missing"
    result = call(*options, "--precision", "bf16", "--weights", "fp16")
    assert_one_line(result, 1, "computes in bf16 stores weights in bf16, not in fp16")
    assert not (tmp_path / "out").exists()


def test_a_large_window_is_not_verified_unasked(monkeypatch):
    """Nothing is run: what would be verified is decided by the windows alone."""
    assert export._default_kinds([tiny_checkpoint(1)]) == ("openvino", "onnxruntime")
    monkeypatch.setattr(export, "MOST_VERIFIED_VOXELS", 16 * 16 * 8 - 1)
    assert export._default_kinds([tiny_checkpoint(1)]) == ()


def test_what_is_told_of_a_stage_reaches_the_export(files, tmp_path, asked):
    told = ("--stage1-window", "64,64,32", "--stage1-spacing", "1.5,1.5,3", "--stage1-heads", "4")
    bank = ("--bank", files / "bank.safetensors")
    assert call(*words(files, tmp_path / "out", *bank, *told)).exit_code == 0
    coarse, fine = asked[0][0][:2]
    assert coarse == CheckpointFile(files / "1.pth", (64, 64, 32), (1.5, 1.5, 3.0), 4)
    assert fine == CheckpointFile(files / "2.pth")


def test_assumed_heads_are_told(files, tmp_path):
    """Of files that hold weights alone; the missing bank ends it before anything is exported."""
    names = {1: "crop_size_16_16_8_spacing_4_4_6.pth", 2: "crop_size_16_16_16_spacing_2_2_3.pth"}
    for stage, name in names.items():
        state = tiny_checkpoint(stage).model.state_dict()
        torch.save({"model_state_dict": state}, tmp_path / name)
    options = ("--from", tmp_path, "--bank", files / "none", "--out", tmp_path / "out")
    assumed = call(*options)
    assert assumed.stderr.count("8 attention heads are assumed") == 2
    told = (
        each for n, name in names.items() for each in (f"--stage{n}", name, f"--stage{n}-heads", 4)
    )
    assert "assumed" not in call(*options, *told).stderr


def test_stages_the_wrong_way_round_are_refused(files, tmp_path):
    swapped = ("--stage1", files / "2.pth", "--stage2", files / "1.pth")
    result = call(*swapped, "--bank", files / "bank.safetensors", "--out", tmp_path / "out")
    assert error_of(result).code == "stages-swapped"
    assert not (tmp_path / "out").exists()


def hub_files(files):
    """A repository of a release whose names say nothing: weights, text encoder, BioLORD, terms."""
    found = {
        f"weights/{name}.pth": (files / source).read_bytes()
        for name, source in (("one", "2.pth"), ("two", "1.pth"), ("three", "text_encoder.pth"))
    }
    biolord = files / "biolord"
    found |= {f"biolord/{path.name}": path.read_bytes() for path in biolord.iterdir()}
    card = b"---\nlicense: apache-2.0\n---\n# Weights"
    return found | {"LICENSE": b"Do as you like.", "README.md": card}


def test_an_address_alone_is_enough(files, tmp_path, asked, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra 'hub'")
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    listed = tmp_path / "weights.toml"
    listed.write_text(
        '[[weights]]\naddress = "hf:someone/weights"\nholds = "a test"\nnotice = "made up"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("MEDALS_RT_WEIGHTS", str(listed))
    with serving(FakeHub(hub_files(files))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        asked_for = ("--from", "hf:someone/weights", "--out", tmp_path / "out")
        assert error_of(call(*asked_for)).code == "revision-not-pinned"
        result = call(*asked_for, "--unpinned")
        assert result.exit_code == 0, result.output
        assert f"taken: {hub.address}" in result.stderr
        assert call(*asked_for, "--unpinned", "--notice", "").exit_code == 0
    (coarse, fine, text, _), named = asked[0]
    assert (coarse.path.name, fine.path.name) == ("two.pth", "one.pth")
    assert coarse.origin == hub.address
    assert (text.text_encoder.name, text.biolord.name) == ("three.pth", "biolord")
    (terms,) = named["terms"]
    assert (terms.source, terms.license) == (hub.address, "apache-2.0")
    assert [path.read_bytes() for path in terms.texts] == [b"Do as you like."]
    assert named["notice"] == "made up"
    assert asked[1][1]["notice"] is None


@pytest.mark.slow
def test_an_address_becomes_a_checked_bundle(files, tmp_path, monkeypatch):
    """The whole way over HTTP: weights of any name to a bundle that opens, runs and says whose."""
    pytest.importorskip("huggingface_hub", reason="the extra 'hub'")
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    with serving(FakeHub(hub_files(files))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        result = call("--from", hub.address, "--notice", "for research", "--out", out)
    assert result.exit_code == 0, result.output
    assert "every graph agrees with PyTorch" in result.stdout
    manifest = Bundle.open(out).manifest
    assert (manifest.notice, len(manifest.classes)) == ("for research", 243)
    assert (manifest.sources.coarse.file, manifest.sources.coarse.origin) == (
        "two.pth",
        hub.address,
    )
    (terms,) = manifest.terms
    (text,) = terms.texts
    assert (out / text.file).read_bytes() == b"Do as you like."
    shown = CliRunner().invoke(app, ["info", "--bundle", str(out)]).stdout
    assert f"license of {hub.address}: apache-2.0 ({out / text.file})" in shown
    assert f"coarse stage from {hub.address}: two.pth" in shown
    assert "notice: for research" in shown
    (out / text.file).write_bytes(b"Do as I like!!!")
    with pytest.raises(BundleError) as caught:
        Bundle.open(out)
    assert caught.value.code == "file-damaged"
