"""How graphs of a bundle run in a row: one by one, or joined by the library.

A chain is the graphs of a pass that follow each other without anything between them.
"""

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from medals_rt.bundle.manifest import FOLDED_REFINERS, GraphName, refiner_width
from medals_rt.common.typing import Array
from medals_rt.runners.base import Runner

Chain = tuple[GraphName, ...]
"""Graphs that run in a row."""
ENCODE: Chain = ("image_encoder",)
DECODE: Chain = ("query_decoder",)
CLASSIFY: Chain = ("classifier",)
FUSE: Chain = ("fusion",)
PROMPTED_MANY: Chain = ("image_encoder", "query_decoder", "fusion")
ENCODE_TEXT_ONLY: Chain = ("image_encoder", "fusion_text_only")
# need so little memory of their own that what ran before may keep its
_LIGHT = frozenset({CLASSIFY, DECODE})

Key = TypeVar("Key")


class RunnerPool(Generic[Key]):
    """Runners by name, each opened when it is first needed and open from then on."""

    def __init__(self, open_one: Callable[[Key], Runner]) -> None:
        self._open_one = open_one
        self._opened: dict[Key, Runner] = {}

    @property
    def opened(self) -> Mapping[Key, Runner]:
        """Those that were opened, in that order."""
        return self._opened

    def open(self, key: Key) -> Runner:
        """Return the runner of a name, opening it the first time."""
        if key not in self._opened:
            self._opened[key] = self._open_one(key)
        return self._opened[key]

    def close(self) -> None:
        """Close all that were opened; what they were is still known."""
        for runner in self._opened.values():
            runner.close()


class Graphs(Protocol):
    """The graphs of a stage in one library: how chains of them are opened and run."""

    joins: bool
    """Whether a chain is one graph, which looks `F_a` of exclusive prompts up by itself."""

    @property
    def opened(self) -> tuple[Runner, ...]:
        """The runners that were opened so far."""
        ...

    @property
    def encoder(self) -> Runner:
        """The runner of the image encoder, or of the text-only chain that begins with it."""
        ...

    def open(self, chain: Chain) -> None:
        """Open what `run` needs for a chain."""
        ...

    def run(self, chain: Chain, values: Mapping[str, Array]) -> dict[str, Array]:
        """Run a chain, each graph fed by name from `values` and what came before.

        Returns
        -------
        dict
            At least what no graph of the chain reads.
        """
        ...

    def release(self) -> None:
        """Return what the library keeps between runs."""
        ...

    def close(self) -> None:
        """Close all that were opened."""
        ...


class SingleGraphs:
    """Graphs that run one by one; see `Graphs`.

    Parameters
    ----------
    open_graph
        Opens a graph by its name.
    """

    joins = False

    def __init__(self, open_graph: Callable[[GraphName], Runner]) -> None:
        self._pool = RunnerPool(open_graph)

    @property
    def opened(self) -> tuple[Runner, ...]:
        """The runners that were opened so far."""
        return tuple(self._pool.opened.values())

    @property
    def encoder(self) -> Runner:
        """The runner of the image encoder."""
        return self._pool.open("image_encoder")

    def open(self, chain: Chain) -> None:
        """Open the graphs of a chain."""
        for name in chain:
            self._pool.open(name)

    def run(self, chain: Chain, values: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graphs one after another."""
        found = dict(values)
        for name in chain:
            runner = self._pool.open(name)
            found |= runner.run({spec.name: found[spec.name] for spec in runner.inputs})
        return found

    def release(self) -> None:
        """Return what the library keeps between runs."""
        for runner in self._pool.opened.values():
            runner.release()

    def close(self) -> None:
        """Close all that were opened."""
        self._pool.close()


class JoinedGraphs:
    """Chains that the library runs as one graph each; see `Graphs`.

    Each chain keeps memory for its next run. Before another chain that needs much is run, the one
    that ran gives its own back, or all of them would hold theirs at once.

    Parameters
    ----------
    open_chain
        Joins the graphs of a chain.
    """

    joins = True

    def __init__(self, open_chain: Callable[[Chain], Runner]) -> None:
        self._pool = RunnerPool(open_chain)
        self._working: Chain | None = None

    @property
    def opened(self) -> tuple[Runner, ...]:
        """The runners that were opened so far."""
        return tuple(self._pool.opened.values())

    @property
    def encoder(self) -> Runner:
        """The runner of the chain that encodes for text alone."""
        return self._pool.open(ENCODE_TEXT_ONLY)

    def open(self, chain: Chain) -> None:
        """Open a chain."""
        self._pool.open(chain)

    def run(self, chain: Chain, values: Mapping[str, Array]) -> dict[str, Array]:
        """Run a chain."""
        if chain not in _LIGHT:
            if self._working != chain:
                self.release()
            self._working = chain
        return self._pool.open(chain).run(values)

    def release(self) -> None:
        """Return what the chain that ran last keeps between runs."""
        if self._working is not None:
            self._pool.open(self._working).release()
        self._working = None

    def close(self) -> None:
        """Close all that were opened."""
        self._pool.close()


def pass_chains(count: int, *, prompted: bool) -> list[Chain]:
    """List the chains of graphs that a pass of N classes runs, in order.

    Of many classes with prompts this is for exclusive ones; others run the same graphs one by one.
    """
    if prompted:
        width = refiner_width(count)
        if width is None:
            return [PROMPTED_MANY, CLASSIFY]
        return [("image_encoder", "query_decoder", FOLDED_REFINERS[width])]
    return [ENCODE_TEXT_ONLY, DECODE, CLASSIFY]
