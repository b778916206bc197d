"""Numbers as people type them."""

import pytest

from medals_rt.common.errors import InputError
from medals_rt.common.numbers import read_numbers, three_numbers
from tests.errors import raises


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", (1.0,)),
        ("1,2", (1.0, 2.0)),
        ("0.8, 0.8, 2.5", (0.8, 0.8, 2.5)),
        ("0.8;0.8;2.5", (0.8, 0.8, 2.5)),
        ("0,8; 0,8 ;2,5", (0.8, 0.8, 2.5)),
        ("1,000.5;1;1", ()),
        ("1,000,000;1;1", ()),
        ("1,,2", ()),
        ("", ()),
        ("a,b", ()),
    ],
)
def test_a_comma_is_a_decimal_point_between_semicolons_alone(
    text: str, values: tuple[float, ...]
) -> None:
    assert read_numbers(text, float) == values


def test_three_are_three() -> None:
    assert three_numbers("10,20,30", int, "shape") == (10, 20, 30)
    for text in ("10,20", "10,20,30,40", "10,20,x", "1.5,2,3", "1,5;2;3"):
        with raises(InputError, "no-three-numbers", "shape", text):
            three_numbers(text, int, "shape")


def test_decimal_commas_that_may_be_separators_are_refused_with_the_remedy() -> None:
    with raises(InputError, "no-three-numbers", "0,8,0,8,2,5", "0,8;0,8;2,5"):
        three_numbers("0,8,0,8,2,5", float, "spacing")
