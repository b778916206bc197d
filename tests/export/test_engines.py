"""Building engines: with TensorRT-RTX for real, and what only a fake can be made to do."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from medals_export import engines as building
from medals_export.engines import build_engines
from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.bundle.engines import list_engines
from medals_rt.bundle.manifest import GRAPH_NAMES, file_sha256
from medals_rt.bundle.recipes import read_recipe, recipe_for
from medals_rt.cli import app
from medals_rt.common.errors import BuildError, InputError, MissingDependencyError
from medals_rt.runners.tensorrt_library import MODULES, open_library
from tests.errors import raises

ENGINES = 2 * len(GRAPH_NAMES)
NAME, RECIPE = recipe_for("tensorrt", "fp32")


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """A copy of the demo model, to build in."""
    shutil.copytree(resolve_bundle(), tmp_path / "bundle", ignore=shutil.ignore_patterns("cases"))
    return Bundle.open(tmp_path / "bundle", verify=False)


@pytest.fixture
def build(fakes, bundle):
    """Build the bundle's engines with the fake of TensorRT."""

    def build(**options):
        return build_engines(bundle, fakes.library, NAME, RECIPE, **options)

    return build


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """A job in the background ignores Ctrl-C, and so do its children: begin as in a terminal."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture(scope="module")
def rtx():
    """TensorRT-RTX itself; where CI runs it is installed."""
    if not any(find_spec(name) for name in MODULES["tensorrt-rtx"]):
        pytest.skip("TensorRT-RTX is not installed")
    return open_library("tensorrt-rtx")


def test_rtx_builds_every_graph_of_the_demo(rtx, bundle):
    """Parsed and built for real, without a GPU."""
    options = ("--bundle", bundle.folder, "--target", "tensorrt-rtx", "--arch", "SM89")
    done = run("build", *options)
    assert done.exit_code == 0, done.output
    assert f"built {ENGINES} engines" in done.output
    found = list_engines(bundle.folder / "engines")
    assert {(each.record.stage, each.record.graph) for each in found} == {
        (stage, graph) for stage in (1, 2) for graph in GRAPH_NAMES
    }
    for each in found:
        assert each.record.bytes > 10_000
        assert each.record.key.version == rtx.version
        assert each.record.key.architectures == ("SM89",)
    ranged = {each.record.graph for each in found if each.record.key.prompt_counts}
    assert ranged == {"query_decoder", "refiner", "refiner_text_only", "classifier"}
    assert Bundle.open(bundle.folder).hash == bundle.hash


def test_rtx_says_which_node_it_does_not_know(rtx, bundle):
    import onnx

    path = bundle.graph_path(1, "query_decoder")
    model = onnx.load(path)
    node = next(each for each in model.graph.node if each.op_type == "Softmax")
    node.op_type = "NoSuchOperator"
    onnx.save(model, path)
    record = msgspec.structs.replace(bundle.graph(1, "query_decoder"), sha256=file_sha256(path))
    bundle.manifest.stages.coarse.graphs["query_decoder"] = record
    name, recipe = recipe_for("tensorrt-rtx", "fp32")
    with raises(BuildError, "graph-refused", "coarse query_decoder", node.name, "NoSuchOperator"):
        build_engines(bundle, rtx, name, recipe, architectures=("SM89",))
    assert not (bundle.folder / "engines").exists()


def test_rtx_stops_when_it_is_told_to(rtx, bundle):
    name, recipe = recipe_for("tensorrt-rtx", "fp32")
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, rtx, name, recipe, architectures=("SM89",), report=interrupt)
    assert len(seen) == 5
    assert seen[0].graph == "coarse image_encoder"
    assert (seen[0].engines_done, seen[0].engines) == (0, ENGINES)
    assert 0 < seen[0].steps_done <= seen[0].steps
    assert not (bundle.folder / "engines").exists()


def test_rtx_architectures(rtx, bundle, monkeypatch):
    name, recipe = recipe_for("tensorrt-rtx", "fp32")
    with raises(InputError, "architecture-unknown", "SM90", "SM120"):
        build_engines(bundle, rtx, name, recipe, architectures=("SM90",))
    monkeypatch.setattr("medals_rt.common.gpu.find_gpu", lambda: None)
    with raises(MissingDependencyError, "gpu-missing", "CURRENT"):
        build_engines(bundle, rtx, name, recipe, architectures=("CURRENT",))


def test_rtx_says_when_the_workspace_is_too_small(rtx, bundle):
    name, recipe = recipe_for("tensorrt-rtx", "fp32")
    settings = msgspec.structs.replace(recipe.build, workspace_mib=1)
    small = msgspec.structs.replace(recipe, build=settings)
    with raises(BuildError, "build-failed", "workspace_mib"):
        build_engines(bundle, rtx, name, small, architectures=("SM89",))


def test_records_tell_what_an_engine_is_for(build, bundle, fakes):
    done = build()
    assert [each.engine.record.graph for each in done] == [*GRAPH_NAMES, *GRAPH_NAMES]
    assert all(each.built for each in done)
    decoder, refiner, folded = (
        done[GRAPH_NAMES.index(n)].engine.record for n in ("query_decoder", "refiner", "refiner_4")
    )
    assert decoder.key.prompt_counts == RECIPE.build.query_counts
    assert refiner.key.prompt_counts == RECIPE.build.prompt_counts
    assert folded.key.prompt_counts is None
    assert refiner.key.graph_sha256 == bundle.graph(1, "refiner").sha256
    assert (refiner.key.library, refiner.key.version) == ("tensorrt", fakes.tensorrt.__version__)
    assert refiner.key.architectures == ("SM90",)
    assert (refiner.recipe, refiner.optimization_level) == (NAME, RECIPE.build.optimization_level)


def test_profiles_reach_the_library(build, bundle):
    done = build()
    refiner = done[GRAPH_NAMES.index("refiner")].engine
    profile = json.loads(refiner.read().partition(b"\n")[0])["profile"]
    counts = RECIPE.build.prompt_counts
    sizes = (counts.least, counts.best, counts.most)
    assert [each[0] for each in profile["adapted_queries"]] == list(sizes)
    window = bundle.stage_spec(1).window_hwd
    assert profile["prompts"] == [[size, *window] for size in sizes]
    assert "features" not in profile


def test_what_is_there_is_kept_and_what_is_damaged_is_built_again(build):
    first = build()
    first[3].engine.path.write_bytes(b"something else")
    before = first[0].engine.path.stat().st_mtime_ns
    again = build()
    assert [each.built for each in again] == [index == 3 for index in range(ENGINES)]
    assert first[0].engine.path.stat().st_mtime_ns == before
    again[3].engine.read()
    assert all(each.built for each in build(rebuild=True))


@pytest.mark.parametrize("setting", ["optimization_level", "workspace_mib"])
def test_what_other_settings_built_is_built_again(build, bundle, fakes, setting):
    """They are no part of an engine's name, under which it would count as the recipe's."""
    build()
    value = getattr(RECIPE.build, setting) - 1
    settings = msgspec.structs.replace(RECIPE.build, **{setting: value})
    other = msgspec.structs.replace(RECIPE, build=settings)
    for built in (True, False):
        again = build_engines(bundle, fakes.library, "other", other)
        assert [each.built for each in again] == [built] * ENGINES
        assert {getattr(each.engine.record, setting) for each in again} == {value}
        assert {each.engine.record.recipe for each in again} == {"other"}
    assert len(list_engines(bundle.folder / "engines")) == ENGINES


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (
            "build",
            ("build-failed", "TensorRT 11.4.0", "fine classifier", "node_7"),
        ),
        ("profile", ("prompt-counts-refused", "1 to 32", "fine classifier")),
        ("parse", ("graph-refused", "fine classifier", "node_7", "NoSuchOp")),
    ],
)
def test_a_build_that_fails_leaves_the_bundle_as_it_was(
    build, bundle, fakes, failure, error, earlier
):
    """The last engine fails, when all others are built."""
    if earlier:
        build()
    before = files_of(bundle.folder)
    fakes.tensorrt.builds |= {"parsed": 0, "fail_at": ENGINES, "failure": failure}
    with raises(BuildError, *error):
        build(rebuild=True)
    assert files_of(bundle.folder) == before
    assert (bundle.folder / "engines").exists() is earlier


def test_a_failed_build_is_one_line_and_exit_code_1(bundle, fakes):
    fakes.tensorrt.builds |= {"fail_at": 1, "failure": "build"}
    done = run("build", "--bundle", bundle.folder, "--target", "tensorrt")
    assert done.exit_code == 1
    assert done.stderr == (
        "error: TensorRT 11.4.0 could not build coarse image_encoder: no implementation for "
        "node_7\n"
    )
    assert not (bundle.folder / "engines").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")
@pytest.mark.usefixtures("heeded_ctrl_c")
def test_ctrl_c_ends_a_build_at_the_next_step_and_leaves_nothing(bundle, fakes):
    """The library is at work in another thread, where no signal arrives."""
    builds = fakes.tensorrt.builds
    builds |= {"parsed": 0, "step_s": 0.1}
    sent = []

    def send(_):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, fakes.library, NAME, RECIPE, report=send)
    assert builds["parsed"] < ENGINES
    assert not (bundle.folder / "engines").exists()
    assert not any(each.name.startswith("engine-build") for each in threading.enumerate())


def test_a_full_disk_is_told(build, bundle, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "write_record", full)
    with raises(BuildError, "output-not-writable"):
        build()
    assert not (bundle.folder / "engines").exists()


def test_what_was_measured_is_kept_for_the_same_version_and_gpu(
    build, fakes, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "tensorrt" / "timing-11.4.0-SM90.cache"
    build()
    assert path.read_bytes() == b"measured " * ENGINES
    fakes.tensorrt.timing_caches.clear()
    fakes.tensorrt.builds |= {"parsed": 0, "fail_at": 2, "failure": "build"}
    with pytest.raises(BuildError):
        build(rebuild=True)
    assert fakes.tensorrt.timing_caches[0] == b"measured " * ENGINES
    assert path.read_bytes() == b"measured " * (ENGINES + 1)
    path.write_bytes(b"of another version")
    build(rebuild=True)
    assert path.read_bytes() == b"measured " * ENGINES
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_told_before_the_work(
    build, bundle, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "file"))
    with raises(InputError, "output-not-writable", "timing-11.4.0-SM90.cache"):
        build()
    assert not (bundle.folder / "engines").exists()


def test_what_does_not_go_together(build, bundle, fakes):
    with raises(InputError, "architecture-of-other-gpu", "SM90", "SM89"):
        build(architectures=("SM89", "SM90"))
    for name, error in (
        ("cpu-fp32", ("recipe-for-other-runner", "cpu-fp32")),
        (
            "h100-fp16",
            ("recipe-for-other-precision", "fp32", "--precision fp16"),
        ),
    ):
        with raises(InputError, *error):
            build_engines(bundle, fakes.library, name, read_recipe(name))


@pytest.mark.usefixtures("fakes")
def test_command(bundle):
    done = run("build", "--bundle", bundle.folder, "--target", "tensorrt")
    assert done.exit_code == 0, done.output
    assert "TensorRT 11.4.0, recipe h100-fp32" in done.stdout
    assert f"built {ENGINES} engines" in done.stdout
    again = run("build", "--bundle", bundle.folder, "--target", "tensorrt", "--quiet")
    assert (again.exit_code, again.output) == (0, "")
    assert len(list_engines(bundle.folder / "engines")) == ENGINES


def test_a_library_that_is_not_there(bundle):
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    done = run("build", "--bundle", bundle.folder, "--target", "tensorrt")
    assert done.exit_code == 1
    assert "pip install 'medals-rt[tensorrt]'" in done.stderr


def test_building_needs_no_torch():
    code = (
        "import sys; import medals_export.engines;"
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'cupy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
