"""`medals-rt verify` on the tiny bundle: what is right passes, what was changed is found."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("onnx")

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GRAPH_NAMES, GraphName
from medals_rt.tools.verify.verify import graph_passes
from tests.cli.helpers import call
from tests.tools.verify.helpers import BOTH, WINDOWS, damage, manifest_of


def test_tiny_bundle_passes_and_says_where(
    bundle: Bundle, checkpoints: list[Path], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    arguments = ("verify", "--bundle", bundle.folder, "--against", *checkpoints)
    done = call(*arguments, "--precision", "fp32", "--json", report)
    assert done.exit_code == 0, done.output
    assert "passed" in done.stdout
    assert "!" not in done.stdout
    tables = ("coarse graphs", "fine graphs", "case noise", "openvino fp32")
    for name in (*tables, *GRAPH_NAMES, *WINDOWS):
        assert name in done.stdout
    assert "not the file that the coarse stage was exported from" in done.stdout

    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["passed"] is True
    assert content["independent"] is True
    assert content["bundle"] == {"name": "tiny", "hash": bundle.hash}
    assert content["reference"].startswith("PyTorch ")
    parts = [(each["part"], each["runner"]) for each in content["records"]]
    assert parts == [
        (part, candidate.kind) for part in ("coarse", "fine", "cases") for candidate in BOTH
    ]
    for record in content["records"]:
        assert record["machine"]["cores"] >= 1
        assert record["when"].endswith("+00:00")
        assert record["versions"]["numpy"] == np.__version__
    graphs = content["records"][0]["graphs"]
    assert [each["graph"] for each in graphs] == [*GRAPH_NAMES, *WINDOWS]
    assert 0 < max(each["relative_error"] for each in graphs) <= 1e-4
    assert ["rms_error" in each for each in graphs] == [False] * 12 + [True] * 3
    case = content["records"][-1]["cases"][0]
    assert set(case["dsc"]) == {"Liver", "Right kidney"}
    assert 0 <= case["probability_difference"] < 1e-3

    stored = Bundle.open(bundle.folder)
    assert stored.hash == bundle.hash
    assert msgspec.to_builtins(stored.manifest.parity) == msgspec.to_builtins(
        msgspec.convert(content["records"], tuple[type(stored.manifest.parity[0]), ...])
    )
    said = call("info", "--bundle", bundle.folder).stdout
    for word in ("verified", "coarse graphs", "whole cases", "openvino", "DSC", "PyTorch"):
        assert word in said


@pytest.mark.parametrize(
    ("graph", "with_it"),
    [
        ("query_decoder", WINDOWS),
        ("refiner_4", WINDOWS[1:2]),
        pytest.param("fusion_text_only", WINDOWS[:1], marks=pytest.mark.slow),
    ],
)
def test_changed_weights_are_found(
    bundle: Bundle, checkpoints: list[Path], graph: GraphName, with_it: tuple[str, ...]
) -> None:
    """The graph itself is named, and the windows that go through it."""
    changed = damage(bundle, graph)
    arguments = ("verify", "--bundle", changed.folder, "--against", *checkpoints, "--graphs-only")
    done = call(*arguments, "--runner", "onnxruntime", "--stage", 2)
    assert done.exit_code == 1
    marked = [line.split("  ")[0] for line in done.stdout.splitlines() if "! " in line]
    assert marked == [graph, *with_it]
    assert "NOT PASSED" in done.stdout
    (record,) = manifest_of(changed).parity
    assert (record.part, record.passed) == ("fine", False)
    wrong = [each.graph for each in record.graphs if not graph_passes(each, 1e-4)]
    assert wrong == [graph, *with_it]
    assert "NO " in call("info", "--bundle", changed.folder).stdout


@pytest.mark.parametrize(
    ("graph", "found"),
    [pytest.param("query_decoder", False, marks=pytest.mark.slow), ("refiner_4", True)],
)
def test_own_graphs_are_the_weaker_check(bundle: Bundle, graph: GraphName, *, found: bool) -> None:
    """What was exported wrongly can't be found, but where one graph has to do what another does."""
    changed = damage(bundle, graph)
    options = ("--graphs-only", "--precision", "fp32", "--no-record")
    done = call("verify", "--bundle", changed.folder, *options)
    assert done.exit_code == int(found), done.output
    assert "WEAKER CHECK" in done.stdout
    assert "onnxruntime fp32 is the reference" in done.stdout
    assert "openvino fp32" in done.stdout
    assert manifest_of(changed).parity == ()


