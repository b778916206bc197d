"""What a plan is asked for in words."""

import json

import pytest

from medals_rt.cli.plan import named_classes
from medals_rt.common.errors import InputError
from tests.cli.helpers import assert_one_line, call
from tests.errors import raises


def test_classes_are_named_by_modality_and_name() -> None:
    keys = named_classes(" CT/Liver; MRI/Spleen ;", "anatomy")
    assert [(key.modality, key.name) for key in keys] == [("CT", "Liver"), ("MRI", "Spleen")]
    for kind in ("anatomy", "lesion"):  # what is both is what was asked for
        (key,) = named_classes("MRI/Vertebrae", kind)
        assert key.kind == kind


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("CT/Livr", ("class-unknown", "CT Liver")),
        ("Liver", ("modality-unknown", "Liver")),
    ],
)
def test_names_of_no_class_are_refused(text: str, error: tuple[str, ...]) -> None:
    with raises(InputError, *error):
        named_classes(text, "anatomy")


def test_lengths_may_have_decimal_commas_between_semicolons() -> None:
    described = ("plan", "--shape", "60,100,100", "--classes", "CT/Liver")
    points = call(*described, "--spacing", "0.8,0.8,2.5", "--json")
    assert json.loads(points.stdout)["stages"]
    assert call(*described, "--spacing", "0,8;0,8;2,5", "--json").stdout == points.stdout
    refused = call(*described, "--spacing", "0,8,0,8,2,5")
    assert_one_line(refused, 2, "--spacing H,W,D", "semicolons")
