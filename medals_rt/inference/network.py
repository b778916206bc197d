"""One stage's network, put together from the graphs of a bundle.

The only place that knows how the network is cut into graphs, and which of them a pass takes:

- few classes, text only, or with at most 16 prompted classes (*folded*): encoder, query decoder and
  refiner in a row, as one graph where the library can join them;
- more classes: one encoding and one fused feature map `F_r` serve the classifier in chunks. Where
  the library joins graphs, `F_a` of exclusive prompts is looked up inside the encoder's chain.

Nothing of N times the window is made but the probabilities themselves, chunk by chunk.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import FOLDED_REFINERS, GraphName
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.arrays import namespace
from medals_rt.common.choices import CPU_RUNNERS
from medals_rt.common.errors import BundleError
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.common.typing import Array
from medals_rt.inference.spatial_prompts import LabelPrompts, SpatialPrompts
from medals_rt.runners.base import Runner
from medals_rt.runners.selection import (
    JOINING_RUNNERS,
    Choice,
    choose,
    open_joined,
    open_runner,
    release_memory,
)

# `T` multiplies every voxel's features, and costs under a hundredth of a window's time
ALWAYS_FP32: frozenset[GraphName] = frozenset({"query_decoder"})

Graphs = tuple[GraphName, ...]
_ENCODE: Graphs = ("image_encoder",)
_DECODE: Graphs = ("query_decoder",)
_CLASSIFY: Graphs = ("classifier",)
_FUSE: Graphs = ("fusion",)
_PROMPTED_MANY: Graphs = ("image_encoder", "query_decoder", "fusion")
_TEXT_ONLY_MANY: Graphs = ("image_encoder", "query_decoder", "fusion_text_only")
_TEXT_ONLY: Graphs = ("image_encoder", "query_decoder", "refiner_text_only")
# needs so little memory of its own that what ran before may keep its
_LIGHT = frozenset({_CLASSIFY})

Key = TypeVar("Key")


@dataclass(frozen=True)
class NetworkInfo:
    """How a network is run, for the report."""

    runner: str
    why: str
    device: str
    precision: str
    version: str
    threads: int
    notes: tuple[str, ...]


class OnDemand(dict[Key, Runner]):
    """Runners that are opened when they are first asked for; it holds those that are open."""

    def __init__(self, open_one: Callable[[Key], Runner]) -> None:
        super().__init__()
        self._open_one = open_one

    def __missing__(self, key: Key) -> Runner:
        self[key] = runner = self._open_one(key)
        return runner


class StageNetwork:
    """The network of one stage, opened once for any number of windows and cases.

    Nothing is kept from one window to the next. Arrays are taken from and given back on the
    runner's device; those given back are the caller's own. Not safe to share between threads.

    Parameters
    ----------
    spec
        Window and spacing.
    runners
        The runner of each graph, by name.
    why
        Why this library runs, for the report.
    joined
        Where the library runs several graphs as one: the runner of each chain of graphs. It is
        asked for all of them, and `runners` for none.
    """

    def __init__(
        self,
        spec: StageSpec,
        runners: Mapping[GraphName, Runner],
        why: str,
        joined: "OnDemand[Graphs] | None" = None,
    ) -> None:
        self.spec = spec
        self._why = why
        self._runners = runners
        self._joined = joined
        self._working: Graphs | None = None

    @property
    def info(self) -> NetworkInfo:
        """How the network is run; its notes grow as graphs are opened."""
        first = self._first
        opened = (*self._runners.values(), *(self._joined or {}).values())
        return NetworkInfo(
            runner=first.kind,
            why=self._why,
            device=first.device,
            precision=first.precision,
            version=first.version,
            threads=first.threads,
            notes=tuple(dict.fromkeys(note for runner in opened for note in runner.notes)),
        )

    @property
    def array_device(self) -> str:
        """Where arrays must lie, as `medals_rt.common.arrays.to_device` names it."""
        return self._first.device

    @property
    def _first(self) -> Runner:
        if self._joined is not None:
            return self._joined[_TEXT_ONLY]
        return self._runners["image_encoder"]

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        stage: int,
        *,
        runner: str | Choice = "auto",
        precision: str | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open the graphs of stage 1 (coarse) or 2 (fine).

        What every case needs is opened now, the rest when a window first needs it.

        Parameters
        ----------
        bundle
            An opened bundle.
        stage
            1 or 2.
        runner
            "auto", the name of an inference library, or what `choose` gave.
        precision
            "fp32", "fp16" or "bf16"; None for the fastest that the processor computes in natively.
            A query decoder that is run by itself on a processor computes in fp32 in any case.
        threads
            How many to compute with; None leaves it to the library.

        Raises
        ------
        BundleError
            If the graphs do not fit the stage's window.
        MissingDependencyError, InputError, RunnerError
            As `medals_rt.runners.selection.choose` and `open_runner` raise them.
        """
        choice = choose(runner, bundle) if isinstance(runner, str) else runner
        on_cpu = choice.kind in CPU_RUNNERS

        def open_graph(name: GraphName) -> Runner:
            return open_runner(
                choice.kind,
                bundle.graph_path(stage, name),
                name=f"{name} of stage {stage}",
                precision="fp32" if on_cpu and name in ALWAYS_FP32 else precision,
                graph_precision=bundle.manifest.precision,
                threads=threads,
                cache_key=bundle.graph(stage, name).sha256,
            )

        def open_chain(names: Graphs) -> Runner:
            return open_joined(
                choice.kind,
                [bundle.graph_path(stage, name) for name in names],
                name=f"{' + '.join(names)} of stage {stage}",
                precision="fp32" if ALWAYS_FP32.issuperset(names) else precision,
                threads=threads,
                cache_key="+".join(bundle.graph(stage, name).sha256 for name in names),
            )

        joined = OnDemand(open_chain) if choice.kind in JOINING_RUNNERS else None
        network = cls(bundle.stage_spec(stage), OnDemand(open_graph), choice.why, joined)
        try:
            network._open_first(_TEXT_ONLY)
        except BaseException:
            network.close()
            raise
        return network

    def _open_first(self, graphs: Graphs) -> None:
        """Open what every case needs, and hold it to the stage's window.

        Raises
        ------
        BundleError
            If the graphs are for another window.
        """
        if self._joined is None:
            for name in graphs:
                self._runners[name]
        (image,) = (spec for spec in self._first.inputs if spec.name == "image")
        if image.shape[2:] != self.spec.window_hwd:
            raise BundleError(
                f"the graphs of stage {self.spec.number} are for windows of {image.shape[2:]}, the "
                f"bundle says {self.spec.window_hwd}; export again"
            )

    def predict(
        self,
        image: Array,
        queries: Array,
        prompts: SpatialPrompts | None = None,
        *,
        classes: slice | None = None,
        classes_per_chunk: int = CLASSES_PER_CHUNK,
    ) -> Iterator[tuple[slice, Array]]:
        """Run one pass over one window; give the probabilities of some classes at a time.

        From text alone, classes don't see each other. Spatial prompts are seen by every class
        (`F_a` sums over them), so those of all N count whichever classes are wanted.

        Parameters
        ----------
        image
            `(1, 1, H, W, D)` float32 in 0..255.
        queries
            Text embeddings `(N, dim)` float32, of all classes.
        prompts
            `S_p` of all classes; None for zeros. The foreground prompt `S_f` follows from it.
        classes
            Those wanted, with start and stop; None for all.
        classes_per_chunk
            How many come at a time where they are cut; up to 16 prompted ones never are.

        Yields
        ------
        classes, probabilities
            Which, with start and stop, and `P (n, H, W, D)` float32.
        """
        wanted = classes or slice(0, queries.shape[0])
        graphs = pass_chains(
            queries.shape[0], wanted, classes_per_chunk, prompted=prompts is not None
        )
        if prompts is not None and len(graphs) == 1:
            yield wanted, self._folded(graphs[0], image, queries, prompts)[wanted, ...]
            return
        if prompts is not None:
            refined, adapted = self._fused(image, queries, prompts)
        else:
            nothing = namespace(image).zeros_like(image)
            seen = {"image": image, "foreground": nothing}
            if len(graphs) == 1:
                found = self._run(graphs[0], **seen, queries=queries[wanted, ...])
                yield wanted, found["probabilities"]
                return
            fused = self._run(graphs[0], **seen, queries=queries)
            refined, adapted = fused["refined"], fused["adapted_queries"]
        for start in range(wanted.start, wanted.stop, classes_per_chunk):
            chunk = slice(start, min(start + classes_per_chunk, wanted.stop))
            found = self._run(_CLASSIFY, refined=refined, adapted_queries=adapted[chunk, ...])
            yield chunk, found["probabilities"]

    def prepare(
        self, count: int, classes: slice, classes_per_chunk: int, *, prompted: bool
    ) -> None:
        """Open what `predict` will run, so that the first window costs what the others do.

        Parameters
        ----------
        count
            N.
        classes, classes_per_chunk
            As for `predict`.
        prompted
            Whether windows will have spatial prompts.
        """
        for graphs in pass_chains(count, classes, classes_per_chunk, prompted=prompted):
            if self._joined is not None:
                self._joined[graphs]
            else:
                for name in graphs:
                    self._runners[name]

    def rest(self) -> None:
        """Give back the memory that the library keeps for a next run of the same graphs.

        For the end of a stage; between chains that need much it is done anyway, or all of them
        would hold theirs at once.
        """
        if self._joined is not None and self._working is not None:
            release_memory(self._joined[self._working])
        self._working = None

    def _folded(
        self, graphs: Graphs, image: Array, queries: Array, prompts: SpatialPrompts
    ) -> Array:
        """Run a prompted pass of few classes, padded with empty ones to a refiner's width."""
        xp = namespace(queries)
        width = next(width for width, name in FOLDED_REFINERS.items() if name in graphs)
        missing = width - queries.shape[0]
        if missing:
            queries = xp.concat([queries, *[xp.zeros_like(queries[:1, ...])] * missing])
        found = self._run(
            graphs,
            image=image,
            foreground=prompts.foreground(),
            queries=queries,
            prompts=prompts.channels(width),
        )
        return found["probabilities"]

    def _fused(self, image: Array, queries: Array, prompts: SpatialPrompts) -> tuple[Array, Array]:
        """Give `F_r` and `T (N, C)` of a prompted pass of many classes.

        `F_a` is made by arrays, but where one chain looks it up.
        """
        seen = {"image": image, "foreground": prompts.foreground()}
        if self._joined is not None and isinstance(prompts, LabelPrompts):
            fused = self._run(_PROMPTED_MANY, **seen, queries=queries, prompt_index=prompts.index())
            return fused["refined"], fused["adapted_queries"]
        encoded = self._run(_ENCODE, **seen)
        embedding, features = encoded["image_embedding"], encoded["features"]
        adapted = self._run(_DECODE, image_embedding=embedding, queries=queries)["adapted_queries"]
        found = self._run(_FUSE, features=features, prompt_features=prompts.spread(adapted))
        return found["refined"], adapted

    def _run(self, graphs: Graphs, **values: Array) -> dict[str, Array]:
        """Run graphs one after another, each fed by name from `values` and what came before.

        Gives at least what no graph of them reads.
        """
        if self._joined is not None:
            if graphs not in _LIGHT:
                if self._working != graphs:
                    self.rest()
                self._working = graphs
            return self._joined[graphs].run(values)
        for name in graphs:
            runner = self._runners[name]
            values.update(runner.run({spec.name: values[spec.name] for spec in runner.inputs}))
        return values

    def close(self) -> None:
        """Free the graphs."""
        for runner in (*self._runners.values(), *(self._joined or {}).values()):
            runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pass_chains(
    count: int, wanted: slice, classes_per_chunk: int, *, prompted: bool
) -> list[Graphs]:
    """Give the chains of graphs that a pass of N classes runs, in order.

    Of many classes with prompts this is for exclusive ones; others run the same graphs one by one.
    """
    if prompted:
        name = next((name for width, name in FOLDED_REFINERS.items() if width >= count), None)
        if name is not None:
            return [("image_encoder", "query_decoder", name)]
        return [_PROMPTED_MANY, _CLASSIFY]
    if wanted.stop - wanted.start <= classes_per_chunk:
        return [_TEXT_ONLY]
    return [_TEXT_ONLY_MANY, _CLASSIFY]
