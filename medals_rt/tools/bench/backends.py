"""Backends that a benchmark compares: libraries and their arithmetic."""

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import RUNNER_KINDS
from medals_rt.runners.base import check_precision
from medals_rt.runners.registry import CPU_RUNNERS
from medals_rt.runners.selection import choose, installed, precisions, usable, why_not
from medals_rt.tools.bench.records import Backend
from medals_rt.tools.bench.run import BASELINE


def runners_for(bundle: Bundle) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the runners of this machine that can run a bundle, and why others of it can't.

    What `auto` would take comes first, then the processor's first one in fp32, where it computes
    in another precision unasked, and the rest. A runner that is not installed, or lacks a GPU, is
    none of this machine.

    Raises
    ------
    MissingDependencyError
        No runner is there.
    """
    first = choose("auto", bundle).kind
    on_cpu = [kind for kind in CPU_RUNNERS if installed(kind)][:1]
    exact = [f"{kind}:fp32" for kind in on_cpu if precisions(kind)[0] != "fp32"]
    rest, left_out = [], []
    for kind in RUNNER_KINDS:
        if kind == first or not usable(kind):
            continue
        if reason := why_not(kind, bundle):
            left_out.append(f"{kind} is left out: {reason}")
        else:
            rest.append(kind)
    return (first, *exact, *rest), tuple(left_out)


def parse_backends(asked: tuple[str, ...], *, pytorch: bool) -> tuple[Backend, ...]:
    """Read runners such as "openvino" or "openvino:fp32", each once.

    Parameters
    ----------
    asked
        As on the command line, the one that matters most first.
    pytorch
        Add eager PyTorch under autocast.

    Raises
    ------
    InputError, MissingDependencyError
        As `selection.choose` raises them for a library that does not exist or is not installed, and
        `check_precision` for a precision that does not.
    """
    found: list[Backend] = []
    for text in asked:
        name, _, precision = text.partition(":")
        runner = BASELINE.runner if name == BASELINE.runner else choose(name).kind
        found.append(Backend(runner, check_precision(precision or None)))
    if pytorch and all(each.runner != BASELINE.runner for each in found):
        found.append(BASELINE)
    return tuple(dict.fromkeys(found))