def test_own_graphs_alone_leave_nothing_to_compare(bundle: Bundle) -> None:
    before = (bundle.folder / "bundle.json").read_bytes()
    done = call("verify", "--bundle", bundle.folder, "--runner", "onnxruntime")
    assert done.exit_code == 2
    assert "nothing to compare" in done.stderr
    assert (bundle.folder / "bundle.json").read_bytes() == before


def test_case_given_by_hand(bundle: Bundle, checkpoints: list[Path], tmp_path: Path) -> None:
    case = shutil.copy(bundle.folder / "cases" / "noise.npz", tmp_path / "mine.npz")
    prompts = tmp_path / "asked.json"
    prompts.write_text(
        json.dumps({"1": "Liver in abdominal CT", "instance_label": 0}), encoding="utf-8"
    )
    arguments = ("verify", "--bundle", bundle.folder, "--against", *checkpoints)
    one = ("--runner", "onnxruntime", "--cases-only", "--case", case)
    done = call(*arguments, *one, "--prompts", prompts)
    assert done.exit_code == 0, done.output
    (record,) = manifest_of(bundle).parity
    assert [(each.case, list(each.dsc)) for each in record.cases] == [("mine", ["Liver"])]
    done = call(*arguments, *one)
    assert done.exit_code == 2
    assert "holds no text_prompts" in done.stderr


def test_a_case_in_which_nothing_is_found_is_no_pass(
    bundle: Bundle, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image of one value, with real weights; the made-up ones find something in any."""
    monkeypatch.setattr(
        "medals_rt.tools.verify.measures.dice_by_label",
        lambda _, __, labels: dict.fromkeys(labels, np.nan),
    )
    arguments = ("verify", "--bundle", bundle.folder, "--against", *checkpoints)
    done = call(*arguments, "--runner", "onnxruntime", "--cases-only")
    assert done.exit_code == 1, done.output
    (marked,) = [line for line in done.stdout.splitlines() if line.startswith("! ")]
    assert "--case" in marked
    assert "onnxruntime fp32: not compared" in done.stdout
    (record,) = manifest_of(bundle).parity
    assert not record.passed
    assert "nothing to compare" in call("info", "--bundle", bundle.folder).stdout


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--graphs-only", "--cases-only"), "nothing to do"),
        (("--prompts", "x.json"), "--prompts belongs to --case"),
        (("--runner", "torch"), "there is no runner 'torch'"),
        (("--precision", "fp4"), "there is no precision fp4"),
        (("--runner", "onnxruntime", "--precision", "bf16"), "none of onnxruntime offers bf16"),
        (("--recipe", "nonsense"), "there is no recipe"),
    ],
)
def test_requests_that_make_no_sense(tiny_bundle: Bundle, flags: tuple[str, ...], word: str):
    done = call("verify", "--bundle", tiny_bundle.folder, *flags)
    assert done.exit_code == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_checkpoints_of_another_network_are_refused(
    tiny_bundle: Bundle, checkpoints: list[Path]
) -> None:
    done = call("verify", "--bundle", tiny_bundle.folder, "--against", *reversed(checkpoints))
    assert done.exit_code == 2
    assert "coarse first" in done.stderr


def test_pytorch_missing_names_the_extra(
    tiny_bundle: Bundle, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medals_rt.common.optional_deps.find_spec", lambda _: None)
    done = call("verify", "--bundle", tiny_bundle.folder, "--against", *checkpoints)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    assert "medals-rt[export]" in done.stderr
