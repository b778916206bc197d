"""What is compared (candidates) with what (a reference)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GraphName
from medals_rt.bundle.recipes import Recipe
from medals_rt.common.choices import PRECISIONS, RUNNER_KINDS, Precision, RunnerKind, StageNumber
from medals_rt.common.environment import library_versions
from medals_rt.common.errors import InputError
from medals_rt.inference.network import Network, StageNetwork, arithmetic_of
from medals_rt.runners.base import Runner
from medals_rt.runners.registry import runner_spec
from medals_rt.runners.selection import choose, open_runner, precisions, usable


class Reference(Protocol):
    """What candidates are held to; computes in fp32."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def independent(self) -> bool:
        """Whether it is computed from checkpoints and not from the bundle's own graphs."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks, such as that it is the weaker check."""
        ...

    def open_graph(self, stage: StageNumber, graph: GraphName) -> Runner:
        """Open what a graph has to compute, with the weights as the bundle stores them."""
        ...

    def open_network(self, stage: StageNumber) -> Network:
        """Open a whole stage."""
        ...

    def graph_file(self, stage: StageNumber, graph: GraphName, folder: Path) -> Path:
        """Return a graph as an ONNX file, which may be written to `folder`."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A runner of this machine, in one of the precisions that it offers."""

    kind: RunnerKind
    precision: Precision

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}"


@dataclass(frozen=True)
class OwnGraphs:
    """The weaker reference: ONNX Runtime in fp32 on the bundle's own graphs.

    It finds a library or an engine that computes wrongly, but not a wrong export.

    Raises
    ------
    InputError
        If ONNX Runtime can't compute the bundle's graphs in fp32.
    MissingDependencyError
        If it is not installed.
    """

    bundle: Bundle
    threads: int | None = None

    def __post_init__(self) -> None:
        one = itself()
        if one.precision not in precisions(one.kind, self.bundle.precision):
            raise InputError(
                f"{one.kind} can't compute the {self.bundle.precision} graphs of {self.bundle.name}"
                f" in {one.precision}, so there is nothing to compare with: name the checkpoints "
                "with --against",
                code="reference-missing",
            )

    @property
    def name(self) -> str:
        """Library, version and precision."""
        version = library_versions().get("onnxruntime", "")
        return f"ONNX Runtime {version} fp32 on the bundle's own graphs"

    @property
    def independent(self) -> bool:
        """Never."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """Describe what this check can't find."""
        note = (
            "WEAKER CHECK: the reference is the bundle's own graphs, so an error of the export "
            "can't be found; name the checkpoints with --against COARSE.pth FINE.pth"
        )
        return (note,)

    def open_graph(self, stage: StageNumber, graph: GraphName) -> Runner:
        """Open the bundle's graph; see `Reference`."""
        return open_candidate(self.bundle, stage, graph, itself(), self.threads)

    def graph_file(self, stage: StageNumber, graph: GraphName, folder: Path) -> Path:
        """Return the bundle's file; see `Reference`."""
        del folder
        return self.bundle.graph_path(stage, graph)

    def open_network(self, stage: StageNumber) -> Network:
        """Open the bundle's stage; see `Reference`."""
        one = itself()
        return StageNetwork.open(
            self.bundle, stage, runner=one.kind, precision=one.precision, threads=self.threads
        )


def itself() -> Candidate:
    """Return the candidate that `OwnGraphs` is, which is not compared with itself.

    Raises
    ------
    MissingDependencyError
        If ONNX Runtime is not installed.
    """
    return Candidate(choose("onnxruntime").kind, "fp32")


def open_candidate(
    bundle: Bundle,
    stage: StageNumber,
    graph: GraphName,
    candidate: Candidate,
    threads: int | None = None,
) -> Runner:
    """Open one graph of a bundle as a candidate runs it.

    On a CPU nothing is kept in the user's cache of compiled graphs, which has no room for those of
    every runner and precision. On a GPU the graph's hash names its engine.
    """
    device = runner_spec(candidate.kind).device
    computed, stored = arithmetic_of([graph], device, candidate.precision, bundle.precision)
    return open_runner(
        candidate.kind,
        bundle.graph_path(stage, graph),
        name=f"{graph} of stage {stage}",
        precision=computed,
        graph_precision=stored,
        threads=threads,
        cache_key=None if device == "cpu" else bundle.graph(stage, graph).sha256,
    )


def find_candidates(
    bundle: Bundle,
    kinds: Sequence[str] = (),
    asked: Sequence[str] = (),
    recipe: Recipe | None = None,
) -> tuple[Candidate, ...]:
    """List what there is to verify on this machine.

    Parameters
    ----------
    bundle
        What is to be run: on a GPU its graphs' precision is the only one.
    kinds
        Names of runners; without any, those of the recipe that can be used here, else all.
    asked
        Precisions; without any, the recipe's, else all that a runner offers.
    recipe
        What the bundle is meant for, if a recipe was named.

    Raises
    ------
    InputError
        If a name is unknown, or nothing is left.
    MissingDependencyError
        If a runner asked for by name is not installed.
    """
    named = tuple(choose(kind, bundle).kind for kind in kinds)
    meant = RUNNER_KINDS if recipe is None else recipe.runners
    wanted = tuple(asked) or (() if recipe is None else (recipe.precision,))
    if unknown := set(wanted) - set(PRECISIONS):
        raise InputError(
            f"there is no precision {', '.join(sorted(unknown))}; use {', '.join(PRECISIONS)}",
            code="precision-unknown",
        )
    found = tuple(
        Candidate(kind, precision)
        for kind in named or tuple(kind for kind in meant if usable(kind))
        for precision in sorted(precisions(kind, bundle.precision), key=PRECISIONS.index)
        if not wanted or precision in wanted
    )
    if not found:
        raise InputError(
            f"nothing to verify here: none of {', '.join(named or meant)} offers "
            f"{' or '.join(wanted or PRECISIONS)}; `medals-rt doctor` says what this machine has",
            code="nothing-to-verify",
        )
    return tuple(dict.fromkeys(found))
