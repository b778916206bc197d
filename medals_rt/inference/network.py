"""One stage's network, put together from the graphs of a bundle.

The only place that knows how the network is cut into graphs, and which of them a pass takes:

- text only: encoder and fusion in a row give `F_r` and the image embedding, which no text has
  entered yet (`TextOnlyFeatures`); the query decoder and the classifier, in chunks of classes, make
  probabilities of them, for this text or for later ones;
- at most 16 prompted classes (*folded*): encoder, query decoder and refiner in a row, as one graph
  where the library can join them;
- more prompted classes: one encoding and one fused feature map `F_r` serve the classifier in
  chunks. Where the library joins graphs, `F_a` of exclusive prompts is looked up inside the
  encoder's chain.

Nothing of N times the window is made but the probabilities themselves, chunk by chunk.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import FOLDED_REFINERS, GraphName
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.arrays import namespace
from medals_rt.common.choices import (
    Convolution,
    ConvolutionChoice,
    Precision,
    PrecisionChoice,
    RunnerChoice,
    StageNumber,
)
from medals_rt.common.errors import BundleError
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.common.typing import Array
from medals_rt.inference.graph_chains import (
    CLASSIFY,
    DECODE,
    ENCODE,
    ENCODE_TEXT_ONLY,
    FUSE,
    PROMPTED_MANY,
    Chain,
    Graphs,
    JoinedGraphs,
    SingleGraphs,
    pass_chains,
)
from medals_rt.inference.spatial_prompts import LabelPrompts, SpatialPrompts
from medals_rt.runners.base import Runner
from medals_rt.runners.registry import runner_spec
from medals_rt.runners.selection import (
    ChosenRunner,
    check_arithmetic,
    choose,
    open_runner,
)

# `T` multiplies every voxel's features, and costs under a hundredth of a window's time
_ALWAYS_FP32: frozenset[GraphName] = frozenset({"query_decoder"})


def arithmetic_of(
    graphs: Collection[GraphName], device: str, asked: str | None, stored: Precision
) -> tuple[str | None, Precision]:
    """Return what graphs that run as one are computed in, and what they are stored in.

    On a CPU some are always computed in fp32, whatever is asked for.

    Parameters
    ----------
    graphs
        Their names.
    device
        Where they run: ``"cpu"`` or ``"cuda"``.
    asked
        What others are computed in; None: what their runner takes.
    stored
        What others are stored in: the bundle's precision.
    """
    if device == "cpu" and {*graphs} <= _ALWAYS_FP32:
        return "fp32", "fp32"
    return asked, stored


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
    convolution: Convolution = "direct"


@dataclass(frozen=True)
class TextOnlyFeatures:
    """What a text-only pass over a window computes before it reads any text.

    A pass from other text gives the same to the bit with them as without.

    Attributes
    ----------
    refined
        `F_r`, as one graph hands it to the next.
    image_embedding
        What the query decoder looks at, `(L, dim)`.
    """

    refined: Array
    image_embedding: Array


def convolution_of(infos: Iterable[NetworkInfo]) -> Convolution:
    """Return how networks convolve together: "winograd" where one of them does."""
    kinds: set[Convolution] = {info.convolution for info in infos}
    return "winograd" if "winograd" in kinds else "direct"


@dataclass(frozen=True, eq=False)
class PassInput:
    """One pass of a network over one window; arrays lie where the network's do.

    Attributes
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
    features
        What `Network.encode` gave for this image, if it is known, for a pass from text alone.
    """

    image: Array
    queries: Array
    prompts: SpatialPrompts | None = None
    classes: slice | None = None
    classes_per_chunk: int = CLASSES_PER_CHUNK
    features: TextOnlyFeatures | None = None

    @property
    def count(self) -> int:
        """N."""
        number: int = self.queries.shape[0]
        return number

    @property
    def wanted(self) -> slice:
        """The classes wanted, with start and stop."""
        return self.classes or slice(0, self.count)


class Network(Protocol):
    """The network of one stage, opened once for any number of windows and cases.

    Nothing is kept from one window to the next. Arrays are taken from and returned on
    `array_device`; those returned are the caller's own. Not safe to share between threads.
    """

    @property
    def spec(self) -> StageSpec:
        """Window and spacing."""
        ...

    @property
    def info(self) -> NetworkInfo:
        """How the network is run; its notes grow as graphs are opened."""
        ...

    @property
    def array_device(self) -> str:
        """Where arrays must lie, as `medals_rt.common.arrays.to_device` names it."""
        ...

    def encode(self, image: Array) -> TextOnlyFeatures | None:
        """Run the part of a text-only pass that no text enters; see `predict`.

        Parameters
        ----------
        image
            As of a `PassInput`.

        Returns
        -------
        TextOnlyFeatures or None
            The caller's own; None where the network can't be cut there.
        """
        ...

    def predict(self, one: PassInput) -> Iterator[tuple[slice, Array]]:
        """Run one pass over one window; yield the probabilities of some classes at a time.

        From text alone, classes don't see each other. Spatial prompts are seen by every class
        (`F_a` sums over them), so those of all N count whichever classes are wanted.

        Parameters
        ----------
        one
            The pass.

        Yields
        ------
        classes, probabilities
            Which, with start and stop, and `P (n, H, W, D)` float32.
        """
        ...

    def prepare(self, count: int, *, prompted: bool) -> None:
        """Open what `predict` will run, so that the first window costs what the others do.

        Parameters
        ----------
        count
            N.
        prompted
            Whether windows will have spatial prompts.
        """
        ...

    def release(self) -> None:
        """Return the memory that the library keeps for a next run, at the end of a stage."""
        ...

    def close(self) -> None:
        """Free the network; it can't be used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class StageNetwork:
    """The network of one stage as a bundle's graphs; see `Network`.

    Parameters
    ----------
    spec
        Window and spacing.
    graphs
        Its graphs.
    why
        Why this library runs, for the report.
    """

    def __init__(self, spec: StageSpec, graphs: Graphs, why: str) -> None:
        self.spec = spec
        self._why = why
        self._graphs = graphs

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        stage: StageNumber,
        *,
        runner: RunnerChoice | ChosenRunner = "auto",
        precision: PrecisionChoice | None = None,
        threads: int | None = None,
        convolution: ConvolutionChoice = "auto",
    ) -> Self:
        """Open the graphs of stage 1 (coarse) or 2 (fine).

        What every case needs is opened now, the rest when a window first needs it, from the files
        that the bundle's manifest names and no others.

        Parameters
        ----------
        bundle
            An opened bundle.
        stage
            1 or 2.
        runner
            "auto", the name of an inference library, or what `choose` found.
        precision
            "fp32", "fp16" or "bf16", or the bundle's own; "auto" and None for that of a quantized
            bundle, else for the fastest that the processor computes in natively.
            A query decoder that is run by itself on a processor computes in fp32 in any case.
        threads
            How many to compute with; None leaves it to the library.
        convolution
            How OpenVINO's large convolutions are computed: "direct" by itself, "winograd" by
            `medals_rt.runners.winograd`, "auto" by what was measured to be faster.

        Raises
        ------
        BundleError
            If the graphs do not fit the stage's window, or are no longer those that the bundle was
            opened with (``bundle-changed``; also when a graph is opened later).
        MissingDependencyError, InputError, RunnerError
            As `medals_rt.runners.selection.choose` and `open_runner` raise them.
        """
        choice = choose(runner, bundle) if isinstance(runner, str) else runner
        library = runner_spec(choice.kind)
        check_arithmetic(choice.kind, bundle.precision, precision, convolution)

        def open_chain(chain: Chain) -> Runner:
            computed, stored = arithmetic_of(chain, library.device, precision, bundle.precision)

            def files() -> list[Path]:
                return [bundle.graph_path(stage, name) for name in chain]

            return open_runner(
                choice.kind,
                *files(),
                name=f"{' + '.join(chain)} of stage {stage}",
                precision=computed,
                graph_precision=stored,
                threads=threads,
                cache_key="+".join(bundle.graph(stage, name).sha256 for name in chain),
                check_files=files,
                joined=library.joins_graphs,
                convolution=convolution,
            )

        graphs = (
            JoinedGraphs(open_chain)
            if library.joins_graphs
            else SingleGraphs(lambda name: open_chain((name,)))
        )
        network = cls(bundle.stage_spec(stage), graphs, choice.why)
        try:
            for chain in pass_chains(1, prompted=False):
                graphs.open(chain)
            network._check_window()
        except BaseException:
            network.close()
            raise
        return network

    def _check_window(self) -> None:
        """Refuse graphs that are for another window than the stage's."""
        (image,) = (spec for spec in self._graphs.encoder.inputs if spec.name == "image")
        if image.shape[2:] != self.spec.window_hwd:
            raise BundleError(
                f"the graphs of stage {self.spec.number} are for windows of {image.shape[2:]}, the "
                f"bundle says {self.spec.window_hwd}; export again",
                code="graph-window",
            )

    @property
    def info(self) -> NetworkInfo:
        """How the network is run; its notes grow as graphs are opened."""
        encoder = self._graphs.encoder
        notes = (note for runner in self._graphs.opened for note in runner.notes)
        return NetworkInfo(
            runner=encoder.kind,
            why=self._why,
            device=encoder.device,
            precision=encoder.precision,
            version=encoder.version,
            threads=encoder.threads,
            notes=tuple(dict.fromkeys(notes)),
            convolution=encoder.convolution,
        )

    @property
    def array_device(self) -> str:
        """Where arrays must lie."""
        return self._graphs.encoder.device

    def encode(self, image: Array) -> TextOnlyFeatures:
        """Run the part of a text-only pass that no text enters, see `Network.encode`."""
        seen = {"image": image, "foreground": namespace(image).zeros_like(image)}
        found = self._graphs.run(ENCODE_TEXT_ONLY, seen)
        return TextOnlyFeatures(found["refined"], found["image_embedding"])

    def predict(self, one: PassInput) -> Iterator[tuple[slice, Array]]:
        """Run one pass over one window, see `Network.predict`."""
        wanted, prompts = one.wanted, one.prompts
        if prompts is None:
            features = one.features or self.encode(one.image)
            refined = features.refined
            adapted = self._adapted(features.image_embedding, one.queries)
        else:
            first, *then = pass_chains(one.count, prompted=True)
            if not then:
                yield wanted, self._folded(first, one.image, one.queries, prompts)[wanted, ...]
                return
            refined, adapted = self._fused(one.image, one.queries, prompts)
        for start in range(wanted.start, wanted.stop, one.classes_per_chunk):
            chunk = slice(start, min(start + one.classes_per_chunk, wanted.stop))
            values = {"refined": refined, "adapted_queries": adapted[chunk, ...]}
            yield chunk, self._graphs.run(CLASSIFY, values)["probabilities"]

    def prepare(self, count: int, *, prompted: bool) -> None:
        """Open what `predict` will run, see `Network.prepare`."""
        for chain in pass_chains(count, prompted=prompted):
            self._graphs.open(chain)

    def release(self) -> None:
        """Return the memory that the library keeps for a next run, at the end of a stage."""
        self._graphs.release()

    def _folded(self, chain: Chain, image: Array, queries: Array, prompts: SpatialPrompts) -> Array:
        """Run a prompted pass of few classes, padded with empty ones to a refiner's width."""
        xp = namespace(queries)
        width = next(width for width, name in FOLDED_REFINERS.items() if name in chain)
        missing = width - queries.shape[0]
        if missing:
            queries = xp.concat([queries, *[xp.zeros_like(queries[:1, ...])] * missing])
        values = {
            "image": image,
            "foreground": prompts.foreground(),
            "queries": queries,
            "prompts": prompts.channels(width),
        }
        found = self._graphs.run(chain, values)
        return found["probabilities"]

    def _fused(self, image: Array, queries: Array, prompts: SpatialPrompts) -> tuple[Array, Array]:
        """Return `F_r` and `T (N, C)` of a prompted pass of many classes.

        `F_a` is made by arrays, but where one chain looks it up.
        """
        seen = {"image": image, "foreground": prompts.foreground()}
        if self._graphs.joins and isinstance(prompts, LabelPrompts):
            values = {**seen, "queries": queries, "prompt_index": prompts.index()}
            fused = self._graphs.run(PROMPTED_MANY, values)
            return fused["refined"], fused["adapted_queries"]
        encoded = self._graphs.run(ENCODE, seen)
        adapted = self._adapted(encoded["image_embedding"], queries)
        values = {"features": encoded["features"], "prompt_features": prompts.spread(adapted)}
        return self._graphs.run(FUSE, values)["refined"], adapted

    def _adapted(self, image_embedding: Array, queries: Array) -> Array:
        """Return `T (N, C)` of all classes."""
        values = {"image_embedding": image_embedding, "queries": queries}
        return self._graphs.run(DECODE, values)["adapted_queries"]

    def close(self) -> None:
        """Free the graphs."""
        self._graphs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
