"""One group of a case's classes: prepared, run through the stages, cleaned up, on the host."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.arrays import to_device, to_host
from medals_rt.common.choices import StageNumber
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.common.typing import Array
from medals_rt.inference.cascade import CaseRun, run_stages, stage_notes
from medals_rt.inference.corrections import Correction, corrected_labels
from medals_rt.inference.kept import Kept
from medals_rt.inference.network import Network, NetworkInfo, convolution_of
from medals_rt.inference.refinement import seeded_masks
from medals_rt.inference.stage import StageTask
from medals_rt.io.volume import Volume, to_dhw
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.window_groups import GroupResult, Labels, WindowGroup, progress_of
from medals_rt.planning import pass_timings
from medals_rt.planning.model_facts import ModelFacts, facts_of
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.planning.stage_plan import CaseOutline
from medals_rt.planning.time_budget import Budget
from medals_rt.postprocessing.finalize import finish_labels, treated_labels
from medals_rt.preprocessing.intensity import AUTO, Intensities, prepare_intensities
from medals_rt.prompts.embedding import PromptEmbedder


@dataclass(frozen=True, eq=False)
class CoarseLabels:
    """What the coarse stage found, before a fine stage looks closer.

    Attributes
    ----------
    labels_dhw
        Label values on the coarse stage's own grid `(D, H, W)`, in canonical orientation.
    affine_lps
        4 x 4, index `(w, h, d, 1)` to millimeters in the LPS frame.
    labels
        The label values that were looked for: all of the prompts, or one group of theirs.
    """

    labels_dhw: Labels
    affine_lps: npt.NDArray[np.float64]
    labels: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A bundle's networks, and what runs of them have shown.

    Attributes
    ----------
    bundle
        The bundle.
    networks
        By stage number.
    embedder
        Of prompts.
    measured
        Seconds of the latest pass, by stage number.
    """

    bundle: Bundle
    networks: Mapping[StageNumber, Network]
    embedder: PromptEmbedder
    measured: dict[StageNumber, float] = field(default_factory=dict)

    @property
    def infos(self) -> list[NetworkInfo]:
        """What runs each network."""
        return [each.info for each in self.networks.values()]

    @property
    def facts(self) -> ModelFacts:
        """What planning has to know of the model."""
        infos = self.infos
        return facts_of(self.bundle, infos[0].runner, infos[0].precision, convolution_of(infos))

    @property
    def arithmetic(self) -> str:
        """What runs the networks, such as ``"openvino/bf16"``: measured passes are kept by it."""
        info = self.networks[1].info
        convolution = convolution_of(self.infos)
        return pass_timings.measured_on(info.runner, info.precision, convolution)

    @property
    def array_device(self) -> str:
        """Where the networks' arrays are."""
        return self.networks[1].array_device


