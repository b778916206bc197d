"""What is kept of an image between runs, so that a later one computes only what changed.

A person asks for one class after the other, and corrects what came of it. Of all that such a run
computes, much was computed before: the image in the network's intensities and on a stage's grid;
the features of windows, as long as they hold no spatial prompt, which no text has entered yet
(`network.TextOnlyFeatures`); the probabilities of windows that hold the same prompts as before.

Each is kept under a key of all that it depends on, so that what is found is to the bit what would
be computed: another image, intensity window, region, grid, text, prompt or mask is another key.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from medals_rt.common.arrays import contiguous, to_host
from medals_rt.common.typing import Array

if TYPE_CHECKING:
    from medals_rt.io.volume import Volume

Key: TypeAlias = tuple[Hashable, ...]

_SHARE_OF_MEMORY = 4
_LARGEST_DEFAULT = 4 * 2**30


def default_bytes(free: int) -> int:
    """Return how much to keep unless asked: a quarter of the bytes that are free, up to 4 GiB."""
    return min(free // _SHARE_OF_MEMORY, _LARGEST_DEFAULT)


@dataclass(frozen=True)
class CacheCounts:
    """How often something was found or not, and how often something made room."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


@dataclass
class _Entry:
    """What is kept, its bytes, whose it is, and the number of the run that used it last."""

    value: Any
    size: int
    owner: KeptImage
    run: int


class FeatureCache:
    """What is kept of all images, up to so many bytes. Any thread may use it.

    What was not used for longest makes room first. Nothing that the same run used does: a run that
    needs more than there is room for keeps its first windows, instead of each but the last ones.

    Examples
    --------
    >>> cache = FeatureCache(2 * 2**30)
    >>> with cache.image() as kept:
    ...     liver = segmenter.segment(volume, "Liver in abdominal CT", kept=kept)
    ...     spleen = segmenter.segment(volume, "Spleen in abdominal CT", kept=kept)  # far faster

    Parameters
    ----------
    max_bytes
        Of the arrays that are kept, wherever they lie; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0
        self._runs = 0
        self._counts = CacheCounts()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return self._bytes

    @property
    def counts(self) -> CacheCounts:
        """Hits, misses and evictions so far."""
        return self._counts

    def image(self) -> KeptImage:
        """Keep what is computed of an image, until the result is closed."""
        return KeptImage(self)

    def begin_run(self) -> int:
        """Return the number of a run that begins."""
        with self._lock:
            self._runs += 1
            return self._runs

    def get(self, key: Key, run: int) -> Any | None:
        """Return what is kept under a key, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._counts = replace(self._counts, misses=self._counts.misses + 1)
                return None
            entry.run = max(entry.run, run)
            self._entries.move_to_end(key)
            self._counts = replace(self._counts, hits=self._counts.hits + 1)
            return entry.value

    def has_room(self, size: int, run: int) -> bool:
        """Whether so many bytes could be kept for a run."""
        with self._lock:
            return size <= self._room(run)

    def put(self, key: Key, value: Any, size: int, owner: KeptImage, run: int) -> bool:
        """Keep a value, if there is room for it and its image is not closed.

        Returns
        -------
        bool
            Whether it is kept.
        """
        with self._lock:
            if owner.is_closed or key in self._entries or size > self._room(run):
                return False
            for old in [key for key, entry in self._entries.items() if entry.run < run]:
                if self._bytes + size <= self.max_bytes:
                    break
                self._bytes -= self._entries.pop(old).size
                self._counts = replace(self._counts, evictions=self._counts.evictions + 1)
            self._entries[key] = _Entry(value, size, owner, run)
            self._bytes += size
            return True

    def forget(self, owner: KeptImage) -> None:
        """Let go of all that is kept of an image, now and later."""
        with self._lock:
            owner.is_closed = True
            for key in [key for key, entry in self._entries.items() if entry.owner is owner]:
                self._bytes -= self._entries.pop(key).size

    def _room(self, run: int) -> int:
        """Return the bytes that are free, or were used last by an earlier run."""
        return self.max_bytes - sum(each.size for each in self._entries.values() if each.run >= run)


class KeptImage:
    """What is kept of one image: make it by `FeatureCache.image`, close it with the image.

    A context manager. An array of voxels must not be changed while it is used with this.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache
        self.is_closed = False
        self._seen: tuple[weakref.ref[Any], bytes] | None = None

    def begin(self, volume: Volume) -> Kept:
        """Begin a run on a volume; see `Kept`."""
        of_image = (self._digest(volume.image_dhw), volume.shape_dhw, volume.geometry_is_stated)
        return Kept(self, self.cache.begin_run(), (id(self), *of_image))

    def close(self) -> None:
        """Let go of everything; a run that still goes on keeps nothing more."""
        self.cache.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _digest(self, image: Any) -> bytes:
        """Name an image by its voxels, once an array."""
        if self._seen is not None and self._seen[0]() is image:
            return self._seen[1]
        digest = digest_of(image)
        self._seen = weakref.ref(image), digest
        return digest


@dataclass(frozen=True)
class Kept:
    """A place in what a run keeps of an image; `at` leads to those below it.

    Attributes
    ----------
    image
        Whose it is.
    run
        Number of the run.
    key
        All that is kept here depends on.
    """

    image: KeptImage
    run: int
    key: Key

    def at(self, *more: Hashable) -> Kept:
        """Return the place of what also depends on this."""
        return replace(self, key=(*self.key, *more))

    def get(self) -> Any | None:
        """Return what is kept here, or None."""
        return self.image.cache.get(self.key, self.run)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be kept."""
        return self.image.cache.has_room(size, self.run)

    def put(self, value: Any, arrays: Sequence[Array]) -> None:
        """Keep a value, whose memory is that of these arrays, if there is room for it."""
        size = sum(int(each.size) * int(each.dtype.itemsize) for each in arrays)
        self.image.cache.put(self.key, value, size, self.image, self.run)


def digest_of(*arrays: Array) -> bytes:
    """Name arrays by their types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for each in arrays:
        host = np.ascontiguousarray(contiguous(to_host(each)))
        digest.update(f"{host.dtype.str} {host.shape}\n".encode())
        digest.update(host.data.cast("B") if host.size else b"")
    return digest.digest()
