"""`medals-rt verify` on the tiny bundle: what is right passes, what was changed is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="PyTorch is the reference")
onnx = pytest.importorskip("onnx")

from medals_export.bundle_writer import file_record  # noqa: E402
from medals_export.checkpoint import save_checkpoint  # noqa: E402
from medals_export.torch_reference import TorchReference  # noqa: E402
from medals_rt import timings  # noqa: E402
from medals_rt.bundle import Bundle  # noqa: E402
from medals_rt.cli import app  # noqa: E402
from medals_rt.errors import BundleError, InputError, MissingDependencyError, RunnerError  # noqa: E402
from medals_rt.manifest import (  # noqa: E402
    FOLDED_REFINERS,
    GRAPH_NAMES,
    CaseParity,
    GraphName,
    GraphParity,
    MachineRecord,
    Manifest,
    Stages,
    dump_manifest,
)
from medals_rt.parity import graphs as parity_graphs  # noqa: E402
from medals_rt.parity import references, verify  # noqa: E402
from medals_rt.parity.graphs import compare_graphs  # noqa: E402
from medals_rt.parity.references import Candidate, OwnGraphs, find_candidates  # noqa: E402
from medals_rt.parity.verify import (  # noqa: E402
    cases_pass,
    graph_passes,
    mean_and_lowest_dsc,
    record_in_bundle,
    verify_bundle,
)
from medals_rt.recipes import Verification, read_recipe  # noqa: E402
from medals_rt.runners import RUNNER_KINDS  # noqa: E402
from tests.bundles import tiny_checkpoint  # noqa: E402

BOTH = (Candidate("openvino", "fp32"), Candidate("onnxruntime", "fp32"))
WINDOWS = ("window, text only", "window, prompted", "window, many classes")
PROMPTS = {"1": "Liver in abdominal CT", "2": "Right kidney in CT", "instance_label": 0}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [folder / "coarse.pth", folder / "fine.pth"]
    for stage, path in enumerate(paths, 1):
        checkpoint = tiny_checkpoint(stage)
        save_checkpoint(path, checkpoint.model, checkpoint.spacing_hwd_mm)
    return paths


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy to write into, with one case."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    (folder / "cases").mkdir()
    rng = np.random.default_rng(0)
    image = rng.random((12, 20, 24), dtype=np.float32) * 255
    np.savez(folder / "cases" / "noise.npz", imgs=image, spacing=np.array([2.0, 2.0, 3.0]))
    (folder / "cases" / "noise.prompts.json").write_text(json.dumps(PROMPTS))
    return Bundle.open(folder)


def damage(bundle: Bundle, graph: GraphName) -> Bundle:
    """Change one weight of a graph of the fine stage, and give the manifest the new hash."""
    record = bundle.graph(2, graph)
    path = bundle.folder / record.file
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda each: np.prod(each.dims))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += np.abs(values).max()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    new = file_record(bundle.folder, record.file)
    stages = msgspec.to_builtins(bundle.manifest.stages)
    stages["fine"]["graphs"][graph] |= {"sha256": new.sha256, "bytes": new.bytes}
    manifest = msgspec.structs.replace(bundle.manifest, stages=msgspec.convert(stages, Stages))
    (bundle.folder / "bundle.json").write_bytes(dump_manifest(manifest))
    return Bundle.open(bundle.folder)


def manifest_of(bundle: Bundle) -> Manifest:
    return Bundle.open(bundle.folder).manifest


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

    content = json.loads(report.read_text())
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
    measured = timings.recall(bundle.hash)
    assert measured is not None
    assert measured.runner.partition("/")[0] in RUNNER_KINDS  # what `plan` estimates with
    said = call("info", "--bundle", bundle.folder).stdout
    for word in ("verified", "coarse graphs", "whole cases", "openvino", "DSC", "PyTorch"):
        assert word in said


@pytest.mark.parametrize(
    ("graph", "with_it"),
    [("query_decoder", WINDOWS), ("refiner_4", WINDOWS[1:2]), ("refiner_text_only", WINDOWS[:1])],
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


@pytest.mark.parametrize(("graph", "found"), [("query_decoder", False), ("refiner_4", True)])
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


def test_records_of_other_machines_are_kept(bundle: Bundle) -> None:
    outcome = verify_bundle(bundle, OwnGraphs(bundle), BOTH[:1], stages=(1,))
    (here,) = outcome.records
    elsewhere = msgspec.structs.replace(
        here, machine=MachineRecord("Linux", "x86_64", "another processor", 64, "NVIDIA H100")
    )
    record_in_bundle(bundle, [elsewhere])
    record_in_bundle(bundle, [here])
    again = msgspec.structs.replace(here, when="2030-01-01T00:00:00+00:00", passed=False)
    opened = record_in_bundle(bundle, [again])
    assert opened.manifest == manifest_of(bundle)
    assert opened.manifest.parity == (elsewhere, again)
    assert opened.hash == bundle.hash
    said = call("info", "--bundle", bundle.folder).stdout
    assert "NVIDIA H100, 64 cores" in said
    assert "2030-01-01" in said


def test_a_bundle_exchanged_meanwhile_gets_no_record(bundle: Bundle) -> None:
    outcome = verify_bundle(bundle, OwnGraphs(bundle), BOTH[:1], stages=(1,))
    other = msgspec.structs.replace(bundle.manifest, classes=bundle.manifest.classes[:1])
    (bundle.folder / "bundle.json").write_bytes(dump_manifest(other))
    with pytest.raises(BundleError, match="exchanged"):
        record_in_bundle(bundle, outcome.records)


def test_unwritable_bundle_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("medals_rt.files.Path.touch", refuse)
    done = call("verify", "--bundle", bundle.folder, "--graphs-only")
    assert done.exit_code == 2
    assert "Permission denied" in done.stderr
    assert "--no-record" in done.stderr
    monkeypatch.setattr(verify, "atomic_output", refuse)
    with pytest.raises(InputError, match=r"Permission denied.*--no-record"):
        record_in_bundle(bundle, ())


def test_a_candidate_that_fails_is_told_and_the_others_go_on(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = references.open_candidate

    def break_one(bundle: Bundle, stage: int, graph: str, candidate: Candidate, threads: Any):
        if graph == "fusion" and candidate.kind == "openvino":
            raise RunnerError("the library refused it")
        return opened(bundle, stage, graph, candidate, threads)

    monkeypatch.setattr(parity_graphs, "open_candidate", break_one)
    reference = TorchReference(tiny_bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    told: list[tuple[str, int, int]] = []
    found = compare_graphs(
        tiny_bundle, 1, reference, BOTH, progress=lambda *step: told.append(step)
    )
    broken = {each.graph: each.fault for each in found[BOTH[0]] if each.fault}
    assert broken == {"fusion": "the library refused it"}
    assert all(graph_passes(each, 1e-4) for each in found[BOTH[1]])
    assert told[0] == ("coarse graphs", 0, 36)
    assert told[-1] == ("coarse graphs", 36, 36)


def test_prompts_that_graphs_are_tried_with(tiny_bundle: Bundle) -> None:
    found = compare_graphs(tiny_bundle, 2, OwnGraphs(tiny_bundle), BOTH[:1], prompts_tried=3)
    counts = {each.graph: each.prompt_counts for each in found[BOTH[0]]}
    assert counts["image_encoder"] == (1,)
    assert counts["refiner"] == counts["classifier"] == counts["query_decoder"] == (1, 3)
    folded = {width: counts[name] for width, name in FOLDED_REFINERS.items()}
    assert folded == {1: (1,), 2: (2,), 4: (3,), 8: (3,), 16: (3,)}


def test_case_given_by_hand(bundle: Bundle, checkpoints: list[Path], tmp_path: Path) -> None:
    case = shutil.copy(bundle.folder / "cases" / "noise.npz", tmp_path / "mine.npz")
    prompts = tmp_path / "asked.json"
    prompts.write_text(json.dumps({"1": "Liver in abdominal CT", "instance_label": 0}))
    arguments = ("verify", "--bundle", bundle.folder, "--against", *checkpoints)
    one = ("--runner", "onnxruntime", "--cases-only", "--case", case)
    done = call(*arguments, *one, "--prompts", prompts)
    assert done.exit_code == 0, done.output
    (record,) = manifest_of(bundle).parity
    assert [(each.case, list(each.dsc)) for each in record.cases] == [("mine", ["Liver"])]
    done = call(*arguments, *one)
    assert done.exit_code == 2
    assert "holds no text_prompts" in done.stderr


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--graphs-only", "--cases-only"), "nothing to do"),
        (("--prompts", "x.json"), "--prompts belongs to --case"),
        (("--runner", "torch"), "there is no runner 'torch'"),
        (("--precision", "fp8"), "there is no precision fp8"),
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
    monkeypatch.setattr("medals_rt.cli.verify.find_spec", lambda _: None)
    done = call("verify", "--bundle", tiny_bundle.folder, "--against", *checkpoints)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    assert "medals-rt[export]" in done.stderr


def test_onnxruntime_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.runners.installed", lambda _: False)
    with pytest.raises(MissingDependencyError, match=r"medals-rt\[onnx\]"):
        references.itself()


def test_graphs_that_onnxruntime_has_no_arithmetic_for(tiny_bundle: Bundle) -> None:
    halved = msgspec.structs.replace(tiny_bundle.manifest, precision="bf16")
    bundle = Bundle(tiny_bundle.folder, halved)
    assert {each.kind for each in find_candidates(bundle)} == {"openvino"}
    with pytest.raises(InputError, match=r"can't compute the bf16 graphs of tiny.*--against"):
        OwnGraphs(bundle)


def test_the_coarser_arithmetic_decides_what_is_allowed(tiny_bundle: Bundle) -> None:
    halved = msgspec.structs.replace(tiny_bundle.manifest, precision="fp16")
    reference = OwnGraphs(tiny_bundle)
    for manifest, allowed in ((tiny_bundle.manifest, 1e-4), (halved, 2e-2)):
        bundle = Bundle(tiny_bundle.folder, manifest)
        outcome = verify_bundle(bundle, reference, BOTH[:1], stages=(1,))
        assert [each.relative_error for each in outcome.records] == [allowed]


def test_recipe_says_what_is_compared_and_how_near(tiny_bundle: Bundle) -> None:
    recipe = read_recipe("cpu-fp32")
    assert set(find_candidates(tiny_bundle, recipe=recipe)) == set(BOTH)
    strict = msgspec.structs.replace(
        recipe,
        verification=Verification(relative_error=1e-12, mean_dsc=1.0, lowest_class_dsc=1.0),
    )
    outcome = verify_bundle(
        tiny_bundle, OwnGraphs(tiny_bundle), BOTH[:1], stages=(1,), recipe=strict
    )
    assert not outcome.passed
    assert outcome.records[0].relative_error == 1e-12


def test_stored_rounding_is_not_an_error_of_arithmetic(tiny_bundle: Bundle) -> None:
    """Weights stored in fp16: graphs are held to the rounded network, cases to the exact one."""
    stored = msgspec.structs.replace(tiny_bundle.manifest, weights="fp16")
    bundle = Bundle(tiny_bundle.folder, stored)
    exact = TorchReference(tiny_bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    rounded = TorchReference(bundle, tiny_checkpoint(1), tiny_checkpoint(2))
    feeds = parity_graphs.made_up_inputs(tiny_bundle, 1, 1)
    image = {name: feeds[name] for name in ("image", "foreground")}

    def features(reference: TorchReference) -> np.ndarray:
        return reference.open_graph(1, "image_encoder").run(image)["features"]

    assert 0 < np.abs(features(exact) - features(rounded)).max() < 1e-2
    with exact.open_network(1) as one, rounded.open_network(1) as other:
        (_, first), (_, second) = (
            next(network.predict(image["image"], feeds["queries"])) for network in (one, other)
        )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("dsc", "passes"),
    [
        ({"Liver": 1.0, "Spleen": 0.9985}, True),
        ({"Liver": 1.0, "Spleen": 0.98}, False),  # the lowest class
        ({"Liver": 0.998, "Spleen": 0.998}, False),  # the mean
        ({"Liver": 1.0, "Spleen": None}, True),
        ({"Liver": None}, True),
        ({"Liver": 0.0}, False),
    ],
)
def test_tolerances_of_cases(dsc: dict[str, float | None], *, passes: bool) -> None:
    allowed = Verification(relative_error=1e-4, mean_dsc=0.999, lowest_class_dsc=0.99)
    scored = [score for score in dsc.values() if score is not None]
    mean = float(np.mean(scored)) if scored else None
    case = CaseParity("x", 1.0, dsc, mean, 0.0)
    assert cases_pass([case], allowed) is passes
    assert not cases_pass([case, CaseParity("y", fault="it failed")], allowed)


def test_the_mean_is_one_over_all_cases() -> None:
    allowed = Verification(relative_error=1e-4, mean_dsc=0.999, lowest_class_dsc=0.99)
    lesion = CaseParity("lesion", 1.0, {"Liver tumors": 0.996}, 0.996, 0.0)
    organs = CaseParity("organs", 1.0, {f"organ {n}": 0.9995 for n in range(9)}, 0.9995, 0.0)
    assert not cases_pass([lesion], allowed)
    assert cases_pass([lesion, organs], allowed)
    assert mean_and_lowest_dsc([lesion, organs]) == (pytest.approx(0.99915), 0.996)


def test_tolerances_of_graphs() -> None:
    assert graph_passes(GraphParity("refiner", (1,), 1e-4), 1e-4)
    assert not graph_passes(GraphParity("refiner", (1,), 1.01e-4), 1e-4)
    assert not graph_passes(GraphParity("refiner", (1,), None, fault="not finite"), 1e-4)
    assert graph_passes(GraphParity("window", (1,), 0.5, rms_error=1e-4), 1e-4)
    assert not graph_passes(GraphParity("window", (1,), 0.5, rms_error=2e-4), 1e-4)
