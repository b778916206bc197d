"""New engines are tried in a child process first: real children, fakes of the libraries."""

import msgspec
import pytest

from medals_rt.common import gpu
from medals_rt.common.errors import RunnerError
from medals_rt.common.gpu import Gpu
from medals_rt.runners import engine_check
from medals_rt.runners.engine_check import EngineTrial, ensure_tried
from medals_rt.runners.engine_check_worker import main
from medals_rt.runners.selection import open_runner
from tests.errors import raises
from tests.runners.engine_bundles import behaving, engine_of, random_feeds

GRAPH = "query_decoder"


@pytest.fixture
def children(monkeypatch):
    """Count the children that are started."""
    started = []
    run = engine_check.run_python

    def counting(*arguments, **options):
        started.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(engine_check, "run_python", counting)
    return started


def trials_of(engine):
    return msgspec.json.decode(engine.trials_path.read_bytes(), type=list[EngineTrial])


def test_a_good_engine_is_tried_once_a_card_and_driver(fakes, bundle, children, monkeypatch):
    engine = engine_of(bundle, GRAPH)
    runner = open_runner("tensorrt", bundle.graph_path(1, GRAPH), name=GRAPH)
    assert runner.run(random_feeds(fakes.cupy, bundle, GRAPH, 2)).keys() == {"adapted_queries"}
    assert runner.notes == ()
    (kept,) = trials_of(engine)
    assert (kept.engine_sha256, kept.failure) == (engine.record.sha256, "")
    assert kept.driver == "580.65.06, CUDA 13.0"
    assert ensure_tried(engine, GRAPH) == ()
    assert len(children) == 1
    other = Gpu("NVIDIA Fake 90", "SM90", 80 << 30, "590.10, CUDA 13.1")
    monkeypatch.setattr(gpu, "find_gpu", lambda: other)
    ensure_tried(engine, GRAPH)
    assert [each.driver for each in trials_of(engine)] == [kept.driver, other.driver]
    assert len(children) == 2


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("false", "TensorRT failed in query_decoder: an illegal memory access was encountered"),
        ("abort", "the process ended by SIGABRT"),
        ("nan", "adapted_queries is not finite where all inputs are 0 and N is 1"),
        ("no context", "TensorRT can't run"),
    ],
)
def test_a_bad_engine_is_marked_and_never_opened_here(bundle, children, behaviour, reason):
    engine = behaving(engine_of(bundle, GRAPH), behaviour)
    for _ in range(2):
        with raises(RunnerError, "engine-failed-trial", reason):
            open_runner("tensorrt", bundle.graph_path(1, GRAPH), name=GRAPH)
    assert len(children) == 1
    assert trials_of(engine)[0].failure.startswith(reason)


def test_an_engine_that_hangs_is_given_up(bundle):
    engine = behaving(engine_of(bundle, GRAPH), "hang")
    with raises(RunnerError, "engine-failed-trial", "2 s"):
        ensure_tried(engine, GRAPH, timeout_s=2)
    assert trials_of(engine)[0].failure == "it did not end within 2 s"


def test_a_full_gpu_is_no_fault_of_the_engine(bundle, children):
    engine = behaving(engine_of(bundle, GRAPH), "out of memory")
    for _ in range(2):
        with raises(RunnerError, "engine-failed-trial", "out of memory"):
            ensure_tried(engine, GRAPH)
    assert len(children) == 2
    assert not engine.trials_path.exists()


def test_a_new_engine_in_the_old_ones_place_is_tried_anew(bundle, children):
    bad = behaving(engine_of(bundle, GRAPH), "false")
    with pytest.raises(RunnerError):
        ensure_tried(bad, GRAPH)
    good = behaving(bad, "good")
    assert ensure_tried(good, GRAPH) == ()
    assert [each.failure for each in trials_of(good)] == [""]
    assert len(children) == 2


def test_damaged_and_unwritable_results(bundle, monkeypatch):
    engine = engine_of(bundle, GRAPH)
    engine.trials_path.write_text("[{}]", encoding="utf-8")
    with raises(RunnerError, "trials-damaged", engine.trials_path):
        ensure_tried(engine, GRAPH)
    engine.trials_path.unlink()

    def read_only(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(engine_check, "atomic_output", read_only)
    (note,) = ensure_tried(engine, GRAPH)
    assert note.startswith("it is not kept that the engines were tried: ")


def test_the_child_runs_the_fewest_and_the_most_prompts(fakes, bundle, monkeypatch):
    engine = engine_of(bundle, GRAPH)
    counts = []
    zeros = fakes.cupy.zeros

    def noting(shape, dtype):
        counts.append(shape[0])
        return zeros(shape, dtype)

    monkeypatch.setattr(fakes.cupy, "zeros", noting)
    assert main([str(engine.folder), engine.record.name]) == 0
    assert {1, 256} <= set(counts)
