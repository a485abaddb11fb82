"""Tensors to a writable, a readable to tensors: frame by frame, on a few threads.

Design note: numpy, DEFLATE and zstd release the interpreter's lock on a frame, so plain threads
keep every core busy. At most two frames wait for each worker, and there are at most eight workers,
so memory beyond the tensors stays under 64 MB whatever their size. Encoding nf4 first loads
bitsandbytes, about 140 MB, once in a process; its frames keep to the bound like all others, and
decoding needs no such library.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedot.compression.chain import Chain
from fedot.compression.frames import FRAME_VALUES, FrameCodec, PackedFrame, dither_for
from fedot.compression.layout import Layout
from fedot.compression.manifest import TensorSpec, read_manifest, write_manifest
from fedot.errors import WireError

__all__ = ["IncomingPayload", "Readable", "Target", "Writable", "keep", "write_payload"]

MAX_WORKERS = 8

Release = Callable[[int, int], None]

T = TypeVar("T")
R = TypeVar("R")


def keep(start: int, end: int) -> None:
    """Tensors in memory stay there: nothing to release after a frame."""


class Writable(Protocol):
    """Anything with a file's `write`."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take in all of `data`."""


class Target(Protocol):
    """Where decoded frames go."""

    def window(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Room for the values of one frame."""

    def place(self, window: npt.NDArray[np.float32], start: int, end: int) -> None:
        """Take a window that has been written; raises `WireError` if a value does not fit."""


class Readable(Protocol):
    """Anything with a file's `read`."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, none at the end."""


def write_payload(
    flat: Mapping[str, Tensor],
    spec: Mapping[str, TensorSpec],
    chain: Chain,
    out: Writable,
    *,
    seed: int | None,
    workers: int | None,
    release: Release = keep,
) -> dict[str, int]:
    """Write manifest and frames of a planned chain.

    Args:
        flat: the tensors that `spec` names, each as one contiguous vector.
        spec: their shapes and dtypes.
        chain: as `plan` made it.
        out: where the bytes go, in order.
        seed: for stochastic rounding.
        workers: threads, or None for one per core up to eight.
        release: called with first value and end of each frame that is done.

    Returns:
        Bytes after each operator, `float32` first, the whole payload last.
    """
    codec, layout = FrameCodec.of(chain), Layout(spec)

    def pack(bounds: tuple[int, int]) -> tuple[int, int, PackedFrame]:
        start, end = bounds
        dither = dither_for(seed, start // FRAME_VALUES)
        try:
            packed = codec.pack(layout.gather(flat, start, end), dither)
        except OverflowError as error:
            raise ValueError(f"{layout.first_unsendable(flat, start, end)!r}: {error}") from error
        return start, end, packed

    manifest = write_manifest(chain, spec)
    out.write(manifest)
    written = len(manifest)
    bytes_after = dict.fromkeys(("float32", *(step.name for step in chain)), 0)
    for start, end, frame in _in_order(pack, layout.frames(), _threads(workers, layout.total)):
        for part in frame.parts:
            out.write(part)
            written += len(part)
        for name, size in frame.bytes_after.items():
            bytes_after[name] += size
        release(start, end)
    return bytes_after | {"float32": 4 * layout.total, "payload": written}


class IncomingPayload:
    """A payload whose manifest has been checked and whose frames are still to be read."""

    def __init__(
        self,
        source: Readable,
        spec: Mapping[str, TensorSpec],
        allowed: Collection[Chain],
        *,
        max_payload_bytes: int | None,
    ) -> None:
        """Read and check the manifest.

        Args:
            source: where the payload's bytes come from; it must end where the payload ends.
            spec: the tensors that are expected.
            allowed: chains that the receiver's policy accepts.
            max_payload_bytes: refuse a payload as soon as it is longer.

        Raises:
            WireError: it is no payload of these tensors in one of these chains.
        """
        self._source, self._most, self._taken = source, max_payload_bytes, 0
        self.layout = Layout(spec)
        self.chain = read_manifest(self._read, spec, allowed)

    def read_into(self, target: Target, *, workers: int | None) -> None:
        """Write the values into `target`, which is of no use after an error.

        Args:
            target: takes the frames of this payload's layout, from several threads.
            workers: threads, or None for one per core up to eight.

        Raises:
            WireError: anything in the frames is not as it must be.
        """
        codec, layout = FrameCodec.of(self.chain), self.layout

        def frames() -> Iterator[tuple[int, int, bytes, list[bytes]]]:
            for start, end in layout.frames():
                yield start, end, *codec.read(self._read, end - start)

        def unpack(frame: tuple[int, int, bytes, list[bytes]]) -> None:
            start, end, head, bodies = frame
            window = target.window(start, end)
            codec.unpack(head, bodies, window)
            target.place(window, start, end)

        for _ in _in_order(unpack, frames(), _threads(workers, layout.total)):
            pass
        if self._source.read(1):
            raise WireError("bytes follow the payload's last frame; it is refused whole.")

    def _read(self, size: int) -> bytes:
        """Exactly `size` bytes, however small the pieces in which they come."""
        self._taken += size
        if self._most is not None and self._taken > self._most:
            raise WireError(
                f"the payload has more than {self._most} bytes, the limit that is set here."
            )
        parts, missing = [], size
        while missing:
            part = self._source.read(missing)
            if not part:
                raise WireError(f"the payload is cut off: {missing} bytes are missing.")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _threads(workers: int | None, num_values: int) -> int:
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1, or None")
    frames = -(-num_values // FRAME_VALUES)
    return max(1, min(workers or os.cpu_count() or 1, MAX_WORKERS, frames))


def _in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` on threads: results in order, at most two items waiting for each thread."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="codec") as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
