"""Payloads from and to safetensors files that are larger than memory.

Design note: a file that is read is mapped, and each frame's pages are given back as soon as the
frame is done, so what stays resident is a few frames, not the file. A file that is written gets its
frames by `pwrite`, where they belong and in any order: on a full disk that is an error, where a
write into a mapping would kill the process.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from torch import Tensor

from fedot.compression.chain import Chain, plan
from fedot.compression.layout import DTYPES, Layout, cast_into
from fedot.compression.manifest import TensorSpec
from fedot.compression.stream import IncomingPayload, Readable, Writable, write_payload
from fedot.errors import ConfigError

__all__ = ["decode_to_file", "encode_file", "spec_of_file"]

Floats = npt.NDArray[np.float32]

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Where a system lacks it, a file is still read, with more memory resident.
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_CODES = {name: code for code, name in _NAMES.items()}


class _Mapped:
    """A safetensors file as one flat tensor for each name, and a way to give pages back."""

    def __init__(self, path: Path, spec: Mapping[str, TensorSpec]) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            # Private copy-on-write: never written to, but torch wants it to be writable.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._layout, self._spec = Layout(spec), spec
        self._begins = {name: 8 + length + header[name]["data_offsets"][0] for name in spec}
        self.flat = {name: self._tensor(name) for name in spec}

    def _tensor(self, name: str) -> Tensor:
        dtype, count = DTYPES[self._spec[name].dtype], self._spec[name].num_values
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=self._begins[name])

    def release(self, start: int, end: int) -> None:
        """Give back the memory of the pages that hold these values; the file keeps them."""
        for name, part, _ in self._layout.pieces(start, end):
            size = DTYPES[self._spec[name].dtype].itemsize
            first = self._begins[name] + part.start * size
            page = first - first % mmap.PAGESIZE
            if _DONTNEED is not None:
                self._map.madvise(_DONTNEED, page, self._begins[name] + part.stop * size - page)


class _NewFile:
    """A safetensors file whose header is written, to be filled frame by frame."""

    def __init__(self, file: int, layout: Layout, spec: Mapping[str, TensorSpec]) -> None:
        self._file, self._layout, self._spec = file, layout, spec
        header, self._begins = _new_header(spec)
        _write_all(file, header, 0)

    def window(self, start: int, end: int) -> Floats:
        """Memory of its own for each frame."""
        return np.empty(end - start, dtype=np.float32)

    def place(self, window: Floats, start: int, end: int) -> None:
        """Cast a frame's values and write them where they belong."""
        for name, part, within in self._layout.pieces(start, end):
            values = torch.empty(part.stop - part.start, dtype=DTYPES[self._spec[name].dtype])
            cast_into(values, window[within], name)
            offset = self._begins[name] + part.start * values.itemsize
            _write_all(self._file, values.view(torch.uint8).numpy().data, offset)


def spec_of_file(path: Path) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of the tensors in a safetensors file.

    Raises:
        ConfigError: it is no such file, or holds a dtype that does not travel.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            rows = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error
    for name, (_, code) in rows.items():
        if code not in _NAMES:
            raise ConfigError(f"{name!r} in {path} is {code}; it must be {', '.join(_CODES)}.")
    return {name: TensorSpec(shape, _NAMES[code]) for name, (shape, code) in rows.items()}


def encode_file(
    out: Writable,
    path: Path,
    chain: Chain,
    *,
    seed: int | None = None,
    workers: int | None = None,
) -> dict[str, int]:
    """Write the payload of all tensors in a safetensors file; memory stays within 64 MB.

    Returns:
        Bytes after each operator, as in `Encoded`.

    Raises:
        ConfigError: it is no such file, or the chain cannot be planned.
        ValueError: a value is not finite or too large.
    """
    spec = spec_of_file(path)
    mapped = _Mapped(path, spec)
    return write_payload(
        mapped.flat, spec, plan(*chain), out, seed=seed, workers=workers, release=mapped.release
    )


def decode_to_file(
    source: Readable,
    expected: Mapping[str, TensorSpec],
    allowed: Collection[Chain],
    path: Path,
    *,
    max_payload_bytes: int | None = None,
    workers: int | None = None,
) -> None:
    """Check a payload and write its tensors as a safetensors file; memory stays within 64 MB.

    Guarantees:
        `path` appears whole when every byte has been checked, or not at all.

    Raises:
        WireError: anything in the bytes is not as it must be.
        OSError: the file cannot be written.
    """
    payload = IncomingPayload(source, expected, allowed, max_payload_bytes=max_payload_bytes)
    unchecked = path.with_name(path.name + ".unchecked")
    try:
        with unchecked.open("wb") as file:
            target = _NewFile(file.fileno(), payload.layout, expected)
            payload.read_into(target, workers=workers)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


def _new_header(spec: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the first value, and where each tensor begins."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    # As safetensors orders them: wide dtypes first, so that every tensor is aligned.
    for name in sorted(spec, key=lambda name: (-DTYPES[spec[name].dtype].itemsize, name)):
        one = spec[name]
        begins[name], end = end, end + one.num_values * DTYPES[one.dtype].itemsize
        header[name] = {
            "dtype": _CODES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begins = {name: 8 + len(text) + begin for name, begin in begins.items()}
    return len(text).to_bytes(8, "little") + text, begins


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written
