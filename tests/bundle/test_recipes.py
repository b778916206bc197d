"""Recipes: what comes with the package, and what is refused."""

import msgspec
import pytest

from medals_rt.bundle.recipes import (
    parse_recipe,
    read_recipe,
    recipe_folder,
    recipe_for,
    shipped_recipes,
    verification_for,
)
from medals_rt.common.choices import QUANTIZED_PRECISIONS
from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.prompts.classes import all_classes
from tests.errors import raises

GOOD = """
description = "made up"
runners = ["tensorrt-rtx"]
precision = "fp16"
[verification]
relative_error = 2e-2
mean_dsc = 0.999
lowest_class_dsc = 0.99
[build]
optimization_level = 3
workspace_mib = 1024
architectures = ["SM89"]
query_counts = { least = 1, best = 16, most = 256 }
prompt_counts = { least = 1, best = 4, most = 16 }
"""


def test_tolerances_are_those_of_the_issue():
    expected = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 4e-2, "int8": 0.25, "fp8": 0.25}
    for recipe in shipped_recipes().values():
        found = recipe.verification
        assert found == verification_for(recipe.precision)
        assert found.relative_error == expected[recipe.precision]
        quantized = recipe.precision in QUANTIZED_PRECISIONS
        least = (0.985, 0.9) if quantized else (0.999, 0.99)
        assert (found.mean_dsc, found.lowest_class_dsc) == least
    assert {recipe.precision for recipe in shipped_recipes().values()} == set(expected)


def test_targets_have_a_recipe_each():
    assert set(shipped_recipes()) >= {"h100-fp16", "rtx-fp16", "cpu-bf16"}
    assert recipe_for("tensorrt", "fp16")[0] == "h100-fp16"
    assert recipe_for("tensorrt-rtx", "fp16")[0] == "rtx-fp16"
    assert recipe_for("tensorrt-rtx", "fp32")[0] == "rtx-fp32"
    assert recipe_for("openvino", "bf16")[0] == "cpu-bf16"
    with raises(InputError, "recipe-missing"):
        recipe_for("openvino", "fp16")
    assert recipe_for("openvino", "int8")[0] == "cpu-int8"
    assert recipe_for("tensorrt-rtx", "fp8")[0] == "rtx-fp8"
    assert recipe_for("tensorrt", "fp8")[0] == "h100-fp8"
    with raises(InputError, "precision-unknown", "int4"):
        verification_for("int4")


@pytest.mark.parametrize(
    ("runner", "architecture", "name"),
    [
        ("tensorrt", "SM80", "a100-fp16"),
        ("tensorrt", "SM89", "l4-fp16"),
        ("tensorrt", "SM90", "h100-fp16"),
        ("tensorrt", "SM110", "jetson-thor-fp16"),
        ("tensorrt-rtx", "SM86", "rtx-fp16"),
        ("tensorrt-rtx", "SM89", "rtx40-fp16"),
        ("tensorrt-rtx", "SM120", "rtx50-fp16"),
    ],
)
def test_a_gpu_gets_the_recipe_made_for_it(runner, architecture, name):
    found, recipe = recipe_for(runner, "fp16", architecture)
    assert found == name
    assert recipe.runners[0] == runner
    assert recipe.runners[-1] == "onnxruntime-cuda"
    general = recipe_for(runner, "fp16")[1]
    assert general.gpus == ()
    # a recipe of its own may not ask for more than the general one, whose GPUs are larger
    assert recipe.build.workspace_mib <= general.build.workspace_mib
    assert recipe.build.prompt_counts == general.build.prompt_counts
    assert recipe.build.query_counts == general.build.query_counts
    if runner == "tensorrt-rtx":  # builds for what it says, without a GPU
        assert architecture in recipe.build.architectures
    else:
        assert recipe.build.architectures == ()
    assert recipe_for(runner, "fp32", architecture)[1].gpus == ()


def test_engines_serve_every_chunk_and_all_queries():
    """The network asks for at most as many at once as an engine is built for."""
    for recipe in shipped_recipes().values():
        if recipe.build is not None:
            assert recipe.build.query_counts.most >= len(all_classes())
            assert recipe.build.prompt_counts.most >= CLASSES_PER_CHUNK
            assert recipe.build.query_counts.least == recipe.build.prompt_counts.least == 1


def test_read_by_name_or_file(tmp_path):
    assert read_recipe("h100-fp16") == read_recipe(recipe_folder() / "h100-fp16.toml")
    assert read_recipe("h100-fp16.toml") == read_recipe("h100-fp16")
    own = tmp_path / "own.toml"
    own.write_text(GOOD, encoding="utf-8")
    assert read_recipe(own).build.architectures == ("SM89",)
    for missing in ("h200", tmp_path / "h100-fp16.toml", "../recipes/h100-fp16"):
        with raises(MissingFileError, "recipe-missing", missing, "cpu-bf16"):
            read_recipe(missing)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("optimization_level = 3", "optimisation_level = 3", "optimisation_level"),
        ("optimization_level = 3", "optimization_level = 6", "$.build.optimization_level"),
        ("mean_dsc = 0.999", "mean_dsc = 99.9", "$.verification.mean_dsc"),
        ('precision = "fp16"', 'precision = "int4"', "int4"),
        ('"SM89"', '"sm_89"', "$.build.architectures"),
        ('precision = "fp16"', 'precision = "fp16"\ngpus = ["A100"]', "$.gpus"),
        ("best = 4, most = 16", "best = 40, most = 16", "least 1, best 40, most 16"),
        ("least = 1, best = 4", "least = 0, best = 4", "$.build.prompt_counts.least"),
        ('runners = ["tensorrt-rtx"]', "runners = []", "mine"),
        ("description", "= description", "mine"),
    ],
)
def test_what_is_wrong_is_named(old, new, name):
    with raises(InputError, "recipe-damaged", "mine", name):
        parse_recipe(GOOD.replace(old, new), "mine")


def test_recipes_are_values():
    with pytest.raises(AttributeError):
        read_recipe("rtx-fp16").precision = "fp32"
    assert msgspec.json.decode(
        msgspec.json.encode(read_recipe("rtx-fp16")), type=type(read_recipe("rtx-fp16"))
    ) == read_recipe("rtx-fp16")
