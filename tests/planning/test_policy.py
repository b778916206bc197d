from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import medals_rt
from medals_rt.common.choices import Stages
from medals_rt.common.errors import InputError
from medals_rt.planning.policy import load_policy, parse_policy
from medals_rt.prompts.classes import all_classes
from tests.errors import raises

PACKAGE = Path(medals_rt.__file__).parent


@dataclass(frozen=True)
class Key:
    policy_name: str
    kind: str = "anatomy"
    is_free_text: bool = False


def all_class_names() -> set[str]:
    return {key.policy_name for key in all_classes()}


def test_every_class_that_a_rule_names_exists() -> None:
    assert load_policy().class_names() - all_class_names() == set()


def test_no_class_name_stands_in_the_code() -> None:
    """Strings that are a class's name, and modality-and-name anywhere, comments too."""
    full = all_class_names()
    bare = {name.split("_", 1)[1] for name in full}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        words = re.findall(r"\b(?:CT|MRI|US|PET|Microscopy)_[A-Z][a-z]+", source)
        found += [f"{path.name}: {word}" for word in words]
        found += [
            f"{path.name}:{node.lineno}: {node.value}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in bare
        ]
    assert found == []


def test_presets_differ_as_documented() -> None:
    paper, release = (load_policy().preset(name) for name in ("paper", "release"))
    assert paper.prompted.block_sizes == (4, 8)
    assert release.prompted.block_sizes == (8,)
    assert release.further.block_sizes == (4,)
    assert paper.components.size_ratio == 0.6
    assert release.components.size_ratio is None
    assert release.components.fewer_voxels_than == 650 * 650 * 100
    assert (paper.repairs_stated_spacing, release.repairs_stated_spacing) == (False, True)
    assert (paper.components.keeps_cut_pieces, release.components.keeps_cut_pieces) == (True, False)
    assert (paper.lesions, release.lesions) == ("labels and instances", "binary")


def test_native_has_no_rule_by_class() -> None:
    policy = load_policy()
    native = policy.preset("native")
    for key in all_classes():
        rules = policy.rules([key], native)
        assert (rules.skip_coarse, rules.skip_fine, rules.lesion) == (True, False, False)
        assert (rules.roi_margin, rules.further_iterations["fine"]) == (1.1, 0)
        assert not policy.treats_components(key, native)
        assert policy.treats_components(key, native, "all") is (key.kind == "anatomy")


def test_native_windows_are_those_of_the_authors_configuration() -> None:
    policy = load_policy()
    windows = policy.hounsfield_windows("native")
    assert {name: (each.width_hu, each.level_hu) for name, each in windows.items()} == {
        "soft tissue": (400, 40),
        "lung": (1500, -600),
        "bone": (1500, 500),
    }
    assert policy.window_under(Key("CT_Brain"), "native") == "soft tissue"
    of_bone = [
        *(f"CT_Vertebrae C{n}" for n in range(1, 8)),
        *(f"CT_Vertebrae T{n}" for n in range(1, 13)),
        *(
            f"CT_{side} {bone}"
            for side in ("Left", "Right")
            for bone in ("humerus", "clavicula", "femur", "hip")
        ),
    ]
    assert len(of_bone) == 27
    assert {policy.window_under(Key(name), "native") for name in of_bone} == {"bone"}
    for name in ("CT_Left lung", "CT_Right lung"):
        assert policy.window_under(Key(name), "native") == "lung"
    for name in ("CT_Aorta", "CT_Pulmonary vein", "CT_Spinal cord", "CT_Heart", "CT_Esophagus"):
        assert policy.window_under(Key(name), "native") == "soft tissue"


@pytest.mark.parametrize("alone", ["coarse", "fine"])
def test_one_stage_that_is_asked_for_goes_before_the_lists(alone: Stages) -> None:
    policy = load_policy()
    for name in ("US_Soleus", "Microscopy_Synaptic clefts", "CT_Liver"):
        rules = policy.rules([Key(name)], policy.preset("paper").changed(stages=alone))
        assert (rules.skip_coarse, rules.skip_fine) == (alone == "fine", alone == "coarse")


def test_release_treats_the_36_listed_anatomy_classes_only() -> None:
    policy = load_policy()
    treated = [name for name in all_class_names() if policy.treats_components(Key(name), "release")]
    assert len(treated) == 36
    assert not policy.treats_components(Key("CT_Spleen", "lesion"), "release")
    assert not policy.treats_components(Key("CT_Liver"), "release")


def exempt_names() -> list[str]:
    return [name for each in load_policy().components.exempt for name in sorted(each.classes)]


