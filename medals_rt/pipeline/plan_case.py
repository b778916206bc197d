"""Dry runs from what a person gives: a case's file, or numbers and class names as typed."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.choices import Refinement
from medals_rt.common.errors import InputError
from medals_rt.pipeline.job import read_prompted_case
from medals_rt.pipeline.options import PromptSource, RunOptions
from medals_rt.planning.cost import (
    RELEASED_FEATURES,
    RELEASED_STAGES,
    CasePlan,
    feature_channels,
    plan_case,
    plan_shape,
    stages_of,
    with_seconds,
    with_time_budget,
)
from medals_rt.planning.pass_timings import recall
from medals_rt.planning.policy import load_policy
from medals_rt.prompts.classes import ClassKey, by_exact_name, classes_of

_Number = TypeVar("_Number", int, float)


def plan_files(path: Path, source: PromptSource, options: RunOptions) -> CasePlan:
    """Plan a case's file with the prompts that a run would take, on the bundle that it would use.

    Raises
    ------
    InputError : a file, prompt or option is unusable
    """
    case, prompts = read_prompted_case(path, source, options)
    opened = Bundle.open(resolve_bundle(options.bundle), verify=False)
    return plan_case(
        case,
        prompts,
        opened,
        preset=options.segment.preset,
        refinement=options.segment.refinement,
        max_memory=options.segment.max_memory,
        time_budget=options.segment.time_budget,
    )


def plan_numbers(
    shape: str,
    spacing: str,
    classes: str,
    *,
    kind: str = "anatomy",
    stage: int | None = None,
    bundle: Path | None = None,
    preset: str = "paper",
    refinement: Refinement = "masked",
    max_memory: int | None = None,
    time_budget: float | None = None,
) -> CasePlan:
    """Plan from what a person types.

    Parameters
    ----------
    shape : "D,H,W" in voxels
    spacing : "H,W,D" in mm, as rule 1 of system section 4 leaves it
    classes : "CT/Liver;CT/Spleen": modality and class name
    kind : of classes that are both anatomy and lesion
    stage : 1 or 2; None plans those that the classes go through
    bundle : whose windows count; None: those of the released models
    preset, refinement, max_memory : as for `plan_shape`
    time_budget : seconds a class, as for a run; None for no limit

    Raises
    ------
    InputError : a text can't be read, or names no class; the memory does not hold one class, or the
        time is not positive
    """
    if time_budget is not None and stage is not None:
        raise InputError("a time budget is for the whole case: leave the stage out")
    sizes = _numbers(shape, int, "shape D,H,W")
    lengths = _numbers(spacing, float, "spacing H,W,D")
    specs, features, measured = RELEASED_STAGES, RELEASED_FEATURES, None
    if bundle is not None:
        opened = Bundle.open(bundle, verify=False)
        specs, features = (opened.stage_spec(1), opened.stage_spec(2)), feature_channels(opened)
        measured = recall(opened.hash)
    keys = [_named_class(text, kind) for text in classes.split(";") if text.strip()]
    rules = load_policy().rules(keys, preset)
    stages = stages_of(rules, specs) if stage is None else [specs[stage - 1]]
    plan = plan_shape(
        (sizes[0], sizes[1], sizes[2]),
        (lengths[0], lengths[1], lengths[2]),
        keys,
        stages=stages,
        preset=preset,
        refinement=refinement,
        features=features,
        max_memory=max_memory,
    )
    return with_time_budget(with_seconds(plan, measured), time_budget, lesions=rules.lesion)


def _numbers(text: str, read: Callable[[str], _Number], what: str) -> list[_Number]:
    """Read three numbers, separated by commas."""
    try:
        values = [read(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise InputError(f"{what} needs three numbers separated by commas, not {text!r}")
    return values


def _named_class(text: str, kind: str) -> ClassKey:
    """Find "CT/Liver"; a name of both kinds is taken as the kind asked for."""
    modality, _, name = text.strip().partition("/")
    of_kind = [key for key in classes_of(modality, kind) if key.name == name]
    return of_kind[0] if of_kind else by_exact_name(modality, name)
