"""Which ways of running the network a benchmark compares."""

from medals_rt.bench.records import Contestant
from medals_rt.bench.run import BASELINE
from medals_rt.runners import choose


def parse_contestants(asked: tuple[str, ...], *, pytorch: bool) -> tuple[Contestant, ...]:
    """Read "openvino" or "openvino:fp32"; without any, take every library that is there.

    Parameters
    ----------
    asked
        As on the command line, the one that matters most first.
    pytorch
        Add eager PyTorch under autocast.

    Raises
    ------
    InputError, MissingDependencyError
        As `runners.choose` raises them for a library that does not exist or is not installed.
    """
    found: list[Contestant] = []
    for text in asked or _installed():
        name, _, precision = text.partition(":")
        if name != BASELINE.runner:
            name = choose(name).kind
        found.append(Contestant(name, precision or None))
    if pytorch and all(each.runner != BASELINE.runner for each in found):
        found.append(BASELINE)
    return tuple(dict.fromkeys(found))


def _installed() -> tuple[str, ...]:
    """Give what `auto` would take, then the rest that is installed, OpenVINO in fp32 too."""
    from medals_rt.runners import RUNNER_KINDS, installed, usable

    first = choose("auto").kind
    rest = [kind for kind in RUNNER_KINDS if usable(kind) and kind != first]
    exact = ["openvino:fp32"] if installed("openvino") else []
    return (first, *exact, *rest)
