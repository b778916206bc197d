"""Whole cases: every candidate end to end beside the reference, with the same block masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import CaseParity
from medals_rt.common.choices import StageNumber
from medals_rt.common.errors import MedalsError
from medals_rt.common.progress import Progress
from medals_rt.inference.network import Network
from medals_rt.inference.refinement import seeded_masks
from medals_rt.io.registry import ENDINGS, case_stem, read_case
from medals_rt.io.volume import Volume
from medals_rt.pipeline.job_inputs import choose_prompts
from medals_rt.pipeline.options import PromptSource, SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import PromptSet
from medals_rt.tools.evaluate.classes import prompts_beside
from medals_rt.tools.verify.measures import compare_cases
from medals_rt.tools.verify.references import Candidate, Reference


@dataclass(frozen=True, eq=False)
class ParityCase:
    """A case and its prompts, read."""

    name: str
    volume: Volume
    prompts: PromptSet


def read_parity_case(path: Path, prompts: Path | None = None) -> ParityCase:
    """Read a case; its prompts from a file, else from `NAME.prompts.json` beside it, else from it.

    Raises
    ------
    InputError
        If a file can't be used, or there are no prompts.
    """
    name = case_stem(path)
    prompts = prompts or prompts_beside(path)
    case = read_case(path)
    return ParityCase(name, case.volume, choose_prompts(case, PromptSource(prompts)))


def cases_of(bundle: Bundle) -> tuple[Path, ...]:
    """Return the cases in a bundle's folder `cases`, by name; none if it has no such folder."""
    return cases_in(bundle.folder / "cases")


def cases_in(folder: Path) -> tuple[Path, ...]:
    """Return the cases that are files in a folder, by name; none if there is no such folder."""
    return tuple(sorted(path for path in folder.glob("*") if path.name.lower().endswith(ENDINGS)))


def compare_whole_cases(
    bundle: Bundle,
    reference: Reference,
    candidates: Sequence[Candidate],
    cases: Sequence[ParityCase],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[Candidate, tuple[CaseParity, ...]]:
    """Segment every case with the reference, then with each candidate.

    The reference's networks are closed before a candidate's are opened; of its results the labels
    and a probability a voxel are kept.

    Raises
    ------
    MedalsError
        If the reference itself fails. A candidate that fails is recorded in its `CaseParity`.
    """
    total = len(cases) * (1 + len(candidates))
    done = 0

    def segment(segmenter: Segmenter, case: ParityCase) -> Result:
        nonlocal done
        result = segmenter.segment(
            case.volume,
            case.prompts,
            SegmentOptions(masks=seeded_masks(0, case.name), keep_probability=True),
        )
        done += 1
        if progress is not None:
            progress("cases", done, total)
        return result

    networks: dict[StageNumber, Network] = {
        1: reference.open_network(1),
        2: reference.open_network(2),
    }
    with Segmenter(bundle, networks) as segmenter:
        expected = [segment(segmenter, case) for case in cases]
    found: dict[Candidate, tuple[CaseParity, ...]] = {}
    for candidate in candidates:
        parities: list[CaseParity] = []
        try:
            with Segmenter.open(
                bundle, runner=candidate.kind, precision=candidate.precision, threads=threads
            ) as segmenter:
                for case, result in zip(cases, expected, strict=True):
                    names = {each.label: each.class_key.name for each in case.prompts.prompts}
                    ours = segment(segmenter, case)
                    parities.append(compare_cases(case.name, names, ours, result))
        except MedalsError as reason:
            left = cases[len(parities) :]
            parities += [CaseParity(case.name, fault=str(reason)) for case in left]
        found[candidate] = tuple(parities)
    return found
