"""What is measured: a segmenter whose network one library runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import require
from medals_rt.common.plugins import load_plugin
from medals_rt.inference.network import Network, NetworkInfo
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.tools.bench.records import Question


@dataclass(frozen=True)
class BenchTarget:
    """An opened segmenter."""

    segmenter: Segmenter

    @property
    def fine(self) -> Network:
        """The network of the fine stage."""
        return self.segmenter.network(2)

    @property
    def info(self) -> NetworkInfo:
        """How the network is run."""
        return self.fine.info


@contextmanager
def open_target(question: Question) -> Iterator[BenchTarget]:
    """Open the segmenter that a question is about, and close it after use.

    Raises
    ------
    InputError
        PyTorch without checkpoints.
    MissingDependencyError
        PyTorch, or the library asked for, is not installed.
    """
    asked = question.backend
    bundle = Bundle.open(question.bundle)
    if asked.runner != "pytorch":
        opened = Segmenter.open(
            bundle, runner=asked.runner, precision=asked.precision, threads=question.threads
        )
    else:
        if question.checkpoints is None:
            raise InputError(
                "eager PyTorch needs the checkpoints of both stages", code="checkpoint-missing"
            )
        require("the runner pytorch", "PyTorch")
        opened = load_plugin("eager", "the runner pytorch")(
            bundle,
            *question.checkpoints,
            precision=asked.precision or "fp32",
            threads=question.threads,
        )
    with opened as segmenter:
        yield BenchTarget(segmenter)
