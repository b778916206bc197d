"""Compare, judge by the tolerances of a recipe, and write the verdict into the bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import (
    MANIFEST_FILE,
    CaseParity,
    GraphParity,
    MachineRecord,
    ParityRecord,
    dump_manifest,
    manifest_hash,
    parse_manifest,
)
from medals_rt.bundle.recipes import Recipe, Verification, verification_for
from medals_rt.common.atomic_io import atomic_output, prepare_output
from medals_rt.common.choices import PRECISIONS, STAGE_NAMES, StageNumber
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.errors import BundleError, InputError
from medals_rt.common.gpu import find_gpu
from medals_rt.common.progress import Progress
from medals_rt.tools.verify.cases import ParityCase, compare_whole_cases
from medals_rt.tools.verify.graphs import PROMPTS_TRIED, compare_graphs
from medals_rt.tools.verify.passes import compare_passes
from medals_rt.tools.verify.references import Candidate, Reference, itself


@dataclass(frozen=True)
class Outcome:
    """What was found: a record for each candidate and part, and remarks for people."""

    records: tuple[ParityRecord, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything lay within the tolerances."""
        return all(record.passed for record in self.records)


def verify_bundle(
    bundle: Bundle,
    reference: Reference,
    candidates: Sequence[Candidate],
    *,
    stages: Sequence[StageNumber] = (1, 2),
    cases: Sequence[ParityCase] = (),
    recipe: Recipe | None = None,
    prompts_tried: int = PROMPTS_TRIED,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Compare the graphs of stages, then whole cases, for every candidate.

    A candidate that fails to run is recorded with its reason, and the others go on.

    Parameters
    ----------
    reference
        What is right.
    stages
        Whose graphs to compare (1 coarse, 2 fine); empty for none.
    cases
        To run end to end; empty for none.
    recipe
        Whose tolerances count; None for those of the coarser of the graphs' precision and the
        candidate's.
    prompts_tried
        N of the graph comparisons, beside 1.
    progress
        Called with the part, the steps done and the steps in all.

    Raises
    ------
    InputError
        If nothing is left to compare with the reference, or there are neither stages nor cases.
    MedalsError
        If the reference itself can't be computed.
    """
    if not stages and not cases:
        raise InputError(
            "nothing to compare: the bundle has no cases, and no graphs were asked for",
            code="nothing-to-verify",
        )
    notes = reference.notes
    if not reference.independent and itself() in candidates:
        candidates = [each for each in candidates if each != itself()]
        notes += (f"{itself()} is the reference and is not compared with itself",)
    if not candidates:
        raise InputError(
            f"nothing to compare with {reference.name}: name checkpoints with --against, or "
            "install another runner",
            code="reference-missing",
        )
    facts = _Facts(bundle, reference, recipe, _machine(), library_versions(), _now())
    records: list[ParityRecord] = []
    for stage in stages:
        graphs = compare_graphs(
            bundle,
            stage,
            reference,
            candidates,
            prompts_tried=prompts_tried,
            threads=threads,
            progress=progress,
        )
        windows = compare_passes(
            bundle,
            stage,
            reference,
            candidates,
            prompts_tried=prompts_tried,
            threads=threads,
            progress=progress,
        )
        records += [
            _judged(facts, each, stage, graphs=graphs[each] + windows[each]) for each in candidates
        ]
    if cases:
        compared = compare_whole_cases(
            bundle, reference, candidates, cases, threads=threads, progress=progress
        )
        records += [_judged(facts, each, None, cases=compared[each]) for each in candidates]
    return Outcome(tuple(records), notes)


def check_recordable(bundle: Bundle) -> None:
    """Refuse a bundle that can't be written to before the work rather than after.

    Raises
    ------
    InputError
    """
    try:
        prepare_output(bundle.folder / MANIFEST_FILE)
    except InputError as error:
        raise InputError(
            f"{error}, or leave the record out with --no-record", code=error.code
        ) from error


def record_in_bundle(bundle: Bundle, records: Sequence[ParityRecord]) -> Bundle:
    """Write records into `bundle.json`, atomically, and give the bundle as it is then.

    A record takes the place of an earlier one of the same part, runner, precision and kind of
    reference on the same kind of machine; all others stay. The bundle's hash is not touched.

    Raises
    ------
    BundleError
        If the bundle was exchanged since it was opened.
    InputError
        If its folder can't be written.
    """
    path = bundle.folder / MANIFEST_FILE
    manifest = parse_manifest(path.read_bytes(), str(path))  # another process may have added to it
    if manifest_hash(manifest) != bundle.hash:
        raise BundleError(
            f"{path} was exchanged while the bundle was verified; verify it again",
            code="bundle-changed",
        )
    new = {_place(record) for record in records}
    kept = tuple(record for record in manifest.parity if _place(record) not in new)
    manifest = msgspec.structs.replace(manifest, parity=(*kept, *records))
    try:
        with atomic_output(path) as temporary:
            temporary.write_bytes(dump_manifest(manifest))
    except OSError as error:
        raise InputError(
            f"can't write {path}: {error.strerror or error}; verify a copy of the bundle, or "
            "leave the record out with --no-record",
            code="output-not-writable",
        ) from error
    return Bundle(bundle.folder, manifest)


@dataclass(frozen=True)
class _Facts:
    """What all records of one verification share."""

    bundle: Bundle
    reference: Reference
    recipe: Recipe | None
    machine: MachineRecord
    versions: dict[str, str]
    when: str


def _judged(
    facts: _Facts,
    candidate: Candidate,
    stage: StageNumber | None,
    *,
    graphs: tuple[GraphParity, ...] = (),
    cases: tuple[CaseParity, ...] = (),
) -> ParityRecord:
    """Hold what was measured to the tolerances; `stage` None: whole cases."""
    precision = max(facts.bundle.precision, candidate.precision, key=PRECISIONS.index)
    allowed = verification_for(precision) if facts.recipe is None else facts.recipe.verification
    return ParityRecord(
        part="cases" if stage is None else STAGE_NAMES[stage],
        runner=candidate.kind,
        precision=candidate.precision,
        passed=cases_pass(cases, allowed)
        if stage is None
        else all(graph_passes(each, allowed.relative_error) for each in graphs),
        relative_error=allowed.relative_error,
        mean_dsc=allowed.mean_dsc,
        lowest_class_dsc=allowed.lowest_class_dsc,
        reference=facts.reference.name,
        independent=facts.reference.independent,
        when=facts.when,
        machine=facts.machine,
        versions=facts.versions,
        graphs=graphs,
        cases=cases,
    )


def graph_passes(parity: GraphParity, allowed: float) -> bool:
    """Whether a graph is near enough; of a window the root mean square counts."""
    if parity.relative_error is None:
        return False
    judged = parity.relative_error if parity.rms_error is None else parity.rms_error
    return judged <= allowed


def cases_pass(cases: Sequence[CaseParity], allowed: "Verification | ParityRecord") -> bool:
    """Whether whole cases lie within the tolerances.

    The mean is one over all classes of all cases: a case of one small lesion would else be held to
    the mean's tolerance, and that of the lowest class would never count. Classes that neither
    result has are no error; where neither has any, nothing was compared, which is no pass.

    Parameters
    ----------
    cases
        What was measured.
    allowed
        Has `mean_dsc` and `lowest_class_dsc`.
    """
    if any(case.fault is not None for case in cases):
        return False
    found = mean_and_lowest_dsc(cases)
    if found is None:
        return False
    mean, lowest = found
    return mean >= allowed.mean_dsc and lowest >= allowed.lowest_class_dsc


def mean_and_lowest_dsc(cases: Sequence[CaseParity]) -> tuple[float, float] | None:
    """Return the mean and the lowest DSC over all classes of all cases; None: nothing has one."""
    scored = [score for case in cases for score in case.dsc.values() if score is not None]
    if not scored:
        return None
    return sum(scored) / len(scored), min(scored)


def _place(record: ParityRecord) -> tuple[object, ...]:
    """Return what a later record has in common with the one whose place it takes."""
    return (
        record.part,
        record.runner,
        record.precision,
        record.independent,
        record.machine,
    )


def _machine() -> MachineRecord:
    facts, gpu = machine_facts(), find_gpu()
    return MachineRecord(
        system=facts["system"],
        architecture=facts["architecture"],
        processor=facts["processor"],
        cores=facts["cores"],
        gpu=None if gpu is None else gpu.name,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
