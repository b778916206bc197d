"""One stage's network, put together from the graphs of a bundle.

The only place that knows how the network is cut into graphs: what calls it passes an `Encoded` on
without looking inside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from medals_rt.arrays import Array
from medals_rt.bundle import Bundle
from medals_rt.errors import BundleError
from medals_rt.geometry import StageSpec
from medals_rt.manifest import GRAPH_NAMES, GraphName
from medals_rt.runners import Choice, Runner, choose, open_runner

# `T` multiplies every voxel's features, and costs under a hundredth of a window's time
_ALWAYS_FP32: frozenset[GraphName] = frozenset({"query_decoder"})


@dataclass(frozen=True)
class Encoded:
    """What the image encoder saw in one window; only its `StageNetwork` looks inside.

    Attributes
    ----------
    features
        `F (1, C, H, W, D)` float32.
    image_embedding
        `(L, dim)` float32.
    """

    features: Array
    image_embedding: Array


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


class StageNetwork:
    """The network of one stage, opened once for any number of windows and cases.

    Nothing is kept from one window to the next. Arrays are taken from and given back on the
    runner's device; those given back are the caller's own. Not safe to share between threads.
    """

    def __init__(self, spec: StageSpec, runners: dict[GraphName, Runner], why: str) -> None:
        self.spec = spec
        self._runners = runners
        first = runners["image_encoder"]
        notes = (note for runner in runners.values() for note in runner.notes)
        self.info = NetworkInfo(
            runner=first.kind,
            why=why,
            device=first.device,
            precision=first.precision,
            version=first.version,
            threads=first.threads,
            notes=tuple(dict.fromkeys(notes)),
        )

    @property
    def array_device(self) -> str:
        """Where arrays must lie, as `medals_rt.arrays.to_device` names it."""
        return self.info.device

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

        Parameters
        ----------
        bundle
            An opened bundle.
        stage
            1 or 2.
        runner
            "auto", the name of an inference library, or what `choose` gave.
        precision
            "fp32" or "bf16"; None for the fastest that the processor computes in natively. The
            query decoder computes in fp32 in any case.
        threads
            How many to compute with; None leaves it to the library.

        Raises
        ------
        BundleError
            If the graphs do not fit the stage's window.
        MissingDependencyError, InputError, RunnerError
            As `medals_rt.runners.choose` and `open_runner` raise them.
        """
        choice = choose(runner) if isinstance(runner, str) else runner
        spec = bundle.stage_spec(stage)
        with _closing_on_error() as runners:
            for name in GRAPH_NAMES:
                runners[name] = open_runner(
                    choice.kind,
                    bundle.graph_path(stage, name),
                    name=f"{name} of stage {stage}",
                    precision="fp32" if name in _ALWAYS_FP32 else precision,
                    threads=threads,
                    cache_key=bundle.graph(stage, name).sha256,
                )
            window = runners["image_encoder"].inputs[0].shape[2:]
            if window != spec.window_hwd:
                raise BundleError(
                    f"the graphs of stage {stage} are for windows of {window}, the bundle says "
                    f"{spec.window_hwd}; export again"
                )
        return cls(spec, runners, choice.why)

    def encode(self, image: Array, foreground: Array | None = None) -> Encoded:
        """Look at one window.

        Parameters
        ----------
        image
            `(1, 1, H, W, D)` float32 in 0..255.
        foreground
            `S_f`, of the same shape, 0 or 1; None for zeros.
        """
        if foreground is None:
            foreground = np.zeros(image.shape, np.float32)
        found = self._runners["image_encoder"].run({"image": image, "foreground": foreground})
        return Encoded(found["features"], found["image_embedding"])

    def adapt(self, encoded: Encoded, queries: Array) -> Array:
        """Adapt text embeddings `(N, dim)` float32 to the window: `T (N, C)` float32.

        Queries do not see each other, so they may be given all at once or in chunks.
        """
        feeds = {"image_embedding": encoded.image_embedding, "queries": queries}
        return self._runners["query_decoder"].run(feeds)["adapted_queries"]

    def refine(
        self, encoded: Encoded, adapted_queries: Array, spatial_prompts: Array | None = None
    ) -> Array:
        """Give the probabilities `P (N, H, W, D)` float32.

        Parameters
        ----------
        encoded
            What `encode` gave; it serves any number of calls.
        adapted_queries
            `T (N, C)`. Chunks of classes give the same as all at once only without spatial
            prompts: with them every class sees the prompts of the classes in the same call
            (`F_a` sums over N).
        spatial_prompts
            `S_p (N, H, W, D)` float32; None for zeros, which costs less than half.
        """
        feeds = {"features": encoded.features, "adapted_queries": adapted_queries}
        if spatial_prompts is None:
            return self._runners["refiner_text_only"].run(feeds)["probabilities"]
        feeds["prompts"] = spatial_prompts
        return self._runners["refiner"].run(feeds)["probabilities"]

    def predict(
        self,
        image: Array,
        foreground: Array | None,
        queries: Array,
        spatial_prompts: Array | None = None,
    ) -> Array:
        """Run one window whole, where nothing of its encoding is used twice.

        The same as `encode`, `adapt`, `refine` in a row; a runner that gains from seeing the
        graphs as one is used here.

        Returns
        -------
        Array
            Probabilities `(N, H, W, D)` float32.
        """
        encoded = self.encode(image, foreground)
        return self.refine(encoded, self.adapt(encoded, queries), spatial_prompts)

    def close(self) -> None:
        """Free the graphs."""
        for runner in self._runners.values():
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


@contextmanager
def _closing_on_error() -> Iterator[dict[GraphName, Runner]]:
    """Collect runners; close those already open if a later one fails."""
    runners: dict[GraphName, Runner] = {}
    try:
        yield runners
    except BaseException:
        for runner in runners.values():
            runner.close()
        raise
