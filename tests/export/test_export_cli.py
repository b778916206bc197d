"""`medals-rt export`: which options go together, and a half-precision bundle from files alone."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers", reason="reads a text encoder, which needs the extra 'export'")

from medals_export import export
from medals_export.checkpoint import save_checkpoint
from medals_export.export import TextSource
from medals_export.text_bank import save_bank
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
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
        (("--precision", "bf16"), {"precision": "bf16", "weights": None}),
        (("--verify",), {"verify_with": ("openvino", "onnxruntime")}),
        (("--no-verify",), {"verify_with": ()}),
        (("--name", "mine", "--overwrite"), {"name": "mine", "overwrite": True, "notice": None}),
        (("--notice", "for research only"), {"notice": "for research only"}),
    ],
)
def test_options_reach_the_export(files, tmp_path, asked, options, expected):
    bank = files / "bank.safetensors"
    result = call(*words(files, tmp_path / "out", "--bank", bank, *options))
    assert result.exit_code == 0, result.output
    ((positional, named),) = asked
    assert positional == (files / "1.pth", files / "2.pth", bank, tmp_path / "out")
    assert {key: named[key] for key in expected} == expected
    assert named["with_text_encoder"] is False
    assert "every graph agrees with PyTorch in openvino, onnxruntime" in result.stdout


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
    assert asked[0][0] == (coarse, fine, TextSource(encoder, Path("b")), out)
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
    ((coarse, fine, text, _), _) = asked[0]
    assert (coarse.read_bytes(), fine.read_bytes()) == (COARSE.encode(), FINE.encode())
    assert text.text_encoder.read_bytes() == b"text_encoder.pth"
    assert (text.biolord / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--stage1", "1.pth"), "checkpoint-missing"),
        ((), "checkpoint-missing"),
        (("--from", "x", "--stage2", "2.pth"), "checkpoints-twice"),
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
        ((), "given: none of them"),
        (("--text-encoder", "t.pth"), "given: --text-encoder"),
        (("--biolord", "b", "--sentences", "s"), "given: --biolord, --sentences"),
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
    assert call(*options, "--precision", "int8").exit_code == 2
    result = call(*options, "--precision", "bf16", "--weights", "fp16")
    assert_one_line(result, 1, "computes in bf16 stores weights in bf16, not in fp16")
    assert not (tmp_path / "out").exists()


def test_a_large_window_is_not_verified_unasked(monkeypatch):
    """Nothing is run: what would be verified is decided by the windows alone."""
    assert export._default_kinds([tiny_checkpoint(1)]) == ("openvino", "onnxruntime")
    monkeypatch.setattr(export, "MOST_VERIFIED_VOXELS", 16 * 16 * 8 - 1)
    assert export._default_kinds([tiny_checkpoint(1)]) == ()
