"""Arguments of callers in Python, and what is said of those that can't be used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import pytest
from msgspec import Meta

from medals_rt.common.arguments import check_class, take_declared, take_paths
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note


@dataclass(frozen=True)
class Asked:
    """What is asked for."""

    start_from: Literal["coarse", "text"] | None = None
    share: Annotated[float, Meta(ge=0, le=0.9)] = 0.5
    sizes: tuple[Annotated[int, Meta(ge=1)], ...] = (4,)
    mirrored: bool = False

    def __post_init__(self) -> None:
        take_declared(self, get_type_hints(Asked, include_extras=True))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"start_from": "zeros"}, "start-from-unknown", "'zeros'; choose coarse or text"),
        ({"share": 0.95}, "share-out-of-range", "0.95: a number of at most 0.9 is wanted"),
        ({"share": float("nan")}, "share-out-of-range", "nan: a number"),
        ({"sizes": (4, 0)}, "sizes-out-of-range", "a whole number of at least 1 is wanted"),
        ({"start_from": 3}, None, "text is wanted, not a whole number"),
        ({"share": "0.5"}, None, "share can't be '0.5': a number is wanted, not text"),
        ({"share": True}, None, "a number is wanted, not true or false"),
        ({"sizes": 4}, None, "a list or tuple is wanted, not a whole number"),
        ({"sizes": (4.0,)}, None, "a whole number is wanted, not a number"),
        ({"mirrored": "no"}, None, "true or false is wanted, not text"),
    ],
)
def test_what_can_not_be_taken_is_told(given: dict[str, Any], error: str | None, says: str) -> None:
    with pytest.raises(TypeError if error is None else InputError) as caught:
        Asked(**given)
    assert getattr(caught.value, "code", None) == error
    assert says in str(caught.value)


def test_numbers_of_numpy_become_pythons() -> None:
    given = Asked(share=np.float32(0.5), sizes=np.array([4, 8]), mirrored=np.True_)
    assert given == Asked(share=0.5, sizes=(4, 8), mirrored=True)
    assert [type(each) for each in (given.share, given.sizes[0], given.mirrored)] == [
        float, int, bool
    ]  # fmt: skip
    assert type(Asked(share=0).share) is float


def test_an_argument_of_another_class_is_told_what_to_write() -> None:
    check_class("note", Note("a", "b"), Note, "")
    with pytest.raises(TypeError, match=r"note is a str, not a medals_rt\.Note; write Note\(\)"):
        check_class("note", "a", Note, "write Note()")


def test_texts_become_paths() -> None:
    @dataclass(frozen=True)
    class Files:
        one: Any
        other: Any = None

    files = Files("a.nii.gz")
    take_paths(files, "one", "other")
    assert files == Files(Path("a.nii.gz"))
