"""Dry runs from what a person gives: a case's file, or numbers and class names as typed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from medals_rt.bundle.bundle import BUNDLE_VARIABLE, Bundle, resolve_bundle
from medals_rt.common.choices import (
    QUANTIZED_PRECISIONS,
    RUNNER_KINDS,
    Precision,
    StageNumber,
)
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note
from medals_rt.common.typing import Shape, Spacing
from medals_rt.io.volume import check_shape
from medals_rt.pipeline.case_setup import case_setup
from medals_rt.pipeline.job_inputs import read_prompted_case
from medals_rt.pipeline.lesions_over_anatomy import case_groups, check_combination
from medals_rt.pipeline.options import (
    PromptSource,
    RunOptions,
    idle_in_plans,
)
from medals_rt.pipeline.window_groups import check_window, classes_by_window
from medals_rt.planning.cost import (
    CasePlan,
    plan_case,
    with_seconds,
    with_time_budget,
)
from medals_rt.planning.image_spacing import spacing_for, spacing_of_volume
from medals_rt.planning.memory import dry_run_limit
from medals_rt.planning.model_facts import RELEASED, ModelFacts, facts_of
from medals_rt.planning.pass_timings import measured_on, recall
from medals_rt.prompts.classes import ClassKey
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.runners.base import check_precision
from medals_rt.runners.registry import runner_spec
from medals_rt.runners.selection import check_arithmetic, choose, installed, precisions


def plan_files(
    path: Path,
    source: PromptSource,
    options: RunOptions,
    series: str | None = None,
    select: tuple[str, ...] = (),
) -> CasePlan:
    """Plan a case's file with the prompts that a run would take, on the model that it would use.

    Parameters
    ----------
    path, source, options, series, select
        As of a `Job`.

    Raises
    ------
    InputError
        A file, prompt or option is unusable; see `planning.cost.plan_case`.
    """
    case, prompts = read_prompted_case(path, source, options, series, select)
    preset = options.segment.algorithm
    check_window(options.segment.window, prompts.modality, preset)
    volume = case.volume
    check_combination(prompts, preset)
    groups = case_groups(volume, prompts, options.segment.window, preset)
    spacing_mm, notes = spacing_of_volume(
        volume,
        preset,
        prompts.modality,
    )
    bundle = Bundle.open(resolve_bundle(options.bundle), verify=False)
    for group in groups:
        PromptEmbedder(bundle).sources(group.prompts.prompts)
    plan = _planned(
        volume.shape_dhw,
        spacing_mm,
        {group.name or group.window: group.prompts.class_keys for group in groups},
        bundle,
        options,
        image_bytes=volume.image_dhw.dtype.itemsize,
    )
    idle = idle_in_plans(options, {key.kind for key in prompts.class_keys})
    return replace(plan, notes=(*prompts.notes, *notes, *idle))


def plan_numbers(
    shape_dhw: Shape,
    spacing_hwd_mm: Spacing,
    classes: Sequence[ClassKey],
    options: RunOptions,
    *,
    stage: StageNumber | None = None,
) -> CasePlan:
    """Plan without a file: the same as `plan_files` of one with these figures.

    The file is taken to be one of intensities that are not windowed yet, such as Hounsfield units.

    Parameters
    ----------
    shape_dhw
        In voxels.
    spacing_hwd_mm
        As a file that names its axes (NIfTI, NRRD, DICOM) states it; with `stage`, what that stage
        works with.
    classes
        At least one.
    options
        As for a run. Without a bundle, here and in ``MEDALS_RT_BUNDLE``, models of the released
        size are planned for, as a note says: in bf16 by OpenVINO unless another runner or precision
        is asked for.
    stage
        1 or 2: that stage alone, of all classes in one run. None plans what a run would do.

    Raises
    ------
    InputError
        There is no class; see `planning.cost.plan_case`.
    """
    if options.segment.time_budget is not None and stage is not None:
        raise InputError(
            "a time budget is for the whole case: leave the stage out", code="budget-of-one-stage"
        )
    if not classes:
        raise InputError("no class was asked for: name one, such as CT/Liver", code="no-class")
    named = options.bundle is not None or bool(os.environ.get(BUNDLE_VARIABLE))
    bundle = Bundle.open(resolve_bundle(options.bundle), verify=False) if named else None
    if min(shape_dhw) > 0:  # `plan_case` refuses others
        check_shape(shape_dhw, max_voxels=options.max_voxels)
    preset = options.segment.algorithm
    spacing_mm = spacing_hwd_mm
    notes: tuple[Note, ...] = ()
    if stage is None and min(*shape_dhw, *spacing_hwd_mm) > 0:
        spacing_mm, notes = spacing_for(
            shape_dhw,
            spacing_hwd_mm,
            geometry_is_stated=True,
            preset=preset,
            modality=classes[0].modality,
        )
    window = options.segment.window
    for modality in sorted({key.modality for key in classes}):
        check_window(window, modality, preset)
    plan = _planned(
        shape_dhw,
        spacing_mm,
        classes_by_window(classes, window, preset) if stage is None else {window: classes},
        bundle,
        options,
        stage=stage,
    )
    of_network = () if bundle is not None else _released_notes(plan)
    idle = idle_in_plans(options, {key.kind for key in classes})
    return replace(plan, notes=(*of_network, *notes, *idle))


def _released_notes(plan: CasePlan) -> tuple[Note, ...]:
    """Note which network is planned for where none is named."""
    how = f"with {plan.runner} in {plan.precision}"
    return (Note("no-bundle", f"no bundle: a network of the released size, {how}"),)


def _planned(
    shape_dhw: Shape,
    spacing_hwd_mm: Spacing,
    groups: Mapping[str, Sequence[ClassKey]],
    bundle: Bundle | None,
    options: RunOptions,
    *,
    stage: StageNumber | None = None,
    image_bytes: int = 2,
) -> CasePlan:
    """Plan on a bundle, or on models of the released size, with what was measured of it here."""
    measured = None
    if bundle is None:
        model = _released_model(options)
    else:
        kind = choose(options.runner, bundle).kind
        check_arithmetic(kind, bundle.precision, options.precision, options.convolution)
        offered = precisions(kind, bundle.precision)
        precision = _offered(kind, check_precision(options.precision), offered) or offered[0]
        model = facts_of(bundle, kind, precision)
        expected = runner_spec(kind).expected_convolution
        if expected is not None:
            voxels = max(prod(spec.window_hwd) for spec in model.stages)
            convolution = expected(options.convolution, precision, model.channels, voxels)
            model = replace(model, convolution=convolution)
        measured = recall(bundle.hash, measured_on(kind, precision, model.convolution))
    segment, memory = options.segment, dry_run_limit(options.segment.max_memory)
    setup = case_setup(shape_dhw, spacing_hwd_mm, image_bytes, segment, model, memory)
    plan = plan_case(setup, groups, stage=stage)
    return with_time_budget(with_seconds(plan, measured), segment.time_budget)


def _offered(kind: str, asked: Precision | None, offered: Sequence[Precision]) -> Precision | None:
    """Return the precision asked for.

    Raises
    ------
    InputError
        The library doesn't compute in it here, so that a run would be refused, too.
    """
    if asked is None or asked in offered:
        return asked
    raise InputError(
        f"{kind} computes in {' or '.join(offered)} here, not in {asked}; take another precision",
        code="precision-unsupported",
    )


def _released_model(options: RunOptions) -> ModelFacts:
    """Return a model of the released size on the runner that is asked for."""
    named = options.runner if options.runner in RUNNER_KINDS else RELEASED.runner
    kind = next(each for each in RUNNER_KINDS if each == named)
    asked = check_precision(options.precision)
    graphs = asked if asked is not None and asked in QUANTIZED_PRECISIONS else "fp32"
    check_arithmetic(kind, graphs, asked, options.convolution)
    if kind != RELEASED.runner and runner_spec(kind).device == "cpu" and installed(kind):
        _offered(kind, asked, precisions(kind, graphs))
    return replace(
        RELEASED,
        runner=kind,
        precision=asked or (RELEASED.precision if kind == RELEASED.runner else graphs),
        convolution="winograd" if options.convolution == "winograd" else "direct",
    )
