"""Engine records: which engine fits, and what is said of those that do not."""

import msgspec
import pytest

from medals_rt.bundle.engines import (
    Engine,
    EngineKey,
    EngineRecord,
    Wanted,
    differing_parts,
    find_engine,
    list_engines,
    write_record,
)
from medals_rt.bundle.recipes import PromptCounts
from medals_rt.common.errors import BundleError
from tests.errors import raises

GRAPH = "a" * 64
KEY = EngineKey(GRAPH, "tensorrt", "11.4.0", ("SM90",), "fp16", PromptCounts(1, 4, 16))
WANTED = Wanted(GRAPH, "tensorrt", "11.4.0", "SM90", "fp16")


def record_of(key: EngineKey, **changes: object) -> EngineRecord:
    record = EngineRecord(
        record_version=1,
        stage=2,
        graph="refiner",
        key=key,
        sha256="b" * 64,
        bytes=3,
        recipe="h100-fp16",
        optimization_level=4,
        workspace_mib=1024,
        built="2026-11-24T12:00:00+00:00",
    )
    return msgspec.structs.replace(record, **changes)


def lay_down(folder, **changes: object) -> Engine:
    record = record_of(msgspec.structs.replace(KEY, **changes))
    write_record(folder, record)
    return Engine(folder, record)


def test_the_engine_that_fits_is_found(tmp_path):
    engine = lay_down(tmp_path)
    lay_down(tmp_path, graph_sha256="c" * 64)
    lay_down(tmp_path, version="11.3.0")
    assert find_engine(tmp_path, WANTED, "refiner") == engine
    assert engine.path.name.startswith("fine.refiner.tensorrt.SM90.")


def test_of_several_that_fit_the_one_for_most_prompts(tmp_path):
    lay_down(tmp_path)
    wide = lay_down(tmp_path, prompt_counts=PromptCounts(1, 4, 64))
    lay_down(tmp_path, prompt_counts=PromptCounts(1, 4, 32))
    assert find_engine(tmp_path, WANTED, "refiner") == wide


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "11.3.0"}, "is for TensorRT 11.3.0, here is 11.4.0"),
        ({"library": "tensorrt-rtx"}, "is for TensorRT-RTX, not TensorRT"),
        ({"architectures": ("SM86", "SM89")}, "is for GPUs of SM86, SM89, here is SM90"),
        ({"precision": "fp32"}, "is in fp32, asked for is fp16"),
        (
            {"version": "11.3.0", "architectures": ("SM89",)},
            "is for TensorRT 11.3.0, here is 11.4.0 and for GPUs of SM89, here is SM90",
        ),
    ],
)
def test_the_part_of_the_key_that_differs_is_named(tmp_path, changes, reason):
    name = lay_down(tmp_path, **changes).path.name
    match = f"no TensorRT engine for refiner; the nearest, {name} {reason}; run `medals-rt build"
    with pytest.raises(BundleError) as caught:
        find_engine(tmp_path, WANTED, "refiner")
    assert match in str(caught.value)


def test_the_nearest_is_told(tmp_path):
    lay_down(tmp_path, version="11.3.0", architectures=("SM89",))
    lay_down(tmp_path, version="11.2.0")
    with raises(BundleError, "engine-missing", "11.2.0"):
        find_engine(tmp_path, WANTED, "refiner")


def test_engines_of_an_earlier_export_are_stale(tmp_path):
    lay_down(tmp_path, graph_sha256="c" * 64)
    with raises(BundleError, "engine-missing"):
        find_engine(tmp_path, WANTED, "refiner")
    assert differing_parts(msgspec.structs.replace(KEY, graph_sha256="c" * 64), WANTED) == (
        "for another graph",
    )


def test_one_engine_may_serve_several_architectures_and_any_precision_asked():
    key = msgspec.structs.replace(KEY, architectures=("SM89", "SM90"))
    assert differing_parts(key, WANTED) == ()
    assert differing_parts(key, Wanted(GRAPH, "tensorrt", "11.4.0", "SM89")) == ()


def test_every_part_of_the_key_is_in_the_name():
    changes = [
        {"graph_sha256": "c" * 64},
        {"library": "tensorrt-rtx"},
        {"version": "11.3.0"},
        {"architectures": ("SM89",)},
        {"precision": "fp32"},
        {"prompt_counts": None},
        {"prompt_counts": PromptCounts(1, 4, 32)},
        {},
    ]
    names = {record_of(msgspec.structs.replace(KEY, **each)).name for each in changes}
    assert len(names) == len(changes)


def test_no_folder_no_engines(tmp_path):
    assert list_engines(tmp_path / "none") == ()


def test_renamed_and_damaged_records_are_refused(tmp_path):
    engine = lay_down(tmp_path)
    renamed = tmp_path / "fine.refiner.tensorrt.SM90.000000000000.json"
    engine.record_path.rename(renamed)
    with raises(BundleError, "engine-renamed", "fine.refiner"):
        list_engines(tmp_path)
    renamed.unlink()
    for text in ("{", '{"record_version": 2}', "\udcff"):
        engine.record_path.write_bytes(text.encode(errors="surrogateescape"))
        with raises(BundleError, "engine-record-damaged"):
            list_engines(tmp_path)


def test_records_with_a_key_too_many_are_refused(tmp_path):
    engine = lay_down(tmp_path)
    text = engine.record_path.read_text(encoding="utf-8").replace('"stage"', '"stages": 2, "stage"')
    engine.record_path.write_text(text, encoding="utf-8")
    with raises(BundleError, "engine-record-damaged", "stages"):
        list_engines(tmp_path)