@dataclass(frozen=True, eq=False)
class GroupTask:
    """One group of a case's classes, and what is asked of it.

    Attributes
    ----------
    volume
        The image.
    group
        The classes, and the window in which they are seen.
    outline
        What was planned.
    options
        As for the case.
    annotation_dhw
        The part of a person's drawing that is of these classes; None: there is none.
    corrections
        What a person changed of these classes.
    keep_probability
        Whether the merge or the caller needs each voxel's largest probability.
    kept
        What earlier runs left of the image; None: nothing is kept.
    progress, on_coarse
        As for `Segmenter.segment`.
    """

    volume: Volume
    group: WindowGroup
    outline: CaseOutline
    options: SegmentOptions
    annotation_dhw: Labels | None
    corrections: tuple[Correction, ...]
    keep_probability: bool
    kept: Kept | None = None
    progress: Progress | None = None
    on_coarse: Callable[[CoarseLabels], None] | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether a person drew anything of it."""
        return self.annotation_dhw is not None or bool(self.corrections)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """An image as the network wants it, on the host, and what names it for its masks."""

    intensities: Intensities
    image_dhw: npt.NDArray[np.float32]
    mask_key: str


def run_group(model: OpenedModel, task: GroupTask, budget: Budget | None) -> GroupResult:
    """Segment the classes of one group, as if they were the only ones asked for.

    Parameters
    ----------
    model
        What computes.
    task
        What is asked for.
    budget
        Its time; None: there is no limit.
    """
    volume, options, outline, prompts = task.volume, task.options, task.outline, task.group.prompts
    preset = outline.setup.preset
    watch = Stopwatch()
    with watch.step("prepare"):
        window = task.group.window
        if window == AUTO:
            window = load_policy().intensity_window(prompts.class_keys, preset)
        kept = task.kept and task.kept.at(prompts.modality, window, preset.name)
        prepared = _prepared(volume, prompts.modality, window, preset, kept)
        embeddings, sources = model.embedder.embed(prompts)
        device = model.array_device
        treated = treated_labels(volume.image_dhw.size, prompts, preset, options.postprocess)
        recalled = pass_timings.recall(model.bundle.hash, model.arithmetic)
        recalled_seconds = {} if recalled is None else recalled.seconds_per_pass
        masks = options.masks or seeded_masks(options.seed, prepared.mask_key)
        case = CaseRun(
            image_dhw=to_device(prepared.image_dhw, device),
            outline=outline,
            task=StageTask(
                to_device(embeddings, device),
                prompts.labels,
                masks,
                keep_probability=task.keep_probability or bool(treated),
                keep_maps=options.probabilities,
                watch=watch,
                progress=progress_of(task.progress, task.group),
                measured=model.measured,
            ),
            budget=budget,
            seconds_per_pass={**recalled_seconds, **model.measured},
            kept=kept,
            on_coarse=_on_grid(task.on_coarse, volume, prompts.labels),
            corrections=task.corrections,
        )
        drawn = task.annotation_dhw
        annotation = None if drawn is None else to_device(drawn, device)
    outcomes = run_stages(model.networks, case, annotation)
    last = outcomes[-1]
    with watch.step("post-process"):
        lesion = outline.rules.lesion
        known = to_device(corrected_labels(task.corrections), device) if task.corrections else None
        final = finish_labels(
            last.labels_dhw,
            last.probability_dhw,
            treated,
            lesion=lesion,
            preset=preset,
            known_dhw=known,
        )
    with watch.step("download"):
        labels = to_host(final.labels_dhw)
        instances = None if final.instances_dhw is None else to_host(final.instances_dhw)
        stage_labels = {each.record.name: to_host(each.labels_dhw) for each in outcomes}
        probability = None
        if task.keep_probability and last.probability_dhw is not None:
            probability = to_host(last.probability_dhw)
        maps = None if last.maps is None else last.maps.on_host()
    return GroupResult(
        group=task.group,
        sources=sources,
        intensities=prepared.intensities.describe(),
        labels_dhw=labels,
        instances_dhw=instances,
        probability_dhw=probability,
        stage_labels_dhw=stage_labels,
        stages=tuple(each.record for each in outcomes),
        removals=final.removals,
        notes=(*prepared.intensities.notes, *stage_notes(case, outcomes)),
        memory=outline.setup.memory,
        budget=budget,
        seconds=watch.seconds,
        maps=maps,
    )


def _on_grid(
    call: Callable[[CoarseLabels], None] | None, volume: Volume, values: tuple[int, ...]
) -> Callable[[Array], None] | None:
    """Wrap a caller's function, so that it gets to know where the labels lie."""
    return None if call is None else lambda labels: call(_coarse_labels(labels, volume, values))


def _coarse_labels(labels_hwd: Array, volume: Volume, values: tuple[int, ...]) -> CoarseLabels:
    """Say where labels of the coarse stage's grid, which covers a whole volume, lie."""
    labels = np.ascontiguousarray(to_dhw(to_host(labels_hwd)))
    affine = volume.source.canonical_affine_lps(volume.shape_dhw, volume.spacing_hwd_mm)
    ratios = np.divide(volume.shape_dhw, labels.shape)[::-1]
    onto_volume = np.diag([*ratios, 1.0])
    onto_volume[:3, 3] = (ratios - 1) / 2  # edges of the two grids meet, not centers of voxels
    return CoarseLabels(labels, affine @ onto_volume, values)


def _prepared(
    volume: Volume, modality: str, window: str, preset: Preset, kept: Kept | None
) -> _Prepared:
    """Prepare a volume's intensities, or take what is kept of them."""
    found: _Prepared | None = None if kept is None else kept.get()
    if found is None:
        intensities = prepare_intensities(volume, modality, window, preset)
        image = to_host(intensities.image_dhw)
        key = _mask_key(image, scaled=intensities.action != "unchanged")
        found = _Prepared(intensities, image, key)
        if kept is not None:
            kept.put(found, [image])
    return found


def _mask_key(image_dhw: npt.NDArray[np.float32], *, scaled: bool) -> str:
    """Name a case for its masks: they depend neither on a file's name nor on its units.

    An image that was prepared is named by its content. One that was scaled is named by its grid
    alone: the same scan in other units differs in the last bits.
    """
    if scaled:
        return f"{image_dhw.shape}"
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(image_dhw.shape).encode())
    digest.update(np.ascontiguousarray(image_dhw).data)
    return digest.hexdigest()