def test_paper_treats_anatomy_but_what_is_several_objects() -> None:
    policy = load_policy()
    anatomy = {key.policy_name for key in all_classes() if key.kind == "anatomy"}
    treated = {name for name in anatomy if policy.treats_components(Key(name), "paper")}
    assert anatomy - treated == set(exempt_names())
    assert {"CT_Liver", "CT_Aorta", "CT_Left lung", "CT_Vertebrae L1"} <= treated
    several = {"MRI_Vertebrae", "MRI_Intervertebral discs", "CT_Left kidney cyst", "CT_Colon"}
    assert not several & treated
    assert not policy.treats_components(Key("CT_Liver tumors", "lesion"), "paper")


def test_each_exemption_is_of_anatomy_once_and_has_a_reason() -> None:
    anatomy = {key.policy_name for key in all_classes() if key.kind == "anatomy"}
    assert set(exempt_names()) <= anatomy
    assert len(exempt_names()) == len(set(exempt_names()))
    assert all(each.reason for each in load_policy().components.exempt)


def test_a_sentence_of_no_known_class_may_mean_several_objects() -> None:
    sentence = Key("CT_All the ribs", is_free_text=True)
    assert not load_policy().treats_components(sentence, "paper")
    assert load_policy().treats_components(sentence, "paper", "all")


@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("name", ["CT_Liver", "CT_Spleen", "MRI_Vertebrae"])
def test_the_preset_s_rule_can_be_overridden(preset: str, name: str) -> None:
    policy = load_policy()
    assert policy.treats_components(Key(name), preset, "all")
    assert not policy.treats_components(Key(name), preset, "off")
    assert not policy.treats_components(Key(name, "lesion"), preset, "all")


def test_single_counts_distinct_classes() -> None:
    policy = load_policy()
    assert policy.rules([Key("CT_Liver"), Key("CT_Liver")], "release").single
    assert not policy.rules([Key("CT_Liver"), Key("CT_Spleen")], "release").single


def test_rules_of_exceptional_classes() -> None:
    policy = load_policy()
    airways = policy.rules([Key("CT_Airway Tree")], "release")
    assert airways.roi_margin == 1.5
    assert airways.large_extent_factors == (2.0, 1.6)
    assert airways.further_iterations == {"coarse": 0, "fine": 0}
    pet = policy.rules([Key("PET_Lesion", "lesion")], "release")
    assert (pet.spacing_divisor.coarse, pet.spacing_divisor.fine) == (1.45, 1.35)
    assert pet.further_iterations == {"coarse": 0, "fine": 0}
    assert policy.rules([Key("PET_Lesion", "lesion")], "paper").further_iterations["fine"] == 1
    spine = policy.rules([Key("MRI_Vertebrae", "lesion")], "release")
    assert spine.further_iterations == {"coarse": 1, "fine": 0}
    muscle = policy.rules([Key("US_Soleus"), Key("Microscopy_Synaptic clefts")], "release")
    assert (muscle.skip_fine, muscle.skip_coarse) == (True, False)
    assert policy.rules([Key("Microscopy_Synaptic clefts", "lesion")], "paper").skip_coarse


def test_the_region_of_interest_has_the_shorter_list() -> None:
    rules = load_policy().rules([Key("CT_Airways")], "release")
    assert rules.large_extent_factors == (2.0, 1.6)
    assert rules.roi_large_extent_factors == (2.0,)


@pytest.mark.parametrize(
    ("names", "window"),
    [
        (["CT_Left lung", "CT_Right lung"], "lung"),
        (["CT_Left lung", "CT_Heart"], "soft tissue"),
        (["CT_Left lung", "CT_Sacrum"], "soft tissue"),
        (["CT_Brain"], "brain"),
        (["CT_Sacrum", "CT_Left hip"], "bone"),
        (["CT_Liver"], "soft tissue"),
        ([], "soft tissue"),
    ],
)
def test_one_intensity_window_serves_a_case(names: list[str], window: str) -> None:
    policy = load_policy()
    assert policy.intensity_window([Key(name) for name in names]) == window
    assert window in policy.intensity_windows.windows


def test_no_class_and_unknown_preset_are_input_errors() -> None:
    with raises(InputError, "no-class"):
        load_policy().rules([], "paper")
    with raises(InputError, "preset-unknown", "paper, release"):
        load_policy().preset("papers")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format_version = 1", "format_version = 2"),
        ("margin = 1.1", 'margin = "wide"'),
        ("[stages]", "[stages]\nmisspelled = []"),
        ('default = "soft tissue"', 'default = "soft"'),
    ],
)
def test_a_damaged_policy_is_refused(old: str, new: str) -> None:
    text = (PACKAGE / "planning" / "policy.toml").read_text(encoding="utf-8")
    assert old in text
    with raises(InputError, "policy-invalid"):
        parse_policy(text.replace(old, new, 1))


def test_a_policy_cannot_be_changed_by_accident() -> None:
    with pytest.raises(AttributeError):
        load_policy().format_version = 1  # type: ignore[misc]
