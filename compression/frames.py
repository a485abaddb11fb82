"""One frame of up to 262,144 values to bytes and back.

    crc32 | method, length of each section | the sections' bytes

Sections, in this order: gaps (with top_k), scales (where values are scaled), then the codes, or one
section for each of their byte planes. All sizes but those of compressed bytes follow from the chain
and the number of values, so a receiver knows before it reads how long a section can be.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from fedot.compression.chain import Chain, Stage, Step, step_of
from fedot.compression.deflate import CODERS
from fedot.compression.quantize import VALUES, Values
from fedot.compression.sparsify import gaps_of, indices_of, largest, max_gap_bytes, num_kept
from fedot.errors import WireError

__all__ = ["FRAME_VALUES", "FrameCodec", "PackedFrame", "Section", "dither_for"]

FRAME_VALUES = 262_144
"""Values in every frame but the last: 1 MiB of float32."""

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Read = Callable[[int], bytes]

_CRC = struct.Struct("<I")
_SECTION = struct.Struct("<BI")
_STORED, _CODED = 0, 1


@dataclass(frozen=True, slots=True)
class Section:
    """A run of bytes in a frame: its name and the sizes it may have before compression."""

    name: str
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class PackedFrame:
    """A frame as it is sent, and how many bytes each operator left."""

    parts: Sequence[bytes | memoryview]
    bytes_after: dict[str, int]


def dither_for(seed: int | None, frame: int) -> Callable[[int], Floats]:
    """Uniform float32 in [0, 1) for one frame, whichever thread packs it."""

    def dither(num_values: int) -> Floats:
        if seed is None:
            raise ValueError("the chain rounds stochastically; seed must be given, but is None.")
        bits = np.random.SFC64(np.random.SeedSequence((seed, frame)))
        words = bits.random_raw(-(-num_values // 4))
        return words.view(np.uint16)[:num_values].astype(np.float32) / np.float32(65536)

    return dither


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """A planned chain, ready for frames: it holds no state and may be shared by threads."""

    values: Values
    value_step: Step
    keep_ratio: float | None
    planes: bool
    coder: Step | None

    @property
    def scaled(self) -> bool:
        """Whether a float32 scale per block goes with the codes."""
        return self.values.max_scale is not None

    @classmethod
    def of(cls, chain: Chain) -> FrameCodec:
        """Take a planned chain apart."""
        sparsify, values = step_of(chain, Stage.SPARSIFY), step_of(chain, Stage.VALUES)
        assert values is not None, "plan() lets no chain pass without one"
        return cls(
            values=VALUES[values.name],
            value_step=values,
            keep_ratio=float(sparsify.params["keep_ratio"]) if sparsify else None,
            planes=step_of(chain, Stage.PLANES) is not None,
            coder=step_of(chain, Stage.ENTROPY),
        )

    def sections(self, num_values: int) -> list[Section]:
        """What a frame of so many values is made of."""
        result, k = [], self._num_coded(num_values)
        if self.keep_ratio is not None:
            result.append(Section("gaps", k, max_gap_bytes(num_values, k)))
        if self.scaled:
            size = 4 * self.values.num_scales(k, self.value_step.params)
            result.append(Section("scales", size, size))
        if self.planes:
            planes = range(self.values.bits // 8)
            return result + [Section(f"plane {number}", k, k) for number in planes]
        size = self.values.code_bytes(k)
        return [*result, Section("codes", size, size)]

    def pack(self, values: Floats, dither: Callable[[int], Floats]) -> PackedFrame:
        """Bytes of one frame.

        Raises:
            OverflowError: a value is not finite or above `MAX_SENT`.
        """
        bytes_after, raw, num_values = dict[str, int](), list[Bytes](), values.size
        if self.keep_ratio is not None:
            # A value that is not finite counts as the largest, so it is kept and refused below.
            indices = largest(values, self._num_coded(values.size))
            values = values[indices]
            raw.append(gaps_of(indices))
            bytes_after["top_k"] = raw[0].size + values.nbytes
        scales, codes = self.values.encode(values, self.value_step.params, dither)
        if self.scaled:
            raw.append(scales.view(np.uint8))
        raw += self._split(codes)
        bytes_after[self.value_step.name] = sum(section.size for section in raw)
        if self.planes:
            bytes_after["planes"] = bytes_after[self.value_step.name]
        head, bodies = b"", list[bytes | memoryview]()
        for section, data in zip(self.sections(num_values), raw, strict=True):
            method, body = self._coded(section, data.data)
            head += _SECTION.pack(method, len(body))
            bodies.append(body)
        if self.coder:
            bytes_after[self.coder.name] = sum(map(len, bodies))
        return PackedFrame([_CRC.pack(_checksum(head, bodies)) + head, *bodies], bytes_after)

    def read(self, read: Read, num_values: int) -> tuple[bytes, list[bytes]]:
        """Take one frame's bytes off the wire; no section is read that is too long.

        Raises:
            WireError: the frame is cut off, or a section has a length it cannot have.
        """
        sections = self.sections(num_values)
        head = read(_CRC.size + _SECTION.size * len(sections))
        bodies = []
        for number, section in enumerate(sections):
            method, length = _SECTION.unpack_from(head, _CRC.size + _SECTION.size * number)
            least = section.least if method == _STORED else 1
            most = section.most if method == _STORED else section.most - 1
            if method > (_CODED if self.coder else _STORED) or not least <= length <= most:
                raise WireError(
                    f"section {section.name} has method {method} and {length} bytes; with this "
                    f"chain it must have {section.least} to {section.most} before compression."
                )
            bodies.append(read(length))
        return head, bodies

    def unpack(self, head: bytes, bodies: list[bytes], out: Floats) -> None:
        """Write the values of one frame, from what `read` took in, to `out`.

        Raises:
            WireError: bytes were damaged, or mean no frame of this chain.
        """
        if _checksum(head[_CRC.size :], bodies) != _CRC.unpack_from(head)[0]:
            raise WireError("a frame's CRC-32 does not match; it was damaged and must be resent.")
        raw = []
        for number, (section, body) in enumerate(zip(self.sections(out.size), bodies, strict=True)):
            method, _ = _SECTION.unpack_from(head, _CRC.size + _SECTION.size * number)
            raw.append(np.frombuffer(self._decoded(section, method, body), dtype=np.uint8))
        gaps = raw.pop(0) if self.keep_ratio is not None else None
        scales = raw.pop(0).view(np.float32) if self.scaled else np.empty(0, dtype=np.float32)
        codes = np.stack(raw, axis=1).reshape(-1) if self.planes else raw[0]
        if gaps is None:
            self.values.decode(scales, codes, self.value_step.params, out)
            return
        kept = np.empty(self._num_coded(out.size), dtype=np.float32)
        self.values.decode(scales, codes, self.value_step.params, kept)
        indices = indices_of(gaps, kept.size, out.size)
        out[:] = 0
        out[indices] = kept

    def _num_coded(self, num_values: int) -> int:
        return num_values if self.keep_ratio is None else num_kept(num_values, self.keep_ratio)

    def _split(self, codes: Bytes) -> list[Bytes]:
        if not self.planes:
            return [codes]
        width = self.values.bits // 8
        return [np.ascontiguousarray(codes[number::width]) for number in range(width)]

    def _coded(self, section: Section, data: memoryview) -> tuple[int, bytes | memoryview]:
        # Scales hardly shrink and are a value in sixty at most: not worth a call.
        if self.coder and section.name != "scales":
            body = CODERS[self.coder.name].encode(data, int(self.coder.params["level"]))
            if len(body) < len(data):
                return _CODED, body
        return _STORED, data

    def _decoded(self, section: Section, method: int, body: bytes) -> bytes:
        if method == _STORED:
            return body
        assert self.coder is not None, "read() takes no coded section without a coder"
        raw = CODERS[self.coder.name].decode(body, section.most)
        if len(raw) < section.least:
            raise WireError(
                f"section {section.name} unpacks to {len(raw)} bytes; it must have "
                f"{section.least}. The sender must send it anew."
            )
        return raw


def _checksum(head: bytes, bodies: Sequence[bytes | memoryview]) -> int:
    crc: int = isal_zlib.crc32(head)
    for body in bodies:
        crc = isal_zlib.crc32(body, crc)
    return crc
