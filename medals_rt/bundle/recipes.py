"""Recipes: how engines are built for a kind of machine, and what counts as equal to PyTorch there.

A recipe is a TOML file. Those that come with the package lie in `engines/recipes` of the checkout
and are installed beside this file.
"""

import os
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from medals_rt.bundle.manifest import Count
from medals_rt.common.choices import Precision, RunnerKind
from medals_rt.common.errors import InputError, MissingFileError

Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Architecture = Annotated[str, msgspec.Meta(pattern=r"^SM\d{2,3}$")]


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far results may lie from PyTorch in fp32.

    Attributes
    ----------
    relative_error
        Of one graph: largest difference over largest value.
    mean_dsc
        End to end: least mean over the classes of the Dice similarity of labels.
    lowest_class_dsc
        End to end: least Dice similarity of any one class.
    """

    relative_error: Fraction
    mean_dsc: Fraction
    lowest_class_dsc: Fraction


class PromptCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """The range of N that an engine serves: `least` to `most`, fastest at `best`."""

    least: Count
    best: Count
    most: Count

    def __post_init__(self) -> None:
        if not self.least <= self.best <= self.most:
            raise ValueError(
                f"prompt counts must rise: least {self.least}, best {self.best}, most {self.most}"
            )


class BuildSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of TensorRT and TensorRT-RTX when they build.

    Attributes
    ----------
    optimization_level
        0 (builds fastest) to 5 (searches longest).
    workspace_mib
        Most scratch memory that a kernel may take, MiB.
    architectures
        What TensorRT-RTX builds for, such as "SM89" (compute capability 8.9); several share one
        engine. TensorRT builds for the GPU it runs on, and takes none.
    query_counts
        N of the query decoder, where one more prompt costs a vector.
    prompt_counts
        N of the graphs that give probabilities, where one more prompt costs a volume.
    """

    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)]
    workspace_mib: Count
    query_counts: PromptCounts
    prompt_counts: PromptCounts
    architectures: tuple[Architecture, ...] = ()


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One recipe file.

    Attributes
    ----------
    description
        What it is for, in a sentence.
    runners
        The runners it is for, the preferred one first.
    precision
        Arithmetic: of the graphs where the runner follows them, else what the runner is asked for.
    verification
        What counts as equal to PyTorch.
    build
        How engines are built; None where nothing is built.
    gpus
        Architectures that it is made for, such as "SM80"; empty: any that no other is made for.
    """

    description: str
    runners: tuple[RunnerKind, ...]
    precision: Precision
    verification: Verification
    build: BuildSettings | None = None
    gpus: tuple[Architecture, ...] = ()


def parse_recipe(data: bytes | str, origin: str) -> Recipe:
    """Read a recipe's TOML; `origin` names it in errors.

    Raises
    ------
    InputError
        If it is no TOML, or a key is missing, unknown, or of a wrong type or value.
    """
    try:
        recipe = msgspec.toml.decode(data, type=Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"recipe {origin} is not valid: {error}", code="recipe-damaged") from error
    if not recipe.runners:
        raise InputError(f"recipe {origin} is not valid: it names no runner", code="recipe-damaged")
    return recipe


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a file, or by name if it comes with the package ("h100-fp16").

    Raises
    ------
    MissingFileError
        If there is no such file and no recipe of that name; the message lists the names.
    InputError
        As `parse_recipe` raises it.
    """
    file = Path(path)
    if not file.is_file():
        shipped = recipe_folder() / f"{file.name.removesuffix('.toml')}.toml"
        if file.parent != Path() or not shipped.is_file():
            raise MissingFileError(
                f"there is no recipe {file}; those that come with medals-rt: "
                f"{', '.join(shipped_recipes())}",
                code="recipe-missing",
            )
        file = shipped
    return parse_recipe(file.read_bytes(), str(file))


@cache
def shipped_recipes() -> dict[str, Recipe]:
    """Read the recipes that come with the package, by name."""
    files = sorted(recipe_folder().glob("*.toml"))
    return {file.stem: parse_recipe(file.read_bytes(), str(file)) for file in files}


def recipe_for(
    runner: RunnerKind, precision: str, architecture: str | None = None
) -> tuple[str, Recipe]:
    """Return name and content of the recipe that comes with the package for a runner and precision.

    Where several fit, the one that names the runner earliest; among those one that is made for the
    GPU, of architecture `architecture`, then the first by name. One for other GPUs never fits.

    Raises
    ------
    InputError
        If there is none.
    """
    fitting = [
        (recipe.runners.index(runner), not recipe.gpus, name)
        for name, recipe in shipped_recipes().items()
        if runner in recipe.runners
        and recipe.precision == precision
        and (not recipe.gpus or architecture in recipe.gpus)
    ]
    if not fitting:
        raise InputError(
            f"no recipe comes with medals-rt for {runner} in {precision}; "
            f"there are {', '.join(shipped_recipes())}",
            code="recipe-missing",
        )
    name = min(fitting)[-1]
    return name, shipped_recipes()[name]


def verification_for(precision: str) -> Verification:
    """Return the tolerances of a precision, which are the same in every recipe that comes along.

    Raises
    ------
    InputError
        If no recipe is for that precision.
    """
    for recipe in shipped_recipes().values():
        if recipe.precision == precision:
            return recipe.verification
    raise InputError(
        f"no recipe that comes with medals-rt is for precision {precision!r}",
        code="precision-unknown",
    )


def recipe_folder() -> Path:
    """Return the folder of the recipes: the installed one, or the checkout's."""
    installed = Path(__file__).parent / "recipes"
    if installed.is_dir():
        return installed
    return Path(__file__).resolve().parents[2] / "engines" / "recipes"
