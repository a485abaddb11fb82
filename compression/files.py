"""Payloads from and to safetensors files that are larger than memory.

Design note: the file is mapped, and each frame's pages are given back as soon as the frame is done,
so what stays resident is a few frames, not the file. The space for a new file is reserved first: on
a full disk that is an error here, where a write into the mapping would kill the process.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import torch

from fedot.compression.chain import Chain, plan
from fedot.compression.layout import DTYPES, Layout
from fedot.compression.manifest import TensorSpec
from fedot.compression.stream import IncomingPayload, Readable, Writable, write_payload
from fedot.errors import ConfigError

__all__ = ["decode_to_file", "encode_file", "spec_of_file"]

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Where a system lacks these, a file is still read and written, with more memory resident.
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_CODES = {name: code for code, name in _NAMES.items()}


class _Mapped:
    """A safetensors file as one flat tensor for each name, and a way to give pages back."""

    def __init__(self, path: Path, spec: Mapping[str, TensorSpec], *, write: bool) -> None:
        header_bytes, header = _header(path)
        with path.open("r+b" if write else "rb") as file:
            # A private copy-on-write mapping is never written to; torch only wants it writable.
            access = mmap.ACCESS_WRITE if write else mmap.ACCESS_COPY
            self._map = mmap.mmap(file.fileno(), 0, access=access)
        self._layout, self._spec = Layout(spec), spec
        self._begins = {n: 8 + header_bytes + header[n]["data_offsets"][0] for n in spec}
        self.flat = {
            name: torch.frombuffer(
                self._map, dtype=DTYPES[one.dtype], count=one.num_values, offset=self._begins[name]
            )
            if one.num_values
            else torch.empty(0, dtype=DTYPES[one.dtype])
            for name, one in spec.items()
        }

    def release(self, start: int, end: int) -> None:
        """Give back the memory of the pages that hold these values; the file keeps them."""
        for name, part, _ in self._layout.pieces(start, end):
            size = DTYPES[self._spec[name].dtype].itemsize
            first = self._begins[name] + part.start * size
            page = first - first % mmap.PAGESIZE
            if _DONTNEED is not None:
                self._map.madvise(_DONTNEED, page, self._begins[name] + part.stop * size - page)


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
    mapped = _Mapped(path, spec, write=False)
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
        _reserve(unchecked, expected)
        mapped = _Mapped(unchecked, expected, write=True)
        payload.read_into(mapped.flat, workers=workers, release=mapped.release)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


def _header(path: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Length and content of a header that safetensors itself has checked, or that is ours."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length, json.loads(file.read(length))


def _reserve(path: Path, spec: Mapping[str, TensorSpec]) -> None:
    """Make a file with the header for these tensors and room for their values."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # As safetensors orders them: wide dtypes first, so that every tensor is aligned.
    for name in sorted(spec, key=lambda name: (-DTYPES[spec[name].dtype].itemsize, name)):
        one = spec[name]
        begin, end = end, end + one.num_values * DTYPES[one.dtype].itemsize
        header[name] = {
            "dtype": _CODES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
        else:
            file.truncate(8 + len(text) + end)
