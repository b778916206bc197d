"""A batch as one call from Python."""

from dataclasses import replace
from pathlib import Path

import pytest

import medals_rt
from medals_rt import Batch, RunOptions, run_batch
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError, OutputError
from medals_rt.pipeline.batch import Entry, Silent, start
from medals_rt.pipeline.options import PromptSource
from tests.errors import raises
from tests.pipeline.batch.helpers import write_case


@pytest.fixture
def asked(tiny_bundle: Bundle, scans: Path, out: Path) -> Batch:
    options = RunOptions(bundle=tiny_bundle.folder, runner="onnxruntime", precision="fp32")
    return Batch((scans,), out, options=options, preview=False)


class Heard(Silent):
    """A listener that keeps what it hears of ended cases."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def ended(self, _: int, entry: Entry) -> None:
        self.entries.append(entry)


def test_a_batch_is_one_call_and_continues(asked: Batch, scans: Path, out: Path) -> None:
    (scans / "case1.npz").write_bytes(b"damaged")
    listener = Heard()
    result = run_batch(replace(asked, statistics=True), listener)
    assert isinstance(result, medals_rt.BatchResult)
    assert sorted(listener.entries, key=lambda each: each.name) == list(result.entries)
    found = {entry.name: (entry.status, len(entry.classes)) for entry in result.entries}
    assert found == {"case0": ("done", 1), "case1": ("failed", 0), "case2": ("done", 1)}
    assert result.standing.by_status == {"done": 2, "failed": 1}
    assert result.tables == tuple(
        str(out / name) for name in ("summary.csv", "statistics.csv", "lesions.csv")
    )
    write_case(scans / "case1.npz", 1)
    assert [entry.status for entry in run_batch(asked).entries] == ["kept", "done", "kept"]


def test_paths_may_be_texts_and_one_input_stand_alone(asked: Batch, scans: Path, out: Path) -> None:
    given = replace(asked, inputs=str(scans), outputs=str(out))  # type: ignore[arg-type]
    assert (given.inputs, given.outputs) == ((scans,), out)
    several = Batch([str(scans / "case0.npz"), scans / "case1.npz"], out)  # type: ignore[arg-type]
    assert several.inputs == (scans / "case0.npz", scans / "case1.npz")


def test_parts_of_a_wrong_class_are_told_what_to_write(asked: Batch) -> None:
    for given, says in ({"source": "Liver"}, "PromptSource"), ({"options": {}}, "RunOptions"):
        with pytest.raises(TypeError, match=f"not a medals_rt.{says}; write {says}"):
            replace(asked, **given)


def test_a_part_leaves_the_tables_to_the_last(asked: Batch) -> None:
    first = run_batch(replace(asked, part="1/2"))
    assert (first.count, first.tables) == (3, ())
    assert 0 < len(first.entries) < 3
    assert run_batch(replace(asked, part="2/2")).tables


def test_what_was_passed_over_is_told(asked: Batch, scans: Path) -> None:
    (scans / "old.mgz").write_bytes(b"")
    result = run_batch(replace(asked, select=("ECHO=2",)))
    assert len(result.warnings) == 2
    assert "--select" in result.warnings[0]
    assert "old.mgz" in result.warnings[1]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"processes": 0}, "not-positive"),
        ({"processes": 2, "gpus": "all"}, "processes-twice"),
        ({"format": "pdf"}, "format-unknown"),
        ({"part": "5"}, "part-invalid"),
        ({"source": PromptSource(Path("p.json"), ("Liver in CT",))}, "prompts-twice"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    asked: Batch, out: Path, changes: dict[str, object], code: str
) -> None:
    with raises(InputError, code):
        run_batch(replace(asked, **changes))  # type: ignore[arg-type]
    assert not out.exists()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OutputError])
def test_how_far_it_came_is_told_where_it_ends_early(
    asked: Batch, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def end(*_: object, **__: object) -> None:
        raise OutputError("no room", code="disk-full") if kind is OutputError else kind

    monkeypatch.setattr(start, "run_cases", end)
    with pytest.raises(kind, match="0 of 3 cases are finished; the same command continues"):
        run_batch(asked)
